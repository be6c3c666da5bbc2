//! Asking the policy: the facts of callers and devices in the engine's terms.

use std::net::IpAddr;
use std::time::Instant;

use tunnel_certs::authority::BACKDATE;
use tunnel_policy::{Action, Circumstances, Decision, Engine, Operator, Question, Request, Terms, Verdict};
use tunnel_proto::names::GroupName;
use tunnel_proto::{Code, Refusal, UnixTime};

use super::steadiness::Moment;
use super::{Control, OWN_GROUPS};
use crate::api::caller::Caller;
use crate::audit::Event;
use crate::store::DeviceRecord;
use crate::tunnels::table::Facts;

/// The policy in force. It is replaced whole.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) engine: Engine,
    pub(crate) revision: u64,
    pub(crate) text: String,
}

/// Who asks, why, and in which circumstances.
#[derive(Debug)]
pub(crate) struct Asker {
    operator: Operator,
    circumstances: Circumstances,
}

impl Asker {
    /// Describes a caller.
    pub(crate) fn new(caller: &Caller, groups: Vec<GroupName>, moment: Moment) -> Self {
        Self {
            operator: Operator {
                name: caller.name.clone(),
                groups,
            },
            circumstances: circumstances(caller.source.ip(), caller.certified_at, moment),
        }
    }

    /// Describes somebody else, as if it had just logged in and asked from the given address.
    pub(crate) fn of_another(operator: Operator, source: IpAddr, moment: Moment) -> Self {
        Self {
            operator,
            circumstances: circumstances(source, moment.now, moment),
        }
    }

    /// Describes who opened a tunnel, as things stand.
    pub(crate) fn of_tunnel(facts: &Facts, groups: Vec<GroupName>, moment: Moment) -> Self {
        Self {
            operator: Operator {
                name: facts.operator.clone(),
                groups,
            },
            circumstances: circumstances(facts.source, facts.certified_at, moment),
        }
    }

    /// Returns who asks.
    pub(crate) const fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Asks for a tunnel to a device.
    pub(crate) fn question(&self, device: &DeviceRecord, terms: Terms) -> Question {
        Question {
            operator: self.operator.clone(),
            circumstances: self.circumstances.clone(),
            device: device.into(),
            terms,
        }
    }
}

fn circumstances(source: IpAddr, certified_at: UnixTime, moment: Moment) -> Circumstances {
    Circumstances {
        now: moment.now,
        steady: moment.steady,
        source,
        // Certificates reach back a little, which is no age.
        certificate_age: moment.now.since(certified_at.after(BACKDATE)),
        mfa_age: None,
    }
}

impl InForce {
    fn ask(&self, asker: &Asker, action: Action<'_>) -> Decision {
        let request = Request {
            operator: &asker.operator,
            action,
            circumstances: &asker.circumstances,
        };
        let decision = self.engine.decide(&request);
        self.tell_failures(&decision);
        decision
    }

    fn tell_failures(&self, decision: &Decision) {
        if !decision.errors.is_empty() {
            tracing::error!(errors = ?decision.errors, revision = self.revision, "a policy failed, which denies");
        }
    }

    /// Says whether an operator may know that a device is there.
    pub(crate) fn may_view(&self, asker: &Asker, device: &DeviceRecord) -> bool {
        self.ask(asker, Action::View(&device.into())).is_allowed()
    }

    /// Decides about a tunnel.
    pub(crate) fn weigh(&self, question: &Question) -> Verdict {
        let verdict = self.engine.weigh(question);
        self.tell_failures(&verdict.decision);
        verdict
    }

    /// Says whether an operator may do something that is about the whole fleet.
    pub(crate) fn may(&self, asker: &Asker, action: Action<'_>) -> bool {
        self.ask(asker, action).is_allowed()
    }

    /// Says whether an operator may know which policies decided: who may read them, or what they led to.
    pub(crate) fn may_know_why(&self, asker: &Asker) -> bool {
        self.may(asker, Action::ReadAudit) || self.may(asker, Action::ManagePolicy)
    }
}

impl Control {
    /// Describes a caller, with the groups that the store has.
    pub(crate) async fn asker(&self, caller: &Caller) -> Result<Asker, Code> {
        Ok(Asker::new(
            caller,
            self.groups_of(&caller.name).await?,
            self.moment(),
        ))
    }

    /// Says whether a caller may do something that is about the whole fleet. A refusal is no event.
    pub(crate) async fn may(&self, caller: &Caller, action: Action<'_>) -> Result<bool, Code> {
        let asker = self.asker(caller).await?;
        Ok(self.in_force().may(&asker, action))
    }

    /// Demands that a caller may do something that is about the whole fleet.
    ///
    /// # Errors
    /// [`Code::PolicyDeny`], which is recorded.
    pub(crate) async fn demand(&self, caller: &Caller, action: Action<'_>) -> Result<(), Code> {
        let name = action.as_str();
        if self.may(caller, action).await? {
            return Ok(());
        }
        self.record_denial(caller, name).await?;
        Err(Code::PolicyDeny)
    }

    /// Refuses a caller something, which is recorded.
    ///
    /// # Errors
    /// Always: `why`, unless it could not be recorded.
    pub(crate) async fn deny_access<T>(
        &self,
        caller: &Caller,
        action: &str,
        why: Code,
    ) -> Result<T, Refusal> {
        self.record_denial(caller, action).await?;
        Err(why.into())
    }

    /// Refuses a caller a change of its own groups, which is recorded (THREATS POL-12).
    ///
    /// # Errors
    /// Always: [`Code::PolicyDeny`], unless it could not be recorded.
    pub(crate) async fn deny_own_groups<T>(&self, caller: &Caller, action: Action<'_>) -> Result<T, Refusal> {
        self.record_denial(caller, action.as_str()).await?;
        Err(Refusal::new(Code::PolicyDeny, OWN_GROUPS))
    }

    async fn record_denial(&self, caller: &Caller, action: &str) -> Result<(), Code> {
        if !self.quotas.denials.take(Instant::now(), &caller.peer.identity) {
            self.gather(
                &caller.by(),
                &caller.source.ip().to_string(),
                &format!("access.denied {action}"),
            );
            return Err(Code::Limit);
        }
        let (operator, source) = (caller.name.clone(), caller.source.ip().to_string());
        let event = Event::AccessDenied {
            operator,
            action: action.to_owned(),
            source,
        };
        let recorded = self.store.record(event).await;
        recorded.map_err(|error| self.store_failed(&error))
    }
}
