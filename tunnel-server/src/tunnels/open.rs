//! Opening: decide, write down, offer, answer.

mod wish;

use std::sync::Arc;
use std::time::Instant;

use tunnel_policy::{Decision, Limits, Outcome, Question};
use tunnel_proto::api::{OpenTunnel, OpenedTunnel};
use tunnel_proto::bind::Role;
use tunnel_proto::defaults::TOKEN_LIFETIME;
use tunnel_proto::grant::Grant;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::message::Offer;
use tunnel_proto::token::AccessToken;
use tunnel_proto::{CircuitId, Code, Identity, OperatorName, Refusal, TokenId, TunnelId, UnixTime};

use self::wish::Wish;
use super::limits::{to_api, to_grant};
use super::table::{Facts, Live, Phase};
use crate::api::caller::Caller;
use crate::audit::{Consulted, Event, bounded};
use crate::control::authoriser::{Forbidden, TUNNEL_ASKED};
use crate::control::decide::{Asker, InForce};
use crate::control::{Control, to_base64};
use crate::links::Link;
use crate::relay::CircuitSpec;
use crate::store::{Basis, Denied, DeviceRecord, NewTunnel, NotOpened};

/// How often a decision is made anew because what it was made from changed under it (THREATS POL-03, POL-04).
const ATTEMPTS: usize = 3;

/// Why an attempt came to nothing.
enum Failed {
    /// The policy, or what is known of operator or device, is not what decided: wait for this revision and decide anew.
    Stale(u64),
    /// For good.
    Refused(Refusal),
}

impl<T: Into<Refusal>> From<T> for Failed {
    fn from(refusal: T) -> Self {
        Self::Refused(refusal.into())
    }
}

/// A tunnel that policy permits, with what is needed to go on.
struct Permitted {
    live: Arc<Live>,
    link: Arc<Link>,
    revision: u64,
    policies: Vec<String>,
    basis: Basis,
}

/// A refusal with what the record says of it.
struct Denial {
    refusal: Refusal,
    revision: u64,
    policies: Vec<String>,
    errors: Vec<String>,
    question: Option<Box<Question>>,
    /// What policy lets the tunnel have, where it is permitted and there is no room for it.
    crowded: Option<Box<Limits>>,
    /// Whether policy permits it and the authoriser has not been asked.
    unasked: bool,
    /// What the authoriser was asked, where that is why.
    consulted: Option<Box<Consulted>>,
}

impl Denial {
    fn new(refusal: impl Into<Refusal>, in_force: &InForce) -> Self {
        Self {
            refusal: refusal.into(),
            revision: in_force.revision,
            policies: Vec::new(),
            errors: Vec::new(),
            question: None,
            crowded: None,
            unasked: false,
            consulted: None,
        }
    }

    fn weighed(refusal: impl Into<Refusal>, weighed: Weighed) -> Self {
        Self {
            policies: weighed.decision.policies,
            errors: weighed.decision.errors,
            question: Some(weighed.question),
            ..Self::new(refusal, &weighed.in_force)
        }
    }

    /// Says whether an approval could have made a difference.
    fn could_be_approved(&self) -> bool {
        matches!(self.refusal.code, Code::ApprovalRequired | Code::PolicyDeny)
    }
}

/// What a policy said, and to which question.
struct Weighed {
    in_force: Arc<InForce>,
    question: Box<Question>,
    decision: Decision,
}

impl Control {
    /// Opens a tunnel for an operator.
    ///
    /// # Errors
    /// Returns why there is none. Nothing is left behind but the record.
    pub(crate) async fn open_tunnel(
        self: &Arc<Self>,
        caller: &Caller,
        request: OpenTunnel,
    ) -> Result<OpenedTunnel, Refusal> {
        let wish = Wish::read(request)?;
        if !self.quotas.decisions.take(Instant::now(), &caller.peer.identity) {
            self.gather_denial(caller, Code::Limit);
            return Err(Code::Limit.into());
        }
        if self.evidence.is_paused() {
            return Err(Code::AuditUnavailable.into());
        }
        for _ in 0..ATTEMPTS {
            match self.try_open(caller, &wish).await {
                Ok(opened) => return Ok(opened),
                Err(Failed::Refused(refusal)) => return Err(refusal),
                Err(Failed::Stale(revision)) => self.policy_at_least(revision).await,
            }
        }
        Err(Code::Busy.into())
    }

    async fn try_open(self: &Arc<Self>, caller: &Caller, wish: &Wish) -> Result<OpenedTunnel, Failed> {
        if let Some(link) = self.links.get(&wish.device) {
            link.report_kept().await;
        }
        let (operator, device) =
            tokio::join!(self.store.operator(&caller.name), self.store.device(&wish.device));
        let operator = operator.map_err(|error| self.store_failed(&error))?;
        let device = device.map_err(|error| self.store_failed(&error))?;
        let operator_changes = operator.as_ref().map_or(0, |operator| operator.changes);
        let groups = operator.map(|operator| operator.groups).unwrap_or_default();
        let asker = Asker::new(caller, groups, self.moment());
        let mut wish = wish.clone();
        let mut decided = self
            .decide_asking(caller, &mut wish, &asker, device.as_ref())
            .await;
        // What is permitted without an approval does not rest on one.
        if matches!(&decided, Err(denial) if denial.could_be_approved()) {
            for wish_with in self.approved(&wish, &caller.name).await? {
                wish = wish_with;
                decided = self
                    .decide_asking(caller, &mut wish, &asker, device.as_ref())
                    .await;
                if !matches!(&decided, Err(denial) if denial.could_be_approved()) {
                    break;
                }
            }
        }
        // Nobody gives way to a request that is not permitted.
        if let Err(Denial {
            crowded: Some(limits),
            ..
        }) = &decided
            && self.make_room(&caller.name, &wish.device, limits.tunnels).await
        {
            decided = self.decide(caller, &wish, &asker, device.as_ref());
        }
        match decided {
            Ok(mut permitted) => {
                permitted.basis.operator_changes = operator_changes;
                self.establish(caller, permitted, wish.permit.clone()).await
            }
            Err(denial) => {
                self.note_denial(caller, &wish, &denial).await?;
                Err(denial.refusal.into())
            }
        }
    }

    /// Decides, and asks the authoriser where policy permits the tunnel and it has said nothing of it. With what it says
    /// everything is decided anew.
    async fn decide_asking(
        &self,
        caller: &Caller,
        wish: &mut Wish,
        asker: &Asker,
        device: Option<&DeviceRecord>,
    ) -> Result<Permitted, Denial> {
        let decided = self.decide(caller, wish, asker, device);
        let Some(authoriser) = &self.authoriser else {
            return decided;
        };
        let denial = match decided {
            Err(denial) if denial.unasked => denial,
            decided => return decided,
        };
        let Some(question) = denial.question.as_deref() else {
            return Err(denial);
        };
        match self.consult(authoriser, TUNNEL_ASKED, question).await {
            Ok(said) => {
                wish.said = Some(said);
                self.decide(caller, wish, asker, device)
            }
            Err(Forbidden { code, consulted }) => {
                let knows = self.in_force().may_know_why(asker);
                let detail = knows.then(|| consulted.answer.clone());
                Err(Denial {
                    refusal: Refusal { code, detail },
                    consulted: Some(Box::new(consulted)),
                    ..denial
                })
            }
        }
    }

    /// Returns the wish with each approval that it can rest on, those of the most first.
    async fn approved(&self, wish: &Wish, operator: &OperatorName) -> Result<Vec<Wish>, Code> {
        let moment = self.moment();
        // While nobody knows what time it is, nobody knows whether one is in its window (THREATS POL-11).
        if wish.break_glass || !moment.steady {
            return Ok(Vec::new());
        }
        let found = self.store.approvals_of(operator, moment.now).await;
        let found = found.map_err(|error| self.store_failed(&error))?;
        let stands = |name: &OperatorName| self.agreement_stands(name);
        let mut fitting: Vec<_> = found
            .iter()
            .filter_map(|found| {
                let approval = found.covers(
                    operator,
                    &wish.device,
                    &wish.services,
                    wish.batch,
                    moment.now,
                    stands,
                )?;
                Some(wish.resting_on(approval, &found.asked.reason))
            })
            .collect();
        let agreed = |wish: &Wish| {
            wish.approval
                .as_ref()
                .map_or(0, |approval| approval.approvers.len())
        };
        fitting.sort_by_key(|wish| std::cmp::Reverse(agreed(wish)));
        Ok(fitting)
    }

    /// Takes a tunnel out of the table of which nobody has heard.
    fn never_came_to_be(&self, live: &Live, why: Code) {
        let mut table = self.tunnels.table();
        let _ = table.end(live.facts.id, why);
        table.forget(live.facts.id);
    }

    /// Decides. What is permitted stands in the table before it is written down, so that whoever takes trust away at this
    /// moment finds it.
    fn decide(
        &self,
        caller: &Caller,
        wish: &Wish,
        asker: &Asker,
        device: Option<&DeviceRecord>,
    ) -> Result<Permitted, Denial> {
        let weighed = self.weigh(caller, wish, asker, device)?;
        let Some(link) = self.links.get(&wish.device) else {
            return Err(Denial::weighed(Code::DeviceOffline, weighed));
        };
        // The device refuses too; but one of before this was thought of would not know that it has to.
        if wish.batch.is_some() {
            let runs = link.report().runs;
            if !wish.services.iter().all(|service| runs.contains(service)) {
                return Err(Denial::weighed(Code::BatchDenied, weighed));
            }
        }
        if self.authoriser.is_some() && wish.said.is_none() {
            return Err(Denial {
                unasked: true,
                ..Denial::weighed(Code::Authoriser, weighed)
            });
        }
        let facts = self.facts(caller, wish, link.peer.key, weighed.decision.limits);
        let inserted = self
            .tunnels
            .table()
            .insert(facts, Phase::Deciding, Instant::now());
        let live = match inserted {
            Ok(live) => live,
            Err(code) => {
                let crowded = Some(Box::new(weighed.decision.limits));
                return Err(Denial {
                    crowded,
                    ..Denial::weighed(code, weighed)
                });
            }
        };
        // Whoever takes trust away does so first and then goes through the table: what is not found there is found here.
        let gone = self.revoked.holds(&link.peer).then_some(Code::DeviceOffline);
        let fallen = gone
            .or_else(|| self.fallen(&link.peer))
            .or_else(|| self.fallen(&caller.peer));
        if let Some(why) = fallen {
            self.never_came_to_be(&live, why);
            return Err(Denial::weighed(why, weighed));
        }
        Ok(Permitted {
            live,
            link,
            revision: weighed.in_force.revision,
            policies: weighed.decision.policies,
            basis: Basis {
                question: Some(weighed.question),
                operator_changes: 0,
                device_changes: device.map_or(0, |device| device.changes),
                grant: None,
                authoriser: wish.said.as_ref().map(|said| said.consulted.clone()),
            },
        })
    }

    /// Asks the policy in force.
    fn weigh(
        &self,
        caller: &Caller,
        wish: &Wish,
        asker: &Asker,
        device: Option<&DeviceRecord>,
    ) -> Result<Weighed, Denial> {
        let in_force = self.in_force();
        if let Some(why) = self.fallen(&caller.peer) {
            return Err(Denial::new(why, &in_force));
        }
        // A device that the caller may not see is as one that is not there.
        let Some(device) = device else {
            return Err(Denial::new(Code::NotFound, &in_force));
        };
        let question = Box::new(asker.question(device, wish.terms()));
        let verdict = in_force.weigh(&question);
        let (visible, denied) = (verdict.visible, verdict.denied);
        let weighed = Weighed {
            in_force,
            question,
            decision: verdict.decision,
        };
        if !visible {
            return Err(Denial::weighed(Code::NotFound, weighed));
        }
        let identity = Identity::device(&self.identity.trust_domain, &weighed.question.device.id);
        if let Some(why) = self.suspended.code(&identity) {
            return Err(Denial::weighed(why, weighed));
        }
        let Some(service) = denied else {
            return Ok(weighed);
        };
        let policies = &weighed.decision.policies;
        let detail = match weighed.in_force.may_know_why(asker) {
            true if policies.is_empty() => format!("service `{service}`; no policy fits"),
            true => format!("service `{service}`; decided by {}", policies.join(", ")),
            false => format!("service `{service}`"),
        };
        let code = match weighed.decision.outcome {
            Outcome::NeedsApproval => Code::ApprovalRequired,
            _ => Code::PolicyDeny,
        };
        Err(Denial::weighed(Refusal::new(code, detail), weighed))
    }

    fn facts(&self, caller: &Caller, wish: &Wish, device_key: KeyHash, limits: Limits) -> Facts {
        let now = self.now();
        let lifetime = limits
            .lifetime
            .map_or(wish.lifetime, |most| most.min(wish.lifetime));
        let window = wish.approval.as_ref().map(|approval| approval.until.since(now));
        let lifetime = window.map_or(lifetime, |window| window.min(lifetime));
        Facts {
            id: TunnelId::from_bytes(self.random()),
            circuit: CircuitId::from_bytes(self.random()),
            operator: caller.name.clone(),
            holder_key: caller.key,
            certified_at: caller.certified_at,
            device: wish.device.clone(),
            device_key,
            services: wish.services.clone(),
            reason: wish.reason.clone(),
            approval: wish.approval.clone(),
            break_glass: wish.break_glass,
            batch: wish.batch,
            authoriser: wish.said.as_ref().map(|said| said.facts.clone()),
            limits,
            source: caller.source.ip(),
            opened_at: now,
            expires_at: now.after(lifetime),
            deadline: Instant::now() + lifetime,
        }
    }

    /// Writes the decision down and offers the tunnel to the device, both at once: the device cannot attach before the
    /// decision is durable, because redeeming its token waits for that.
    async fn establish(
        self: &Arc<Self>,
        caller: &Caller,
        permitted: Permitted,
        permit: Option<Vec<u8>>,
    ) -> Result<OpenedTunnel, Failed> {
        let Permitted {
            live,
            link,
            revision,
            policies,
            basis,
        } = permitted;
        let facts = &live.facts;
        self.deadline_changed();
        let grant = self.grant(facts, &link, revision);
        let token = self.token(facts, Role::Destination, &link.peer.identity, link.peer.key);
        let offer = link.offer(Offer {
            grant: grant.clone(),
            token,
            tunnel: facts.id,
            permit,
        });
        let mut offer = std::pin::pin!(offer);
        let basis = Basis {
            grant: Some(sha256(&grant)),
            ..basis
        };
        let written = self.write_down(&live, revision, &policies, basis);
        let mut written = std::pin::pin!(written);
        let mut early = None;
        loop {
            tokio::select! {
                biased;
                written = written.as_mut() => {
                    written?;
                    break;
                }
                answer = offer.as_mut(), if early.is_none() => early = Some(answer),
            }
        }
        let answer = match early {
            Some(answer) => answer,
            None => offer.await,
        };
        if let Err(refusal) = answer {
            // The tunnel may have been cut while the device was asked; then that is the reason.
            if let Phase::Ended(why) = live.phase() {
                return Err(why.into());
            }
            // A record that fails was logged and is tried again.
            let _ = match refusal.code {
                // The device may still be about to accept, so it is told.
                Code::DeviceSilent | Code::DeviceOffline | Code::Busy => {
                    self.end_tunnel(facts.id, refusal.code, "server").await.map(drop)
                }
                code => self.end_at_device(facts.id, code, &facts.device).await,
            };
            return Err(refusal.into());
        }
        if let Phase::Ended(why) = live.phase() {
            return Err(why.into());
        }
        Ok(OpenedTunnel {
            tunnel: facts.id,
            grant: to_base64(&grant),
            token: to_base64(&self.token(facts, Role::Source, &caller.peer.identity, caller.key)),
            device_identity: Identity::device(&self.identity.trust_domain, &facts.device).to_string(),
            ssh_host_keys: link.report().ssh_host_keys,
            opened_at: facts.opened_at.as_secs(),
            expires_at: facts.expires_at.as_secs(),
            limits: to_api(&facts.limits),
            policies: policies.clone(),
        })
    }

    /// Makes the decision durable, and then lets the legs come.
    async fn write_down(
        self: &Arc<Self>,
        live: &Arc<Live>,
        revision: u64,
        policies: &[String],
        basis: Basis,
    ) -> Result<(), Failed> {
        let facts = &live.facts;
        let tunnel = NewTunnel {
            id: facts.id,
            circuit: facts.circuit,
            operator: facts.operator.clone(),
            holder_key: facts.holder_key,
            device: facts.device.clone(),
            device_key: facts.device_key,
            services: facts.services.clone(),
            reason: facts.reason.clone(),
            expires_at: facts.expires_at,
            policy_revision: revision,
            policies: policies.to_vec(),
            source: facts.source.to_string(),
            certified_at: facts.certified_at,
            approval: facts.approval.clone(),
            break_glass: facts.break_glass,
            batch: facts.batch,
            authoriser: facts.authoriser.clone(),
            limits: to_api(&facts.limits),
        };
        let written = self.store.open_tunnel(tunnel, basis, facts.opened_at).await;
        let not_opened = match written {
            Ok(Ok(())) => return self.let_legs_come(live).await.map_err(Failed::from),
            Ok(Err(NotOpened::PolicyStale { current })) => Failed::Stale(current),
            Ok(Err(NotOpened::FactsStale)) => Failed::Stale(revision),
            Ok(Err(NotOpened::Revoked)) => Code::Revoked.into(),
            Ok(Err(NotOpened::Suspended(why))) => why.into(),
            Err(error) => self.store_failed(&error).into(),
        };
        // Nothing was written, so nothing is to be ended there; but the device may have accepted.
        let _ = self.cut(facts.id, Code::TunnelClosed);
        self.tunnels.table().forget(facts.id);
        Err(not_opened)
    }

    /// Opens the circuit of a tunnel whose decision is durable, unless it was cut in the meantime.
    async fn let_legs_come(self: &Arc<Self>, live: &Arc<Live>) -> Result<(), Code> {
        let facts = &live.facts;
        let mut spec = CircuitSpec::new(facts.circuit);
        spec.max_bytes = facts.limits.bytes;
        spec.max_bytes_per_sec = facts.limits.rate;
        let opened = self.relay.open(spec);
        let recorded = self.tunnels.table().recorded(facts.id);
        match (opened, recorded) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(code), Ok(())) => {
                let _ = self.end_tunnel(facts.id, code, "relay").await;
                Err(code)
            }
            (opened, Err(why)) => {
                // Whoever cut it found no circuit and no record: both are for us to end.
                if opened.is_ok() {
                    self.relay.close(facts.circuit, why);
                }
                self.record_cut_at_birth(live, why).await;
                Err(why)
            }
        }
    }

    fn grant(&self, facts: &Facts, link: &Link, policy_revision: u64) -> Vec<u8> {
        let grant = Grant {
            trust_domain: self.identity.trust_domain.clone(),
            tunnel: facts.id,
            operator: facts.operator.clone(),
            holder_key: facts.holder_key,
            device: facts.device.clone(),
            services: facts.services.clone(),
            relay: self.node.clone(),
            policy_revision,
            nonce: link.nonce,
            issued_at: facts.opened_at,
            expires_at: facts.expires_at,
            limits: to_grant(&facts.limits),
            reason: facts.reason.clone(),
            batch: facts.batch,
        };
        grant.sign(&self.keys.grant_key)
    }

    pub(super) fn token(&self, facts: &Facts, role: Role, holder: &Identity, holder_key: KeyHash) -> Vec<u8> {
        let now: UnixTime = self.now();
        let token = AccessToken {
            id: TokenId::from_bytes(self.random()),
            tunnel: facts.id,
            role,
            holder: holder.clone(),
            holder_key,
            relay: self.node.clone(),
            issued_at: now,
            expires_at: now.after(TOKEN_LIFETIME),
        };
        token.sign(&self.keys.grant_key, &self.identity.trust_domain)
    }

    /// Counts a refusal that gets no record of its own.
    fn gather_denial(&self, caller: &Caller, code: Code) {
        let what = format!("tunnel.denied {code}");
        self.gather(&caller.by(), &caller.source.ip().to_string(), &what);
    }

    /// Records a refusal; without the record there is no definite answer either. Of one who has been refused very often they
    /// are counted only.
    async fn note_denial(&self, caller: &Caller, wish: &Wish, denial: &Denial) -> Result<(), Code> {
        if !self.quotas.denials.take(Instant::now(), &caller.peer.identity) {
            self.gather_denial(caller, denial.refusal.code);
            return Ok(());
        }
        let errors: Vec<_> = denial.errors.iter().map(|error| bounded(error)).collect();
        if !errors.is_empty() {
            let event = Event::PolicyFailed {
                operator: caller.name.clone(),
                action: "connect".to_owned(),
                errors,
            };
            self.note(event).await;
        }
        let said = wish.said.as_ref().map(|said| &said.consulted);
        let consulted = denial.consulted.as_deref().or(said);
        let denied = Denied {
            operator: caller.name.clone(),
            device: wish.device.to_string(),
            services: wish.services.iter().map(ToString::to_string).collect(),
            reason: wish.reason.clone(),
            code: denial.refusal.code,
            policy_revision: denial.revision,
            policies: denial.policies.clone(),
            source: caller.source.ip().to_string(),
            question: denial.question.clone(),
            authoriser: consulted.cloned(),
        };
        self.store
            .deny(denied)
            .await
            .map_err(|error| self.store_failed(&error))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    hash
}
