//! Whether the operator's end of a tunnel is still there. Pure: told what is heard and when.
//!
//! A tunnel outlives silence, since a laptop sleeps and networks fail. A program that has died must not outlive itself all
//! the same. What tells the two apart: a process that ends takes its waiting request with it at the moment at which its
//! leg falls silent, and a machine that sleeps closes nothing.

use std::time::{Duration, Instant};

/// How often a leg is listened to. A live one is heard every 15 seconds: by the keepalive of the connection in it, and by
/// the binds with which it asks for the relay.
pub(crate) const LISTEN_EVERY: Duration = Duration::from_secs(5);

/// How much earlier than the request the leg may have been heard last, for both to have ended together.
const TOGETHER: Duration = Duration::from_secs(25);

/// How long after the request the leg may still have seemed to be heard, since it is listened to now and then.
const LATE: Duration = Duration::from_secs(10);

/// How long an operator's end has been silent that has died. More than the restart of a proxy takes, which closes
/// everything that went through it.
const DIED: Duration = Duration::from_secs(60);

/// How long an operator's end has been silent that has vanished without a sign: a laptop may sleep through a meeting.
const VANISHED: Duration = Duration::from_secs(2 * 3600);

/// From when on a silent end makes room for somebody who asks for a tunnel where there is none.
const GIVES_WAY: Duration = Duration::from_secs(45);

/// What is known of one operator's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attendance {
    signs: u64,
    heard: Instant,
    /// Requests that wait for the tunnel's end.
    waiting: usize,
    /// When the last of them was broken off by its peer.
    left: Option<Instant>,
}

impl Attendance {
    /// Starts with an end that was heard just now.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            signs: 0,
            heard: now,
            waiting: 0,
            left: None,
        }
    }

    /// Takes in how many signs of life there have been so far.
    pub(crate) fn handle_signs(&mut self, now: Instant, signs: u64) {
        if signs != self.signs {
            self.signs = signs;
            self.heard = now;
        }
    }

    /// A request began to wait for the tunnel's end.
    pub(crate) fn handle_waiting(&mut self) {
        self.waiting += 1;
        self.left = None;
    }

    /// A request waits no longer: it was answered, or its peer broke it off.
    pub(crate) fn handle_done(&mut self, now: Instant, broken_off: bool) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 && broken_off {
            self.left = Some(now);
        }
    }

    /// Says whether this end is gone for good.
    pub(crate) fn is_gone(&self, now: Instant) -> bool {
        let silence = self.silence(now);
        let left_as_it_fell_silent = self.left.is_some_and(|left| {
            left.saturating_duration_since(self.heard) <= TOGETHER
                && self.heard.saturating_duration_since(left) <= LATE
        });
        silence >= VANISHED || (left_as_it_fell_silent && silence >= DIED)
    }

    /// Returns how long this end has been silent, if that is long enough to make room.
    pub(crate) fn gives_way(&self, now: Instant) -> Option<Duration> {
        Some(self.silence(now)).filter(|silence| *silence >= GIVES_WAY)
    }

    /// Returns how long this end has been silent.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    /// An end that waits for its tunnel's end and was heard for ten minutes.
    fn at_work() -> (Attendance, Instant) {
        let mut now = Instant::now();
        let mut attendance = Attendance::new(now);
        attendance.handle_waiting();
        for signs in 1..=120 {
            now += LISTEN_EVERY;
            attendance.handle_signs(now, signs);
        }
        (attendance, now)
    }

    #[test]
    fn a_process_that_dies_is_gone_within_a_minute() {
        let (mut attendance, now) = at_work();
        attendance.handle_done(now + Duration::from_secs(14), true);
        assert!(!attendance.is_gone(now + Duration::from_secs(59)));
        assert!(attendance.is_gone(now + MINUTE));
    }

    #[test]
    fn a_laptop_that_sleeps_for_an_hour_is_not() {
        let (mut attendance, now) = at_work();
        // The server answers what waits after some minutes, to nobody.
        attendance.handle_done(now + 4 * MINUTE, false);
        assert!(!attendance.is_gone(now + HOUR));
        assert!(attendance.is_gone(now + 2 * HOUR));
    }

    #[test]
    fn a_laptop_that_sleeps_behind_a_proxy_is_not_either() {
        let (mut attendance, now) = at_work();
        // The proxy finds out that its client is away, and closes what goes on from there.
        attendance.handle_done(now + 2 * MINUTE, true);
        assert!(!attendance.is_gone(now + HOUR));
    }

    #[test]
    fn who_is_heard_is_there_whatever_becomes_of_its_requests() {
        let (mut attendance, now) = at_work();
        attendance.handle_done(now, true);
        let mut later = now;
        for signs in 1000..2000 {
            later += LISTEN_EVERY;
            attendance.handle_signs(later, signs);
            assert!(!attendance.is_gone(later));
        }
        // And when it falls silent then, the request of long ago says nothing about it.
        assert!(!attendance.is_gone(later + HOUR));
    }

    #[test]
    fn who_asks_again_has_not_left() {
        let (mut attendance, now) = at_work();
        attendance.handle_waiting();
        attendance.handle_done(now, true);
        assert!(!attendance.is_gone(now + HOUR), "the other request still waits");
        attendance.handle_done(now, true);
        attendance.handle_waiting();
        assert!(!attendance.is_gone(now + HOUR));
    }

    #[test]
    fn room_is_made_by_who_has_been_silent_for_a_while() {
        let (attendance, now) = at_work();
        assert_eq!(attendance.gives_way(now + GIVES_WAY - LISTEN_EVERY), None);
        assert_eq!(attendance.gives_way(now + GIVES_WAY), Some(GIVES_WAY));
    }
}
