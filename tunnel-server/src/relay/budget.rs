//! What a circuit may carry: bytes in all, bytes per second, and small datagrams per second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Datagrams that a circuit may carry in a second, both ways together, beyond one for each [`BYTES_PER_DATAGRAM`] that it
/// carries (THREATS DAT-26). No end of ours comes near it by keystrokes and acknowledgements: a flood of smallest datagrams
/// costs the relay some 150 ms of a core in each second, and no more.
const SMALL_PER_SEC: u64 = 50_000;

/// Bytes that pay for one datagram more. Data at full rate has 1,200 in each, so that it pays for itself, and for an
/// acknowledgement of each.
const BYTES_PER_DATAGRAM: u64 = 600;

/// How much of its rate a circuit may save up: enough for the bursts of a congestion controller.
const BURST: Duration = Duration::from_millis(250);

/// The least burst, in bytes: two full trains, since a train passes whole or not at all.
const BURST_BYTES: u64 = 128 * 1024;

/// In how many steps a circuit's bytes are kept: what a crash costs it at most, and how much the disk is asked to do for it.
const STEPS: u64 = 32;

/// Returns how many bytes of a limit are kept as spent in advance, so that a crash gives none of them back.
pub(super) fn step(max_bytes: u64) -> u64 {
    max_bytes.div_ceil(STEPS).max(1)
}

/// The limits of one circuit, both directions together.
#[derive(Debug)]
pub(super) struct Budget {
    max_bytes: Option<u64>,
    spent: AtomicU64,
    /// How many bytes have to be spent for the next time that this is told.
    due: AtomicU64,
    told: AtomicBool,
    rate: Option<Rate>,
    small: SmallRate,
}

/// Whether a train may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spend {
    /// It may.
    Allowed,
    /// It may, and what is spent by now is to be kept, with a step in advance.
    Due,
    /// It is faster than the rate.
    TooFast,
    /// The bytes are used up. `first` is true once, for the caller that is to report it.
    UsedUp {
        /// Whether this is the first time.
        first: bool,
    },
}

impl Budget {
    /// Makes the limits of a circuit that has spent some bytes before; what is `None` is not limited.
    pub(super) fn new(max_bytes: Option<u64>, spent: u64, max_bytes_per_sec: Option<u64>) -> Self {
        let now = Instant::now();
        // Of a new one the first step counts as kept; of one from before a restart, what it begins with.
        let due = match (max_bytes, spent) {
            (Some(max), 0) => step(max) / 2,
            _ => spent,
        };
        Self {
            max_bytes,
            spent: AtomicU64::new(spent.min(u64::MAX / 2)),
            due: AtomicU64::new(due),
            told: AtomicBool::new(false),
            rate: max_bytes_per_sec.map(|rate| Rate::new(rate, now)),
            small: SmallRate::new(now),
        }
    }

    /// Spends the bytes of some datagrams. Once the limit is passed nothing is allowed any more, however small.
    pub(super) fn spend(&self, bytes: usize, datagrams: usize) -> Spend {
        let bytes = bytes as u64;
        if !self.small.spend(bytes, datagrams as u64, Instant::now) {
            return Spend::TooFast;
        }
        if let Some(rate) = &self.rate
            && !rate.spend(bytes, Instant::now())
        {
            return Spend::TooFast;
        }
        let Some(max) = self.max_bytes else {
            return Spend::Allowed;
        };
        let spent = self.spent.fetch_add(bytes, Ordering::Relaxed);
        let spent = spent.saturating_add(bytes);
        if spent <= max {
            return self.keep(spent, max);
        }
        // Nothing fits from here on, and the sum stays far from its end.
        self.spent
            .store(max.saturating_add(1).min(u64::MAX / 2), Ordering::Relaxed);
        Spend::UsedUp {
            first: !self.told.swap(true, Ordering::Relaxed),
        }
    }
}

impl Budget {
    /// Returns the bytes that are spent by now, if they are limited.
    pub(super) fn spent(&self) -> Option<u64> {
        self.max_bytes
            .map(|max| self.spent.load(Ordering::Relaxed).min(max))
    }

    /// Says whether it is time to keep what is spent: when half of the step that was kept in advance is used, so that the
    /// disk has the time that the other half takes.
    fn keep(&self, spent: u64, max: u64) -> Spend {
        let due = self.due.load(Ordering::Relaxed);
        let next = spent.saturating_add((step(max) / 2).max(1));
        let first = || {
            let swapped = self
                .due
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
            swapped.is_ok()
        };
        if spent > due && first() {
            Spend::Due
        } else {
            Spend::Allowed
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

/// The same algorithm for datagrams that are too small to pay for themselves: large ones give time back.
///
/// Large ones alone cost one load, and no look at the clock.
#[derive(Debug)]
struct SmallRate {
    start: Instant,
    arrival: AtomicU64,
}

/// Time that a datagram costs, in nanoseconds.
const SMALL_COST: u64 = 1_000_000_000 / SMALL_PER_SEC;

impl SmallRate {
    const fn new(start: Instant) -> Self {
        Self {
            start,
            arrival: AtomicU64::new(0),
        }
    }

    fn spend(&self, bytes: u64, datagrams: u64, now: impl FnOnce() -> Instant) -> bool {
        let paid = bytes / BYTES_PER_DATAGRAM;
        if paid >= datagrams {
            let back = (paid - datagrams).saturating_mul(SMALL_COST);
            // What is in the past is as good as 0, so this only helps who has spent in advance.
            if back > 0 && self.arrival.load(Ordering::Relaxed) > 0 {
                let _ = self
                    .arrival
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
                        Some(arrival.saturating_sub(back))
                    });
            }
            return true;
        }
        let cost = (datagrams - paid).saturating_mul(SMALL_COST);
        let now = nanos(now().saturating_duration_since(self.start));
        let latest = now.saturating_add(nanos(BURST));
        self.arrival
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
                let next = arrival.max(now).saturating_add(cost);
                (next <= latest).then_some(next)
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
        let budget = Budget::new(Some(1000), 0, None);
        assert_eq!(budget.spend(600, 1), Spend::Due);
        assert_eq!(budget.spend(400, 1), Spend::Due);
        assert_eq!(budget.spend(1, 1), Spend::UsedUp { first: true });
        assert_eq!(budget.spend(1, 1), Spend::UsedUp { first: false });
    }

    #[test]
    fn what_is_spent_is_kept_in_steps_that_a_crash_gives_none_of_back() {
        const MAX: u64 = 32_000;
        let (mut spent, mut kept, mut writes) = (0_u64, step(MAX), 0);
        // The process is killed again and again, and each time goes on with what was kept.
        for life in 0_u64.. {
            let budget = Budget::new(Some(MAX), if life == 0 { 0 } else { kept }, None);
            for _ in 0..70 {
                match budget.spend(100, 1) {
                    Spend::Allowed => {}
                    Spend::Due => {
                        kept = budget.spent().unwrap() + step(MAX);
                        writes += 1;
                    }
                    _ => {
                        assert!(spent >= MAX - (life + 1) * step(MAX), "{spent} in {life} lives");
                        assert!(life > 2 && writes <= 2 * STEPS + life, "{writes} in {life} lives");
                        return;
                    }
                }
                spent += 100;
                assert!(spent <= kept, "{kept} of {spent} are kept");
            }
        }
    }

    #[test]
    fn what_has_no_limit_is_not_kept() {
        let budget = Budget::new(None, 0, None);
        assert_eq!(
            (budget.spend(1 << 30, 1 << 20), budget.spent()),
            (Spend::Allowed, None)
        );
    }

    #[test]
    fn what_does_not_fit_uses_the_limit_up() {
        let budget = Budget::new(Some(1000), 0, None);
        assert_eq!(budget.spend(1001, 1), Spend::UsedUp { first: true });
        assert_eq!(budget.spend(1, 1), Spend::UsedUp { first: false });
    }

    #[test]
    fn a_largest_limit_is_none() {
        let budget = Budget::new(Some(u64::MAX), 0, None);
        assert!(matches!(
            budget.spend(usize::MAX / 2, 1),
            Spend::Allowed | Spend::Due
        ));
    }

    /// THREATS DAT-26.
    #[test]
    fn dat_26_small_datagrams_have_a_rate_and_full_ones_none() {
        let start = Instant::now();
        let small = SmallRate::new(start);
        let mut passed = 0;
        for millisecond in 0..4_000 {
            let now = start + Duration::from_millis(millisecond);
            // A million in a second, in trains of ten.
            passed += 10 * (0..100).filter(|_| small.spend(40 * 10, 10, || now)).count() as u64;
            // A keystroke of the same circuit finds no room then; that is between its own two ends.
        }
        let (least, most) = (4 * SMALL_PER_SEC, 4 * SMALL_PER_SEC + SMALL_PER_SEC / 4);
        assert!((least..=most).contains(&passed), "{passed}");

        let full = SmallRate::new(start);
        for millisecond in 0..1_000 {
            let now = start + Duration::from_millis(millisecond);
            // 9.6 Gbit/s of data, and an acknowledgement of each datagram the other way.
            for _ in 0..100 {
                assert!(full.spend(1200 * 10, 10, || now), "data at {millisecond} ms");
                assert!(
                    full.spend(40 * 10, 10, || now),
                    "acknowledgements at {millisecond} ms"
                );
            }
            assert!(full.spend(60, 1, || now), "a keystroke at {millisecond} ms");
        }
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
