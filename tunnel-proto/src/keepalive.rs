//! The agent's keepalive: asks often enough that a NAT keeps the binding, and as seldom as it allows.
//!
//! The interval starts short. While nothing else travels and the server still sees the agent at the same address after a
//! longer silence, the silence grows; when the address has changed or an answer is missing, it falls back below the
//! length that worked and stays there.

use std::time::{Duration, Instant};

use crate::defaults::{KEEPALIVE_ANSWER, KEEPALIVE_FIRST, KEEPALIVE_MAX};

/// By how much the interval grows after an answer.
const GROWTH: f64 = 1.25;

/// The state of a link's keepalive.
#[derive(Clone, Debug)]
pub struct Keepalive {
    interval: Duration,
    /// Longest interval that is wanted.
    longest: Duration,
    /// Longest interval that is tried; lowered for good when a longer one failed.
    ceiling: Duration,
    next: Instant,
    waiting: Option<Waiting>,
    seq: u64,
    seen_as: Option<String>,
    rtt: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    seq: u64,
    since: Instant,
}

/// What the keepalive wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a ping with this number.
    Ping(u64),
    /// The link is dead: no answer came.
    Dead,
}

impl Keepalive {
    /// Starts on a fresh link. The first ping goes out at once, so that the link is proven.
    ///
    /// `learnt` is the interval that worked on the link before, if there was one on the same network.
    pub fn new(now: Instant, learnt: Option<Duration>) -> Self {
        let interval = learnt
            .unwrap_or(KEEPALIVE_FIRST)
            .clamp(KEEPALIVE_FIRST, KEEPALIVE_MAX);
        Self {
            interval,
            longest: KEEPALIVE_MAX,
            ceiling: KEEPALIVE_MAX,
            next: now,
            waiting: None,
            seq: 0,
            seen_as: None,
            rtt: None,
        }
    }

    /// Asks at least so often from here on, for who wants to know soon that the server is gone; as seldom as the path
    /// allows without.
    pub fn ask_every(&mut self, now: Instant, longest: Option<Duration>) {
        self.longest = longest.map_or(KEEPALIVE_MAX, |longest| longest.min(KEEPALIVE_MAX));
        self.next = self.next.min(now + self.interval());
    }

    /// Says what is due. Call it when [`Keepalive::next_timeout`] has come, until it returns `None`.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        if self.waiting.is_some_and(|w| now >= w.since + KEEPALIVE_ANSWER) {
            return Some(Action::Dead);
        }
        if self.waiting.is_some() || now < self.next {
            return None;
        }
        let seq = self.seq;
        self.seq += 1;
        self.waiting = Some(Waiting { seq, since: now });
        Some(Action::Ping(seq))
    }

    /// Takes an answer in. `seen_as` is the agent's address as the server sees it.
    pub fn handle_pong(&mut self, now: Instant, seq: u64, seen_as: &str) {
        let Some(waiting) = self.waiting.filter(|w| w.seq == seq) else {
            return;
        };
        self.waiting = None;
        self.rtt = Some(now - waiting.since);
        let moved = self.seen_as.as_deref().is_some_and(|before| before != seen_as);
        if moved && self.interval > KEEPALIVE_FIRST {
            // The binding did not last: stay clearly below.
            self.ceiling = self.interval.mul_f64(0.7).max(KEEPALIVE_FIRST);
            self.interval = self.ceiling;
        } else if self.seen_as.is_some() && !moved {
            self.interval = self.interval.mul_f64(GROWTH).min(self.ceiling);
        }
        self.seen_as = Some(seen_as.to_owned());
        self.next = now + self.interval();
    }

    /// Asks for a ping at once, because something has happened that makes the link doubtful.
    pub fn probe(&mut self, now: Instant) {
        self.next = self.next.min(now);
    }

    /// Returns when [`Keepalive::handle_timeout`] is to be called next.
    pub fn next_timeout(&self) -> Instant {
        self.waiting.map_or(self.next, |w| w.since + KEEPALIVE_ANSWER)
    }

    /// Returns the time between two pings.
    pub fn interval(&self) -> Duration {
        self.interval.min(self.longest)
    }

    /// Returns the last measured round trip.
    pub const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_can_have_it_asked_often() {
        let mut now = Instant::now();
        let longest = Duration::from_secs(3);
        let mut keepalive = Keepalive::new(now, Some(KEEPALIVE_MAX));
        let mut answer = |keepalive: &mut Keepalive, seen_as: &str| {
            let Some(Action::Ping(seq)) = keepalive.handle_timeout(now) else {
                panic!("no ping was due")
            };
            keepalive.handle_pong(now, seq, seen_as);
            let wait = keepalive.next_timeout() - now;
            now = keepalive.next_timeout();
            (wait, now)
        };
        let (wait, next) = answer(&mut keepalive, "a");
        assert_eq!(wait, KEEPALIVE_MAX);
        keepalive.ask_every(next - KEEPALIVE_MAX, Some(longest));
        assert_eq!(keepalive.next_timeout(), next - KEEPALIVE_MAX + longest);
        for round in 0..20 {
            // The address changes now and then, which must not make it ask less often.
            let (wait, _) = answer(&mut keepalive, if round % 5 == 0 { "a" } else { "b" });
            assert_eq!(wait, longest);
        }
    }

    /// Runs a link whose NAT forgets after `binding` (never if `None`) and returns the interval that is settled on.
    fn settle(binding: Option<Duration>) -> Duration {
        let mut now = Instant::now();
        let mut keepalive = Keepalive::new(now, None);
        let (mut port, mut last) = (0, now);
        for _ in 0..200 {
            now = keepalive.next_timeout();
            let Some(Action::Ping(seq)) = keepalive.handle_timeout(now) else {
                panic!("no ping was due")
            };
            if binding.is_some_and(|binding| now - last > binding) {
                port += 1;
            }
            last = now;
            keepalive.handle_pong(now, seq, &format!("192.0.2.1:{port}"));
        }
        keepalive.interval()
    }

    #[test]
    fn it_grows_where_the_nat_allows() {
        assert_eq!(settle(None), KEEPALIVE_MAX);
    }

    #[test]
    fn it_stays_below_what_a_nat_forgets() {
        for secs in [30, 60, 120, 180] {
            let settled = settle(Some(Duration::from_secs(secs)));
            assert!(
                settled <= Duration::from_secs(secs) && settled >= KEEPALIVE_FIRST,
                "{secs}: {settled:?}"
            );
        }
    }

    #[test]
    fn a_missing_answer_ends_the_link() {
        let now = Instant::now();
        let mut keepalive = Keepalive::new(now, None);
        assert_eq!(keepalive.handle_timeout(now), Some(Action::Ping(0)));
        assert_eq!(keepalive.handle_timeout(now), None);
        let late = keepalive.next_timeout();
        assert_eq!(late, now + KEEPALIVE_ANSWER);
        keepalive.handle_pong(late, 99, "x");
        assert_eq!(keepalive.handle_timeout(late), Some(Action::Dead));
    }
}
