//! When agents come back. Pure: time and random numbers are handed in.
//!
//! A fleet that comes back all at once keeps a server busy with handshakes that time out, and the next attempts come all at
//! once too. So a server that stops gives each agent a moment of its own in a window that its return rate makes, and one
//! that is met by more than that rate sends the rest away, again each with a moment of its own (THREATS SRV-07, SRV-08).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The shortest window: a small fleet is spread too, and back before anybody wonders.
const SHORTEST: Duration = Duration::from_secs(2);

/// The longest: agents wait no longer, whatever they are told.
const LONGEST: Duration = Duration::from_secs(600);

/// How long a device stays away that links too often: longer than its allowance takes to come back.
pub(crate) const TOO_OFTEN: Duration = Duration::from_secs(5);

/// Moments that are remembered. Without memory of its own, one that comes too early is given another one.
const MAX_GIVEN: usize = 65_536;

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
pub(crate) struct Arrivals<K> {
    /// Between two links.
    gap: Duration,
    /// When the next link would be due if they came evenly.
    due: Instant,
    /// The next moment that nobody has been given.
    free: Instant,
    /// The moments that are still to come, by whose they are: who does not wait for its moment gets no other one.
    given: BTreeMap<K, Instant>,
    in_order: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Clone> Arrivals<K> {
    /// Starts with nobody there.
    pub(crate) fn new(per_sec: u32, now: Instant) -> Self {
        Self {
            gap: Duration::from_secs(1) / per_sec.max(1),
            due: now,
            free: now,
            given: BTreeMap::new(),
            in_order: BTreeSet::new(),
        }
    }

    /// Lets a link of `who` in.
    ///
    /// # Errors
    /// Returns after which time this agent is to come back, when links come faster than they are to.
    pub(crate) fn admit(&mut self, who: &K, now: Instant) -> Result<(), Duration> {
        self.forget_past(now);
        let due = self.due.max(now);
        if due.saturating_duration_since(now) < BURST {
            self.due = due + self.gap;
            if let Some(moment) = self.given.remove(who) {
                self.in_order.remove(&(moment, who.clone()));
            }
            return Ok(());
        }
        if let Some(moment) = self.given.get(who) {
            return Err(moment.saturating_duration_since(now));
        }
        // Those that come at their moments take what the rate gives, so these start after what is due by now.
        self.free = self.free.max(due) + self.gap;
        let moment = self.free.min(now + LONGEST);
        if self.given.len() < MAX_GIVEN {
            self.given.insert(who.clone(), moment);
            self.in_order.insert((moment, who.clone()));
        }
        Err(moment.saturating_duration_since(now))
    }

    fn forget_past(&mut self, now: Instant) {
        while self.in_order.first().is_some_and(|(moment, _)| *moment <= now) {
            if let Some((_, who)) = self.in_order.pop_first() {
                self.given.remove(&who);
            }
        }
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
        assert!((0..10_000).all(|who| {
            arrivals
                .admit(&who, now)
                .err()
                .is_none_or(|after| after <= LONGEST)
        }));
    }

    /// A herd of the whole fleet at a server's start, in small steps of time: whoever is sent away comes back when told.
    #[test]
    fn a_herd_becomes_a_queue() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(RATE, start);
        let mut waiting: Vec<_> = (0..FLEET).map(|who| (who, Duration::ZERO)).collect();
        let (mut linked, mut attempts) = (Vec::new(), 0);
        for step in 0..12_000 {
            let now = Duration::from_millis(step * 10);
            let mut still = Vec::new();
            for (who, at) in waiting {
                if at > now {
                    still.push((who, at));
                    continue;
                }
                attempts += 1;
                match arrivals.admit(&who, start + now) {
                    Ok(()) => linked.push(now),
                    Err(after) => still.push((who, now + after)),
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

    /// THREATS SRV-08: one that does not wait moves nobody else's moment.
    #[test]
    fn each_has_one_moment_however_often_it_comes() {
        let now = Instant::now();
        let mut arrivals = Arrivals::new(1, now);
        for who in ["pump", "pond"] {
            assert_eq!(arrivals.admit(&who, now), Ok(()));
        }
        let first = arrivals.admit(&"mill", now).unwrap_err();
        for _ in 0..10_000 {
            assert_eq!(arrivals.admit(&"mill", now), Err(first));
        }
        let next = arrivals.admit(&"farm", now).unwrap_err();
        assert_eq!(next, first + Duration::from_secs(1));
        assert_eq!(arrivals.admit(&"mill", now + first), Ok(()));
        assert!(arrivals.admit(&"farm", now + next).is_ok());
        assert!(arrivals.given.is_empty() && arrivals.in_order.is_empty());
    }

    #[test]
    fn who_comes_at_the_rate_is_never_sent_away() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(RATE, start);
        for number in 0..FLEET {
            let now = start + Duration::from_secs(1).mul_f64(number as f64 / f64::from(RATE));
            assert_eq!(arrivals.admit(&number, now), Ok(()), "number {number}");
        }
    }
}
