//! Weighing the live tunnels anew when what they were decided by has changed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;
use tunnel_policy::Terms;
use tunnel_proto::names::GroupName;
use tunnel_proto::{ApprovalId, Code, DeviceId, OperatorName};

use super::end::Cut;
use super::table::{Facts, Live};
use crate::approvals::Approval;
use crate::control::Control;
use crate::control::decide::{Asker, InForce};
use crate::control::steadiness::Moment;
use crate::store::DeviceRecord;

/// Tunnels for which it is worth to ask another core.
const PART: usize = 32;

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

/// What live tunnels are weighed with: as things stand after the change.
#[derive(Debug)]
struct Known {
    in_force: Arc<InForce>,
    moments: Vec<Moment>,
    groups: HashMap<OperatorName, Vec<GroupName>>,
    devices: HashMap<DeviceId, DeviceRecord>,
    approvals: HashMap<ApprovalId, Approval>,
}

impl Known {
    fn groups_of(&self, facts: &Facts) -> Vec<GroupName> {
        self.groups.get(&facts.operator).cloned().unwrap_or_default()
    }
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
        let live = self.tunnels.table().touched(touched);
        self.tunnels
            .weighed
            .fetch_add(live.len() as u64, Ordering::Relaxed);
        if live.is_empty() {
            return Ok(0);
        }
        let known = Arc::new(self.look_up(&live).await?);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let part = live.len().div_ceil(cores).max(PART);
        let (mut parts, mut cuts) = (JoinSet::new(), Vec::new());
        for live in live.chunks(part) {
            let (control, known, live) = (self.clone(), known.clone(), live.to_vec());
            // Decisions are work for a core: on threads of their own they wait for nobody, and nobody waits for them.
            parts.spawn_blocking(move || control.cut_forbidden(&known, &live));
        }
        let mut failed = None;
        while let Some(part) = parts.join_next().await {
            match part {
                Ok(part) => cuts.extend(part),
                Err(error) => {
                    tracing::error!(%error, "live tunnels could not be weighed");
                    failed = Some(Code::Internal);
                }
            }
        }
        let count = cuts.len() as u64;
        self.record_ends(cuts, by).await;
        failed.map_or(Ok(count), Err)
    }

    /// Looks up what tunnels are weighed with, for all of them together.
    async fn look_up(&self, live: &[Arc<Live>]) -> Result<Known, Code> {
        let facts = || live.iter().map(|live| &live.facts);
        let (operators, devices) = (
            facts().map(|facts| facts.operator.clone()).collect(),
            facts().map(|facts| facts.device.clone()).collect(),
        );
        let (operators, devices) = tokio::join!(
            self.store.operators_among(&operators),
            self.store.devices_among(&devices)
        );
        let operators = operators.map_err(|error| self.store_failed(&error))?;
        let devices = devices.map_err(|error| self.store_failed(&error))?;
        let resting = facts().filter_map(|facts| facts.approval.as_ref()?.id);
        let mut approvals = HashMap::new();
        for id in resting.collect::<BTreeSet<_>>() {
            let found = self.store.approval(id).await;
            approvals.extend(
                found
                    .map_err(|error| self.store_failed(&error))?
                    .map(|found| (id, found)),
            );
        }
        Ok(Known {
            approvals,
            in_force: self.in_force(),
            moments: self.moments(),
            groups: operators
                .into_iter()
                .map(|operator| (operator.name, operator.groups))
                .collect(),
            devices: devices
                .into_iter()
                .map(|device| (device.id.clone(), device))
                .collect(),
        })
    }

    /// Cuts those that are not allowed: the relay stops each at once when that is found. The whole decision about one takes
    /// as long as a quick look at many, so that those which the look finds do not wait for it.
    fn cut_forbidden(&self, known: &Known, live: &[Arc<Live>]) -> Vec<Cut> {
        let mut others = Vec::new();
        let quickly = live.iter().filter(|live| {
            let denied = self.is_denied_at_once(known, &live.facts);
            if !denied {
                others.push(*live);
            }
            denied
        });
        let mut cuts = self.cut_all(quickly.map(|live| live.facts.id), Code::PolicyChanged);
        let forbidden = others
            .into_iter()
            .filter(|live| !self.is_still_allowed(known, &live.facts));
        cuts.extend(self.cut_all(forbidden.map(|live| live.facts.id), Code::PolicyChanged));
        cuts
    }

    fn is_denied_at_once(&self, known: &Known, facts: &Facts) -> bool {
        let Some(device) = known.devices.get(&facts.device) else {
            return true;
        };
        let (groups, terms) = (known.groups_of(facts), self.terms_of(known, facts));
        known.moments.iter().all(|moment| {
            let asker = Asker::of_tunnel(facts, groups.clone(), *moment);
            let question = asker.question(device, terms.clone());
            known.in_force.engine.denies_at_once(&question)
        })
    }

    /// Returns what a tunnel was asked for with, as things stand.
    fn terms_of(&self, known: &Known, facts: &Facts) -> Terms {
        Terms {
            services: facts.services.clone(),
            ttl: facts.expires_at.since(facts.opened_at),
            reason: facts.reason.clone(),
            approval: facts.approval.clone().map(|mut approval| {
                let known = approval.id.and_then(|id| known.approvals.get(&id));
                let agreed = |name: &OperatorName| known.is_some_and(|known| known.is_agreed_by(name));
                approval
                    .approvers
                    .retain(|name| agreed(name) && self.agreement_stands(name));
                approval
            }),
            break_glass: facts.break_glass,
            batch: facts.batch.is_some(),
            authoriser: facts.authoriser.clone(),
        }
    }

    fn is_still_allowed(&self, known: &Known, facts: &Facts) -> bool {
        // A device that is not enrolled, or not any more, is nobody's to reach.
        let Some(device) = known.devices.get(&facts.device) else {
            return false;
        };
        let (groups, terms) = (known.groups_of(facts), self.terms_of(known, facts));
        let lifetime = terms.ttl;
        known.moments.iter().any(|moment| {
            let asker = Asker::of_tunnel(facts, groups.clone(), *moment);
            let verdict = known.in_force.weigh(&asker.question(device, terms.clone()));
            // What was granted cannot be narrowed while it lives: a tunnel that may use more than is allowed now has to end.
            let limits = verdict.decision.limits;
            verdict.is_allowed()
                && limits.cover(&facts.limits)
                && limits.lifetime.is_none_or(|most| lifetime <= most)
        })
    }
}
