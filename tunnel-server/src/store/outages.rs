//! Times in which devices had no link, as they tell them.

use std::collections::HashSet;

use sqlx::sqlite::SqliteRow;
use tunnel_proto::api::{Outage, OutageCause};
use tunnel_proto::{DeviceId, UnixTime, outage};

use super::rows::{json, name, number, secs, to_json};
use super::{Store, StoreError};

/// Outages that are kept of one device: the newest.
const MAX_OF_DEVICE: u32 = 100;

impl Store {
    /// Keeps what a device tells. What is told twice is kept once.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn keep_outages(
        &self,
        device: &DeviceId,
        outages: Vec<outage::Outage>,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let device = device.clone();
        self.write(move |w| {
            Box::pin(async move {
                for outage in outages {
                    let causes: Vec<_> = outage.causes.iter().map(cause).collect();
                    sqlx::query(
                        "INSERT OR IGNORE INTO outages (device, id, started_at, ended_at, attempts, starts, causes,
                         received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    )
                    .bind(device.as_str())
                    .bind(outage.id.cast_signed())
                    .bind(secs(outage.from))
                    .bind(secs(outage.until))
                    .bind(outage.attempts)
                    .bind(outage.starts)
                    .bind(to_json(&causes)?)
                    .bind(secs(now))
                    .execute(&mut w.connection)
                    .await?;
                }
                sqlx::query(
                    "DELETE FROM outages WHERE device = ?1 AND rowid NOT IN
                     (SELECT rowid FROM outages WHERE device = ?1 ORDER BY rowid DESC LIMIT ?2)",
                )
                .bind(device.as_str())
                .bind(MAX_OF_DEVICE)
                .execute(&mut w.connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Returns outages of some devices that ended after a time, the newest first, at most `limit`.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn outages(
        &self,
        devices: &HashSet<String>,
        after: UnixTime,
        limit: u32,
    ) -> Result<Vec<Outage>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM outages WHERE device IN (SELECT value FROM json_each(?1)) AND ended_at > ?2
             ORDER BY ended_at DESC, rowid DESC LIMIT ?3",
        )
        .bind(to_json(&devices)?)
        .bind(secs(after))
        .bind(limit)
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(shown).collect()
    }
}

fn cause(seen: &outage::Seen) -> OutageCause {
    OutageCause {
        cause: seen.cause.as_str().to_owned(),
        count: seen.count,
        first: seen.first.as_secs(),
        last: seen.last.as_secs(),
        detail: seen.detail.as_deref().map(outage::bounded),
    }
}

fn shown(row: &SqliteRow) -> Result<Outage, StoreError> {
    let small = |column| number(row, column).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    let device: DeviceId = name(row, "device")?;
    Ok(Outage {
        device: device.to_string(),
        from: number(row, "started_at")?,
        until: number(row, "ended_at")?,
        attempts: small("attempts")?,
        starts: small("starts")?,
        causes: json(row, "causes")?,
    })
}

/// Cuts what a device tells down to what may be stored (THREATS SRV-23). A clock that is wrong must not put an outage
/// before all others for ever.
pub(crate) fn cleaned(mut outages: Vec<outage::Outage>, now: UnixTime) -> Vec<outage::Outage> {
    outages.truncate(outage::PER_MESSAGE);
    for outage in &mut outages {
        outage.causes.truncate(outage::MAX_CAUSES);
        outage.until = outage.until.min(now);
        outage.from = outage.from.min(outage.until);
        for seen in &mut outage.causes {
            seen.last = seen.last.min(now);
            seen.first = seen.first.min(seen.last);
        }
    }
    outages
}

#[cfg(test)]
mod tests {
    use tunnel_proto::outage::{Cause, Seen};

    use super::*;

    #[test]
    fn what_a_device_tells_is_bounded_in_number_and_time() {
        let (now, future) = (UnixTime::from_secs(1000), UnixTime::from_secs(u64::MAX));
        let seen = Seen {
            cause: Cause::Dns,
            count: 1,
            first: future,
            last: future,
            detail: None,
        };
        let outage = outage::Outage {
            id: 1,
            from: future,
            until: future,
            attempts: u32::MAX,
            starts: 0,
            causes: vec![seen; 1000],
        };
        let cleaned = cleaned(vec![outage; 1000], now);
        assert_eq!(cleaned.len(), outage::PER_MESSAGE);
        for outage in cleaned {
            assert_eq!((outage.from, outage.until), (now, now));
            assert_eq!(outage.causes.len(), outage::MAX_CAUSES);
            assert!(
                outage
                    .causes
                    .iter()
                    .all(|seen| seen.first == now && seen.last == now)
            );
        }
    }
}
