//! Changing what decisions are made from: the groups of devices and operators, and the facts about devices. Each change
//! is written first, and then the live tunnels that it can touch are weighed anew.

use std::sync::Arc;

use tunnel_policy::Action;
use tunnel_proto::api::{AssertedFact, ChangeFacts, Changed, DeviceFacts};
use tunnel_proto::defaults::MAX_FACTS;
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{Code, DeviceId, Refusal};

use super::Control;
use crate::api::caller::Caller;
use crate::store::{DeviceRecord, FactsSet, Member};
use crate::tunnels::reconsider::Touched;

/// Most facts that one request may name: all that a device can have, and as many that it no longer shall have.
const MAX_NAMED: usize = 2 * MAX_FACTS;

impl Control {
    /// Puts a device or operator into a group, or takes it out.
    ///
    /// # Errors
    /// Refuses a member that there is not, and the caller itself; fails if it cannot be recorded.
    pub(crate) async fn change_group(
        self: &Arc<Self>,
        caller: &Caller,
        group: GroupName,
        member: Member,
        add: bool,
    ) -> Result<Changed, Refusal> {
        // Whoever may give rights gives them to others (THREATS POL-12). Taking oneself out may widen them too: what a
        // `forbid` says of a group ends with it.
        if matches!(&member, Member::Operator(name) if *name == caller.name) {
            return self.deny_own_groups(caller, Action::ManageGroups).await;
        }
        if !self.is_enrolled(&member).await? {
            return Err(Code::NotFound.into());
        }
        let by = caller.by();
        let changed = if add {
            self.store.add_to_group(member.clone(), group, by.clone()).await
        } else {
            self.store
                .remove_from_group(member.clone(), group, by.clone())
                .await
        };
        let changed = changed.map_err(|error| self.store_failed(&error))?;
        self.changed(&member, changed, &by).await
    }

    async fn is_enrolled(&self, member: &Member) -> Result<bool, Code> {
        let found = match member {
            Member::Device(id) => self.store.device(id).await.map(|device| device.is_some()),
            Member::Operator(name) => self.store.operator(name).await.map(|operator| operator.is_some()),
        };
        found.map_err(|error| self.store_failed(&error))
    }

    /// Sets and removes facts about a device.
    ///
    /// # Errors
    /// Refuses what can be no fact, too many of them, and a device that there is not; fails if it cannot be recorded.
    pub(crate) async fn change_facts(
        self: &Arc<Self>,
        caller: &Caller,
        device: &DeviceId,
        change: ChangeFacts,
    ) -> Result<Changed, Refusal> {
        if change.set.len() + change.unset.len() > MAX_NAMED {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("{MAX_NAMED} facts at once are the most"),
            ));
        }
        let name = |text: &str| text.parse::<FactName>().map_err(|error| bad(text, &error));
        let value = |text: &str| text.parse::<FactValue>().map_err(|error| bad(text, &error));
        let set = change
            .set
            .iter()
            .map(|(key, text)| Ok((name(key)?, value(text)?)));
        let set = set.collect::<Result<_, Refusal>>()?;
        let unset = change
            .unset
            .iter()
            .map(|text| name(text))
            .collect::<Result<_, _>>()?;
        let by = caller.by();
        let done = self
            .store
            .set_facts(device, set, unset, by.clone(), self.now())
            .await;
        match done.map_err(|error| self.store_failed(&error))? {
            FactsSet::Done(changed) => self.changed(&Member::Device(device.clone()), changed, &by).await,
            FactsSet::Unknown => Err(Code::NotFound.into()),
            FactsSet::TooMany => Err(Refusal::new(
                Code::Limit,
                format!("a device has {MAX_FACTS} facts at most"),
            )),
        }
    }

    async fn changed(self: &Arc<Self>, member: &Member, changed: bool, by: &str) -> Result<Changed, Refusal> {
        let tunnels_cut = if changed {
            self.reconsider(&touched(member), by).await?
        } else {
            0
        };
        Ok(Changed { changed, tunnels_cut })
    }

    /// Returns what is known of a device and what it claims, apart.
    pub(crate) fn facts_of(&self, device: &DeviceRecord) -> DeviceFacts {
        let now = self.now();
        let asserted = device.asserted_facts.iter().map(|(name, fact)| {
            let shown = AssertedFact {
                value: fact.value.to_string(),
                at: fact.at.as_secs(),
                by: fact.by.clone(),
            };
            (name.to_string(), shown)
        });
        let reported = device.reported_facts.iter();
        DeviceFacts {
            asserted: asserted.collect(),
            reported: reported
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            reported_at: device.reported_at.map(|at| at.as_secs()),
            reported_groups: self
                .in_force()
                .engine
                .reported_groups(&device.into(), Some(now))
                .unwrap_or_default(),
        }
    }
}

/// Returns what a change of a member can touch.
fn touched(member: &Member) -> Touched {
    match member {
        Member::Device(id) => Touched::Devices([id.clone()].into()),
        Member::Operator(name) => Touched::Operators([name.clone()].into()),
    }
}

fn bad(text: &str, error: &tunnel_proto::names::NameError) -> Refusal {
    let shown: String = text.chars().take(60).collect();
    Refusal::new(Code::BadName, format!("`{shown}`: {error}"))
}
