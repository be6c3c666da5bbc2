//! Dropping records for their age, so that what was dropped stays proven.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tunnel_proto::UnixTime;
use tunnel_proto::audit::Dropped;
use tunnel_proto::ids::hex;

use super::journal;
use super::rows::{bytes, number, signed};
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::Event;
use crate::control::to_base64;

/// Records in one transaction: others wait for it.
pub(crate) const AT_ONCE: u64 = 5_000;

/// Signs a statement of what was dropped.
pub(crate) type Sign = Box<dyn FnOnce(&Dropped) -> Vec<u8> + Send>;

impl Store {
    /// Drops the oldest records up to the first that is younger than `before`, in milliseconds since 1970, and puts a signed
    /// statement in their place. Returns how many were dropped: not more than [`AT_ONCE`], so that it is to be called again
    /// until there are none.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk; nothing is dropped then.
    pub(crate) async fn drop_audit(&self, before: u64, now: UnixTime, sign: Sign) -> Result<u64, StoreError> {
        self.write(move |w| Box::pin(async move { drop_oldest(w, before, now, sign).await }))
            .await
    }

    /// Returns the time of the newest record that is not of after `until`, if there is one.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn audit_time_before(&self, until: UnixTime) -> Result<Option<UnixTime>, StoreError> {
        // From the end of the chain, so that it looks at the younger ones alone.
        let row =
            sqlx::query("SELECT time_millis FROM audit WHERE time_millis <= ? ORDER BY seq DESC LIMIT 1")
                .bind(signed(until.as_secs().saturating_mul(1000)))
                .fetch_optional(&self.inner.readers)
                .await?;
        time(row)
    }

    /// Returns the time of the newest record, if there is one.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn audit_newest(&self) -> Result<Option<UnixTime>, StoreError> {
        let row = sqlx::query("SELECT time_millis FROM audit ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&self.inner.readers)
            .await?;
        time(row)
    }

    /// Returns the time of the first record, if there is one.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn audit_oldest(&self) -> Result<Option<UnixTime>, StoreError> {
        let row = sqlx::query("SELECT time_millis FROM audit ORDER BY seq LIMIT 1")
            .fetch_optional(&self.inner.readers)
            .await?;
        time(row)
    }

    /// Returns the signed statement of which records were dropped, if any were.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn audit_dropped(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT statement FROM audit_dropped")
            .fetch_optional(&self.inner.readers)
            .await?;
        Ok(row.map(|row| row.try_get("statement")).transpose()?)
    }
}

/// Returns the time of a record.
fn time(row: Option<SqliteRow>) -> Result<Option<UnixTime>, StoreError> {
    let millis = row.map(|row| number(&row, "time_millis")).transpose()?;
    Ok(millis.map(|millis| UnixTime::from_secs(millis / 1000)))
}

async fn drop_oldest(w: &mut Write, before: u64, now: UnixTime, sign: Sign) -> Result<u64, StoreError> {
    let head = journal::head(&mut w.connection).await?;
    let row = sqlx::query("SELECT coalesce(min(seq), 0) AS seq FROM audit")
        .fetch_one(&mut w.connection)
        .await?;
    let first = number(&row, "seq")?;
    if first == 0 {
        return Ok(0);
    }
    let end = first.saturating_add(AT_ONCE).min(head.seq + 1);
    let young = sqlx::query(
        "SELECT seq FROM audit WHERE seq >= ? AND seq < ? AND time_millis >= ? ORDER BY seq LIMIT 1",
    )
    .bind(signed(first))
    .bind(signed(end))
    .bind(signed(before))
    .fetch_optional(&mut w.connection)
    .await?;
    let end = young.map_or(Ok(end), |row| number(&row, "seq"))?;
    if end == first {
        return Ok(0);
    }
    let dropped = last_dropped(w, end - 1, now).await?;
    let statement = sign(&dropped);
    sqlx::query(
        "INSERT INTO audit_dropped (only, last_seq, statement) VALUES (1, ?1, ?2)
         ON CONFLICT (only) DO UPDATE SET last_seq = ?1, statement = ?2",
    )
    .bind(signed(dropped.last))
    .bind(&statement[..])
    .execute(&mut w.connection)
    .await?;
    sqlx::query("DELETE FROM audit WHERE seq <= ?")
        .bind(signed(dropped.last))
        .execute(&mut w.connection)
        .await?;
    // In the same transaction, so the chain has a record whatever was dropped.
    w.append(&Event::AuditDropped {
        first,
        last: dropped.last,
        count: end - first,
        hash: hex(&dropped.hash),
        statement: to_base64(&statement),
    })
    .await?;
    Ok(end - first)
}

async fn last_dropped(w: &mut Write, seq: u64, time: UnixTime) -> Result<Dropped, StoreError> {
    let row = sqlx::query("SELECT hash FROM audit WHERE seq = ?")
        .bind(signed(seq))
        .fetch_one(&mut w.connection)
        .await?;
    Ok(Dropped {
        last: seq,
        hash: bytes(&row, "hash")?,
        time,
    })
}
