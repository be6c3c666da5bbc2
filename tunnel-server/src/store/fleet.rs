//! Devices, operators, groups, and what has lost its trust.

use std::collections::BTreeSet;
use std::str::FromStr;

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::GroupName;
use tunnel_proto::{DeviceId, Identity, OperatorName, UnixTime};

use super::facts::count_change;
use super::records::{DeviceRecord, Member, OperatorRecord, RevokedSet};
use super::rows::{json, key, name, names, number, secs, time, time_if_any, to_json};
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::{Event, MemberKind, bounded};

impl Store {
    /// Returns the devices that are enrolled and not revoked, by id.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn devices(&self) -> Result<Vec<DeviceRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT *, (SELECT group_concat(group_name) FROM
                 (SELECT group_name FROM memberships WHERE kind = 'device' AND name = devices.id ORDER BY group_name)
             ) AS groups
             FROM devices WHERE 'spiffe://' || ? || '/device/' || id NOT IN (SELECT identity FROM revoked_identities)
             ORDER BY id",
        )
        .bind(self.inner.fleet.as_str())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(device).collect()
    }

    /// Returns a device; `None` if it was never enrolled, or is revoked.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn device(&self, id: &DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT *, (SELECT group_concat(group_name) FROM
                 (SELECT group_name FROM memberships WHERE kind = 'device' AND name = devices.id ORDER BY group_name)
             ) AS groups
             FROM devices WHERE id = ? AND NOT EXISTS (SELECT 1 FROM revoked_identities WHERE identity = ?)",
        )
        .bind(id.as_str())
        .bind(Identity::device(&self.inner.fleet, id).to_string())
        .fetch_optional(&self.inner.readers)
        .await?;
        row.as_ref().map(device).transpose()
    }

    /// Returns those of some devices that are enrolled and not revoked.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn devices_among(&self, ids: &BTreeSet<DeviceId>) -> Result<Vec<DeviceRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT *, (SELECT group_concat(group_name) FROM
                 (SELECT group_name FROM memberships WHERE kind = 'device' AND name = devices.id ORDER BY group_name)
             ) AS groups
             FROM devices WHERE id IN (SELECT value FROM json_each(?))
                 AND NOT EXISTS (SELECT 1 FROM revoked_identities WHERE identity = 'spiffe://' || ? || '/device/' || id)",
        )
        .bind(listed(ids)?)
        .bind(self.inner.fleet.as_str())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(device).collect()
    }

    /// Returns those of some operators that are enrolled and not revoked.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn operators_among(
        &self,
        names: &BTreeSet<OperatorName>,
    ) -> Result<Vec<OperatorRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT *, (SELECT group_concat(group_name) FROM
                 (SELECT group_name FROM memberships WHERE kind = 'operator' AND name = operators.name ORDER BY group_name)
             ) AS groups
             FROM operators WHERE name IN (SELECT value FROM json_each(?))
                 AND NOT EXISTS (SELECT 1 FROM revoked_identities WHERE identity = 'spiffe://' || ? || '/operator/' || name)",
        )
        .bind(listed(names)?)
        .bind(self.inner.fleet.as_str())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(operator).collect()
    }

    /// Returns an operator; `None` if it was never enrolled, or is revoked.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn operator(&self, name: &OperatorName) -> Result<Option<OperatorRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT *, (SELECT group_concat(group_name) FROM
                 (SELECT group_name FROM memberships WHERE kind = 'operator' AND name = operators.name ORDER BY group_name)
             ) AS groups
             FROM operators WHERE name = ? AND NOT EXISTS (SELECT 1 FROM revoked_identities WHERE identity = ?)",
        )
        .bind(name.as_str())
        .bind(Identity::operator(&self.inner.fleet, name).to_string())
        .fetch_optional(&self.inner.readers)
        .await?;
        row.as_ref().map(operator).transpose()
    }

    /// Puts a device or operator into a group, and says whether it was not in it before. A name that nobody has enrolled
    /// is not put anywhere: whoever enrols with it later would get the rights of the group with it.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn add_to_group(
        &self,
        member: Member,
        group: GroupName,
        by: String,
    ) -> Result<bool, StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                let added =
                    is_enrolled(w, &member).await? && join(w, member.kind(), member.name(), &group).await?;
                if added {
                    count_change(w, member.kind(), member.name()).await?;
                    w.append(&group_changed(&member, group, true, by)).await?;
                }
                Ok(added)
            })
        })
        .await
    }

    /// Takes a device or operator out of a group, and says whether it was in it.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn remove_from_group(
        &self,
        member: Member,
        group: GroupName,
        by: String,
    ) -> Result<bool, StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                let removed =
                    sqlx::query("DELETE FROM memberships WHERE kind = ? AND name = ? AND group_name = ?")
                        .bind(member.kind().as_str())
                        .bind(member.name())
                        .bind(group.as_str())
                        .execute(&mut w.connection)
                        .await?
                        .rows_affected()
                        > 0;
                if removed {
                    count_change(w, member.kind(), member.name()).await?;
                    w.append(&group_changed(&member, group, false, by)).await?;
                }
                Ok(removed)
            })
        })
        .await
    }

    /// Returns the members of a group, by name.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn members<T: FromStr + Ord>(
        &self,
        kind: MemberKind,
        group: &GroupName,
    ) -> Result<BTreeSet<T>, StoreError> {
        sqlx::query("SELECT name FROM memberships WHERE group_name = ? AND kind = ?")
            .bind(group.as_str())
            .bind(kind.as_str())
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(|row| name(row, "name"))
            .collect()
    }

    /// Takes all trust from an identity and its keys, for good, and says whether it had any left.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk. The caller cuts what is alive all the same: it does no harm.
    pub async fn revoke(
        &self,
        identity: &Identity,
        reason: Option<String>,
        by: String,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let identity = identity.clone();
        self.write(move |w| Box::pin(async move { revoke(w, identity, reason, by, now).await }))
            .await
    }

    /// Returns everything that has lost its trust.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn revoked(&self) -> Result<RevokedSet, StoreError> {
        let identities = sqlx::query("SELECT identity FROM revoked_identities")
            .fetch_all(&self.inner.readers)
            .await?;
        let keys = sqlx::query("SELECT key_hash FROM revoked_keys")
            .fetch_all(&self.inner.readers)
            .await?;
        Ok(RevokedSet {
            identities: identities
                .iter()
                .map(|row| name(row, "identity"))
                .collect::<Result<_, _>>()?,
            keys: keys
                .iter()
                .map(|row| key(row, "key_hash"))
                .collect::<Result<_, _>>()?,
        })
    }
}

pub(super) async fn is_enrolled(w: &mut Write, member: &Member) -> Result<bool, StoreError> {
    let statement = match member {
        Member::Device(_) => "SELECT 1 FROM devices WHERE id = ?",
        Member::Operator(_) => "SELECT 1 FROM operators WHERE name = ?",
    };
    let row = sqlx::query(statement)
        .bind(member.name())
        .fetch_optional(&mut w.connection)
        .await?;
    Ok(row.is_some())
}

/// Puts a member into a group, and says whether it was not in it before.
pub(super) async fn join(
    w: &mut Write,
    kind: MemberKind,
    name: &str,
    group: &GroupName,
) -> Result<bool, StoreError> {
    let done = sqlx::query("INSERT OR IGNORE INTO memberships (kind, name, group_name) VALUES (?, ?, ?)")
        .bind(kind.as_str())
        .bind(name)
        .bind(group.as_str())
        .execute(&mut w.connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Takes the trust from one key.
pub(super) async fn revoke_key(w: &mut Write, key: &KeyHash, now: UnixTime) -> Result<(), StoreError> {
    sqlx::query("INSERT OR IGNORE INTO revoked_keys (key_hash, revoked_at) VALUES (?, ?)")
        .bind(&key.as_bytes()[..])
        .bind(secs(now))
        .execute(&mut w.connection)
        .await?;
    Ok(())
}

async fn revoke(
    w: &mut Write,
    identity: Identity,
    reason: Option<String>,
    by: String,
    now: UnixTime,
) -> Result<bool, StoreError> {
    let done = sqlx::query("INSERT OR IGNORE INTO revoked_identities (identity, revoked_at) VALUES (?, ?)")
        .bind(identity.to_string())
        .bind(secs(now))
        .execute(&mut w.connection)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT OR IGNORE INTO revoked_keys (key_hash, revoked_at)
         SELECT DISTINCT key_hash, ? FROM certificates WHERE identity = ?",
    )
    .bind(secs(now))
    .bind(identity.to_string())
    .execute(&mut w.connection)
    .await?;
    let reason = reason.as_deref().map(bounded);
    w.append(&Event::IdentityRevoked { identity, reason, by }).await?;
    Ok(true)
}

fn group_changed(member: &Member, group: GroupName, added: bool, by: String) -> Event {
    Event::GroupChanged {
        member: member.name().to_owned(),
        makes: member.kind(),
        group,
        added,
        by,
    }
}

fn device(row: &SqliteRow) -> Result<DeviceRecord, StoreError> {
    Ok(DeviceRecord {
        id: name(row, "id")?,
        groups: names(row, "groups")?,
        key: key(row, "key_hash")?,
        enrolled_at: time(row, "enrolled_at")?,
        cert_expires_at: time(row, "cert_expires_at")?,
        last_seen: time_if_any(row, "last_seen")?,
        version: row.try_get("version")?,
        platform: row.try_get("platform")?,
        services: json(row, "services")?,
        ssh_host_keys: json(row, "ssh_host_keys")?,
        access: row.try_get("access")?,
        asserted_facts: json(row, "asserted_facts")?,
        reported_facts: json(row, "reported_facts")?,
        reported_at: time_if_any(row, "reported_at")?,
        changes: number(row, "changes")?,
    })
}

/// Writes names as `json_each` reads them.
fn listed<T: ToString>(names: &BTreeSet<T>) -> Result<String, StoreError> {
    to_json(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn operator(row: &SqliteRow) -> Result<OperatorRecord, StoreError> {
    Ok(OperatorRecord {
        name: name(row, "name")?,
        groups: names(row, "groups")?,
        key: key(row, "key_hash")?,
        cert_expires_at: time(row, "cert_expires_at")?,
        changes: number(row, "changes")?,
    })
}
