//! Whether the wall clock can be relied on: it goes as the monotonic clock goes, or it has jumped. Pure.

use std::time::{Duration, Instant};

use tunnel_proto::UnixTime;

/// How long the clock must have gone evenly after a jump. Whoever set it once may set it back.
const SETTLES: Duration = Duration::from_secs(120);

/// How far the clock may be off since the last look, and how much more for each second since: time daemons slew.
const TOLERANCE: Duration = Duration::from_secs(5);
const SLEW: u32 = 1000;

/// The time, and whether rules that ask for it may be answered (THREATS POL-11).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: UnixTime,
    pub(crate) steady: bool,
}

/// Watches the clock by its own readings.
#[derive(Debug)]
pub(crate) struct Steadiness {
    last: (UnixTime, Instant),
    even_since: Instant,
    jumped: Option<Jump>,
}

/// The latest jump, and a reading of before the first of those that have not settled.
#[derive(Clone, Copy, Debug)]
struct Jump {
    at: Instant,
    before: (UnixTime, Instant),
}

impl Steadiness {
    /// Begins with a clock that is believed.
    pub(crate) const fn new(wall: UnixTime, now: Instant) -> Self {
        Self {
            last: (wall, now),
            even_since: now,
            jumped: None,
        }
    }

    /// Begins where a trail has records up to `newest`. A clock that is behind them was set back while nobody looked, and is no
    /// better than one that was set back a moment ago.
    pub(crate) fn after(newest: UnixTime, wall: UnixTime, now: Instant) -> Self {
        let mut clock = Self::new(wall, now);
        if newest.since(wall) > TOLERANCE {
            tracing::warn!(
                seconds = newest.since(wall).as_secs(),
                "the clock is behind the trail: rules that ask for the time deny for a while"
            );
            let before = (newest, now);
            clock.jumped = Some(Jump { at: now, before });
        }
        clock
    }

    /// Takes a reading, and says whether the clock has gone evenly for long enough.
    pub(crate) fn is_steady(&mut self, wall: UnixTime, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.last.1);
        let expected = self.last.0.after(elapsed);
        let off = wall.since(expected).max(expected.since(wall));
        if off > TOLERANCE + elapsed / SLEW {
            tracing::warn!(
                seconds = off.as_secs(),
                "the clock has jumped: rules that ask for the time deny for a while"
            );
            let before = self.jumped.map_or(self.last, |jump| jump.before);
            self.jumped = Some(Jump { at: now, before });
            self.even_since = now;
        }
        // The rest of a second that a whole number drops would add up if every reading counted.
        if off > TOLERANCE || elapsed >= TOLERANCE {
            self.last = (wall, now);
        }
        match self.jumped {
            Some(jump) if now.saturating_duration_since(jump.at) < SETTLES => false,
            _ => {
                self.jumped = None;
                true
            }
        }
    }

    /// Returns for how long no jump was seen. What a clock was before the start nobody knows.
    pub(crate) fn even_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.even_since)
    }

    /// Returns the time as it would be if the clock had not jumped, until it has settled.
    pub(crate) fn without_jump(&self, now: Instant) -> Option<UnixTime> {
        let (wall, read_at) = self.jumped?.before;
        Some(wall.after(now.saturating_duration_since(read_at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// THREATS POL-11.
    #[test]
    fn pol_11_a_jump_either_way_is_seen_and_settles() {
        let (wall, start) = (UnixTime::from_secs(1_800_000_000), Instant::now());
        for (ahead, back) in [(60, 0), (0, 60)] {
            let mut clock = Steadiness::new(wall, start);
            let at = |secs: u64| start + Duration::from_secs(secs);
            let read = |secs: u64| wall.after(Duration::from_secs(secs));
            let jumped = |secs: u64| read(secs + ahead).before(Duration::from_secs(back));
            assert!(clock.is_steady(read(100), at(100)));
            assert!(!clock.is_steady(jumped(101), at(101)));
            assert!(!clock.is_steady(jumped(200), at(200)));
            assert!(clock.is_steady(jumped(222), at(222)));
            // Back to where it was is a jump too.
            assert!(!clock.is_steady(read(230), at(230)));
        }
    }

    /// THREATS SRV-09: what lives is judged by the clock of before as well, through any number of jumps.
    #[test]
    fn srv_09_the_clock_of_before_goes_on_until_the_new_one_has_settled() {
        let (wall, start) = (UnixTime::from_secs(1_800_000_000), Instant::now());
        let mut clock = Steadiness::new(wall, start);
        let at = |secs: u64| start + Duration::from_secs(secs);
        let read = |secs: u64| wall.after(Duration::from_secs(secs));
        let hour = Duration::from_secs(3600);
        assert!(clock.is_steady(read(100), at(100)));
        assert_eq!(clock.without_jump(at(100)), None);
        for (secs, shown) in [
            (101, read(101).after(hour)),
            (150, read(150).before(hour)),
            (200, read(200).before(hour)),
        ] {
            assert!(!clock.is_steady(shown, at(secs)));
            assert_eq!(clock.without_jump(at(secs)), Some(read(secs)));
        }
        assert!(clock.is_steady(read(280).before(hour), at(280)));
        assert_eq!(clock.without_jump(at(280)), None);
    }

    /// THREATS SRV-09: what was set back while the server was down is seen by the trail.
    #[test]
    fn srv_09_a_clock_that_is_behind_the_trail_is_as_one_that_was_set_back() {
        let (newest, start) = (UnixTime::from_secs(1_800_000_000), Instant::now());
        let (hour, later) = (Duration::from_secs(3600), Duration::from_secs(60));
        for ahead in [hour, Duration::ZERO] {
            let mut clock = Steadiness::after(newest, newest.after(ahead), start);
            assert!(clock.is_steady(newest.after(ahead + later), start + later));
            assert_eq!(clock.without_jump(start + later), None);
        }
        let wall = newest.before(hour);
        let mut clock = Steadiness::after(newest, wall, start);
        assert!(!clock.is_steady(wall.after(later), start + later));
        assert_eq!(clock.without_jump(start + later), Some(newest.after(later)));
        assert!(clock.is_steady(wall.after(SETTLES), start + SETTLES));
        assert_eq!(clock.without_jump(start + SETTLES), None);
    }

    #[test]
    fn a_clock_goes_evenly_since_the_start_or_its_latest_jump() {
        let (wall, start) = (UnixTime::from_secs(1_800_000_000), Instant::now());
        let mut clock = Steadiness::new(wall, start);
        let at = |secs: u64| start + Duration::from_secs(secs);
        let read = |secs: u64| wall.after(Duration::from_secs(secs));
        assert!(clock.is_steady(read(100), at(100)));
        assert_eq!(clock.even_for(at(100)), Duration::from_secs(100));
        assert!(!clock.is_steady(read(300), at(110)));
        assert!(clock.is_steady(read(500), at(310)));
        assert_eq!(clock.even_for(at(310)), Duration::from_secs(200));
    }

    #[test]
    fn a_clock_that_is_slewed_or_looked_at_often_is_steady() {
        let (wall, start) = (UnixTime::from_secs(1_800_000_000), Instant::now());
        let mut clock = Steadiness::new(wall, start);
        for tenths in 0..3_000_u64 {
            let now = start + Duration::from_millis(tenths * 100);
            assert!(clock.is_steady(wall.after(Duration::from_secs(tenths / 10)), now));
        }
        // A day between two readings, slewed by 43 s.
        let day = Duration::from_secs(86_400);
        assert!(clock.is_steady(wall.after(day + Duration::from_secs(43)), start + day));
    }
}
