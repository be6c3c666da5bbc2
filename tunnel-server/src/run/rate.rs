//! A token bucket for each of many, in a map that cannot grow without end.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Keys that are remembered.
const MAX_KEYS: usize = 4096;

/// How much one of many may do, and all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Attempts that one has at once.
    pub(crate) burst: u32,
    /// How soon one attempt comes back.
    pub(crate) refill: Duration,
    /// Attempts that all together have at once.
    pub(crate) burst_all: u32,
    /// How soon one of those comes back.
    pub(crate) refill_all: Duration,
}

/// Limits attempts by key and in all (THREATS ENR-02, SRV-21, AUD-05).
#[derive(Debug)]
pub(crate) struct Rate<K> {
    allowance: Allowance,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    buckets: BTreeMap<K, Bucket>,
    all: Bucket,
}

/// How many attempts are used up, as of an instant.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    used: u32,
    since: Instant,
}

impl Bucket {
    /// Gives back what time has given back.
    fn refill(&mut self, now: Instant, every: Duration) {
        let back = now.saturating_duration_since(self.since).as_nanos() / every.as_nanos().max(1);
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        if back >= self.used {
            *self = Self { used: 0, since: now };
        } else {
            self.used -= back;
            self.since += every * back;
        }
    }
}

impl<K: Ord + Clone> Rate<K> {
    /// Starts with nothing used.
    pub(crate) fn new(allowance: Allowance, now: Instant) -> Self {
        let all = Bucket { used: 0, since: now };
        Self {
            allowance,
            state: Mutex::new(State {
                buckets: BTreeMap::new(),
                all,
            }),
        }
    }

    /// Takes one attempt; `false` if there is none left.
    #[must_use]
    pub(crate) fn take(&self, now: Instant, key: &K) -> bool {
        let Allowance {
            burst,
            refill,
            burst_all,
            refill_all,
        } = self.allowance;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.make_room(now, refill);
        state.all.refill(now, refill_all);
        if state.all.used >= burst_all {
            return false;
        }
        let bucket = state
            .buckets
            .entry(key.clone())
            .or_insert(Bucket { used: 0, since: now });
        bucket.refill(now, refill);
        if bucket.used >= burst {
            return false;
        }
        bucket.used += 1;
        state.all.used += 1;
        true
    }

    /// Gives an attempt back that was a good one.
    pub(crate) fn refund(&self, key: &K) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = state.buckets.get_mut(key) {
            bucket.used = bucket.used.saturating_sub(1);
        }
        state.all.used = state.all.used.saturating_sub(1);
    }
}

impl<K: Ord + Clone> State<K> {
    /// Forgets those that have all of their attempts again; if none has, the one that used least.
    fn make_room(&mut self, now: Instant, refill: Duration) {
        if self.buckets.len() < MAX_KEYS {
            return;
        }
        self.buckets.retain(|_, bucket| {
            bucket.refill(now, refill);
            bucket.used > 0
        });
        while self.buckets.len() >= MAX_KEYS {
            let least = self.buckets.iter().min_by_key(|(_, bucket)| bucket.used);
            let Some(least) = least.map(|(key, _)| key.clone()) else {
                return;
            };
            self.buckets.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFILL: Duration = Duration::from_secs(2);
    const ALLOWANCE: Allowance = Allowance {
        burst: 30,
        refill: REFILL,
        burst_all: 2000,
        refill_all: Duration::from_millis(20),
    };

    #[test]
    fn one_runs_out_alone_and_gets_back() {
        let now = Instant::now();
        let rate = Rate::new(ALLOWANCE, now);
        assert!((0..30).all(|_| rate.take(now, &1)));
        assert!(!rate.take(now, &1));
        assert!(rate.take(now, &2));
        assert!(!rate.take(now + REFILL / 2, &1));
        assert!(rate.take(now + REFILL, &1));
        assert!(!rate.take(now + REFILL, &1));
    }

    #[test]
    fn a_good_attempt_costs_nothing() {
        let now = Instant::now();
        let rate = Rate::new(ALLOWANCE, now);
        for _ in 0..300 {
            assert!(rate.take(now, &1));
            rate.refund(&1);
        }
    }

    #[test]
    fn the_map_and_all_together_are_bounded() {
        let now = Instant::now();
        let rate = Rate::new(ALLOWANCE, now);
        let passed = (0..10_000).filter(|n| rate.take(now, n)).count();
        assert_eq!(passed, 2000);
        let wide = Rate::new(
            Allowance {
                burst_all: u32::MAX,
                ..ALLOWANCE
            },
            now,
        );
        assert!((0..10_000).all(|n| wide.take(now, &n)));
        assert!(wide.state.lock().unwrap().buckets.len() <= MAX_KEYS);
    }
}
