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
            () = control.stopping() => return,
        }
        // A failure was logged, and is tried again.
        let _ = control.expire_approvals().await;
    }
}

impl Control {
    /// Writes down which approvals have expired, and returns how many those were. After a jump they are judged by the clock of
    /// before until the new one has settled: set back, it does not hide what was over, and one that leapt ahead for a moment
    /// ends nothing for good (THREATS SRV-09). At the start the clock of before is that of the newest record, so that one
    /// which was set back while the server was down hides nothing either. Whether that record was of a leap cannot be told
    /// apart from it: what would have been over by then is over, since to ask again is the smaller harm.
    ///
    /// # Errors
    /// Fails if the store cannot be read or written.
    pub(crate) async fn expire_approvals(&self) -> Result<u64, Code> {
        let expired = self.store.expire_approvals(self.believed()).await;
        let expired = expired.map_err(|error| self.store_failed(&error))?;
        if expired > 0 {
            self.decisions.tell();
        }
        Ok(expired)
    }

    fn believed(&self) -> UnixTime {
        let shown = self.moment().now;
        let clock = self.steadiness.lock().unwrap_or_else(PoisonError::into_inner);
        clock.without_jump(Instant::now()).unwrap_or(shown)
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

    /// THREATS SRV-09: as a clock that is set back while the server is down, after the last look and the last record.
    #[tokio::test]
    async fn srv_09_a_clock_that_was_set_back_while_the_server_was_down_revives_no_approval() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let now = server.control().now();
        for (number, end) in [(1, now.after(HOUR)), (2, now.after(HOUR * 3))] {
            let asked = approved_until(number, end);
            assert!(server.control().store.ask_approval(asked, now).await.unwrap());
        }
        server.shutdown().await;
        // The last that the server of before recorded is of two hours from here, which is to say that this clock is behind.
        let path = DataDir::new(directory.path().join("data")).store();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut other = options.connect().await.unwrap();
        let later = "DROP TRIGGER audit_is_not_changed;
             UPDATE audit SET time_millis = time_millis + 7200000 WHERE seq = (SELECT max(seq) FROM audit);";
        sqlx::raw_sql(later).execute(&mut other).await.unwrap();
        other.close().await.unwrap();

        let server = start_again(&directory).await;
        let control = server.control();
        assert!(!control.moment().steady);
        for (number, alive) in [(1, Err(Code::ApprovalExpired)), (2, Ok(()))] {
            let found = control.store.approval(ApprovalId::from_bytes([number; 16])).await;
            assert_eq!(found.unwrap().unwrap().is_alive(now), alive, "{number}");
        }
        server.shutdown().await;
    }

    /// THREATS SRV-09: what has expired by the clock of before stays expired when the clock is set back; a leap ahead ends
    /// nothing for good before it has settled.
    #[tokio::test]
    async fn srv_09_a_clock_that_is_set_back_revives_no_approval() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let now = control.now();
        let showed = |wall| {
            let clock = Steadiness::new(wall, Instant::now());
            *control.steadiness.lock().unwrap() = clock;
        };
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
