//! Trust that is taken away for a time: devices in quarantine, operators who are disabled.
//!
//! A device in quarantine keeps its link, so that it can confirm what was cut and be watched; it gets no tunnel, no fresh
//! certificate and no new enrolment. A disabled operator gets an answer to nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tunnel_certs::Peer;
use tunnel_policy::Action;
use tunnel_proto::api::{Suspend, SuspendedMember, Suspensions};
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, Identity, Refusal};

use super::Control;
use crate::api::caller::Caller;
use crate::audit::MAX_TEXT;
use crate::store::suspended::code_of;
use crate::store::{Member, Suspension};
use crate::tunnels::reconsider::Touched;

/// Who is suspended, for requests and decisions to look up.
#[derive(Debug, Default)]
pub(crate) struct Suspended {
    set: ArcSwap<BTreeMap<Identity, Suspension>>,
    /// Held from the store's change to that of the set, so that both go through their changes in one order.
    order: Mutex<()>,
}

impl Suspended {
    /// Starts with what the store has.
    pub(crate) fn new(set: BTreeMap<Identity, Suspension>) -> Self {
        Self {
            set: ArcSwap::from_pointee(set),
            order: Mutex::default(),
        }
    }

    /// Returns the code that an identity is refused with, if it is suspended.
    pub(crate) fn code(&self, identity: &Identity) -> Option<Code> {
        self.set
            .load()
            .contains_key(identity)
            .then(|| code_of(&identity.subject))
    }
}

/// What a request wants with a member.
struct Wish {
    identity: Identity,
    member: Member,
    reason: Option<String>,
}

impl Wish {
    fn read(control: &Control, request: Suspend) -> Result<Self, Refusal> {
        let identity: Identity = request
            .identity
            .parse()
            .map_err(|_| Refusal::new(Code::BadName, "`identity` is no SPIFFE id of this fleet"))?;
        if identity.trust_domain != control.identity.trust_domain {
            return Err(Refusal::new(Code::BadName, "`identity` is of another fleet"));
        }
        let member = match identity.subject.clone() {
            Subject::Device(id) => Member::Device(id),
            Subject::Operator(name) => Member::Operator(name),
            Subject::Server(_) => return Err(Refusal::new(Code::BadRequest, "a server is not suspended")),
        };
        if request
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_TEXT)
        {
            let why = format!("`reason` may have {MAX_TEXT} bytes at most");
            return Err(Refusal::new(Code::BadRequest, why));
        }
        Ok(Self {
            identity,
            member,
            reason: request.reason,
        })
    }

    const fn action(&self) -> Action<'static> {
        match self.member {
            Member::Device(_) => Action::Quarantine,
            Member::Operator(_) => Action::DisableOperator,
        }
    }
}

impl Control {
    /// Returns why a peer may do nothing, if so: it has lost its trust, for good or for a time.
    pub(crate) fn fallen(&self, peer: &Peer) -> Option<Code> {
        if self.revoked.holds(peer) {
            return Some(Code::Revoked);
        }
        self.suspended.code(&peer.identity)
    }

    /// Puts a device into quarantine or disables an operator, and cuts what it has. Returns how many tunnels that were.
    ///
    /// # Errors
    /// Refuses who may not do it, names of nobody, and to disable oneself; fails if it cannot be recorded.
    pub(crate) async fn suspend(self: &Arc<Self>, caller: &Caller, request: Suspend) -> Result<u64, Refusal> {
        let wish = Wish::read(self, request)?;
        self.demand(caller, wish.action()).await?;
        if wish.identity == caller.peer.identity {
            return Err(Refusal::new(Code::BadRequest, "nobody disables themselves"));
        }
        let by = caller.by();
        let change = self.suspended.order.lock().await;
        let suspension = Suspension {
            reason: wish.reason.clone(),
            by: by.clone(),
            at: self.now(),
        };
        let done = self
            .store
            .suspend(&wish.member, wish.reason, &by, suspension.at)
            .await
            .map_err(|error| self.store_failed(&error))?;
        if done.is_none() {
            return Err(Code::NotFound.into());
        }
        // INVARIANT: the set first, then a look at the table: whoever opens stands in the table before it looks at the
        // set, so one of the two meets the other (THREATS TOK-14).
        self.suspended.set.rcu(|set| {
            let mut all = BTreeMap::clone(set);
            all.entry(wish.identity.clone())
                .or_insert_with(|| suspension.clone());
            all
        });
        drop(change);
        let mut cut = self.cut_of(&wish.identity, &by).await;
        if let Member::Operator(name) = &wish.member {
            cut += self.agreement_fell(name, &by).await;
        }
        Ok(cut)
    }

    /// Cuts every live tunnel of who is suspended: at the start, what a server that was killed did not come to.
    pub(crate) async fn cut_suspended(self: &Arc<Self>, by: &str) -> u64 {
        let mut cut = 0;
        for identity in self.suspended.set.load_full().keys() {
            cut += self.cut_of(identity, by).await;
        }
        cut
    }

    /// Cuts the live tunnels of one who is suspended. No others are looked at.
    async fn cut_of(self: &Arc<Self>, identity: &Identity, by: &str) -> u64 {
        let touched = match identity.subject.clone() {
            Subject::Device(id) => Touched::Devices([id].into()),
            Subject::Operator(name) => Touched::Operators([name].into()),
            Subject::Server(_) => return 0,
        };
        let live = self.tunnels.table().touched(&touched);
        let ids: Vec<_> = live.iter().map(|live| live.facts.id).collect();
        self.end_tunnels(ids, code_of(&identity.subject), by).await
    }

    /// Releases a device or enables an operator again; says whether it was suspended. What was cut stays cut.
    ///
    /// # Errors
    /// Refuses who may not do it; fails if it cannot be recorded.
    pub(crate) async fn lift(&self, caller: &Caller, request: Suspend) -> Result<bool, Refusal> {
        let wish = Wish::read(self, request)?;
        self.demand(caller, wish.action()).await?;
        let _change = self.suspended.order.lock().await;
        let lifted = self
            .store
            .lift_suspension(&wish.member, wish.reason, &caller.by())
            .await
            .map_err(|error| self.store_failed(&error))?;
        self.suspended.set.rcu(|set| {
            let mut all = BTreeMap::clone(set);
            all.remove(&wish.identity);
            all
        });
        Ok(lifted)
    }

    /// Returns who is suspended, as far as the caller may suspend such.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub(crate) async fn suspensions(&self, caller: &Caller) -> Result<Suspensions, Refusal> {
        let devices = self.may(caller, Action::Quarantine).await?;
        let operators = self.may(caller, Action::DisableOperator).await?;
        let set = self.suspended.set.load();
        let visible = set.iter().filter(|(identity, _)| match identity.subject {
            Subject::Device(_) => devices,
            Subject::Operator(_) => operators,
            Subject::Server(_) => false,
        });
        let members = visible.map(|(identity, suspension)| SuspendedMember {
            identity: identity.to_string(),
            reason: suspension.reason.clone(),
            by: suspension.by.clone(),
            since: suspension.at.as_secs(),
        });
        Ok(Suspensions {
            members: members.collect(),
        })
    }
}
