//! After a restart: the tunnels that were alive go on, unless their time or the trust in them is over.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use tunnel_proto::Code;
use tunnel_proto::bind::Role;

use super::limits::from_api;
use super::reconsider::Touched;
use super::table::{Facts, Phase};
use crate::control::Control;
use crate::relay::{CircuitSpec, byte_step};
use crate::store::{TunnelRecord, TunnelState};

/// Who ends what did not outlive the restart.
const BY: &str = "server";

impl Control {
    /// Takes the tunnels of the store in, opens their circuits again, and cuts those that are no longer allowed. Their legs
    /// find back by themselves, with the keys that they have.
    ///
    /// # Errors
    /// Fails if the store cannot be read or written.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<usize, Code> {
        let records = self
            .store
            .live_tunnels()
            .await
            .map_err(|error| self.store_failed(&error))?;
        let mut recovered = 0;
        for record in records {
            let id = record.decided.id;
            match self.take_in(record) {
                Ok(()) => recovered += 1,
                Err(why) => {
                    let ended = self.store.end_tunnel(id, why, BY, None, self.now()).await;
                    ended.map_err(|error| self.store_failed(&error))?;
                }
            }
        }
        self.recover_cuts().await?;
        self.expire_approvals().await?;
        let cut = self.reload_revoked(BY).await?
            + self.cut_suspended(BY).await
            + self.cut_withdrawn(BY).await?
            + self.reconsider(&Touched::All, BY).await?;
        Ok(recovered - usize::try_from(cut).unwrap_or(recovered).min(recovered))
    }

    fn take_in(&self, record: TunnelRecord) -> Result<(), Code> {
        let (now, wall) = (Instant::now(), self.now());
        let (decided, rotations) = (record.decided, record.rotations);
        if wall >= decided.expires_at {
            return Err(Code::TunnelExpired);
        }
        let phase = if record.state == TunnelState::Open {
            Phase::Open
        } else {
            Phase::Opening
        };
        let facts = Facts {
            id: decided.id,
            circuit: decided.circuit,
            operator: decided.operator,
            holder_key: decided.holder_key,
            certified_at: decided.certified_at,
            device: decided.device,
            device_key: decided.device_key,
            services: decided.services,
            reason: decided.reason,
            approval: decided.approval,
            break_glass: decided.break_glass,
            batch: decided.batch,
            authoriser: decided.authoriser,
            limits: from_api(&decided.limits),
            source: decided
                .source
                .parse()
                .unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            opened_at: record.opened_at,
            expires_at: decided.expires_at,
            deadline: now + decided.expires_at.since(wall),
        };
        let (id, circuit) = (facts.id, facts.circuit);
        let mut spec = CircuitSpec::new(circuit);
        spec.recovered = true;
        spec.max_bytes = facts.limits.bytes;
        // Where nothing was kept yet, the first step was not used up.
        spec.spent_bytes = match (record.spent_bytes, facts.limits.bytes) {
            (Some(spent), _) => spent,
            (None, Some(max)) => byte_step(max),
            (None, None) => 0,
        };
        spec.max_bytes_per_sec = facts.limits.rate;
        let mut table = self.tunnels.table();
        table.insert_rotated(facts, phase, rotations, now)?;
        let opened = self.relay.open(spec).and_then(|()| {
            // Only a leg that was admitted before the restart has its key.
            for role in [Role::Source, Role::Destination] {
                let rotations = rotations[role as usize];
                if rotations > 0 {
                    // Told when the leg has bound with it.
                    self.relay.lock(circuit, role, rotations)?;
                }
                self.relay.admit_rotated(circuit, role, rotations)?;
            }
            Ok(())
        });
        opened.inspect_err(|_| table.forget(id))
    }
}
