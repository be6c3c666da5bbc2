//! Whether the store can be written, as the last attempts showed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Store, StoreError};

/// How long a transaction may take before the disk is taken for stuck.
const STUCK: Duration = Duration::from_secs(10);

/// What the writer has found out.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Since when nothing could be written.
    failing: Option<Instant>,
    /// When the transaction began that is under way.
    begun: Option<Instant>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction begins.
    pub(super) fn begins(&self, now: Instant) {
        self.state().begun = Some(now);
    }

    /// It has ended; `well` says whether the disk took it.
    pub(super) fn ended(&self, now: Instant, well: bool) {
        let mut state = self.state();
        state.begun = None;
        if well {
            state.failing = None;
        } else {
            state.failing.get_or_insert(now);
        }
    }
}

impl State {
    fn stuck(&self, now: Instant) -> Option<Duration> {
        let taken = now.saturating_duration_since(self.begun?);
        (taken >= STUCK).then_some(taken)
    }

    fn failing(&self, now: Instant) -> Option<Duration> {
        let failing = self.failing.map(|since| now.saturating_duration_since(since));
        failing.max(self.stuck(now))
    }
}

impl Store {
    /// Returns for how long nothing could be written; `None` if the last attempt worked.
    pub(crate) fn failing(&self, now: Instant) -> Option<Duration> {
        self.inner.health.state().failing(now)
    }

    /// Says whether a transaction does not come to its end.
    pub(crate) fn is_stuck(&self, now: Instant) -> bool {
        self.inner.health.state().stuck(now).is_some()
    }

    /// Tries to write something that changes nothing.
    ///
    /// # Errors
    /// Returns why it cannot be written.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        self.write(|w| {
            Box::pin(async move {
                // Pages of its own, so that a disk without room shows.
                sqlx::query("CREATE TABLE probe (bytes BLOB)")
                    .execute(&mut w.connection)
                    .await?;
                sqlx::query("INSERT INTO probe VALUES (zeroblob(65536))")
                    .execute(&mut w.connection)
                    .await?;
                sqlx::query("DROP TABLE probe").execute(&mut w.connection).await?;
                Ok(())
            })
        })
        .await
    }
}

#[cfg(test)]
impl Store {
    /// Keeps the writer in a transaction that does not come to its end, as a disk that hangs does, until what is returned
    /// is dropped.
    pub(crate) async fn hang(
        &self,
    ) -> (
        tokio::sync::oneshot::Sender<()>,
        tokio_util::task::AbortOnDropHandle<()>,
    ) {
        let (hold, released) = tokio::sync::oneshot::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let store = self.clone();
        let task = tokio_util::task::AbortOnDropHandle::new(tokio::task::spawn(async move {
            let work = store.write(|_| {
                Box::pin(async move {
                    let _ = begun.send(());
                    let _ = released.await;
                    Ok(())
                })
            });
            let _ = work.await;
        }));
        begins.await.unwrap();
        (hold, task)
    }
}

/// Says whether an error is the disk's: it refuses to take what is written, whoever writes.
pub(super) fn is_of_disk(error: &StoreError) -> bool {
    let StoreError::Write(error) = error else {
        return false;
    };
    match error.as_database_error() {
        Some(error) => matches!(error.kind(), sqlx::error::ErrorKind::Other),
        None => !matches!(
            **error,
            sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_fails_from_its_first_failure_to_its_next_success_and_while_it_is_stuck() {
        let (health, start) = (Health::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let failing = |secs| health.state().failing(at(secs));
        assert_eq!(failing(0), None);
        health.ended(at(1), false);
        health.ended(at(3), false);
        assert_eq!(failing(5), Some(Duration::from_secs(4)));
        health.begins(at(6));
        health.ended(at(6), true);
        assert_eq!(failing(7), None);
        health.begins(at(8));
        assert_eq!(failing(17), None);
        assert_eq!(failing(18), Some(STUCK));
        health.ended(at(19), true);
        assert_eq!(failing(19), None);
    }
}
