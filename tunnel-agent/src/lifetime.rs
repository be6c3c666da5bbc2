//! How long a tunnel lives at the device, and how many sessions it carries. Pure.

use std::time::{Duration, Instant};

use tunnel_proto::Code;
use tunnel_proto::defaults::{CLOCK_TOLERANCE, TUNNEL_LIFETIME_MAX};
use tunnel_proto::grant::Limits;

/// The time and the sessions of one tunnel.
///
/// A session that is quiet is still a session: only a tunnel without any ends for being idle.
#[derive(Clone, Debug)]
pub struct Lifetime {
    ends: Instant,
    idle: Duration,
    idle_since: Instant,
    max_sessions: u32,
    sessions: u32,
    total: u64,
}

impl Lifetime {
    /// Starts the life of a tunnel that has `left` until its grant's end; no tunnel lives longer than any may.
    pub fn new(now: Instant, left: Duration, limits: Limits) -> Self {
        Self {
            ends: now + left.min(TUNNEL_LIFETIME_MAX + CLOCK_TOLERANCE),
            idle: Duration::from_secs(limits.idle_secs.into()),
            idle_since: now,
            max_sessions: limits.sessions,
            sessions: 0,
            total: 0,
        }
    }

    /// Counts a session in.
    ///
    /// # Errors
    /// Returns [`Code::Limit`] when the grant allows no more at once.
    pub fn session_started(&mut self) -> Result<(), Code> {
        if self.sessions >= self.max_sessions {
            return Err(Code::Limit);
        }
        self.sessions += 1;
        self.total += 1;
        Ok(())
    }

    /// Counts a session out.
    pub fn session_ended(&mut self, now: Instant) {
        self.sessions = self.sessions.saturating_sub(1);
        self.idle_since = now;
    }

    /// Says whether the tunnel is over. Call it when [`Lifetime::next_timeout`] has come.
    pub fn handle_timeout(&self, now: Instant) -> Option<Code> {
        if now >= self.ends {
            Some(Code::TunnelExpired)
        } else if self.sessions == 0 && now >= self.idle_since + self.idle {
            Some(Code::TunnelIdle)
        } else {
            None
        }
    }

    /// Returns when [`Lifetime::handle_timeout`] is to be called next; a session that starts or ends may change it.
    pub fn next_timeout(&self) -> Instant {
        if self.sessions == 0 {
            self.ends.min(self.idle_since + self.idle)
        } else {
            self.ends
        }
    }

    /// Returns how many sessions the tunnel has carried.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(900);
    const HOUR: Duration = Duration::from_secs(3600);

    const LIMITS: Limits = Limits {
        sessions: 2,
        bytes: None,
        bytes_per_sec: None,
        idle_secs: 900,
    };

    fn lifetime() -> (Lifetime, Instant) {
        let start = crate::testing::start();
        (Lifetime::new(start, HOUR, LIMITS), start)
    }

    /// A time without end is none that can be added to another.
    #[test]
    fn no_tunnel_lives_longer_than_any_may() {
        let start = crate::testing::start();
        for (left, lives) in [
            (HOUR * 12, HOUR * 12),
            (Duration::MAX, HOUR * 12 + Duration::from_secs(60)),
        ] {
            let mut life = Lifetime::new(start, left, LIMITS);
            life.session_started().unwrap();
            assert_eq!(life.next_timeout(), start + lives);
        }
    }

    #[test]
    fn a_tunnel_without_a_session_ends_when_idle() {
        let (life, start) = lifetime();
        assert_eq!(life.next_timeout(), start + IDLE);
        assert_eq!(life.handle_timeout(start + IDLE - Duration::from_millis(1)), None);
        assert_eq!(life.handle_timeout(start + IDLE), Some(Code::TunnelIdle));
    }

    #[test]
    fn a_quiet_session_is_not_cut_before_the_grant_ends() {
        let (mut life, start) = lifetime();
        life.session_started().unwrap();
        assert_eq!(life.next_timeout(), start + HOUR);
        assert_eq!(life.handle_timeout(start + HOUR - Duration::from_secs(1)), None);
        assert_eq!(life.handle_timeout(start + HOUR), Some(Code::TunnelExpired));
    }

    #[test]
    fn idleness_starts_with_the_end_of_the_last_session() {
        let (mut life, start) = lifetime();
        life.session_started().unwrap();
        life.session_started().unwrap();
        life.session_ended(start + Duration::from_secs(1000));
        assert_eq!(life.handle_timeout(start + Duration::from_secs(2000)), None);
        life.session_ended(start + Duration::from_secs(2000));
        assert_eq!(life.handle_timeout(start + Duration::from_secs(2899)), None);
        assert_eq!(
            life.handle_timeout(start + Duration::from_secs(2900)),
            Some(Code::TunnelIdle)
        );
        assert_eq!(life.total(), 2);
    }

    #[test]
    fn the_grant_bounds_sessions_at_once() {
        let (mut life, start) = lifetime();
        life.session_started().unwrap();
        life.session_started().unwrap();
        assert_eq!(life.session_started(), Err(Code::Limit));
        life.session_ended(start);
        assert_eq!(life.session_started(), Ok(()));
        assert_eq!(life.total(), 3);
    }
}
