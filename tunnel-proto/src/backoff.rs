//! Pauses between attempts: capped exponential growth with full jitter.

use std::time::Duration;

use crate::defaults::{BACKOFF_FIRST, BACKOFF_MAX};

/// Counts failed attempts and says how long to wait before the next.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the pause after one more failure: evenly distributed between nothing and a bound that doubles.
    ///
    /// `random` is evenly distributed over all of its values.
    pub fn failed(&mut self, random: u64) -> Duration {
        let bound = BACKOFF_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
        bound.mul_f64(fraction)
    }

    /// Starts again from the shortest pause.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Returns how many attempts have failed in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_again() {
        let mut backoff = Backoff::default();
        let longest: Vec<_> = (0..10).map(|_| backoff.failed(u64::MAX)).collect();
        assert!(longest[0] <= BACKOFF_FIRST && longest[0] > BACKOFF_FIRST.mul_f64(0.99));
        assert!(longest.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(longest[9] <= BACKOFF_MAX && longest[9] > BACKOFF_MAX.mul_f64(0.99));
        assert_eq!(backoff.failed(0), Duration::ZERO);
        backoff.succeeded();
        assert!(backoff.failed(u64::MAX) <= BACKOFF_FIRST);
    }
}
