//! Facts about devices: what owners have set, and what a device said of itself last. The two never mix.

use std::collections::BTreeMap;

use sqlx::Row as _;
use tunnel_proto::defaults::MAX_FACTS;
use tunnel_proto::message::Report;
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{DeviceId, UnixTime};

use super::records::{Assertion, FactsSet};
use super::rows::{json, secs, to_json};
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::{Event, MemberKind, bounded};

impl Store {
    /// Sets and removes facts about a device: all of it, or nothing.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn set_facts(
        &self,
        device: &DeviceId,
        set: BTreeMap<FactName, FactValue>,
        unset: Vec<FactName>,
        by: String,
        now: UnixTime,
    ) -> Result<FactsSet, StoreError> {
        let device = device.clone();
        self.write(move |w| Box::pin(async move { set_facts(w, device, set, unset, by, now).await }))
            .await
    }

    /// Writes down what a device says of itself, and says whether it said something else before. What is linked and what
    /// not is recorded by its own events.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn device_seen(
        &self,
        id: &DeviceId,
        report: &Report,
        facts: BTreeMap<FactName, FactValue>,
        version: &str,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let services = to_json(&report.services)?;
        let (host_keys, facts) = (to_json(&report.ssh_host_keys)?, to_json(&facts)?);
        let (id, platform, version) = (id.clone(), bounded(&report.platform), bounded(version));
        let access = report.access;
        self.write(move |w| {
            Box::pin(async move {
                let row = sqlx::query(
                    "SELECT version IS NOT ? OR platform IS NOT ? OR services IS NOT ? OR access IS NOT ?
                         OR reported_facts IS NOT ? AS differs FROM devices WHERE id = ?",
                )
                .bind(&version)
                .bind(&platform)
                .bind(&services)
                .bind(access)
                .bind(&facts)
                .bind(id.as_str())
                .fetch_optional(&mut w.connection)
                .await?;
                let differs = row.map_or(Ok(false), |row| row.try_get("differs"))?;
                sqlx::query(
                    "UPDATE devices SET last_seen = ?1, reported_at = ?1, version = ?2, platform = ?3, services = ?4,
                     ssh_host_keys = ?5, access = ?6, reported_facts = ?7, changes = changes + ?8 WHERE id = ?9",
                )
                .bind(secs(now))
                .bind(version)
                .bind(platform)
                .bind(services)
                .bind(host_keys)
                .bind(access)
                .bind(facts)
                .bind(differs)
                .bind(id.as_str())
                .execute(&mut w.connection)
                .await?;
                Ok(differs)
            })
        })
        .await
    }

    /// Returns who is in a group, or in any: each group with a member, sorted.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn memberships(&self, limit: u32) -> Result<Vec<(GroupName, String)>, StoreError> {
        let rows = sqlx::query(
            "SELECT group_name, kind || '/' || name AS member FROM memberships ORDER BY group_name, kind, name LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter()
            .map(|row| Ok((super::rows::name(row, "group_name")?, row.try_get("member")?)))
            .collect()
    }
}

async fn set_facts(
    w: &mut Write,
    device: DeviceId,
    set: BTreeMap<FactName, FactValue>,
    unset: Vec<FactName>,
    by: String,
    now: UnixTime,
) -> Result<FactsSet, StoreError> {
    let row = sqlx::query("SELECT asserted_facts FROM devices WHERE id = ?")
        .bind(device.as_str())
        .fetch_optional(&mut w.connection)
        .await?;
    let Some(row) = row else {
        return Ok(FactsSet::Unknown);
    };
    let before: BTreeMap<FactName, Assertion> = json(&row, "asserted_facts")?;
    let mut facts = before.clone();
    facts.retain(|name, _| !unset.contains(name));
    for (name, value) in &set {
        let (value, by) = (value.clone(), by.clone());
        facts.insert(name.clone(), Assertion { value, at: now, by });
    }
    if facts.len() > MAX_FACTS {
        return Ok(FactsSet::TooMany);
    }
    if facts == before {
        return Ok(FactsSet::Done(false));
    }
    sqlx::query("UPDATE devices SET asserted_facts = ?, changes = changes + 1 WHERE id = ?")
        .bind(to_json(&facts)?)
        .bind(device.as_str())
        .execute(&mut w.connection)
        .await?;
    w.append(&Event::FactsChanged {
        device,
        set,
        unset,
        by,
    })
    .await?;
    Ok(FactsSet::Done(true))
}

/// Notes that what decisions about a member are made from has changed.
pub(super) async fn count_change(w: &mut Write, kind: MemberKind, name: &str) -> Result<(), StoreError> {
    let statement = match kind {
        MemberKind::Device => "UPDATE devices SET changes = changes + 1 WHERE id = ?",
        MemberKind::Operator => "UPDATE operators SET changes = changes + 1 WHERE name = ?",
    };
    sqlx::query(statement)
        .bind(name)
        .execute(&mut w.connection)
        .await?;
    Ok(())
}
