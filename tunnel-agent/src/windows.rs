//! Maintenance windows: the times of the week, in UTC, at which the device lets operators in. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tunnel_proto::UnixTime;

use crate::moment::Moment;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60;
const WEEK: u64 = 7 * DAY;

/// UNIX time began on a Thursday.
const FIRST_DAY: u64 = 3;

const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// When operators are let in; always if there are none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Windows(pub Vec<Window>);

/// One window: some days of the week, from a minute of the day to another, as `mon-fri 06:00-18:00`. One that ends before
/// it begins goes on into the next day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    text: String,
    days: [bool; 7],
    from: u64,
    /// At most a day after `from`.
    length: u64,
}

/// Tells that a text is no window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is days and times in UTC, as `mon-fri 06:00-18:00` or `sat,sun 22:00-02:00`; `daily` names all days"
)]
pub struct WindowError;

impl Windows {
    /// Says whether operators are let in.
    pub fn is_open(&self, now: UnixTime) -> bool {
        self.0.is_empty() || self.0.iter().any(|window| window.holds(minute_of_week(now)))
    }

    /// Says whether operators are let in by both clocks: a server that turns its own opens no window (THREATS I12).
    pub fn are_open(&self, now: Moment) -> bool {
        self.is_open(now.server) && self.is_open(now.own)
    }

    /// Returns how long it is until operators are no longer let in, by whichever clock says so first: nothing at all when
    /// they are not, and `None` if that never comes.
    pub fn closes_in(&self, now: Moment) -> Option<Duration> {
        if !self.are_open(now) {
            return Some(Duration::ZERO);
        }
        self.open_for(now.server)
            .into_iter()
            .chain(self.open_for(now.own))
            .min()
    }

    /// Returns how long it is until operators are no longer let in; `None` if that never ends, or they are not let in.
    fn open_for(&self, now: UnixTime) -> Option<Duration> {
        if self.0.is_empty() || !self.is_open(now) {
            return None;
        }
        let minute = minute_of_week(now);
        let closed = |minutes: &u64| {
            !self
                .0
                .iter()
                .any(|window| window.holds((minute + minutes) % WEEK))
        };
        let whole = (1..=WEEK).find(closed)?;
        Some(Duration::from_secs(whole * MINUTE - now.as_secs() % MINUTE))
    }
}

impl Window {
    fn holds(&self, minute: u64) -> bool {
        (0..7).filter(|day| self.days[*day as usize]).any(|day| {
            let begin = day * DAY + self.from;
            (minute + WEEK - begin) % WEEK < self.length
        })
    }
}

fn minute_of_week(now: UnixTime) -> u64 {
    (now.as_secs() / MINUTE + FIRST_DAY * DAY) % WEEK
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let (days, times) = text.split_once(' ').ok_or(WindowError)?;
        let (from, to) = times.trim().split_once('-').ok_or(WindowError)?;
        let (from, to) = (time(from)?, time(to)?);
        if from == DAY {
            return Err(WindowError);
        }
        Ok(Self {
            text: text.to_owned(),
            days: read_days(days)?,
            from,
            length: if to > from { to - from } else { to + DAY - from },
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn read_days(text: &str) -> Result<[bool; 7], WindowError> {
    if text == "daily" {
        return Ok([true; 7]);
    }
    let day = |text: &str| NAMES.iter().position(|name| *name == text).ok_or(WindowError);
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let count = (last + 7 - first) % 7;
        (0..=count).for_each(|next| days[(first + next) % 7] = true);
    }
    Ok(days)
}

/// Reads `06:00`; `24:00` is the end of a day.
fn time(text: &str) -> Result<u64, WindowError> {
    let (hours, minutes) = text.split_once(':').ok_or(WindowError)?;
    let number = |text: &str| match text.as_bytes() {
        [a, b] if a.is_ascii_digit() && b.is_ascii_digit() => text.parse::<u64>().map_err(|_| WindowError),
        _ => Err(WindowError),
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let time = hours * 60 + minutes;
    (minutes < 60 && time <= DAY).then_some(time).ok_or(WindowError)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Monday 2026-01-05, 00:00 UTC.
    const MONDAY: UnixTime = UnixTime::from_secs(1_767_571_200);

    fn at(day: u64, hour: u64, minute: u64) -> UnixTime {
        MONDAY.after(Duration::from_secs(((day * 24 + hour) * 60 + minute) * 60))
    }

    fn windows(texts: &[&str]) -> Windows {
        Windows(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_window_is_open_on_its_days_and_between_its_times() {
        let work = windows(&["mon-fri 06:00-18:00"]);
        for (time, open) in [
            (at(0, 5, 59), false),
            (at(0, 6, 0), true),
            (at(4, 17, 59), true),
            (at(4, 18, 0), false),
            (at(5, 12, 0), false),
            (at(7, 6, 0), true),
        ] {
            assert_eq!(work.is_open(time), open, "{time}");
        }
        let night = windows(&["sun 22:00-02:00", "wed,thu 00:00-24:00"]);
        for (time, open) in [
            (at(6, 21, 59), false),
            (at(6, 23, 0), true),
            (at(0, 1, 59), true),
            (at(0, 2, 0), false),
            (at(2, 0, 0), true),
            (at(3, 23, 59), true),
            (at(4, 0, 0), false),
        ] {
            assert_eq!(night.is_open(time), open, "{time}");
        }
        assert!(
            windows(&["daily 08:00-08:00"]).is_open(at(1, 3, 0)),
            "a whole day from there"
        );
        assert!(Windows::default().is_open(MONDAY));
    }

    #[test]
    fn it_is_known_when_a_window_closes() {
        let open_for = |texts: &[&str], time| windows(texts).open_for(time).map(|span| span.as_secs());
        assert_eq!(open_for(&["mon-fri 06:00-18:00"], at(0, 17, 0)), Some(3600));
        assert_eq!(
            open_for(
                &["mon-fri 06:00-18:00"],
                at(0, 17, 59).after(Duration::from_secs(59))
            ),
            Some(1)
        );
        // Windows that touch are one.
        assert_eq!(
            open_for(&["mon 06:00-18:00", "mon 18:00-20:00"], at(0, 17, 0)),
            Some(3 * 3600)
        );
        assert_eq!(open_for(&["mon 06:00-18:00"], at(0, 5, 0)), None);
        assert_eq!(open_for(&["daily 00:00-24:00"], at(0, 5, 0)), None);
        assert_eq!(Windows::default().open_for(MONDAY), None);
    }

    /// THREATS I12: it closes by the clock that is there first, and is closed for both then.
    #[test]
    fn a_window_closes_by_either_clock_and_is_over_at_once() {
        let work = windows(&["mon-fri 06:00-18:00"]);
        let hour = Duration::from_secs(3600);
        for (server, own, closes_in) in [
            (at(0, 16, 0), at(0, 16, 0), hour * 2),
            (at(0, 16, 0), at(0, 17, 0), hour),
            (at(0, 17, 0), at(0, 16, 0), hour),
            (at(0, 17, 0), at(0, 18, 0), Duration::ZERO),
            (at(0, 18, 0), at(0, 17, 0), Duration::ZERO),
            (at(0, 19, 0), at(0, 19, 0), Duration::ZERO),
        ] {
            let now = Moment { server, own };
            assert_eq!(work.closes_in(now), Some(closes_in), "{now:?}");
            assert_eq!(work.are_open(now), !closes_in.is_zero(), "{now:?}");
            assert_eq!(Windows::default().closes_in(now), None);
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "06:00-18:00",
            "mon",
            "mon 6:00-18:00",
            "mon 06:00",
            "mon 06:60-18:00",
            "mon 24:01-02:00",
            "mon 24:00-02:00",
            "Mon 06:00-18:00",
            "mon-xyz 06:00-18:00",
            "mon, 06:00-18:00",
            "mon 06:00-18:00 UTC",
            "mon +6:00-18:00",
        ] {
            assert_eq!(text.parse::<Window>(), Err(WindowError), "{text}");
        }
    }
}
