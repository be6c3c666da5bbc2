//! What a circuit may carry: bytes in all, and bytes per second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much of its rate a circuit may save up: enough for the bursts of a congestion controller.
const BURST: Duration = Duration::from_millis(250);

/// The least burst, in bytes: two full trains, since a train passes whole or not at all.
const BURST_BYTES: u64 = 128 * 1024;

/// The limits of one circuit, both directions together.
#[derive(Debug)]
pub(super) struct Budget {
    max_bytes: Option<u64>,
    spent: AtomicU64,
    told: AtomicBool,
    rate: Option<Rate>,
}

/// Whether a train may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spend {
    /// It may.
    Allowed,
    /// It is faster than the rate.
    TooFast,
    /// The bytes are used up. `first` is true once, for the caller that is to report it.
    UsedUp {
        /// Whether this is the first time.
        first: bool,
    },
}

impl Budget {
    /// Makes the limits of a circuit; what is `None` is not limited.
    pub(super) fn new(max_bytes: Option<u64>, max_bytes_per_sec: Option<u64>) -> Self {
        Self {
            max_bytes,
            spent: AtomicU64::new(0),
            told: AtomicBool::new(false),
            rate: max_bytes_per_sec.map(|rate| Rate::new(rate, Instant::now())),
        }
    }

    /// Spends bytes. Once the limit is passed nothing is allowed any more, however small.
    pub(super) fn spend(&self, bytes: usize) -> Spend {
        let bytes = bytes as u64;
        if let Some(rate) = &self.rate
            && !rate.spend(bytes, Instant::now())
        {
            return Spend::TooFast;
        }
        let Some(max) = self.max_bytes else {
            return Spend::Allowed;
        };
        let spent = self.spent.fetch_add(bytes, Ordering::Relaxed);
        if spent.saturating_add(bytes) <= max {
            return Spend::Allowed;
        }
        // Nothing fits from here on, and the sum stays far from its end.
        self.spent
            .store(max.saturating_add(1).min(u64::MAX / 2), Ordering::Relaxed);
        Spend::UsedUp {
            first: !self.told.swap(true, Ordering::Relaxed),
        }
    }
}

/// The generic cell rate algorithm (ITU-T I.371) on one atomic: the theoretical arrival time of the next byte.
#[derive(Debug)]
struct Rate {
    start: Instant,
    bytes_per_sec: u64,
    tolerance: u64,
    arrival: AtomicU64,
}

impl Rate {
    fn new(bytes_per_sec: u64, start: Instant) -> Self {
        let bytes_per_sec = bytes_per_sec.max(1);
        let tolerance = nanos(BURST).max(cost(BURST_BYTES, bytes_per_sec));
        Self {
            start,
            bytes_per_sec,
            tolerance,
            arrival: AtomicU64::new(0),
        }
    }

    fn spend(&self, bytes: u64, now: Instant) -> bool {
        let now = nanos(now.saturating_duration_since(self.start));
        let cost = cost(bytes, self.bytes_per_sec);
        self.arrival
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
                let next = arrival.max(now).saturating_add(cost);
                (next <= now.saturating_add(self.tolerance)).then_some(next)
            })
            .is_ok()
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Time that bytes take at a rate, in nanoseconds.
fn cost(bytes: u64, bytes_per_sec: u64) -> u64 {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_sec);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_limit_is_told_once_and_holds() {
        let budget = Budget::new(Some(1000), None);
        assert_eq!(budget.spend(600), Spend::Allowed);
        assert_eq!(budget.spend(400), Spend::Allowed);
        assert_eq!(budget.spend(1), Spend::UsedUp { first: true });
        assert_eq!(budget.spend(1), Spend::UsedUp { first: false });
    }

    #[test]
    fn what_does_not_fit_uses_the_limit_up() {
        let budget = Budget::new(Some(1000), None);
        assert_eq!(budget.spend(1001), Spend::UsedUp { first: true });
        assert_eq!(budget.spend(1), Spend::UsedUp { first: false });
    }

    #[test]
    fn a_largest_limit_is_none() {
        let budget = Budget::new(Some(u64::MAX), None);
        assert_eq!(budget.spend(usize::MAX / 2), Spend::Allowed);
    }

    #[test]
    fn the_rate_holds_over_time_and_allows_a_burst() {
        let start = Instant::now();
        let rate = Rate::new(1_000_000, start);
        let mut passed = 0;
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            while rate.spend(1200, now) {
                passed += 1200;
            }
        }
        assert!(
            (10_000_000..10_300_000).contains(&passed),
            "{passed} bytes in ten seconds"
        );
    }
}
