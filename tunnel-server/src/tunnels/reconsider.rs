//! Weighing the live tunnels anew when what they were decided by has changed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tunnel_policy::Terms;
use tunnel_proto::names::GroupName;
use tunnel_proto::{ApprovalId, Code, DeviceId, OperatorName};

use super::table::Facts;
use crate::control::Control;
use crate::control::decide::{Asker, InForce};
use crate::store::DeviceRecord;

/// Decisions in a row before other work has its turn.
const YIELD_EVERY: usize = 32;

/// The tunnels that a change can touch.
#[derive(Clone, Debug)]
pub(crate) enum Touched {
    /// All: the change may be about anything.
    All,
    /// Those that lead to these devices.
    Devices(BTreeSet<DeviceId>),
    /// Those of these operators.
    Operators(BTreeSet<OperatorName>),
    /// Those that rest on an approval.
    Approval(ApprovalId),
    /// Those that rest on the agreement of an operator.
    AgreedBy(OperatorName),
}

/// What has been looked up already; many tunnels share few operators and devices.
#[derive(Debug, Default)]
struct Known {
    groups: HashMap<OperatorName, Vec<GroupName>>,
    devices: HashMap<DeviceId, Option<DeviceRecord>>,
}

impl Control {
    /// Cuts every live tunnel that a change can touch and the policy in force does not allow, each at once when that is
    /// found, and returns how many those were. To be called after the change is in the store.
    ///
    /// # Errors
    /// Fails if the store cannot be read; tunnels that were not looked at go on then.
    pub(crate) async fn reconsider(self: &Arc<Self>, touched: &Touched, by: &str) -> Result<u64, Code> {
        // INVARIANT: the change is in the store, and whoever opens stands in the table before it is written down, which
        // fails if what it was decided from has changed: so either it decides anew, or it is met here (THREATS POL-03,
        // POL-04, TOK-14).
        let (in_force, live) = (self.in_force(), self.tunnels.table().touched(touched));
        self.tunnels
            .weighed
            .fetch_add(live.len() as u64, Ordering::Relaxed);
        let (mut known, mut cuts, mut failed) = (Known::default(), Vec::new(), None);
        for (at, live) in live.iter().enumerate() {
            match self.is_still_allowed(&in_force, &live.facts, &mut known).await {
                Ok(true) => {}
                Ok(false) => cuts.extend(self.cut(live.facts.id, Code::PolicyChanged)),
                Err(code) => failed = Some(code),
            }
            if at % YIELD_EVERY == 0 {
                tokio::task::yield_now().await;
            }
        }
        let count = cuts.len() as u64;
        self.record_ends(cuts, by).await;
        failed.map_or(Ok(count), Err)
    }

    async fn is_still_allowed(
        &self,
        in_force: &InForce,
        facts: &Facts,
        known: &mut Known,
    ) -> Result<bool, Code> {
        if !known.groups.contains_key(&facts.operator) {
            known
                .groups
                .insert(facts.operator.clone(), self.groups_of(&facts.operator).await?);
        }
        if !known.devices.contains_key(&facts.device) {
            let device = self
                .store
                .device(&facts.device)
                .await
                .map_err(|error| self.store_failed(&error))?;
            known.devices.insert(facts.device.clone(), device);
        }
        let groups = known.groups.get(&facts.operator).cloned().unwrap_or_default();
        let Some(Some(device)) = known.devices.get(&facts.device) else {
            return Ok(false);
        };
        let lifetime = facts.expires_at.since(facts.opened_at);
        let terms = Terms {
            services: facts.services.clone(),
            ttl: lifetime,
            reason: facts.reason.clone(),
            approval: facts.approval.clone().map(|mut approval| {
                approval.approvers.retain(|name| self.agreement_stands(name));
                approval
            }),
            break_glass: facts.break_glass,
        };
        Ok(self.moments().into_iter().any(|moment| {
            let asker = Asker::of_tunnel(facts, groups.clone(), moment);
            let verdict = in_force.weigh(&asker.question(device, terms.clone()));
            // What was granted cannot be narrowed while it lives: a tunnel that may use more than is allowed now has to end.
            let limits = verdict.decision.limits;
            verdict.is_allowed()
                && limits.cover(&facts.limits)
                && limits.lifetime.is_none_or(|most| lifetime <= most)
        }))
    }
}
