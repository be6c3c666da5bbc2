//! The one task that writes: group commit with a savepoint for each operation.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tunnel_proto::api::audit_hash;
use tunnel_proto::audit::Head;

use super::health::{Health, is_of_disk};
use super::{QUEUE_WAIT, Store, StoreError, journal, schema};
use crate::audit::Event;
use crate::failure::chain;

/// Most operations in one transaction: bounds how long the first of them waits for the last.
const BATCH: usize = 128;

/// A future that is sent between threads.
pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The transaction that is open, as an operation sees it.
pub(super) struct Write {
    /// The connection that holds the transaction.
    pub(super) connection: SqliteConnection,
    head: Head,
}

impl Write {
    /// Appends an event to the audit chain.
    pub(super) async fn append(&mut self, event: &Event) -> Result<(), StoreError> {
        let (written, millis) = (event.write(), unix_millis());
        let seq = self.head.seq + 1;
        let hash = audit_hash(&self.head.hash, seq, millis, &written.kind, &written.body);
        sqlx::query("INSERT INTO audit (seq, time_millis, kind, body, prev, hash) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(seq.cast_signed())
            .bind(millis.cast_signed())
            .bind(written.kind)
            .bind(written.body)
            .bind(&self.head.hash[..])
            .bind(&hash[..])
            .execute(&mut self.connection)
            .await?;
        self.head = Head { seq, hash };
        Ok(())
    }

    /// Runs a statement without parameters.
    async fn run(&mut self, statement: &'static str) -> Result<(), StoreError> {
        sqlx::raw_sql(statement).execute(&mut self.connection).await?;
        Ok(())
    }
}

/// The record's time is for people; the order is that of the numbers (THREATS AUD-06).
fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An operation in the queue.
pub(super) trait Job: Send {
    /// Does the work inside the savepoint.
    fn work<'j>(&'j mut self, write: &'j mut Write) -> BoxFuture<'j, Result<(), StoreError>>;

    /// Answers: with what the work returned, or with why the transaction came to nothing.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Queued<T, F> {
    work: Option<F>,
    done: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Queued<T, F>
where
    T: Send + 'static,
    F: for<'w> FnOnce(&'w mut Write) -> BoxFuture<'w, Result<T, StoreError>> + Send + 'static,
{
    fn work<'j>(&'j mut self, write: &'j mut Write) -> BoxFuture<'j, Result<(), StoreError>> {
        Box::pin(async move {
            let work = self.work.take().ok_or(StoreError::Closed)?;
            self.done = Some(work(write).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { done, reply, .. } = *self;
        // The caller may have left; the work is done all the same.
        let _ = reply.send(outcome.and_then(|()| done.ok_or(StoreError::Closed)));
    }
}

impl Store {
    /// Queues an operation and waits until it is on the disk. Once queued it runs to its end, whoever waits.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'w> FnOnce(&'w mut Write) -> BoxFuture<'w, Result<T, StoreError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Queued {
            work: Some(work),
            done: None,
            reply,
        });
        match self.inner.queue.send_timeout(job, QUEUE_WAIT).await {
            Ok(()) => answer.await.map_err(|_| StoreError::Closed)?,
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(StoreError::Busy),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(StoreError::Closed),
        }
    }
}

/// An operation that was taken into the transaction, and how it went.
struct Taken {
    job: Box<dyn Job>,
    outcome: Result<(), StoreError>,
}

/// The writer's own state: the file and, while it is well, the connection.
pub(super) struct Writer {
    path: PathBuf,
    health: Arc<Health>,
    write: Option<Write>,
}

impl Writer {
    /// Connects for writing.
    pub(super) async fn connect(path: &Path) -> Result<Self, StoreError> {
        let mut writer = Self {
            path: path.to_owned(),
            health: Arc::default(),
            write: None,
        };
        writer.reconnect().await?;
        Ok(writer)
    }

    /// Returns what tells whether the store can be written.
    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Writes until the store is closed or its last handle dropped; what is queued by then is still done.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Box<dyn Job>>, stop: CancellationToken) {
        loop {
            // Cancel-safe: a message that was not received stays in the queue.
            let first = tokio::select! {
                biased;
                () = stop.cancelled(), if !waiting.is_closed() => {
                    waiting.close();
                    continue;
                }
                first = waiting.recv() => first,
            };
            let Some(first) = first else { break };
            self.batch(first, &mut waiting).await;
        }
        if let Some(write) = self.write.take() {
            let _ = write.connection.close().await;
        }
    }

    /// Does `first` and what else is queued in one transaction, then answers all.
    async fn batch(&mut self, first: Box<dyn Job>, waiting: &mut mpsc::Receiver<Box<dyn Job>>) {
        let mut jobs = vec![Taken {
            job: first,
            outcome: Ok(()),
        }];
        self.health.begins(Instant::now());
        let outcome = self.transact(&mut jobs, waiting).await.map_err(as_write_error);
        let mut each = jobs.iter().map(|taken| &taken.outcome);
        let well = outcome.is_ok() && !each.any(|outcome| outcome.as_ref().is_err_and(is_of_disk));
        self.health.ended(Instant::now(), well);
        if let Err(error) = &outcome {
            tracing::error!(error = %chain(error), operations = jobs.len(), "the store cannot be written");
            // A transaction that failed is never tried again on the same connection: what the disk refused once may
            // look written afterwards (THREATS SRV-02).
            self.write = None;
        }
        for taken in jobs {
            taken.job.answer(outcome.clone().and(taken.outcome));
        }
    }

    async fn transact(
        &mut self,
        jobs: &mut Vec<Taken>,
        waiting: &mut mpsc::Receiver<Box<dyn Job>>,
    ) -> Result<(), StoreError> {
        let write = self.ready().await?;
        // IMMEDIATE takes the write lock: no other process appends to the chain between here and the commit.
        write.run("BEGIN IMMEDIATE").await?;
        write.head = journal::head(&mut write.connection).await?;
        let mut next = 0;
        while let Some(taken) = jobs.get_mut(next) {
            taken.outcome = savepoint(write, taken.job.as_mut()).await?;
            next += 1;
            if jobs.len() < BATCH
                && let Ok(job) = waiting.try_recv()
            {
                jobs.push(Taken { job, outcome: Ok(()) });
            }
        }
        write.run("COMMIT").await
    }

    async fn ready(&mut self) -> Result<&mut Write, StoreError> {
        if self.write.is_none() {
            self.reconnect().await?;
        }
        self.write.as_mut().ok_or(StoreError::Closed)
    }

    async fn reconnect(&mut self) -> Result<(), StoreError> {
        let connection = schema::options(&self.path).connect().await?;
        self.write = Some(Write {
            connection,
            head: Head::START,
        });
        Ok(())
    }
}

/// Does one operation; if it fails, takes back what it did and nothing else. The outer error fails the whole batch.
async fn savepoint(write: &mut Write, job: &mut dyn Job) -> Result<Result<(), StoreError>, StoreError> {
    let head = write.head;
    write.run("SAVEPOINT operation").await?;
    let outcome = job.work(write).await;
    if outcome.is_err() {
        write.run("ROLLBACK TO operation").await?;
        write.head = head;
    }
    write.run("RELEASE operation").await?;
    Ok(outcome.map_err(as_write_error))
}

fn as_write_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Read(source) => StoreError::Write(source),
        other => other,
    }
}
