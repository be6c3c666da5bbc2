//! What devices tell of sessions: whose it was is looked up, and it becomes a record.

use std::time::{Duration, Instant};

use tunnel_proto::api::{EndsDropped, Traffic};
use tunnel_proto::message::{SessionEnded, SessionKey};
use tunnel_proto::{Code, DeviceId, Identity, UnixTime};

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

impl Told {
    /// By what it is told apart from all others, whosever the session was.
    pub(super) fn key(&self) -> Option<(DeviceId, SessionKey)> {
        Some((self.device.clone(), self.session.key()?))
    }
}

/// What has become of a session that a device told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Taken {
    /// It is recorded or counted.
    Done,
    /// It waits to be recorded.
    Waits,
    /// The store could not be read.
    Unread,
}

/// Says whether a device may tell of a tunnel's sessions: it has the tunnel, or has just had it. Pure.
fn may_tell(tunnel: &TunnelRecord, device: &DeviceId, now: UnixTime) -> bool {
    let ended = tunnel.ended.as_ref();
    tunnel.decided.device == *device && ended.is_none_or(|ended| now.since(ended.at) <= TOLD_LATE)
}

impl Control {
    /// Records a session that has ended or was refused, and says whether the store could tell whose it was; if not, it is
    /// kept and tried again. What a device tells of others' tunnels is only counted. The device is told when it need not tell
    /// it again: that it is on the disk, or that it was counted among many.
    pub(crate) async fn session_told(&self, mut told: Told) -> bool {
        told.session.service = bounded(&told.session.service);
        // What no device counts up to is no number that the store could find again.
        told.session.number = told
            .session
            .number
            .filter(|number| i64::try_from(*number).is_ok());
        let (device, key) = (told.device.clone(), told.session.key());
        match self.store.tunnel(told.session.tunnel).await {
            Ok(Some(tunnel)) if may_tell(&tunnel, &told.device, self.now()) => {
                match self.take_session(&told, tunnel).await {
                    Taken::Done => {}
                    Taken::Waits => return true,
                    Taken::Unread => {
                        self.evidence.keep_told(told);
                        return false;
                    }
                }
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
        self.confirm(&device, key);
        true
    }

    /// Tells a device that it need not tell of a session again.
    pub(super) fn confirm(&self, device: &DeviceId, key: Option<SessionKey>) {
        if let (Some(link), Some(key)) = (self.links.get(device), key) {
            link.confirm(key);
        }
    }

    /// Records a session. While nothing can be recorded it waits at once: one that tried would have its device's other messages
    /// wait for a disk that hangs. Of an operator who is refused very often the refusals are counted only (THREATS AUD-05).
    async fn take_session(&self, told: &Told, tunnel: TunnelRecord) -> Taken {
        let session = &told.session;
        let operator = Identity::operator(&self.identity.trust_domain, &tunnel.decided.operator);
        if let Some(code) = session.refused
            && !self.quotas.denials.take(Instant::now(), &operator)
        {
            return self.count_refusal(session, code, &tunnel).await;
        }
        let ended = tunnel.ended.as_ref();
        let traffic = told
            .traffic
            .clone()
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
            number: session.number,
            dropped: session.dropped.map(|dropped| EndsDropped {
                sessions: dropped.sessions,
                refusals: dropped.refusals,
            }),
        };
        let record = SessionRecord {
            tunnel: session.tunnel,
            service: session.service.clone(),
            refused: session.refused,
            millis: session.millis,
            bytes_in: session.bytes_in,
            bytes_out: session.bytes_out,
            of,
        };
        if self.evidence.is_paused() {
            self.evidence.keep(record);
            return Taken::Waits;
        }
        if let Err(error) = self.store.session(record.clone()).await {
            tracing::warn!(tunnel = %record.tunnel.fmt_short(), %error, "a session waits to be recorded");
            self.evidence.keep(record);
            return Taken::Waits;
        }
        Taken::Done
    }

    /// Counts a refusal of somebody who is refused very often, with what the device could not keep before it.
    async fn count_refusal(&self, session: &SessionEnded, code: Code, tunnel: &TunnelRecord) -> Taken {
        let recorded = match session.key() {
            Some(key) => self.store.is_session_recorded(key).await,
            None => Ok(false),
        };
        match recorded {
            // Told again.
            Ok(true) => {}
            Ok(false) => {
                let (by, source) = (
                    format!("operator/{}", tunnel.decided.operator),
                    &tunnel.decided.source,
                );
                self.gather(&by, source, &format!("session.refused {code}"));
                let device = format!("device/{}", tunnel.decided.device);
                let dropped = session.dropped.unwrap_or_default();
                self.gather_many(&device, "session.ended dropped", dropped.sessions);
                self.gather_many(&device, "session.refused dropped", dropped.refusals);
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a refusal is not counted before the store can be read");
                return Taken::Unread;
            }
        }
        Taken::Done
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions as _, Connection as _};
    use tunnel_proto::{TunnelId, message};

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
                number: None,
                dropped: None,
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
                .take_session(&told(Some(Code::TargetRefused)), record(None))
                .await;
        }
        control.take_session(&told(None), record(None)).await;
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

    fn numbered(number: u64, refused: Option<Code>) -> Told {
        let mut told = told(refused);
        told.session.number = Some(number);
        told
    }

    async fn take(control: &Control, told: &Told) -> Taken {
        control.take_session(told, record(None)).await
    }

    /// THREATS AUD-03: what a device tells while the disk hangs waits beside its link, each once, however often it is told.
    #[tokio::test]
    async fn while_nothing_can_be_recorded_sessions_wait_without_the_disk_and_each_once() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let disk = control.store.hang().await;
        control.pause(Duration::ZERO);
        let all = async {
            for number in (0..200).chain(0..200) {
                assert_eq!(take(control, &numbered(number, None)).await, Taken::Waits);
            }
        };
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, all)
            .await
            .expect("it waits for no disk");
        drop(disk);
        control.resume(Duration::ZERO).await;
        assert!(!control.evidence.has_waiting());
        let trail = control.store.audit(0, 10_000).await.unwrap();
        let events = || {
            trail
                .iter()
                .filter_map(|record| Event::read(&record.kind, &record.body))
        };
        let ended = events().filter(|event| matches!(event, Event::SessionEnded { .. }));
        assert_eq!(ended.count(), 200);
        let waited = events().find_map(|event| match event {
            Event::EvidenceRestored { waited, lost, .. } => Some((waited, lost)),
            _ => None,
        });
        assert_eq!(waited, Some((200, 0)));
        server.shutdown().await;
    }

    /// A refusal that has a record and is told again is neither recorded nor counted, however little of the quota is left; what
    /// a device dropped is counted where the refusal that tells of it is.
    #[tokio::test]
    async fn a_refusal_that_is_told_again_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let refused = Some(Code::TargetRefused);
        for number in 0..400 {
            assert_eq!(take(control, &numbered(number, refused)).await, Taken::Done);
        }
        let count = async || {
            let trail = control.store.audit(0, 10_000).await.unwrap();
            let of_sessions = trail.iter().filter(|record| record.kind == "session.refused");
            of_sessions.count() as u64
        };
        let recorded = count().await;
        let gathered = |events: Vec<Event>| -> u64 {
            let count = |event: &Event| match event {
                Event::DenialsGathered { count, .. } => *count,
                other => panic!("{other:?}"),
            };
            events.iter().map(count).sum()
        };
        assert_eq!(recorded + gathered(control.evidence.gathered().take()), 400);
        for _ in 0..400 {
            assert_eq!(take(control, &numbered(0, refused)).await, Taken::Done);
        }
        assert_eq!(
            (count().await, control.evidence.gathered().take().len()),
            (recorded, 0)
        );

        let mut telling = numbered(1_000, refused);
        telling.session.dropped = Some(message::EndsDropped {
            sessions: 2,
            refusals: 30,
        });
        // All of the quota is gone for this one.
        let operator = Identity::operator(&control.identity.trust_domain, &"ana".parse().unwrap());
        while control.quotas.denials.take(Instant::now(), &operator) {}
        assert_eq!(take(control, &telling).await, Taken::Done);
        let events = control.evidence.gathered().take();
        assert_eq!((events.len(), gathered(events)), (2, 33));
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
