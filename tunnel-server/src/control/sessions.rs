//! What devices tell of sessions: whose it was is looked up, and it becomes a record.

use std::time::{Duration, Instant};

use tunnel_proto::api::Traffic;
use tunnel_proto::message::SessionEnded;
use tunnel_proto::{DeviceId, Identity, UnixTime};

use super::Control;
use crate::audit::{SessionOf, bounded};
use crate::failure::chain;

use crate::store::{SessionRecord, StoreError, TunnelRecord};

/// How long after a tunnel's end its sessions are recorded: a device may have been without its network meanwhile.
const TOLD_LATE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a device told of a session, before it is known whose it was.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) device: DeviceId,
    pub(crate) session: SessionEnded,
    /// What the relay forwarded, while that was known still.
    pub(crate) traffic: Option<Traffic>,
}

/// Says whether a device may tell of a tunnel's sessions: it has the tunnel, or has just had it. Pure.
fn may_tell(tunnel: &TunnelRecord, device: &DeviceId, now: UnixTime) -> bool {
    let ended = tunnel.ended.as_ref();
    tunnel.decided.device == *device && ended.is_none_or(|ended| now.since(ended.at) <= TOLD_LATE)
}

impl Control {
    /// Records a session that has ended or was refused, and says whether the store could tell whose it was; if not, it is
    /// kept and tried again. What a device tells of others' tunnels is only counted.
    pub(crate) async fn session_told(&self, mut told: Told) -> bool {
        told.session.service = bounded(&told.session.service);
        match self.store.tunnel(told.session.tunnel).await {
            Ok(Some(tunnel)) if may_tell(&tunnel, &told.device, self.now()) => {
                self.take_session(told, tunnel).await;
            }
            Ok(_) => self.gather(&format!("device/{}", told.device), "", "session.unknown"),
            // It will not be read later either.
            Err(error @ StoreError::Damaged(_)) => {
                tracing::error!(error = %chain(&error), "a session is not recorded");
                self.evidence.lose();
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a session waits until the store tells whose it was");
                self.evidence.keep_told(told);
                return false;
            }
        }
        true
    }

    /// Records a session. Of an operator who is refused very often the refusals are counted only (THREATS AUD-05).
    async fn take_session(&self, told: Told, tunnel: TunnelRecord) {
        let session = told.session;
        let operator = Identity::operator(&self.identity.trust_domain, &tunnel.decided.operator);
        if let Some(code) = session.refused
            && !self.quotas.denials.take(Instant::now(), &operator)
        {
            let by = format!("operator/{}", tunnel.decided.operator);
            self.gather(&by, &tunnel.decided.source, &format!("session.refused {code}"));
            return;
        }
        let ended = tunnel.ended.as_ref();
        let traffic = told
            .traffic
            .or_else(|| ended.and_then(|ended| ended.traffic.clone()));
        let end = session.end;
        let of = SessionOf {
            started_at: end.map(|end| end.started_at),
            ended_by: end.map(|end| end.by.as_str().to_owned()),
            cause: end.and_then(|end| end.cause),
            paths: traffic.map(|traffic| traffic.paths).unwrap_or_default(),
            opening: Some(Box::new((&tunnel).into())),
            operator: Some(tunnel.decided.operator),
            device: Some(tunnel.decided.device),
        };
        let record = SessionRecord {
            tunnel: session.tunnel,
            service: session.service,
            refused: session.refused,
            millis: session.millis,
            bytes_in: session.bytes_in,
            bytes_out: session.bytes_out,
            of,
        };
        if let Err(error) = self.store.session(record.clone()).await {
            tracing::warn!(tunnel = %record.tunnel.fmt_short(), %error, "a session waits to be recorded");
            self.evidence.keep(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions as _, Connection as _};
    use tunnel_proto::{Code, TunnelId};

    use super::*;
    use crate::audit::Event;
    use crate::store::tests::tunnel;
    use crate::store::{Ended, TunnelState};
    use crate::tunnels::tests::server_that;

    fn told(refused: Option<Code>) -> Told {
        Told {
            device: "pump-17".parse().unwrap(),
            session: SessionEnded {
                tunnel: TunnelId::from_bytes([1; 16]),
                service: "ssh".into(),
                refused,
                millis: 1,
                bytes_in: 2,
                bytes_out: 3,
                end: None,
            },
            traffic: None,
        }
    }

    fn record(ended: Option<UnixTime>) -> TunnelRecord {
        TunnelRecord {
            decided: tunnel(1),
            state: TunnelState::Open,
            opened_at: UnixTime::from_secs(1),
            ended: ended.map(|at| Ended {
                at,
                reason: Code::TunnelClosed,
                by: "server".into(),
                traffic: None,
            }),
            rotations: [0; 2],
            spent_bytes: None,
            grant: None,
        }
    }

    #[test]
    fn a_device_tells_of_tunnels_that_it_has_or_has_just_had() {
        let (ours, others) = ("pump-17".parse().unwrap(), "pump-18".parse().unwrap());
        let end = UnixTime::from_secs(1_800_000_000);
        let now = end.after(TOLD_LATE);
        assert!(may_tell(&record(None), &ours, now));
        assert!(may_tell(&record(Some(end)), &ours, now));
        assert!(!may_tell(
            &record(Some(end)),
            &ours,
            now.after(Duration::from_secs(1))
        ));
        assert!(!may_tell(&record(None), &others, now));
    }

    /// THREATS AUD-05: what is refused at a device again and again buries nothing, and each refusal counts.
    #[tokio::test]
    async fn refusals_at_a_device_are_gathered_and_sessions_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        for _ in 0..400 {
            control
                .take_session(told(Some(Code::TargetRefused)), record(None))
                .await;
        }
        control.take_session(told(None), record(None)).await;
        let trail = control.store.audit(0, 10_000).await.unwrap();
        let count = |kind: &str| trail.iter().filter(|record| record.kind == kind).count() as u64;
        assert!((100..=300).contains(&count("session.refused")));
        assert_eq!(count("session.ended"), 1);
        let gathered = control.evidence.gathered().take();
        let [Event::DenialsGathered { by, count: rest, .. }] = &gathered[..] else {
            panic!("{gathered:?}")
        };
        assert_eq!(
            (by.as_str(), count("session.refused") + rest),
            ("operator/ana", 400)
        );
        server.shutdown().await;
    }

    #[tokio::test]
    async fn a_session_waits_until_the_store_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let path = crate::config::DataDir::new(directory.path().join("data")).store();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut other = options.connect().await.unwrap();
        let rename = "ALTER TABLE tunnels RENAME TO away";
        sqlx::raw_sql(rename).execute(&mut other).await.unwrap();
        assert!(!control.session_told(told(None)).await);
        assert!(control.evidence.has_waiting());
        sqlx::raw_sql("ALTER TABLE away RENAME TO tunnels")
            .execute(&mut other)
            .await
            .unwrap();
        other.close().await.unwrap();
        // It is looked up again: there is no such tunnel, which is counted.
        control.resume(Duration::ZERO).await;
        assert!(!control.evidence.has_waiting());
        assert_eq!(control.evidence.gathered().take().len(), 1);
        server.shutdown().await;
    }
}
