//! When agents come back. Pure: time and random numbers are handed in.
//!
//! A fleet that comes back all at once keeps a server busy with handshakes that time out, and the next attempts come all at
//! once too. So a server that stops gives each agent a moment of its own in a window that its return rate makes, and one
//! that is met by more than that rate sends the rest away, again each with a moment of its own (THREATS SRV-07, SRV-08).

use std::time::{Duration, Instant};

/// The shortest window: a small fleet is spread too, and back before anybody wonders.
const SHORTEST: Duration = Duration::from_secs(2);

/// The longest: agents wait no longer, whatever they are told.
const LONGEST: Duration = Duration::from_secs(600);

/// For how long links may come faster than the rate before they are sent away: a site that comes back is no herd.
const BURST: Duration = Duration::from_secs(2);

/// Returns the moment of one of `count` agents in the window of their return, of which each has a part of its own.
///
/// `random` is evenly distributed over all of its values.
pub(crate) fn moment(number: usize, count: usize, per_sec: u32, random: u64) -> Duration {
    let count = count.max(1);
    let window = Duration::from_secs_f64(count as f64 / f64::from(per_sec.max(1))).clamp(SHORTEST, LONGEST);
    let within = (random >> 11) as f64 / (1u64 << 53) as f64;
    window.mul_f64(((number % count) as f64 + within) / count as f64)
}

/// Lets links in at the return rate.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    /// Between two links.
    gap: Duration,
    /// When the next link would be due if they came evenly.
    due: Instant,
    /// The next moment that nobody has been given.
    free: Instant,
}

impl Arrivals {
    /// Starts with nobody there.
    pub(crate) fn new(per_sec: u32, now: Instant) -> Self {
        Self {
            gap: Duration::from_secs(1) / per_sec.max(1),
            due: now,
            free: now,
        }
    }

    /// Lets a link in.
    ///
    /// # Errors
    /// Returns after which time this agent is to come back, when links come faster than they are to.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let due = self.due.max(now);
        if due.saturating_duration_since(now) < BURST {
            self.due = due + self.gap;
            return Ok(());
        }
        // Those that come at their moments take what the rate gives, so these start after what is due by now.
        self.free = self.free.max(due) + self.gap;
        Err(self.free.saturating_duration_since(now).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: usize = 10_000;
    const RATE: u32 = 200;

    fn per_second(moments: &[Duration]) -> Vec<usize> {
        let mut counts = vec![0; 700];
        for moment in moments {
            counts[moment.as_secs() as usize] += 1;
        }
        while counts.last() == Some(&0) {
            counts.pop();
        }
        counts
    }

    #[test]
    fn ten_thousand_agents_come_back_at_the_rate() {
        let moments: Vec<_> = (0..FLEET)
            .map(|number| moment(number, FLEET, RATE, fastrand::u64(..)))
            .collect();
        let counts = per_second(&moments);
        assert_eq!(counts.len(), 50);
        assert!(
            counts.iter().all(|count| (150..=250).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_small_fleet_is_spread_and_soon_back() {
        let moments: Vec<_> = (0..30).map(|number| moment(number, 30, RATE, u64::MAX)).collect();
        assert!(moments.iter().all(|moment| *moment <= SHORTEST));
        assert!(
            moments.windows(2).all(|pair| pair[0] < pair[1]),
            "each has its own: {moments:?}"
        );
    }

    #[test]
    fn nobody_is_sent_away_for_longer_than_agents_wait() {
        assert!(moment(9_999_999, 10_000_000, 1, u64::MAX) <= LONGEST);
        let now = Instant::now();
        let mut arrivals = Arrivals::new(1, now);
        assert!((0..10_000).all(|_| arrivals.admit(now).err().is_none_or(|after| after <= LONGEST)));
    }

    /// A herd of the whole fleet at a server's start, in small steps of time: whoever is sent away comes back when told.
    #[test]
    fn a_herd_becomes_a_queue() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(RATE, start);
        let mut waiting: Vec<Duration> = vec![Duration::ZERO; FLEET];
        let (mut linked, mut attempts) = (Vec::new(), 0);
        for step in 0..12_000 {
            let now = Duration::from_millis(step * 10);
            let mut still = Vec::new();
            for at in waiting {
                if at > now {
                    still.push(at);
                    continue;
                }
                attempts += 1;
                match arrivals.admit(start + now) {
                    Ok(()) => linked.push(now),
                    Err(after) => still.push(now + after),
                }
            }
            waiting = still;
        }
        assert_eq!(linked.len(), FLEET, "all are back within two minutes");
        let counts = per_second(&linked);
        let most = (RATE * 3 + RATE / 10) as usize;
        assert!(counts.iter().all(|count| *count <= most), "{counts:?}");
        assert!(counts.len() <= 60, "the last came after {} s", counts.len());
        assert!(attempts <= FLEET * 2, "{attempts} attempts: no storm");
    }

    #[test]
    fn who_comes_at_the_rate_is_never_sent_away() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(RATE, start);
        for number in 0..FLEET {
            let now = start + Duration::from_secs(1).mul_f64(number as f64 / f64::from(RATE));
            assert_eq!(arrivals.admit(now), Ok(()), "number {number}");
        }
    }
}
