//! Samples, and what is said about them.

use std::time::Duration;

use serde::Serialize;

/// Times of one measurement.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds one.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the time that a share of them does not exceed, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        quantile(&sorted, share).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// One figure, measured in several runs.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the figure of a run.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the figure in the middle: an outlier does not move it.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let (low, high) = (
            sorted.get((sorted.len().max(1) - 1) / 2),
            sorted.get(sorted.len() / 2),
        );
        low.zip(high)
            .map_or(f64::NAN, |(low, high)| f64::midpoint(*low, *high))
    }

    /// Returns the smallest.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// Returns the largest.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    /// Returns how many runs there were.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there were none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// Returns the value at a share of a sorted list (nearest rank).
fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small index stays an index"
    )]
    sorted.get((share * last as f64).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut times = Times::default();
        (1..=101)
            .rev()
            .for_each(|number| times.push(Duration::from_millis(number)));
        assert_eq!(
            [0.0, 0.5, 0.99, 1.0].map(|share| times.quantile_ms(share)),
            [1.0, 51.0, 100.0, 101.0]
        );
    }

    #[test]
    fn no_times_have_no_quantiles() {
        assert!(Times::default().quantile_ms(0.5).is_nan());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let samples: Samples = [4.0, 1.0, 100.0, 2.0].into_iter().collect();
        assert_eq!(
            (samples.median(), samples.min(), samples.max()),
            (3.0, 1.0, 100.0)
        );
    }

    #[test]
    fn one_run_is_its_own_median() {
        let samples: Samples = [7.0].into_iter().collect();
        assert_eq!(samples.median(), 7.0);
    }
}
