//! Writes down which approvals have expired: what is over is over, also when the clock is set back afterwards.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tunnel_proto::{Code, UnixTime};

use crate::control::Control;

/// How often the server looks for those that are over: before the clock has settled after a jump.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Writes down what has expired, until the server stops.
pub(crate) async fn watch(control: Arc<Control>) {
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            // What is over now stays so, whatever the clock shows when the server is started again.
            () = control.stopping() => {}
        }
        // A failure was logged, and is tried again.
        let _ = control.expire_approvals().await;
    }
}

impl Control {
    /// Writes down which approvals have expired, and returns how many those were. After a jump they are judged by the clock of
    /// before until the new one has settled: set back, it does not hide what was over, and one that leapt ahead for a moment
    /// ends nothing for good (THREATS SRV-09). For the same reason nothing is written soon after the start. None is alive
    /// meanwhile whose time is over, and none at all is used while the clock is behind the trail.
    ///
    /// # Errors
    /// Fails if the store cannot be read or written.
    pub(crate) async fn expire_approvals(&self) -> Result<u64, Code> {
        let Some(now) = self.proven() else { return Ok(0) };
        let expired = self.store.expire_approvals(now).await;
        let expired = expired.map_err(|error| self.store_failed(&error))?;
        if expired > 0 {
            self.decisions.tell();
        }
        Ok(expired)
    }

    fn proven(&self) -> Option<UnixTime> {
        let shown = self.moment().now;
        let clock = self.steadiness.lock().unwrap_or_else(PoisonError::into_inner);
        clock.proven(shown, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions as _, Connection as _};
    use tunnel_proto::ApprovalId;

    use super::*;
    use crate::approvals::{Approval, Asked, State};
    use crate::config::DataDir;
    use crate::control::steadiness::Steadiness;
    use crate::tunnels::tests::{server_that, start_again};

    const HOUR: Duration = Duration::from_secs(3600);

    fn approved_until(number: u8, end: UnixTime) -> Approval {
        let asked = Asked {
            requester: "ana".parse().unwrap(),
            devices: vec!["pump".parse().unwrap()],
            services: vec!["ssh".parse().unwrap()],
            reason: "INC-7".into(),
            window: HOUR,
            commands: None,
            source: "192.0.2.1".into(),
        };
        let begin = end.before(HOUR);
        let mut approval = Approval::new(ApprovalId::from_bytes([number; 16]), asked, 1, begin);
        approval.agree(&"ben".parse().unwrap(), begin).unwrap();
        assert_eq!((approval.state, approval.expires_at), (State::Approved, end));
        approval
    }

    /// THREATS SRV-09: as a clock that was ahead for a moment, in which the server stopped; and one that is ahead at the start.
    #[tokio::test]
    async fn srv_09_a_clock_that_is_ahead_for_a_moment_at_a_restart_ends_no_approval_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let now = server.control().now();
        let ends = [
            (1, now.before(HOUR)),
            (2, now.after(HOUR)),
            (3, now.after(HOUR * 3)),
        ];
        for (number, end) in ends {
            let asked = approved_until(number, end);
            let asked = server.control().store.ask_approval(asked, now.before(HOUR * 2));
            assert!(asked.await.unwrap());
        }
        server.shutdown().await;
        // The last that the server of before recorded is of two hours from here.
        let path = DataDir::new(directory.path().join("data")).store();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut other = options.connect().await.unwrap();
        let later = "DROP TRIGGER audit_is_not_changed;
             UPDATE audit SET time_millis = time_millis + 7200000 WHERE seq = (SELECT max(seq) FROM audit);";
        sqlx::raw_sql(later).execute(&mut other).await.unwrap();
        other.close().await.unwrap();

        let server = start_again(&directory).await;
        let control = server.control();
        // None is used.
        assert!(!control.moment().steady);
        assert_eq!(control.expire_approvals().await, Ok(0));
        for (number, end) in ends {
            let found = control.store.approval(ApprovalId::from_bytes([number; 16])).await;
            let begin = end.before(HOUR);
            assert_eq!(found.unwrap().unwrap().is_alive(begin), Ok(()), "{number}");
        }
        *control.steadiness.lock().unwrap() = showed(now);
        assert_eq!(control.expire_approvals().await, Ok(1));
        server.shutdown().await;
    }

    /// A clock that has long gone evenly and showed this time a moment ago.
    fn showed(wall: UnixTime) -> Steadiness {
        let (now, long) = (Instant::now(), Duration::from_secs(200));
        let mut clock = Steadiness::new(wall.before(long), now.checked_sub(long).unwrap());
        assert!(clock.is_steady(wall, now));
        clock
    }

    /// THREATS SRV-09: what has expired by the clock of before stays expired when the clock is set back; a leap ahead ends
    /// nothing for good before it has settled.
    #[tokio::test]
    async fn srv_09_a_clock_that_is_set_back_revives_no_approval() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let now = control.now();
        let showed = |wall| *control.steadiness.lock().unwrap() = showed(wall);
        let ana = "ana".parse().unwrap();
        let usable = async |at| {
            let found = control.store.approvals_of(&ana, at).await.unwrap();
            let mut numbers: Vec<u8> = found.iter().map(|found| found.id.as_bytes()[0]).collect();
            numbers.sort_unstable();
            numbers
        };
        for (number, end) in [
            (1, now.before(HOUR)),
            (2, now.after(HOUR)),
            (3, now.after(HOUR * 3)),
        ] {
            let asked = control
                .store
                .ask_approval(approved_until(number, end), now.before(HOUR * 2));
            assert!(asked.await.unwrap());
        }
        // Two hours ago a moment ago: the clock has leapt ahead, and may come back.
        showed(now.before(HOUR * 2));
        assert_eq!(control.expire_approvals().await, Ok(0));
        // It has shown this time for long.
        showed(now);
        assert_eq!(control.expire_approvals().await, Ok(1));
        // Two hours later a moment ago: it was set back, by which the second is alive again.
        assert_eq!(usable(now).await, [2, 3]);
        showed(now.after(HOUR * 2));
        assert_eq!(control.expire_approvals().await, Ok(1));
        showed(now);
        assert_eq!(control.expire_approvals().await, Ok(0));
        assert_eq!(usable(now.before(HOUR * 3)).await, [3]);
        let found = control.store.approval(ApprovalId::from_bytes([2; 16])).await;
        let found = found.unwrap().unwrap();
        assert_eq!(found.state_at(now.before(HOUR * 3)), "expired");
        assert_eq!(found.is_alive(now.before(HOUR * 3)), Err(Code::ApprovalExpired));
    }
}
