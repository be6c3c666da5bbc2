//! The agent's keepalive: asks often enough that a NAT keeps the binding, and as seldom as it allows.
//!
//! The interval starts short. A longer one is tried before it is used: the server is asked to answer a second time, after
//! the longer silence. If that echo comes through although nothing else has passed, the NAT bears it. That the server sees
//! the agent at the same address proves nothing: many NATs take the same port again for a binding that they had forgotten,
//! and until then nothing from the server gets through. Where the address does change, the interval was too long as well.

use std::time::{Duration, Instant};

use crate::defaults::{KEEPALIVE_ANSWER, KEEPALIVE_ECHO_LATE, KEEPALIVE_FIRST, KEEPALIVE_MAX};

/// By how much a silence that is tried is longer than the interval.
const GROWTH: f64 = 1.25;

/// The state of a link's keepalive.
#[derive(Clone, Debug)]
pub struct Keepalive {
    interval: Duration,
    /// Longest interval that is wanted.
    longest: Option<Duration>,
    /// Longest interval that is tried; lowered for good when a longer one failed.
    ceiling: Duration,
    next: Instant,
    waiting: Option<Waiting>,
    trial: Option<Trial>,
    seq: u64,
    seen_as: Option<String>,
    rtt: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    seq: u64,
    since: Instant,
    /// A longer silence than the interval has gone before.
    late: bool,
}

/// A silence that is tried with a ping.
#[derive(Clone, Copy, Debug)]
struct Trial {
    seq: u64,
    silence: Duration,
    /// When it has failed, once the first answer is there.
    fails: Option<Instant>,
}

/// What the keepalive wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a ping.
    Ping {
        /// Its number.
        seq: u64,
        /// After which time the server is to answer it a second time.
        echo_after: Option<Duration>,
    },
    /// The link is dead: no answer came.
    Dead,
}

impl Keepalive {
    /// Starts on a fresh link. The first ping goes out at once, so that the link is proven.
    pub const fn new(now: Instant) -> Self {
        Self {
            interval: KEEPALIVE_FIRST,
            longest: None,
            ceiling: KEEPALIVE_MAX,
            next: now,
            waiting: None,
            trial: None,
            seq: 0,
            seen_as: None,
            rtt: None,
        }
    }

    /// Asks at least so often from here on, for who wants to know soon that the server is gone; as seldom as the path
    /// allows without.
    pub fn ask_every(&mut self, now: Instant, longest: Option<Duration>) {
        self.longest = longest;
        self.next = self.next.min(now + self.longest_silence());
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
        let trial = self.trial.take();
        let late = trial.is_some_and(|trial| trial.fails.is_some_and(|fails| now >= fails));
        if late {
            self.ceiling = self.interval;
        }
        let silence = self.interval.mul_f64(GROWTH).min(self.ceiling);
        let allowed = self
            .longest
            .is_none_or(|longest| silence + KEEPALIVE_ECHO_LATE <= longest);
        if self.seen_as.is_some() && self.interval < self.ceiling && allowed {
            self.trial = Some(Trial {
                seq,
                silence,
                fails: None,
            });
        }
        self.waiting = Some(Waiting {
            seq,
            since: now,
            late,
        });
        let echo_after = self.trial.map(|trial| trial.silence);
        Some(Action::Ping { seq, echo_after })
    }

    /// Takes an answer in. `seen_as` is the agent's address as the server sees it.
    pub fn handle_pong(&mut self, now: Instant, seq: u64, seen_as: &str) {
        let Some(waiting) = self.waiting.filter(|w| w.seq == seq) else {
            return;
        };
        self.waiting = None;
        self.rtt = Some(now - waiting.since);
        if self.seen_as.as_deref().is_some_and(|before| before != seen_as) {
            self.trial = None;
            if self.interval > KEEPALIVE_FIRST && !waiting.late {
                // The binding did not last as long as it had: stay clearly below.
                self.ceiling = self.interval.mul_f64(0.7).max(KEEPALIVE_FIRST);
                self.interval = self.ceiling;
            }
        }
        self.seen_as = Some(seen_as.to_owned());
        self.next = now + self.longest_silence();
        if let Some(trial) = &mut self.trial {
            trial.fails = Some(self.next);
        }
    }

    /// Takes the second answer to a ping in. It proves something only if it was `alone`: if nothing else has passed since
    /// the first.
    pub fn handle_echo(&mut self, now: Instant, seq: u64, alone: bool) {
        let Some(trial) = self
            .trial
            .take_if(|trial| trial.seq == seq && trial.fails.is_some())
        else {
            return;
        };
        if alone {
            // The server began to count when the ping arrived, and the NAT after the answer.
            let silence = trial.silence.saturating_sub(self.rtt.unwrap_or_default());
            self.interval = self.interval.max(silence);
        }
        self.next = now;
    }

    /// Asks for a ping at once, because something has happened that makes the link doubtful.
    pub fn probe(&mut self, now: Instant) {
        self.next = self.next.min(now);
    }

    /// Returns when [`Keepalive::handle_timeout`] is to be called next.
    pub fn next_timeout(&self) -> Instant {
        self.waiting.map_or(self.next, |w| w.since + KEEPALIVE_ANSWER)
    }

    /// Returns the longest silence that the NAT is known to bear, or is believed to at first.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns the longest time from an answer to the next ping.
    pub fn longest_silence(&self) -> Duration {
        let trial = self.trial.map(|trial| trial.silence + KEEPALIVE_ECHO_LATE);
        let silence = trial.unwrap_or(self.interval);
        self.longest.map_or(silence, |longest| silence.min(longest))
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
        let mut keepalive = Keepalive::new(now);
        let mut answer = |keepalive: &mut Keepalive, seen_as: &str| {
            let Some(Action::Ping { seq, .. }) = keepalive.handle_timeout(now) else {
                panic!("no ping was due")
            };
            keepalive.handle_pong(now, seq, seen_as);
            let wait = keepalive.next_timeout() - now;
            now = keepalive.next_timeout();
            (wait, now)
        };
        let (wait, next) = answer(&mut keepalive, "a");
        assert_eq!(wait, KEEPALIVE_FIRST);
        keepalive.ask_every(next - KEEPALIVE_FIRST, Some(longest));
        assert_eq!(keepalive.next_timeout(), next - KEEPALIVE_FIRST + longest);
        for round in 0..20 {
            // The address changes now and then, which must not make it ask less often.
            let (wait, _) = answer(&mut keepalive, if round % 5 == 0 { "a" } else { "b" });
            assert_eq!(wait, longest);
        }
    }

    const RTT: Duration = Duration::from_millis(80);

    /// A NAT that forgets after `binding` (never if `None`), and then takes the same port again or another.
    #[derive(Clone, Copy)]
    struct Nat {
        binding: Option<Duration>,
        same_port: bool,
    }

    /// Runs a link for some hours and returns the interval that is settled on, and for how long in the last of them nothing
    /// from the server would have come through.
    fn settle(nat: Nat) -> (Duration, Duration) {
        let start = Instant::now();
        let end = start + Duration::from_hours(4);
        let (mut now, mut last, mut port) = (start, start, 0);
        let mut unreachable = Duration::ZERO;
        let mut keepalive = Keepalive::new(now);
        while now < end {
            now = keepalive.next_timeout();
            let Some(Action::Ping { seq, echo_after }) = keepalive.handle_timeout(now) else {
                panic!("no ping was due")
            };
            let silence = now - last;
            let forgotten = nat
                .binding
                .map_or(Duration::ZERO, |binding| silence.saturating_sub(binding));
            if !forgotten.is_zero() && !nat.same_port {
                port += 1;
            }
            if now > end - Duration::from_hours(1) {
                unreachable += forgotten;
            }
            last = now + RTT;
            keepalive.handle_pong(last, seq, &format!("192.0.2.1:{port}"));
            let echo = echo_after.map(|after| now + RTT / 2 + after);
            if let Some(echo) = echo.filter(|echo| nat.binding.is_none_or(|binding| *echo - last <= binding))
            {
                now = echo + RTT / 2;
                last = now;
                keepalive.handle_echo(now, seq, true);
            }
        }
        (keepalive.interval(), unreachable)
    }

    #[test]
    fn it_grows_where_the_nat_allows() {
        let nat = Nat {
            binding: None,
            same_port: true,
        };
        let (interval, _) = settle(nat);
        assert!(KEEPALIVE_MAX - interval < Duration::from_secs(1), "{interval:?}");
    }

    #[test]
    fn it_stays_below_what_a_nat_forgets_also_where_the_port_stays() {
        for (secs, same_port) in [30, 60, 120, 180]
            .into_iter()
            .flat_map(|secs| [(secs, true), (secs, false)])
        {
            let binding = Duration::from_secs(secs);
            let (settled, unreachable) = settle(Nat {
                binding: Some(binding),
                same_port,
            });
            assert!(
                settled <= binding && settled >= KEEPALIVE_FIRST,
                "{secs}: {settled:?}"
            );
            assert!(
                settled.mul_f64(GROWTH) >= binding - Duration::from_secs(5),
                "{secs}: {settled:?}"
            );
            assert_eq!(unreachable, Duration::ZERO, "{secs}");
        }
    }

    #[test]
    fn an_echo_beside_other_traffic_or_of_another_ping_proves_nothing() {
        let mut now = Instant::now();
        let mut keepalive = Keepalive::new(now);
        keepalive.handle_timeout(now);
        keepalive.handle_pong(now, 0, "a");
        for seq in 1..5 {
            now = keepalive.next_timeout();
            let action = keepalive.handle_timeout(now);
            let echo_after = Some(KEEPALIVE_FIRST.mul_f64(GROWTH));
            assert_eq!(action, Some(Action::Ping { seq, echo_after }));
            // Before the first answer there is no silence.
            keepalive.handle_echo(now, seq, true);
            keepalive.handle_pong(now, seq, "a");
            keepalive.handle_echo(now, seq + 1, true);
            keepalive.handle_echo(now, seq, false);
            assert_eq!(
                (keepalive.interval(), keepalive.next_timeout()),
                (KEEPALIVE_FIRST, now)
            );
        }
        // Nor does a probe that comes between fail the trial.
        now = keepalive.next_timeout();
        keepalive.handle_timeout(now);
        keepalive.handle_pong(now, 5, "a");
        keepalive.probe(now);
        assert!(matches!(
            keepalive.handle_timeout(now),
            Some(Action::Ping {
                seq: 6,
                echo_after: Some(_)
            })
        ));
    }

    #[test]
    fn a_missing_answer_ends_the_link() {
        let now = Instant::now();
        let mut keepalive = Keepalive::new(now);
        let first = Action::Ping {
            seq: 0,
            echo_after: None,
        };
        assert_eq!(keepalive.handle_timeout(now), Some(first));
        assert_eq!(keepalive.handle_timeout(now), None);
        let late = keepalive.next_timeout();
        assert_eq!(late, now + KEEPALIVE_ANSWER);
        keepalive.handle_pong(late, 99, "x");
        assert_eq!(keepalive.handle_timeout(late), Some(Action::Dead));
    }
}
