//! What must outlive the process: identities, codes, tunnels, policies and the audit chain, in one SQLite file.
//!
//! One task writes. It takes whatever is queued into one transaction, each operation in a savepoint of its own, and
//! answers only after the commit is on the disk: what is answered is durable, and many answers share one sync. Every
//! change of state appends its audit event in the same transaction, so neither is ever there without the other. Another
//! process may write too: the head of the chain is read under the write lock.

mod approvals;
mod enrolment;
mod facts;
mod fleet;
mod health;
mod journal;
mod linked;
mod notifications;
pub(crate) mod outages;
mod records;
mod retention;
mod rows;
mod schema;
pub(crate) mod suspended;
mod tunnels;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::SqlitePool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel_proto::{Code, TrustDomain};

use self::health::Health;

pub(crate) use records::approvers;
pub use records::{
    Assertion, Basis, Certificate, Denied, DeviceRecord, Ended, Enrolled, Enrolment, FactsSet, Issue, Makes,
    Member, NewEnrolCode, NewTunnel, NotOpened, OperatorRecord, PolicyRecord, Redeemed, RevokedSet,
    SessionRecord, Suspension, TunnelRecord, TunnelState, UnconfirmedCut,
};
pub(crate) use retention::AT_ONCE as DROPPED_AT_ONCE;

/// Operations that may wait for the writer: several batches, so that a burst is taken in and a stuck disk is soon felt.
const QUEUE: usize = 1024;

/// How long an operation waits for room in the queue before it is refused (THREATS SRV-03).
const QUEUE_WAIT: Duration = Duration::from_secs(2);

/// The store of one fleet. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    fleet: TrustDomain,
    queue: mpsc::Sender<Box<dyn writer::Job>>,
    readers: SqlitePool,
    guesses: Mutex<enrolment::Guesses>,
    health: Arc<Health>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Tells why the store did not do what it was asked for. Nothing was changed, unless the answer got lost.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database could not be read.
    #[error("could not read the store")]
    Read(#[source] Arc<sqlx::Error>),
    /// The database could not be written.
    #[error("could not write the store")]
    Write(#[source] Arc<sqlx::Error>),
    /// The file could not be made or opened.
    #[error("could not open the store `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The schema could not be brought up to date.
    #[error(
        "could not bring the store's schema up to date; a store of a newer release is not read by an older one"
    )]
    Migrate(#[source] Arc<sqlx::migrate::MigrateError>),
    /// The store belongs to another fleet than the configuration says.
    #[error("the store belongs to the trust domain `{0}`, and the configuration names another")]
    OtherFleet(String),
    /// The writer does not keep up.
    #[error("the store has more waiting than it can take")]
    Busy,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A row holds what no release writes.
    #[error("the store holds a damaged {0}")]
    Damaged(&'static str),
}

impl StoreError {
    /// Returns the code for the peer: whether a record could not be written, or nothing could be read.
    pub const fn code(&self) -> Code {
        match self {
            Self::Write(_) | Self::Busy => Code::AuditUnavailable,
            _ => Code::Unavailable,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Read(Arc::new(error))
    }
}

impl Store {
    /// Opens the store, makes it if it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// Returns what stands in the way: the file, a newer schema, another fleet.
    pub async fn open(path: &Path, fleet: &TrustDomain) -> Result<Self, StoreError> {
        schema::prepare(path, fleet).await?;
        let writer = writer::Writer::connect(path).await?;
        let readers = schema::readers(path).await?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let health = writer.health();
        tasks.spawn(writer.run(waiting, stop.clone()));
        tasks.close();
        let guesses = Mutex::default();
        let (path, fleet) = (path.to_owned(), fleet.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                fleet,
                queue,
                readers,
                guesses,
                health,
                tasks,
                stop,
            }),
        })
    }

    /// Finishes what is queued and closes the file. Operations from here on fail with [`StoreError::Closed`].
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.wait().await;
        self.inner.readers.close().await;
    }

    /// Returns the fleet that the store belongs to.
    pub fn fleet(&self) -> &TrustDomain {
        &self.inner.fleet
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}
