//! The audit chain and the policies, whose every revision is kept.

use std::future::poll_fn;

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tunnel_proto::UnixTime;
use tunnel_proto::api::AuditRecord;
use tunnel_proto::audit::Head;
use tunnel_proto::ids::hex;

use super::records::PolicyRecord;
use super::rows::{bytes, number, secs, signed, time};
use super::{Store, StoreError};
use crate::audit::Event;
use crate::audit::filter::Filter;

/// Records that are looked at for one page of those that fit: some tens of milliseconds.
const LOOKED_AT: u32 = 20_000;

impl Store {
    /// Records an event that changes nothing else in the store.
    ///
    /// # Errors
    /// Returns an error if the event is not on the disk.
    pub async fn record(&self, event: Event) -> Result<(), StoreError> {
        self.write(move |w| Box::pin(async move { w.append(&event).await }))
            .await
    }

    /// Returns at most `limit` records of the chain that come after the one numbered `after`.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        sqlx::query("SELECT * FROM audit WHERE seq > ? ORDER BY seq LIMIT ?")
            .bind(signed(after))
            .bind(limit)
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(record)
            .collect()
    }

    /// Returns at most `limit` records that come after the one numbered `after` and fit, and the number of the last record
    /// that was looked at. Not more than [`LOOKED_AT`] are looked at in one go.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn audit_fitting(
        &self,
        filter: &Filter,
        after: u64,
        limit: u32,
    ) -> Result<(Vec<AuditRecord>, u64), StoreError> {
        let mut rows = sqlx::query("SELECT * FROM audit WHERE seq > ? ORDER BY seq LIMIT ?")
            .bind(signed(after))
            .bind(LOOKED_AT)
            .fetch(&self.inner.readers);
        let (mut found, mut through) = (Vec::new(), after);
        while found.len() < limit as usize
            && let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await
        {
            let row = row?;
            through = number(&row, "seq")?;
            let (kind, body) = (row.try_get("kind")?, row.try_get("body")?);
            if filter.fits(number(&row, "time_millis")?, kind, body) {
                found.push(record(&row)?);
            }
        }
        Ok((found, through))
    }

    /// Returns the records of the newest sessions that fit, newest first. Not more than [`LOOKED_AT`] are looked at.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn sessions(&self, filter: &Filter, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        let mut rows = sqlx::query(
            "SELECT * FROM audit WHERE kind IN ('session.ended', 'session.refused') ORDER BY seq DESC LIMIT ?",
        )
        .bind(LOOKED_AT)
        .fetch(&self.inner.readers);
        let mut found = Vec::new();
        while found.len() < limit as usize
            && let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await
        {
            let row = row?;
            let (kind, body) = (row.try_get("kind")?, row.try_get("body")?);
            if filter.fits(number(&row, "time_millis")?, kind, body) {
                found.push(record(&row)?);
            }
        }
        Ok(found)
    }

    /// Returns the head of the chain, to be signed as a checkpoint.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        head(&mut *self.inner.readers.acquire().await?).await
    }

    /// Returns the policy in force; `None` before the first one.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn policy(&self) -> Result<Option<PolicyRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM policies ORDER BY revision DESC LIMIT 1")
            .fetch_optional(&self.inner.readers)
            .await?;
        row.as_ref().map(policy).transpose()
    }

    /// Returns a policy that is or was in force.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn policy_of(&self, revision: u64) -> Result<Option<PolicyRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM policies WHERE revision = ?")
            .bind(signed(revision))
            .fetch_optional(&self.inner.readers)
            .await?;
        row.as_ref().map(policy).transpose()
    }

    /// Returns the policies that are or were in force, newest first, at most `limit`.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn policies(&self, limit: u32) -> Result<Vec<PolicyRecord>, StoreError> {
        sqlx::query("SELECT * FROM policies ORDER BY revision DESC LIMIT ?")
            .bind(limit)
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(policy)
            .collect()
    }

    /// Puts a policy into force that was checked before, and returns its revision; the inner error is the revision in
    /// force, if that is not the one that the policy is meant to follow.
    ///
    /// # Errors
    /// Returns an error if the policy is not on the disk; the old one is then in force.
    pub async fn set_policy(
        &self,
        text: String,
        follows: Option<u64>,
        by: String,
        now: UnixTime,
    ) -> Result<Result<u64, u64>, StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                let current = revision(&mut w.connection).await?;
                if follows.is_some_and(|follows| follows != current) {
                    return Ok(Err(current));
                }
                let revision = current + 1;
                sqlx::query("INSERT INTO policies (revision, text, made_by, made_at) VALUES (?, ?, ?, ?)")
                    .bind(signed(revision))
                    .bind(&text)
                    .bind(&by)
                    .bind(secs(now))
                    .execute(&mut w.connection)
                    .await?;
                let sha256 = hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref());
                w.append(&Event::PolicyChanged { revision, sha256, by }).await?;
                Ok(Ok(revision))
            })
        })
        .await
    }
}

/// Reads the head of the chain.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    row.map_or(Ok(Head::START), |row| {
        Ok(Head {
            seq: number(&row, "seq")?,
            hash: bytes(&row, "hash")?,
        })
    })
}

/// Reads the number of the policy in force; 0 before the first one.
pub(super) async fn revision(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let row = sqlx::query("SELECT coalesce(max(revision), 0) AS revision FROM policies")
        .fetch_one(connection)
        .await?;
    number(&row, "revision")
}

fn policy(row: &SqliteRow) -> Result<PolicyRecord, StoreError> {
    Ok(PolicyRecord {
        revision: number(row, "revision")?,
        text: row.try_get("text")?,
        by: row.try_get("made_by")?,
        at: time(row, "made_at")?,
    })
}

fn record(row: &SqliteRow) -> Result<AuditRecord, StoreError> {
    Ok(AuditRecord {
        seq: number(row, "seq")?,
        time_millis: number(row, "time_millis")?,
        kind: row.try_get("kind")?,
        body: row.try_get("body")?,
        prev: hex(&row.try_get::<Vec<u8>, _>("prev")?),
        hash: hex(&row.try_get::<Vec<u8>, _>("hash")?),
    })
}
