//! The store's contract: each refusal beside the good case, and what a crash may and may not do.

mod audit;
mod crash;
mod enrolment;
mod fleet;
mod tunnels;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tunnel_proto::api::Limits;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::GroupName;
use tunnel_proto::{CircuitId, Identity, Refusal, TokenId, TrustDomain, TunnelId, UnixTime};

use super::*;
use crate::audit::Event;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// A store in a directory of its own, which goes with it.
struct Fixture {
    store: Store,
    directory: TempDir,
}

impl std::ops::Deref for Fixture {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// Enrols a device in a server's own store.
pub(crate) async fn enrol_device(store: &Store, id: &str, now: UnixTime) {
    let mut made = code(id, Makes::Devices(vec![id.parse().unwrap()]));
    made.expires_at = now.after(HOUR);
    store.add_enrol_code(made, now).await.unwrap();
    let enrolled = store.enrol(newcomer(id, None, id), now, issue(id)).await.unwrap();
    enrolled.unwrap();
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store.db"), &fleet())
            .await
            .unwrap();
        Self { store, directory }
    }

    /// Closes the store and opens it again, as a restart does.
    async fn reopen(self) -> Self {
        self.store.close().await;
        let store = Store::open(&self.directory.path().join("store.db"), &fleet())
            .await
            .unwrap();
        Self {
            store,
            directory: self.directory,
        }
    }

    async fn events(&self) -> Vec<Event> {
        let records = self.store.audit(0, 10_000).await.unwrap();
        tunnel_proto::audit::verify(tunnel_proto::audit::Head::START, &records).unwrap();
        records
            .iter()
            .map(|record| Event::read(&record.kind, &record.body).unwrap())
            .collect()
    }

    async fn kinds(&self) -> Vec<String> {
        self.events()
            .await
            .iter()
            .map(|event| event.write().kind)
            .collect()
    }

    /// Enrols a device with a code of its own, and returns its key.
    async fn enrolled_device(&self, id: &str) -> KeyHash {
        self.store
            .add_enrol_code(code(id, Makes::Devices(vec![id.parse().unwrap()])), NOW)
            .await
            .unwrap();
        let enrolled = self
            .store
            .enrol(newcomer(id, None, id), NOW, issue(id))
            .await
            .unwrap()
            .unwrap();
        enrolled.certificate.key
    }

    async fn enrolled_operator(&self, name: &str) -> KeyHash {
        self.store
            .add_enrol_code(code(name, Makes::Operators(vec![name.parse().unwrap()])), NOW)
            .await
            .unwrap();
        let enrolled = self
            .store
            .enrol(newcomer(name, None, name), NOW, issue(name))
            .await
            .unwrap()
            .unwrap();
        enrolled.certificate.key
    }

    async fn with_policy() -> Self {
        let fixture = Self::new().await;
        fixture
            .store
            .set_policy("// one".into(), None, "test".into(), NOW)
            .await
            .unwrap()
            .unwrap();
        fixture
    }
}

fn fleet() -> TrustDomain {
    "fleet.example".parse().unwrap()
}

fn key_of(text: &str) -> KeyHash {
    KeyHash::of_spki(text.as_bytes())
}

fn secret_hash(text: &str) -> [u8; 32] {
    *key_of(text).as_bytes()
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn device_identity(id: &str) -> Identity {
    Identity::device(&fleet(), &id.parse().unwrap())
}

fn operator_identity(name: &str) -> Identity {
    Identity::operator(&fleet(), &name.parse().unwrap())
}

fn code(secret: &str, makes: Makes) -> NewEnrolCode {
    NewEnrolCode {
        secret_hash: secret_hash(secret),
        makes,
        group: None,
        uses: 1,
        expires_at: NOW.after(HOUR),
        replace: false,
        by: "test".into(),
    }
}

fn devices(ids: &[&str]) -> Makes {
    Makes::Devices(ids.iter().map(|id| id.parse().unwrap()).collect())
}

fn newcomer(secret: &str, wanted: Option<&str>, key: &str) -> Enrolment {
    Enrolment {
        secret_hash: secret_hash(secret),
        wanted: wanted.map(str::to_owned),
        key: key_of(key),
        source: "192.0.2.1".into(),
    }
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

fn certificate(identity: &Identity, key: &str) -> Certificate {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    Certificate {
        chain_pem: format!("certificate {serial} of {identity}"),
        serial: serial.to_be_bytes().to_vec(),
        key: key_of(key),
        not_after: NOW.after(HOUR * 24),
    }
}

fn issue(key: &str) -> Issue {
    let key = key.to_owned();
    Box::new(move |identity| Ok(certificate(identity, &key)))
}

pub(crate) fn tunnel(number: u8) -> NewTunnel {
    NewTunnel {
        id: TunnelId::from_bytes([number; 16]),
        circuit: CircuitId::from_bytes([number; 16]),
        operator: "ana".parse().unwrap(),
        holder_key: key_of("ana"),
        device: "pump-17".parse().unwrap(),
        device_key: key_of("pump-17"),
        services: vec!["ssh".parse().unwrap()],
        reason: Some("INC-7".into()),
        expires_at: NOW.after(HOUR),
        policy_revision: 1,
        policies: vec!["technicians-ssh".into()],
        source: "192.0.2.1".into(),
        certified_at: NOW,
        approval: None,
        break_glass: false,
        batch: None,
        authoriser: None,
        limits: Limits::default(),
    }
}

fn token(number: u8) -> TokenId {
    TokenId::from_bytes([number; 16])
}

#[tokio::test]
async fn the_file_and_its_companions_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = Fixture::with_policy().await;
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture.directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            entry.file_name()
        );
        seen += 1;
    }
    assert!(seen >= 2, "there is a write-ahead log");
}

/// What a commit promises hangs on two settings: the log, and the sync of each commit (SQLite, `PRAGMA synchronous`).
#[tokio::test]
async fn every_commit_of_the_writer_is_synced() {
    use sqlx::Row as _;
    let fixture = Fixture::new().await;
    let settings = fixture.write(|w| {
        Box::pin(async move {
            let synchronous = sqlx::query("PRAGMA synchronous")
                .fetch_one(&mut w.connection)
                .await?;
            let journal = sqlx::query("PRAGMA journal_mode")
                .fetch_one(&mut w.connection)
                .await?;
            Ok((
                synchronous.try_get::<i64, _>(0)?,
                journal.try_get::<String, _>(0)?,
            ))
        })
    });
    const FULL: i64 = 2;
    assert_eq!(settings.await.unwrap(), (FULL, "wal".to_owned()));
}

#[tokio::test]
async fn a_store_of_another_fleet_is_refused() {
    let fixture = Fixture::new().await.reopen().await;
    fixture.close().await;
    let path = fixture.directory.path().join("store.db");
    let refused = Store::open(&path, &"other.example".parse().unwrap()).await;
    assert!(matches!(refused, Err(StoreError::OtherFleet(owner)) if owner == "fleet.example"));
    assert!(Store::open(&path, &fleet()).await.is_ok());
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    std::fs::write(&path, "this is no database, and long enough to be taken for one").unwrap();
    assert!(Store::open(&path, &fleet()).await.is_err());
    assert!(matches!(
        Store::open(&directory.path().join("missing/store.db"), &fleet()).await,
        Err(StoreError::Open { .. })
    ));
}

/// An older release must not write into what it does not understand.
#[tokio::test]
async fn a_store_of_a_newer_release_is_refused() {
    use sqlx::ConnectOptions as _;
    let fixture = Fixture::new().await;
    fixture.close().await;
    let path = fixture.directory.path().join("store.db");
    let mut connection = schema::options(&path).connect().await.unwrap();
    sqlx::query("UPDATE _sqlx_migrations SET version = 99 WHERE version = 1")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);
    assert!(matches!(
        Store::open(&path, &fleet()).await,
        Err(StoreError::Migrate(_))
    ));
}

#[tokio::test]
async fn after_close_nothing_is_written_and_all_says_so() {
    let fixture = Fixture::with_policy().await;
    fixture.close().await;
    let refused = fixture
        .set_policy("// two".into(), None, "test".into(), NOW)
        .await;
    assert!(matches!(refused, Err(StoreError::Closed)));
    assert_eq!(
        fixture.reopen().await.policy().await.unwrap().unwrap().revision,
        1
    );
}

#[tokio::test]
async fn two_processes_may_open_a_new_store_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let (fleet_a, fleet_b) = (fleet(), fleet());
    let open = (Store::open(&path, &fleet_a), Store::open(&path, &fleet_b));
    let (a, b) = tokio::join!(open.0, open.1);
    a.unwrap()
        .set_policy("// a".into(), None, "a".into(), NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(b.unwrap().policy().await.unwrap().unwrap().text, "// a");
}

/// SQLite reports what does not fit; nothing of it stays, and the next operation finds a working store.
#[tokio::test]
async fn a_full_disk_is_told_and_got_over() {
    let fixture = Fixture::with_policy().await;
    let before = fixture.audit_head().await.unwrap();
    // The bound belongs to the connection that writes, as a full disk would.
    fixture
        .write(|w| {
            Box::pin(async move {
                sqlx::query("PRAGMA max_page_count = 1")
                    .execute(&mut w.connection)
                    .await?;
                Ok(())
            })
        })
        .await
        .unwrap();
    let big = "x".repeat(1 << 20);
    let refused = fixture.set_policy(big, None, "test".into(), NOW).await;
    assert!(
        matches!(&refused, Err(error @ StoreError::Write(_)) if error.code() == Code::AuditUnavailable),
        "{refused:?}"
    );
    assert_eq!(fixture.audit_head().await.unwrap(), before);
    assert_eq!(fixture.policy().await.unwrap().unwrap().revision, 1);
    // The connection that failed is not used again; the next operation finds a disk with room.
    assert_eq!(
        fixture
            .set_policy("// two".into(), None, "test".into(), NOW)
            .await
            .unwrap(),
        Ok(2)
    );
    assert_eq!(fixture.kinds().await, ["policy.changed", "policy.changed"]);
}

fn refusal_code<T: std::fmt::Debug>(outcome: Result<Result<T, Refusal>, StoreError>) -> Code {
    outcome.unwrap().unwrap_err().code
}
