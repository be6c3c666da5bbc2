//! How far notifications have got, and those that were given up.

use sqlx::Row as _;
use tunnel_proto::UnixTime;
use tunnel_proto::api::{AuditRecord, DeadLetter};

use super::rows::{json, number, secs, signed, time, to_json};
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::{Event, bounded};

/// Notifications of one target that are kept after they were given up; the oldest make room.
const MAX_DEAD: u32 = 1_000;

impl Store {
    /// Returns how far a target has got. One that is new begins at the end of the chain as it is.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read or written.
    pub(crate) async fn notified(&self, target: &str) -> Result<u64, StoreError> {
        let target = target.to_owned();
        self.write(move |w| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT OR IGNORE INTO notified (target, seq) SELECT ?, coalesce(max(seq), 0) FROM audit",
                )
                .bind(&target)
                .execute(&mut w.connection)
                .await?;
                let row = sqlx::query("SELECT seq FROM notified WHERE target = ?")
                    .bind(&target)
                    .fetch_one(&mut w.connection)
                    .await?;
                number(&row, "seq")
            })
        })
        .await
    }

    /// Writes down that a target has been told all up to a record.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk: the target may be told again after a restart.
    pub(crate) async fn notified_up_to(&self, target: &str, seq: u64) -> Result<(), StoreError> {
        let target = target.to_owned();
        self.write(move |w| Box::pin(async move { advance(w, &target, seq).await }))
            .await
    }

    /// Gives a notification up: it is kept apart, and the target goes on with the next.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk: it is then still to be sent.
    pub(crate) async fn give_up(
        &self,
        target: &str,
        record: AuditRecord,
        tries: u32,
        error: &str,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let (target, error) = (target.to_owned(), bounded(error));
        self.write(move |w| {
            Box::pin(async move {
                advance(w, &target, record.seq).await?;
                sqlx::query(
                    "INSERT OR REPLACE INTO dead_letters (target, seq, record, tries, error, given_up_at)
                     VALUES (?, ?, ?, ?, ?, ?)",
                )
                .bind(&target)
                .bind(signed(record.seq))
                .bind(to_json(&record)?)
                .bind(tries)
                .bind(&error)
                .bind(secs(now))
                .execute(&mut w.connection)
                .await?;
                sqlx::query(
                    "DELETE FROM dead_letters WHERE target = ?1 AND seq NOT IN
                         (SELECT seq FROM dead_letters WHERE target = ?1 ORDER BY seq DESC LIMIT ?2)",
                )
                .bind(&target)
                .bind(MAX_DEAD)
                .execute(&mut w.connection)
                .await?;
                let seq = record.seq;
                w.append(&Event::NotificationFailed {
                    target,
                    seq,
                    tries,
                    error,
                })
                .await
            })
        })
        .await
    }

    /// Returns the notifications that were given up, oldest first, at most `limit`; of one target, or of all.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn dead_letters(
        &self,
        target: Option<&str>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        sqlx::query(
            "SELECT * FROM dead_letters WHERE ?1 IS NULL OR target = ?1 ORDER BY target, seq LIMIT ?2",
        )
        .bind(target)
        .bind(limit)
        .fetch_all(&self.inner.readers)
        .await?
        .iter()
        .map(|row| {
            Ok(DeadLetter {
                target: row.try_get("target")?,
                record: json(row, "record")?,
                tries: row.try_get("tries")?,
                error: row.try_get("error")?,
                given_up_at: time(row, "given_up_at")?.as_secs(),
            })
        })
        .collect()
    }

    /// Forgets a notification that was given up: because it was sent after all, or because somebody drops it. Says whether
    /// there was one.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub(crate) async fn bury(
        &self,
        target: &str,
        seq: u64,
        sent: bool,
        by: &str,
    ) -> Result<bool, StoreError> {
        let (target, by) = (target.to_owned(), bounded(by));
        self.write(move |w| {
            Box::pin(async move {
                let done = sqlx::query("DELETE FROM dead_letters WHERE target = ? AND seq = ?")
                    .bind(&target)
                    .bind(signed(seq))
                    .execute(&mut w.connection)
                    .await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                w.append(&Event::NotificationSettled {
                    target,
                    seq,
                    sent,
                    by,
                })
                .await?;
                Ok(true)
            })
        })
        .await
    }
}

async fn advance(w: &mut Write, target: &str, seq: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE notified SET seq = ? WHERE target = ?")
        .bind(signed(seq))
        .bind(target)
        .execute(&mut w.connection)
        .await?;
    Ok(())
}
