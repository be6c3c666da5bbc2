//! Tunnels: what was decided, which tokens were redeemed, what is alive.

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tunnel_proto::api::{LegPath, Traffic};
use tunnel_proto::batch::BatchHash;
use tunnel_proto::bind::Role;
use tunnel_proto::ids::hex;
use tunnel_proto::message::SessionKey;
use tunnel_proto::{CircuitId, Code, DeviceId, Identity, TokenId, TrustDomain, TunnelId, UnixTime};

use super::approvals::still_stands;
use super::enrolment::is_revoked;
use super::journal::revision;
use super::records::{
    Basis, Denied, Ended, NewTunnel, NotOpened, Redeemed, SessionRecord, TunnelRecord, TunnelState,
    UnconfirmedCut, approval_id, approvers,
};
use super::rows::{bytes, json, key, name, number, secs, signed, time, time_if_any, to_json};
use super::suspended::suspension_of;
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::{Event, bounded};

impl Store {
    /// Writes a tunnel that policy permits. Only after this may an offer go out.
    ///
    /// # Errors
    /// The outer error tells that nothing is on the disk and nothing may open; the inner one that the decision is out of
    /// date.
    pub async fn open_tunnel(
        &self,
        tunnel: NewTunnel,
        basis: Basis,
        now: UnixTime,
    ) -> Result<Result<(), NotOpened>, StoreError> {
        let fleet = self.inner.fleet.clone();
        self.write(move |w| Box::pin(async move { open(w, &fleet, tunnel, basis, now).await }))
            .await
    }

    /// Records that a tunnel was refused.
    ///
    /// # Errors
    /// Returns an error if the record is not on the disk.
    pub async fn deny(&self, denied: Denied) -> Result<(), StoreError> {
        self.record(Event::TunnelDenied {
            operator: denied.operator,
            device: bounded(&denied.device),
            services: denied.services.iter().map(|service| bounded(service)).collect(),
            reason: denied.reason.as_deref().map(bounded),
            code: denied.code,
            policy_revision: denied.policy_revision,
            policies: denied.policies,
            source: denied.source,
            device_known: (denied.code == Code::NotFound).then_some(denied.question.is_some()),
            question: denied.question,
            authoriser: denied.authoriser,
        })
        .await
    }

    /// Redeems a token of a live tunnel. Of any number of callers at any time, one is the first.
    ///
    /// # Errors
    /// Returns an error if the mark is not on the disk: the leg is then not admitted.
    pub async fn redeem(
        &self,
        token: TokenId,
        tunnel: TunnelId,
        role: Role,
        now: UnixTime,
    ) -> Result<Redeemed, StoreError> {
        self.write(move |w| Box::pin(async move { redeem(w, token, tunnel, role, now).await }))
            .await
    }

    /// Writes down that both legs of a tunnel were bound, and says whether it was opening until now.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn tunnel_open(&self, tunnel: TunnelId, paths: Vec<LegPath>) -> Result<bool, StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                let row = sqlx::query(
                    "UPDATE tunnels SET state = 'open' WHERE id = ? AND state = 'opening' RETURNING operator, device",
                )
                .bind(&tunnel.as_bytes()[..])
                .fetch_optional(&mut w.connection)
                .await?;
                let Some(row) = row else { return Ok(false) };
                w.append(&Event::TunnelConnected {
                    tunnel,
                    operator: Some(name(&row, "operator")?),
                    device: Some(name(&row, "device")?),
                    paths,
                })
                .await?;
                Ok(true)
            })
        })
        .await
    }

    /// Keeps how much of its byte limit a live tunnel has spent, at least.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn tunnel_spends(&self, tunnel: TunnelId, bytes: u64) -> Result<(), StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE tunnels SET spent_bytes = max(coalesce(spent_bytes, 0), ?)
                     WHERE id = ? AND state <> 'ended'",
                )
                .bind(signed(bytes))
                .bind(&tunnel.as_bytes()[..])
                .execute(&mut w.connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Keeps how much of their byte limits live tunnels have spent, exactly.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn tunnels_have_spent(&self, spent: Vec<(TunnelId, u64)>) -> Result<(), StoreError> {
        if spent.is_empty() {
            return Ok(());
        }
        self.write(move |w| {
            Box::pin(async move {
                for (tunnel, bytes) in spent {
                    sqlx::query("UPDATE tunnels SET spent_bytes = ? WHERE id = ? AND state <> 'ended'")
                        .bind(signed(bytes))
                        .bind(&tunnel.as_bytes()[..])
                        .execute(&mut w.connection)
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Ends a tunnel, and says whether it was alive. Its tokens are worth nothing from here on.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk. Forwarding stops before this is called, and stays stopped.
    pub async fn end_tunnel(
        &self,
        tunnel: TunnelId,
        reason: Code,
        by: &str,
        traffic: Option<Traffic>,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let by = bounded(by);
        self.write(move |w| Box::pin(async move { end(w, tunnel, reason, by, traffic, now).await }))
            .await
    }

    /// Counts a rotation of a leg's key, and returns how many there were; `None` if the tunnel is not alive.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk: the old key is then in force.
    pub async fn rotate(&self, tunnel: TunnelId, role: Role, by: &str) -> Result<Option<u32>, StoreError> {
        let by = bounded(by);
        let statement = match role {
            Role::Source => {
                "UPDATE tunnels SET source_rotations = source_rotations + 1
                 WHERE id = ? AND state <> 'ended' RETURNING source_rotations AS rotations"
            }
            Role::Destination => {
                "UPDATE tunnels SET destination_rotations = destination_rotations + 1
                 WHERE id = ? AND state <> 'ended' RETURNING destination_rotations AS rotations"
            }
        };
        self.write(move |w| {
            Box::pin(async move {
                let row = sqlx::query(statement)
                    .bind(&tunnel.as_bytes()[..])
                    .fetch_optional(&mut w.connection)
                    .await?;
                let Some(row) = row else { return Ok(None) };
                let leg = role.as_str().to_owned();
                w.append(&Event::TunnelRotated { tunnel, leg, by }).await?;
                Ok(Some(row.try_get("rotations")?))
            })
        })
        .await
    }

    /// Writes down that a device has confirmed a cut.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn cut_confirmed(
        &self,
        tunnel: TunnelId,
        device: &DeviceId,
        millis: u64,
        late: bool,
    ) -> Result<(), StoreError> {
        let event = Event::CutConfirmed {
            tunnel,
            device: device.clone(),
            millis,
            late,
        };
        self.mark(tunnel, 0, event).await
    }

    /// Writes down the alarm that a device has not confirmed a cut.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn cut_unconfirmed(
        &self,
        tunnel: TunnelId,
        device: &DeviceId,
        reason: Code,
    ) -> Result<(), StoreError> {
        let event = Event::CutUnconfirmed {
            tunnel,
            device: device.clone(),
            reason,
        };
        self.mark(tunnel, 2, event).await
    }

    async fn mark(&self, tunnel: TunnelId, unconfirmed: u8, event: Event) -> Result<(), StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                sqlx::query("UPDATE tunnels SET unconfirmed = ? WHERE id = ? AND unconfirmed > 0")
                    .bind(unconfirmed)
                    .bind(&tunnel.as_bytes()[..])
                    .execute(&mut w.connection)
                    .await?;
                w.append(&event).await
            })
        })
        .await
    }

    /// Returns the cuts that no device has confirmed, for a server that starts again.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn unconfirmed_cuts(&self) -> Result<Vec<UnconfirmedCut>, StoreError> {
        sqlx::query("SELECT id, device, end_code, ended_at, expires_at, unconfirmed FROM tunnels WHERE unconfirmed > 0")
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(|row| {
                Ok(UnconfirmedCut {
                    tunnel: TunnelId::from_bytes(bytes(row, "id")?),
                    device: name(row, "device")?,
                    why: Code::from_text(&row.try_get::<String, _>("end_code")?),
                    cut_at: time(row, "ended_at")?,
                    expires_at: time(row, "expires_at")?,
                    alarmed: number(row, "unconfirmed")? > 1,
                })
            })
            .collect()
    }

    /// Records a session that took place or was refused; one that has a record has it already.
    ///
    /// # Errors
    /// Returns an error if the record is not on the disk.
    pub async fn session(&self, session: SessionRecord) -> Result<(), StoreError> {
        self.record_sessions(vec![session]).await
    }

    /// Says whether a session has a record.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) async fn is_session_recorded(&self, key: SessionKey) -> Result<bool, StoreError> {
        is_recorded(&mut *self.inner.readers.acquire().await?, key).await
    }

    /// Records many sessions in one transaction; those that have a record have it already.
    ///
    /// # Errors
    /// Returns an error if none of the records is on the disk.
    pub(crate) async fn record_sessions(&self, sessions: Vec<SessionRecord>) -> Result<(), StoreError> {
        self.write(move |w| {
            Box::pin(async move {
                for session in sessions {
                    // In the transaction of the record, so that no two that tell of one find none.
                    let is_told_again = match session.key() {
                        Some(key) => is_recorded(&mut w.connection, key).await?,
                        None => false,
                    };
                    if !is_told_again {
                        w.append(&session_event(session)).await?;
                    }
                }
                Ok(())
            })
        })
        .await
    }

    /// Returns a tunnel.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn tunnel(&self, tunnel: TunnelId) -> Result<Option<TunnelRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM tunnels WHERE id = ?")
            .bind(&tunnel.as_bytes()[..])
            .fetch_optional(&self.inner.readers)
            .await?;
        row.as_ref().map(record).transpose()
    }

    /// Returns the newest tunnels, at most `limit`, newest first; the ended ones too unless `live_only`.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn tunnels(&self, live_only: bool, limit: u32) -> Result<Vec<TunnelRecord>, StoreError> {
        let statement = if live_only {
            "SELECT * FROM tunnels WHERE state <> 'ended' ORDER BY opened_at DESC, rowid DESC LIMIT ?"
        } else {
            "SELECT * FROM tunnels ORDER BY opened_at DESC, rowid DESC LIMIT ?"
        };
        sqlx::query(statement)
            .bind(limit)
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(record)
            .collect()
    }

    /// Returns every tunnel that has not ended, for a server that starts again.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn live_tunnels(&self) -> Result<Vec<TunnelRecord>, StoreError> {
        self.tunnels(true, u32::MAX).await
    }
}

async fn open(
    w: &mut Write,
    fleet: &TrustDomain,
    tunnel: NewTunnel,
    basis: Basis,
    now: UnixTime,
) -> Result<Result<(), NotOpened>, StoreError> {
    let current = revision(&mut w.connection).await?;
    if current != tunnel.policy_revision {
        return Ok(Err(NotOpened::PolicyStale { current }));
    }
    let operator = Identity::operator(fleet, &tunnel.operator);
    let device = Identity::device(fleet, &tunnel.device);
    if is_revoked(w, &operator, &tunnel.holder_key).await?
        || is_revoked(w, &device, &tunnel.device_key).await?
    {
        return Ok(Err(NotOpened::Revoked));
    }
    for identity in [&operator, &device] {
        if let Some(code) = suspension_of(w, identity).await? {
            return Ok(Err(NotOpened::Suspended(code)));
        }
    }
    let operator = changes(
        w,
        "SELECT changes FROM operators WHERE name = ?",
        tunnel.operator.as_str(),
    )
    .await?;
    let device = changes(
        w,
        "SELECT changes FROM devices WHERE id = ?",
        tunnel.device.as_str(),
    )
    .await?;
    if (operator, device) != (basis.operator_changes, basis.device_changes) {
        return Ok(Err(NotOpened::FactsStale));
    }
    if let Some(approval) = &tunnel.approval
        && !still_stands(w, fleet, approval, now).await?
    {
        return Ok(Err(NotOpened::FactsStale));
    }
    sqlx::query(
        "INSERT INTO tunnels (id, circuit, operator, holder_key, device, device_key, services, reason, source,
             policy_revision, policies, state, opened_at, expires_at, certified_at, approval, limits,
             break_glass, grant_hash, authoriser, batch)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'opening', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&tunnel.id.as_bytes()[..])
    .bind(&tunnel.circuit.as_bytes()[..])
    .bind(tunnel.operator.as_str())
    .bind(&tunnel.holder_key.as_bytes()[..])
    .bind(tunnel.device.as_str())
    .bind(&tunnel.device_key.as_bytes()[..])
    .bind(to_json(&tunnel.services)?)
    .bind(tunnel.reason.as_deref().map(bounded))
    .bind(&tunnel.source)
    .bind(signed(tunnel.policy_revision))
    .bind(to_json(&tunnel.policies)?)
    .bind(secs(now))
    .bind(secs(tunnel.expires_at))
    .bind(secs(tunnel.certified_at))
    .bind(tunnel.approval.as_ref().map(to_json).transpose()?)
    .bind(to_json(&tunnel.limits)?)
    .bind(tunnel.break_glass)
    .bind(basis.grant.as_ref().map(|grant| &grant[..]))
    .bind(tunnel.authoriser.as_ref().map(to_json).transpose()?)
    .bind(tunnel.batch.as_ref().map(|batch| &batch.as_bytes()[..]))
    .execute(&mut w.connection)
    .await?;
    if tunnel.break_glass {
        w.append(&Event::GlassBroken {
            tunnel: tunnel.id,
            operator: tunnel.operator.clone(),
            device: tunnel.device.clone(),
            services: tunnel.services.clone(),
            reason: tunnel.reason.as_deref().map(bounded),
            expires_at: tunnel.expires_at,
            source: tunnel.source.clone(),
        })
        .await?;
    }
    w.append(&Event::TunnelOpened {
        tunnel: tunnel.id,
        operator: tunnel.operator,
        holder_key: tunnel.holder_key,
        device: tunnel.device,
        services: tunnel.services,
        reason: tunnel.reason.as_deref().map(bounded),
        expires_at: tunnel.expires_at,
        policy_revision: tunnel.policy_revision,
        policies: tunnel.policies,
        source: tunnel.source,
        limits: Some(tunnel.limits),
        grant: basis.grant.map(|grant| hex(&grant)),
        approvers: approvers(tunnel.approval.as_ref()),
        approval: approval_id(tunnel.approval.as_ref()),
        batch: tunnel.batch.map(Box::new),
        question: basis.question,
        authoriser: basis.authoriser,
    })
    .await?;
    Ok(Ok(()))
}

/// Reads how often what is known of somebody has changed; never, for who is not known.
async fn changes(w: &mut Write, statement: &'static str, name: &str) -> Result<u64, StoreError> {
    let row = sqlx::query(statement)
        .bind(name)
        .fetch_optional(&mut w.connection)
        .await?;
    row.map_or(Ok(0), |row| number(&row, "changes"))
}

async fn redeem(
    w: &mut Write,
    token: TokenId,
    tunnel: TunnelId,
    role: Role,
    now: UnixTime,
) -> Result<Redeemed, StoreError> {
    let alive = sqlx::query(
        "SELECT operator, device FROM tunnels WHERE id = ? AND state <> 'ended' AND expires_at > ?",
    )
    .bind(&tunnel.as_bytes()[..])
    .bind(secs(now))
    .fetch_optional(&mut w.connection)
    .await?;
    let Some(alive) = alive else {
        return Ok(Redeemed::Gone);
    };
    let done =
        sqlx::query("INSERT OR IGNORE INTO redeemed (token, tunnel, role, redeemed_at) VALUES (?, ?, ?, ?)")
            .bind(&token.as_bytes()[..])
            .bind(&tunnel.as_bytes()[..])
            .bind(role as u8)
            .bind(secs(now))
            .execute(&mut w.connection)
            .await?;
    if done.rows_affected() == 0 {
        return Ok(Redeemed::Again);
    }
    w.append(&Event::TunnelAttached {
        tunnel,
        role: role.as_str().to_owned(),
        operator: Some(name(&alive, "operator")?),
        device: Some(name(&alive, "device")?),
    })
    .await?;
    Ok(Redeemed::First)
}

async fn end(
    w: &mut Write,
    tunnel: TunnelId,
    reason: Code,
    by: String,
    traffic: Option<Traffic>,
    now: UnixTime,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "UPDATE tunnels SET state = 'ended', ended_at = ?, end_code = ?, ended_by = ?, traffic = ?,
             unconfirmed = ? WHERE id = ? AND state <> 'ended' RETURNING *",
    )
    .bind(secs(now))
    .bind(reason.as_str())
    .bind(&by)
    .bind(traffic.as_ref().map(to_json).transpose()?)
    .bind(reason.is_cut())
    .bind(&tunnel.as_bytes()[..])
    .fetch_optional(&mut w.connection)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let tunnel_record = record(&row)?;
    let lived_secs = now.since(tunnel_record.opened_at).as_secs();
    w.append(&Event::TunnelEnded {
        tunnel,
        opening: Some(Box::new((&tunnel_record).into())),
        operator: tunnel_record.decided.operator,
        device: tunnel_record.decided.device,
        reason,
        by,
        lived_secs,
        traffic,
    })
    .await?;
    Ok(true)
}

/// Says whether a session has a record. The condition is that of its index.
async fn is_recorded(connection: &mut SqliteConnection, key: SessionKey) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT 1 FROM audit WHERE json_extract(body, '$.tunnel') = ? AND json_extract(body, '$.number') = ?
         AND kind IN ('session.ended', 'session.refused') AND json_extract(body, '$.number') IS NOT NULL",
    )
    .bind(key.tunnel.to_string())
    .bind(key.number.cast_signed())
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Returns the record of a session, as the chain will hold it.
pub(crate) fn session_event(session: SessionRecord) -> Event {
    let SessionRecord {
        tunnel,
        millis,
        bytes_in,
        bytes_out,
        of,
        ..
    } = session;
    let service = bounded(&session.service);
    match session.refused {
        Some(reason) => Event::SessionRefused {
            tunnel,
            service,
            reason,
            of,
        },
        None => Event::SessionEnded {
            tunnel,
            service,
            millis,
            bytes_in,
            bytes_out,
            of,
        },
    }
}

fn record(row: &SqliteRow) -> Result<TunnelRecord, StoreError> {
    let state: String = row.try_get("state")?;
    Ok(TunnelRecord {
        decided: NewTunnel {
            id: TunnelId::from_bytes(bytes(row, "id")?),
            circuit: CircuitId::from_bytes(bytes(row, "circuit")?),
            operator: name(row, "operator")?,
            holder_key: key(row, "holder_key")?,
            device: name(row, "device")?,
            device_key: key(row, "device_key")?,
            services: json(row, "services")?,
            reason: row.try_get("reason")?,
            expires_at: time(row, "expires_at")?,
            policy_revision: number(row, "policy_revision")?,
            policies: json(row, "policies")?,
            source: row.try_get("source")?,
            certified_at: match time_if_any(row, "certified_at")? {
                Some(time) => time,
                None => time(row, "opened_at")?,
            },
            approval: match row.try_get::<Option<String>, _>("approval")? {
                Some(_) => Some(json(row, "approval")?),
                None => None,
            },
            break_glass: row.try_get("break_glass")?,
            authoriser: match row.try_get::<Option<String>, _>("authoriser")? {
                Some(_) => Some(json(row, "authoriser")?),
                None => None,
            },
            limits: json(row, "limits")?,
            batch: match row.try_get::<Option<Vec<u8>>, _>("batch")? {
                Some(_) => Some(BatchHash::from_bytes(bytes(row, "batch")?)),
                None => None,
            },
        },
        state: TunnelState::from_text(&state).ok_or(StoreError::Damaged("state"))?,
        opened_at: time(row, "opened_at")?,
        ended: ended(row)?,
        rotations: [
            row.try_get("source_rotations")?,
            row.try_get("destination_rotations")?,
        ],
        grant: match row.try_get::<Option<Vec<u8>>, _>("grant_hash")? {
            Some(_) => Some(bytes(row, "grant_hash")?),
            None => None,
        },
        spent_bytes: row
            .try_get::<Option<i64>, _>("spent_bytes")?
            .map(i64::cast_unsigned),
    })
}

fn ended(row: &SqliteRow) -> Result<Option<Ended>, StoreError> {
    let Some(at) = time_if_any(row, "ended_at")? else {
        return Ok(None);
    };
    let traffic = match row.try_get::<Option<String>, _>("traffic")? {
        Some(_) => Some(json(row, "traffic")?),
        None => None,
    };
    let reason = Code::from_text(&row.try_get::<String, _>("end_code")?);
    Ok(Some(Ended {
        at,
        reason,
        by: row.try_get("ended_by")?,
        traffic,
    }))
}
