//! When bytes of a session arrived, and how long somebody waited for them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The pulse of one direction of a session.
#[derive(Debug)]
pub struct Pulse(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    first: Option<Instant>,
    last: Instant,
    waiting_since: Option<Instant>,
    longest: Duration,
    waits: Vec<Duration>,
}

impl Pulse {
    /// Starts one for which nobody waits yet.
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Beats {
            first: None,
            last: now,
            waiting_since: None,
            longest: Duration::ZERO,
            waits: Vec::new(),
        }))
    }

    /// Somebody waits from now on.
    pub fn wait(&self, now: Instant) {
        self.with(|beats| beats.waiting_since = Some(now));
    }

    /// What was waited for is there. With `more`, the next is waited for at once.
    pub fn beat(&self, now: Instant, more: bool) {
        self.with(|beats| {
            if let Some(since) = beats.waiting_since {
                let waited = now.saturating_duration_since(since);
                beats.longest = beats.longest.max(waited);
                if !more {
                    beats.waits.push(waited);
                }
            }
            beats.first.get_or_insert(now);
            beats.last = now;
            beats.waiting_since = more.then_some(now);
        });
    }

    /// Nobody waits any more.
    pub fn stop(&self) {
        self.with(|beats| beats.waiting_since = None);
    }

    /// Returns the longest wait since the last call, one that is not over included.
    pub fn take_longest(&self, now: Instant) -> Duration {
        self.with(|beats| {
            let open = beats
                .waiting_since
                .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            std::mem::take(&mut beats.longest).max(open)
        })
    }

    /// Returns when something arrived first.
    pub fn first(&self) -> Option<Instant> {
        self.with(|beats| beats.first)
    }

    /// Returns when something arrived last.
    pub fn last(&self) -> Instant {
        self.with(|beats| beats.last)
    }

    /// Returns all waits that were for one answer.
    pub fn waits(&self) -> Vec<Duration> {
        self.with(|beats| beats.waits.clone())
    }

    fn with<T>(&self, look: impl FnOnce(&mut Beats) -> T) -> T {
        // A thread that panicked has left times behind that are as good as before.
        look(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_counts_the_one_that_is_not_over() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let pulse = Pulse::new(start);
        assert_eq!(pulse.take_longest(at(100)), Duration::ZERO, "nobody waits");
        pulse.wait(at(100));
        pulse.beat(at(150), true);
        assert_eq!(pulse.take_longest(at(180)), Duration::from_millis(50));
        assert_eq!(pulse.take_longest(at(450)), Duration::from_millis(300));
        pulse.beat(at(500), false);
        assert_eq!(pulse.waits(), [Duration::from_millis(350)]);
        assert_eq!(pulse.take_longest(at(900)), Duration::from_millis(350));
        assert_eq!(pulse.last(), at(500));
    }
}
