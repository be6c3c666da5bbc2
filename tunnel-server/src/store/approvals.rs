//! Approvals: asked for, given, denied, taken back.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tunnel_proto::batch::Batch;
use tunnel_proto::{ApprovalId, Code, Identity, OperatorName, TrustDomain, UnixTime};

use super::enrolment::identity_is_revoked;
use super::rows::{bytes, json, name, number, secs, signed, time, to_json};
use super::suspended::suspension_of;
use super::writer::Write;
use super::{Store, StoreError};
use crate::approvals::{Approval, Asked, End, State};
use crate::audit::{Event, bounded};

/// Approvals of one operator that are alive at once.
const MAX_OF_REQUESTER: i64 = 64;

/// Approvals of one operator that have ended and are still listed: the newest.
const MAX_ENDED: i64 = 256;

/// How long one that is over is still listed; the audit chain has it for good.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

impl Store {
    /// Writes that an approval is asked for; says whether there was room for one more.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn ask_approval(&self, approval: Approval, now: UnixTime) -> Result<bool, StoreError> {
        self.write(move |w| Box::pin(async move { ask(w, approval, now).await }))
            .await
    }

    /// Changes an approval as `change` does for `by`, which says what is recorded of it, if anything; and returns it as it is
    /// then. `None` if there is none. The inner error is that of `change`, or that `by` is suspended by now, and nothing is
    /// changed then.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn change_approval<F>(
        &self,
        id: ApprovalId,
        by: &OperatorName,
        change: F,
    ) -> Result<Option<Result<Approval, Code>>, StoreError>
    where
        F: FnOnce(&mut Approval) -> Result<Option<Event>, Code> + Send + 'static,
    {
        let by = Identity::operator(&self.inner.fleet, by);
        self.write(move |w| {
            Box::pin(async move {
                // INVARIANT: whoever suspends strikes in one transaction what was agreed to, so nothing may come after it
                // (THREATS TOK-14).
                if let Some(code) = suspension_of(w, &by).await? {
                    return Ok(Some(Err(code)));
                }
                let Some(mut approval) = read(w, id).await? else {
                    return Ok(None);
                };
                match change(&mut approval) {
                    Ok(Some(event)) => {
                        update(w, &approval).await?;
                        w.append(&event).await?;
                        Ok(Some(Ok(approval)))
                    }
                    Ok(None) => Ok(Some(Ok(approval))),
                    Err(code) => Ok(Some(Err(code))),
                }
            })
        })
        .await
    }

    /// Returns an approval.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn approval(&self, id: ApprovalId) -> Result<Option<Approval>, StoreError> {
        let row = sqlx::query("SELECT * FROM approvals WHERE id = ?")
            .bind(&id.as_bytes()[..])
            .fetch_optional(&self.inner.readers)
            .await?;
        row.as_ref().map(approval).transpose()
    }

    /// Returns the newest approvals, newest first, at most `limit`; only those that are alive, if `alive_at` is a time, and
    /// those that come `after` one.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn approvals(
        &self,
        alive_at: Option<UnixTime>,
        after: Option<(UnixTime, ApprovalId)>,
        limit: u32,
    ) -> Result<Vec<Approval>, StoreError> {
        sqlx::query(
            "SELECT * FROM approvals
             WHERE (?1 IS NULL OR (state IN ('pending', 'approved') AND expires_at > ?1))
                 AND (?2 IS NULL OR asked_at < ?2 OR (asked_at = ?2 AND id > ?3))
             ORDER BY asked_at DESC, id LIMIT ?4",
        )
        .bind(alive_at.map(secs))
        .bind(after.map(|(asked_at, _)| secs(asked_at)))
        .bind(after.map(|(_, id)| id.as_bytes().to_vec()))
        .bind(limit)
        .fetch_all(&self.inner.readers)
        .await?
        .iter()
        .map(approval)
        .collect()
    }

    /// Returns the approvals that an operator can use now.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn approvals_of(
        &self,
        requester: &OperatorName,
        now: UnixTime,
    ) -> Result<Vec<Approval>, StoreError> {
        sqlx::query("SELECT * FROM approvals WHERE requester = ? AND expires_at > ? AND state = 'approved'")
            .bind(requester.as_str())
            .bind(secs(now))
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(approval)
            .collect()
    }

    /// Writes down which approvals have expired, for good, and returns how many those were.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn expire_approvals(&self, now: UnixTime) -> Result<u64, StoreError> {
        let over = sqlx::query(
            "SELECT 1 FROM approvals WHERE state IN ('pending', 'approved') AND expires_at <= ? LIMIT 1",
        )
        .bind(secs(now))
        .fetch_optional(&self.inner.readers)
        .await?;
        if over.is_none() {
            return Ok(0);
        }
        self.write(move |w| {
            Box::pin(async move {
                let done = sqlx::query(
                    "UPDATE approvals SET state = 'expired'
                     WHERE state IN ('pending', 'approved') AND expires_at <= ?",
                )
                .bind(secs(now))
                .execute(&mut w.connection)
                .await?;
                Ok(done.rows_affected())
            })
        })
        .await
    }

    /// Returns how many tunnels since a time were opened without the approvals that policy asks for.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn broken_glass(&self, since: UnixTime) -> Result<u64, StoreError> {
        let row =
            sqlx::query("SELECT count(*) AS count FROM tunnels WHERE break_glass > 0 AND opened_at >= ?")
                .bind(secs(since))
                .fetch_one(&self.inner.readers)
                .await?;
        number(&row, "count")
    }
}

/// Says whether a tunnel can still rest on an approval: it is in its window, and nobody counts in it who has fallen
/// meanwhile.
pub(super) async fn still_stands(
    w: &mut Write,
    fleet: &TrustDomain,
    rests_on: &tunnel_policy::Approval,
    now: UnixTime,
) -> Result<bool, StoreError> {
    let Some(id) = rests_on.id else { return Ok(false) };
    let Some(found) = read(w, id).await? else {
        return Ok(false);
    };
    if found.state != State::Approved || found.is_over(now) {
        return Ok(false);
    }
    for approver in &rests_on.approvers {
        if !found.is_agreed_by(approver) {
            return Ok(false);
        }
        let identity = Identity::operator(fleet, approver);
        if suspension_of(w, &identity).await?.is_some() || identity_is_revoked(w, &identity).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the agreement of an operator who is suspended out of all approvals that are alive, so that it does not count again
/// when the operator is enabled again.
pub(super) async fn strike_agreements(w: &mut Write, by: &OperatorName) -> Result<(), StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM approvals WHERE state IN ('pending', 'approved')
             AND EXISTS (SELECT 1 FROM json_each(approvers) WHERE json_extract(value, '$.by') = ?)",
    )
    .bind(by.as_str())
    .fetch_all(&mut w.connection)
    .await?;
    for row in &rows {
        let mut approval = approval(row)?;
        approval.strike(by);
        update(w, &approval).await?;
        let left = approval.agreements.into_iter();
        w.append(&Event::ApprovalStruck {
            approval: approval.id,
            operator: approval.asked.requester,
            by: by.clone(),
            approvers: left.map(|agreement| agreement.by).collect(),
        })
        .await?;
    }
    Ok(())
}

async fn ask(w: &mut Write, approval: Approval, now: UnixTime) -> Result<bool, StoreError> {
    sqlx::query("DELETE FROM approvals WHERE asked_at < ? AND expires_at < ?")
        .bind(secs(now.before(KEPT)))
        .bind(secs(now))
        .execute(&mut w.connection)
        .await?;
    let requester = approval.asked.requester.clone();
    // Who asks and takes back without end fills no disk with it.
    sqlx::query(
        "DELETE FROM approvals WHERE id IN (
             SELECT id FROM approvals WHERE requester = ? AND state NOT IN ('pending', 'approved')
             ORDER BY asked_at DESC, id LIMIT -1 OFFSET ?)",
    )
    .bind(requester.as_str())
    .bind(MAX_ENDED)
    .execute(&mut w.connection)
    .await?;
    let row = sqlx::query(
        "SELECT count(*) AS count FROM approvals
         WHERE requester = ? AND expires_at > ? AND state IN ('pending', 'approved')",
    )
    .bind(requester.as_str())
    .bind(secs(now))
    .fetch_one(&mut w.connection)
    .await?;
    if row.try_get::<i64, _>("count")? >= MAX_OF_REQUESTER {
        return Ok(false);
    }
    insert(w, &approval).await?;
    let Approval {
        id,
        asked,
        needed,
        expires_at,
        ..
    } = approval;
    w.append(&Event::ApprovalRequested {
        approval: id,
        operator: requester,
        devices: asked.devices,
        services: asked.services,
        reason: bounded(&asked.reason),
        window_secs: asked.window.as_secs(),
        needed,
        expires_at,
        source: asked.source,
        batch: asked.commands.as_ref().map(Batch::hash),
        commands: asked.commands,
    })
    .await?;
    Ok(true)
}

async fn insert(w: &mut Write, approval: &Approval) -> Result<(), StoreError> {
    let asked = &approval.asked;
    sqlx::query(
        "INSERT INTO approvals (id, requester, devices, services, reason, window_secs, source, needed, approvers, state,
             asked_at, expires_at, commands) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&approval.id.as_bytes()[..])
    .bind(asked.requester.as_str())
    .bind(to_json(&asked.devices)?)
    .bind(to_json(&asked.services)?)
    .bind(bounded(&asked.reason))
    .bind(signed(asked.window.as_secs()))
    .bind(&asked.source)
    .bind(approval.needed)
    .bind(to_json(&approval.agreements)?)
    .bind(approval.state.as_str())
    .bind(secs(approval.asked_at))
    .bind(secs(approval.expires_at))
    .bind(asked.commands.as_ref().map(to_json).transpose()?)
    .execute(&mut w.connection)
    .await?;
    Ok(())
}

async fn update(w: &mut Write, approval: &Approval) -> Result<(), StoreError> {
    let end = approval.end.as_ref();
    sqlx::query(
        "UPDATE approvals SET approvers = ?, state = ?, expires_at = ?, ended_by = ?, end_reason = ? WHERE id = ?",
    )
    .bind(to_json(&approval.agreements)?)
    .bind(approval.state.as_str())
    .bind(secs(approval.expires_at))
    .bind(end.map(|end| bounded(&end.by)))
    .bind(end.and_then(|end| end.reason.as_deref().map(bounded)))
    .bind(&approval.id.as_bytes()[..])
    .execute(&mut w.connection)
    .await?;
    Ok(())
}

async fn read(w: &mut Write, id: ApprovalId) -> Result<Option<Approval>, StoreError> {
    let row = sqlx::query("SELECT * FROM approvals WHERE id = ?")
        .bind(&id.as_bytes()[..])
        .fetch_optional(&mut w.connection)
        .await?;
    row.as_ref().map(approval).transpose()
}

fn approval(row: &SqliteRow) -> Result<Approval, StoreError> {
    let state: String = row.try_get("state")?;
    let ended_by: Option<String> = row.try_get("ended_by")?;
    let reason = row.try_get("end_reason")?;
    Ok(Approval {
        id: ApprovalId::from_bytes(bytes(row, "id")?),
        asked: Asked {
            requester: name(row, "requester")?,
            devices: json(row, "devices")?,
            services: json(row, "services")?,
            reason: row.try_get("reason")?,
            window: Duration::from_secs(number(row, "window_secs")?),
            source: row.try_get("source")?,
            commands: match row.try_get::<Option<String>, _>("commands")? {
                Some(_) => Some(json(row, "commands")?),
                None => None,
            },
        },
        needed: row.try_get("needed")?,
        agreements: json(row, "approvers")?,
        state: State::from_text(&state).ok_or(StoreError::Damaged("state"))?,
        asked_at: time(row, "asked_at")?,
        expires_at: time(row, "expires_at")?,
        end: ended_by.map(|by| End { by, reason }),
    })
}
