//! Asking the policy: the facts of callers and devices in the engine's terms.

use std::time::{Duration, Instant};

use tunnel_certs::authority::BACKDATE;
use tunnel_proto::names::GroupName;
use tunnel_proto::{Code, ServiceName, UnixTime};

use super::Control;
use crate::api::caller::Caller;
use crate::audit::Event;
use crate::policy::{Action, Circumstances, Decision, Device, Engine, Operator, Request};
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

/// What a tunnel is asked for with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) services: &'a [ServiceName],
    pub(crate) ttl: Duration,
    pub(crate) reason: Option<&'a str>,
}

/// What came of asking for several services: all of them, or the first that is not permitted.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) denied: Option<ServiceName>,
    pub(crate) policies: Vec<String>,
    pub(crate) errors: Vec<String>,
}

impl Asker {
    /// Describes a caller.
    pub(crate) fn new(caller: &Caller, groups: Vec<GroupName>, now: UnixTime) -> Self {
        Self {
            operator: Operator {
                name: caller.name.clone(),
                groups,
            },
            circumstances: Circumstances {
                now,
                source: caller.source.ip(),
                certificate_age: certificate_age(caller.certified_at, now),
            },
        }
    }

    /// Describes who opened a tunnel, as things stand.
    pub(crate) fn of_tunnel(facts: &Facts, groups: Vec<GroupName>, now: UnixTime) -> Self {
        Self {
            operator: Operator {
                name: facts.operator.clone(),
                groups,
            },
            circumstances: Circumstances {
                now,
                source: facts.source,
                certificate_age: certificate_age(facts.certified_at, now),
            },
        }
    }
}

/// Certificates reach back a little, which is no age.
fn certificate_age(certified_at: UnixTime, now: UnixTime) -> Duration {
    now.since(certified_at.after(BACKDATE))
}

impl InForce {
    fn ask(&self, asker: &Asker, action: Action<'_>) -> Decision {
        let request = Request {
            operator: &asker.operator,
            action,
            circumstances: &asker.circumstances,
        };
        let decision = self.engine.decide(&request);
        if !decision.errors.is_empty() {
            tracing::error!(errors = ?decision.errors, revision = self.revision, "a policy failed, which denies");
        }
        decision
    }

    /// Says whether an operator may know that a device is there.
    pub(crate) fn may_view(&self, asker: &Asker, device: &DeviceRecord) -> bool {
        self.ask(asker, Action::View(&described(device))).allow
    }

    /// Decides on each service of a tunnel; all have to be permitted.
    pub(crate) fn may_connect(&self, asker: &Asker, device: &DeviceRecord, terms: Terms<'_>) -> Verdict {
        let device = described(device);
        let Terms {
            services,
            ttl,
            reason,
        } = terms;
        let mut verdict = Verdict::default();
        for service in services {
            let action = Action::Connect {
                device: &device,
                service,
                services,
                ttl,
                reason,
            };
            let decision = self.ask(asker, action);
            if !decision.allow {
                let (policies, errors) = (decision.policies, decision.errors);
                return Verdict {
                    denied: Some(service.clone()),
                    policies,
                    errors,
                };
            }
            verdict.policies.extend(decision.policies);
        }
        verdict.policies.sort();
        verdict.policies.dedup();
        verdict
    }

    /// Says whether an operator may do something that is about the whole fleet.
    pub(crate) fn may(&self, asker: &Asker, action: Action<'_>) -> bool {
        self.ask(asker, action).allow
    }

    /// Says whether an operator may know which policies decided: who may read them, or what they led to.
    pub(crate) fn may_know_why(&self, asker: &Asker) -> bool {
        self.may(asker, Action::ReadAudit) || self.may(asker, Action::ManagePolicy)
    }
}

fn described(device: &DeviceRecord) -> Device {
    Device {
        id: device.id.clone(),
        groups: device.groups.clone(),
        enrolled_at: device.enrolled_at,
        certificate_expires_at: device.cert_expires_at,
        access: device.access,
        services: device.services.clone(),
        version: device.version.clone(),
        platform: device.platform.clone(),
    }
}

impl Control {
    /// Describes a caller, with the groups that the store has.
    pub(crate) async fn asker(&self, caller: &Caller) -> Result<Asker, Code> {
        Ok(Asker::new(
            caller,
            self.groups_of(&caller.name).await?,
            self.now(),
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
        if !self.quotas.records.take(Instant::now(), &caller.peer.identity) {
            return Err(Code::Limit);
        }
        let (operator, source) = (caller.name.clone(), caller.source.ip().to_string());
        let event = Event::AccessDenied {
            operator,
            action: name.to_owned(),
            source,
        };
        self.store
            .record(event)
            .await
            .map_err(|error| self.store_failed(&error))?;
        Err(Code::PolicyDeny)
    }
}
