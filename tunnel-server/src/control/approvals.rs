//! Approvals: who may ask for one, who may decide about it, and what happens to tunnels when one is taken back.

pub(crate) mod expiry;
mod sight;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tunnel_policy::{Action, Question, Terms};
use tunnel_proto::api::{self, AskApproval, WithdrawnApproval};
use tunnel_proto::batch::Batch;
use tunnel_proto::defaults::{APPROVAL_WINDOW, APPROVAL_WINDOW_MAX, TUNNEL_LIFETIME};
use tunnel_proto::{ApprovalId, Code, DeviceId, Identity, OperatorName, Refusal, ServiceName};

use self::sight::Sight;
use super::Control;
use super::authoriser::{APPROVAL_ASKED, Authoriser, Forbidden};
use crate::api::caller::Caller;
use crate::approvals::{Approval, Asked, State};
use crate::audit::{Event, MAX_TEXT};
use crate::store::DeviceRecord;
use crate::tunnels::reconsider::Touched;

/// Most services of all devices together that one approval is about: each takes a decision of its own, again and again.
const MAX_PLACES: usize = 64;

/// Most approvals that are listed: their number alone bounds the answer, so that nobody's long ones take the place of others'.
const MAX_LISTED: usize = 500;

/// How many are looked through at once for those that a caller may see.
const PAGE: u32 = 100;

/// How long a request for a decision waits before it is answered with what is: less than proxies and NATs forget.
const POLL: Duration = Duration::from_secs(240);

/// Counts up each time that somebody has decided about an approval, for those who wait.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    count: watch::Sender<u64>,
}

impl Decisions {
    fn tell(&self) {
        self.count.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Control {
    /// Asks others to agree to tunnels.
    ///
    /// # Errors
    /// Refuses what could not be permitted by any number of approvals, or is permitted without; a device that the caller
    /// may not see is as one that is not there.
    pub(crate) async fn ask_approval(
        &self,
        caller: &Caller,
        request: AskApproval,
    ) -> Result<api::Approval, Refusal> {
        if !self
            .quotas
            .explanations
            .take(Instant::now(), &caller.peer.identity)
        {
            return Err(Code::Limit.into());
        }
        let asked = read(caller, request)?;
        let asker = self.asker(caller).await?;
        let terms = Terms {
            ttl: asked.window.min(TUNNEL_LIFETIME),
            ..terms(&asked)
        };
        let mut questions = Vec::new();
        for id in &asked.devices {
            match self.device_record(id).await? {
                Some(device) => questions.push(asker.question(&device, terms.clone())),
                // As one that the caller may not see, in every way that can be told apart.
                None => return self.deny_access(caller, "request-approval", Code::NotFound).await,
            }
        }
        let mut needed = self.needed(questions.clone()).await?;
        // What the authoriser says of a tunnel can be all that makes an approval necessary.
        if let (Ok(0), Some(authoriser)) = (&needed, &self.authoriser) {
            needed = match self.with_facts(authoriser, questions).await {
                Ok(questions) => self.needed(questions).await?,
                Err(forbidden) => Err(forbidden.code),
            };
        }
        let needed = match needed {
            Ok(needed) => needed,
            Err(code) => return self.deny_access(caller, "request-approval", code).await,
        };
        if needed == 0 {
            return Err(Code::ApprovalNeedless.into());
        }
        let (now, id) = (self.now(), ApprovalId::from_bytes(self.random()));
        let approval = Approval::new(id, asked, needed, now);
        let written = self.store.ask_approval(approval.clone(), now).await;
        if !written.map_err(|error| self.store_failed(&error))? {
            return Err(Refusal::new(
                Code::Limit,
                "so many of yours wait or count already",
            ));
        }
        self.decisions.tell();
        Ok(self.shown(&approval, false))
    }

    /// Returns the questions with what the authoriser says of each. One after the other: whoever opens a tunnel meanwhile does
    /// not have to wait for a turn behind them all.
    async fn with_facts(
        &self,
        authoriser: &Authoriser,
        mut questions: Vec<Question>,
    ) -> Result<Vec<Question>, Forbidden> {
        for question in &mut questions {
            let said = self.consult(authoriser, APPROVAL_ASKED, question).await?;
            question.terms.authoriser = Some(said.facts);
        }
        Ok(questions)
    }

    /// Returns how many have to agree to all of the questions, or why that would not help.
    async fn needed(&self, questions: Vec<Question>) -> Result<Result<u32, Code>, Code> {
        for question in &questions {
            let identity = Identity::device(&self.identity.trust_domain, &question.device.id);
            if let Some(why) = self.suspended.code(&identity)
                && self.in_force().weigh(question).visible
            {
                return Ok(Err(why));
            }
        }
        let in_force = self.in_force();
        // It takes many decisions; nobody else is to wait for them.
        let counted = tokio::task::spawn_blocking(move || {
            let mut most = 0;
            for question in questions {
                match in_force.engine.approvals_needed(&question) {
                    Some(count) => most = most.max(count),
                    None if in_force.weigh(&question).visible => return Err(Code::PolicyDeny),
                    None => return Err(Code::NotFound),
                }
            }
            Ok(most)
        });
        counted.await.map_err(|_| Code::Internal)
    }

    /// Lists approvals, newest first: the caller's own, those that it may decide about, and all for who reads the audit
    /// chain.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub(crate) async fn approvals(&self, caller: &Caller, all: bool) -> Result<Vec<api::Approval>, Refusal> {
        if !self
            .quotas
            .explanations
            .take(Instant::now(), &caller.peer.identity)
        {
            return Err(Code::Limit.into());
        }
        let alive_at = (!all).then(|| self.now());
        let asker = Arc::new(self.asker(caller).await?);
        let reads_all = self.in_force().may(&asker, Action::ReadAudit);
        let (mut shown, mut after) = (Vec::new(), None);
        // Those that others may see do not take the place of those that the caller may see.
        loop {
            let page = self.store.approvals(alive_at, after, PAGE).await;
            let page = page.map_err(|error| self.store_failed(&error))?;
            after = page.last().map(|last| (last.asked_at, last.id));
            if after.is_none() {
                return Ok(shown);
            }
            for (approval, sight) in self.sights(&asker, page).await? {
                if sight.own || sight.may_approve || reads_all {
                    shown.push(self.shown(&approval, sight.may_approve));
                }
                if shown.len() >= MAX_LISTED {
                    return Ok(shown);
                }
            }
        }
    }

    /// Shows one approval.
    ///
    /// # Errors
    /// [`Code::NotFound`] for who may not see it too.
    pub(crate) async fn approval(&self, caller: &Caller, id: ApprovalId) -> Result<api::Approval, Refusal> {
        let (approval, sight) = self.seen(caller, id).await?;
        Ok(self.shown(&approval, sight.may_approve))
    }

    /// Waits until somebody has decided about an approval, and shows it; after four minutes it is shown as it is.
    ///
    /// # Errors
    /// [`Code::NotFound`] for who may not see it too.
    pub(crate) async fn await_decision(
        &self,
        caller: &Caller,
        id: ApprovalId,
    ) -> Result<api::Approval, Refusal> {
        let mut changes = self.decisions.count.subscribe();
        let (mut approval, sight) = self.seen(caller, id).await?;
        let patience = tokio::time::sleep(POLL);
        tokio::pin!(patience);
        loop {
            let now = self.now();
            if approval.state != State::Pending || approval.is_over(now) {
                break;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(approval.expires_at.since(now)) => {}
                () = &mut patience => break,
                () = self.stopping() => break,
            }
            let found = self.store.approval(id).await;
            let found = found.map_err(|error| self.store_failed(&error))?;
            approval = found.ok_or(Code::NotFound)?;
        }
        Ok(self.shown(&approval, sight.may_approve))
    }

    /// Agrees to what somebody else asks for.
    ///
    /// # Errors
    /// Refuses the requester, who may not approve, and what has ended; fails if it cannot be recorded.
    pub(crate) async fn approve(&self, caller: &Caller, id: ApprovalId) -> Result<api::Approval, Refusal> {
        self.demand_decider(caller, id, "approve").await?;
        let (by, now, source) = (caller.name.clone(), self.now(), caller.source.ip().to_string());
        let approval = self
            .change(id, caller, move |approval| {
                let differs = approval.agree(&by, now)?;
                let agreements = approval.agreements.iter();
                Ok(differs.then(|| Event::ApprovalGiven {
                    approval: approval.id,
                    operator: approval.asked.requester.clone(),
                    by,
                    approvers: agreements.map(|agreement| agreement.by.clone()).collect(),
                    needed: approval.needed,
                    approved: approval.state == State::Approved,
                    expires_at: approval.expires_at,
                    source,
                }))
            })
            .await?;
        Ok(self.shown(&approval, true))
    }

    /// Says no to what somebody else asks for.
    ///
    /// # Errors
    /// As [`Control::approve`].
    pub(crate) async fn deny_approval(
        &self,
        caller: &Caller,
        id: ApprovalId,
        reason: Option<String>,
    ) -> Result<api::Approval, Refusal> {
        let reason = bounded_reason(reason)?;
        self.demand_decider(caller, id, "deny").await?;
        let (by, now, source) = (caller.name.clone(), self.now(), caller.source.ip().to_string());
        let approval = self
            .change(id, caller, move |approval| {
                approval.deny(&by, reason.clone(), now)?;
                Ok(Some(Event::ApprovalDenied {
                    approval: approval.id,
                    operator: approval.asked.requester.clone(),
                    by,
                    reason,
                    source,
                }))
            })
            .await?;
        Ok(self.shown(&approval, true))
    }

    /// Takes an approval back, and cuts the live tunnels that rest on it.
    ///
    /// # Errors
    /// Refuses who neither asked for it nor may approve it, and what has ended; fails if it cannot be recorded.
    pub(crate) async fn withdraw_approval(
        self: &Arc<Self>,
        caller: &Caller,
        id: ApprovalId,
        reason: Option<String>,
    ) -> Result<WithdrawnApproval, Refusal> {
        let reason = bounded_reason(reason)?;
        let (_, sight) = self.seen(caller, id).await?;
        if !sight.own && !sight.may_approve {
            return self.deny_access(caller, "withdraw", Code::PolicyDeny).await;
        }
        let (by, now, source) = (caller.name.clone(), self.now(), caller.source.ip().to_string());
        let approval = self
            .change(id, caller, move |approval| {
                approval.withdraw(&by, reason.clone(), now)?;
                Ok(Some(Event::ApprovalWithdrawn {
                    approval: approval.id,
                    operator: approval.asked.requester.clone(),
                    by,
                    reason,
                    source,
                }))
            })
            .await?;
        // INVARIANT: it is written, and whoever opens stands in the table before its tunnel is written, which fails if the
        // approval does not stand any more: so either that is found here, or it decides anew (THREATS TOK-14).
        let live = self.tunnels.table().touched(&Touched::Approval(id));
        let ids: Vec<_> = live.iter().map(|live| live.facts.id).collect();
        let tunnels_cut = self.end_tunnels(ids, Code::ApprovalWithdrawn, &caller.by()).await;
        Ok(WithdrawnApproval {
            approval: self.shown(&approval, sight.may_approve),
            tunnels_cut,
        })
    }

    /// Cuts what rests on approvals that do not stand any more: at the start, what a server that was killed did not come to.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub(crate) async fn cut_withdrawn(self: &Arc<Self>, by: &str) -> Result<u64, Code> {
        let mut ids = Vec::new();
        let live = self.tunnels.table().live();
        for live in live {
            let Some(id) = live.facts.approval.as_ref().and_then(|approval| approval.id) else {
                continue;
            };
            let found = self.store.approval(id).await;
            let found = found.map_err(|error| self.store_failed(&error))?;
            if found.is_none_or(|found| found.state != State::Approved) {
                ids.push(live.facts.id);
            }
        }
        Ok(self.end_tunnels(ids, Code::ApprovalWithdrawn, by).await)
    }

    /// Weighs anew what rests on the agreement of an operator who has lost trust; returns how many tunnels that cut.
    pub(super) async fn agreement_fell(self: &Arc<Self>, operator: &OperatorName, by: &str) -> u64 {
        // A store that fails was logged, and a restart looks at all of them again.
        self.reconsider(&Touched::AgreedBy(operator.clone()), by)
            .await
            .unwrap_or_default()
    }

    /// Says whether an operator's agreement counts: it has lost no trust since.
    pub(crate) fn agreement_stands(&self, operator: &OperatorName) -> bool {
        let identity = Identity::operator(&self.identity.trust_domain, operator);
        self.suspended.code(&identity).is_none() && !self.revoked.names(&identity)
    }

    async fn change<F>(&self, id: ApprovalId, caller: &Caller, change: F) -> Result<Approval, Refusal>
    where
        F: FnOnce(&mut Approval) -> Result<Option<Event>, Code> + Send + 'static,
    {
        let changed = self.store.change_approval(id, &caller.name, change).await;
        let changed = changed.map_err(|error| self.store_failed(&error))?;
        let approval = changed.ok_or(Code::NotFound)?.map_err(|code| match code {
            Code::BadRequest => Refusal::new(code, "it is approved; it can be withdrawn"),
            code => code.into(),
        })?;
        self.decisions.tell();
        Ok(approval)
    }

    /// Demands that a caller may decide about an approval; a refusal is recorded (THREATS POL-12).
    async fn demand_decider(&self, caller: &Caller, id: ApprovalId, action: &str) -> Result<(), Refusal> {
        let (_, sight) = self.seen(caller, id).await?;
        match sight {
            Sight { own: true, .. } => self.deny_access(caller, action, Code::SelfApproval).await,
            Sight {
                may_approve: true, ..
            } => Ok(()),
            _ => self.deny_access(caller, action, Code::PolicyDeny).await,
        }
    }

    /// Returns an approval that a caller may see; any other is not there.
    async fn seen(&self, caller: &Caller, id: ApprovalId) -> Result<(Approval, Sight), Refusal> {
        let approval = self.store.approval(id).await;
        let approval = approval.map_err(|error| self.store_failed(&error))?;
        let approval = approval.ok_or(Code::NotFound)?;
        let asker = Arc::new(self.asker(caller).await?);
        let mut weighed = self.sights(&asker, vec![approval]).await?;
        let (approval, sight) = weighed.pop().ok_or(Code::Internal)?;
        if sight.own || sight.may_approve || self.in_force().may(&asker, Action::ReadAudit) {
            return Ok((approval, sight));
        }
        self.deny_access(caller, "approve", Code::NotFound).await
    }

    async fn device_record(&self, id: &DeviceId) -> Result<Option<DeviceRecord>, Code> {
        let device = self.store.device(id).await;
        device.map_err(|error| self.store_failed(&error))
    }

    fn shown(&self, approval: &Approval, may_approve: bool) -> api::Approval {
        let (asked, now) = (&approval.asked, self.now());
        let agreements = approval.agreements.iter();
        let end = approval.end.as_ref();
        api::Approval {
            id: approval.id,
            requester: asked.requester.to_string(),
            devices: asked.devices.iter().map(ToString::to_string).collect(),
            services: asked.services.iter().map(ToString::to_string).collect(),
            reason: asked.reason.clone(),
            window_secs: asked.window.as_secs(),
            state: approval.state_at(now).to_owned(),
            needed: approval.needed,
            approvers: agreements.map(|agreement| agreement.by.to_string()).collect(),
            asked_at: approval.asked_at.as_secs(),
            expires_at: approval.expires_at.as_secs(),
            ended_by: end.map(|end| end.by.clone()),
            end_reason: end.and_then(|end| end.reason.clone()),
            may_approve: may_approve && approval.is_alive(now).is_ok(),
            batch: asked.commands.as_ref().map(Batch::hash),
            commands: asked.commands.as_ref().map(|batch| batch.commands().to_vec()),
        }
    }
}

/// What policies are asked with about an approval: its window stands for the lifetime.
fn terms(asked: &Asked) -> Terms {
    Terms {
        services: asked.services.clone(),
        ttl: asked.window,
        reason: Some(asked.reason.clone()),
        approval: None,
        break_glass: false,
        batch: asked.commands.is_some(),
        authoriser: None,
    }
}

fn read(caller: &Caller, request: AskApproval) -> Result<Asked, Refusal> {
    let devices: Vec<DeviceId> = names(&request.devices, "devices")?;
    let services: Vec<ServiceName> = names(&request.services, "services")?;
    if devices.len() * services.len() > MAX_PLACES {
        let why = format!("`devices` times `services` may be {MAX_PLACES} at most");
        return Err(Refusal::new(Code::BadRequest, why));
    }
    let window = request.window_secs.map_or(APPROVAL_WINDOW, Duration::from_secs);
    if window.is_zero() || window > APPROVAL_WINDOW_MAX {
        let why = format!(
            "`window_secs` has to be between 1 and {}",
            APPROVAL_WINDOW_MAX.as_secs()
        );
        return Err(Refusal::new(Code::BadRequest, why));
    }
    let reason = bounded_reason(Some(request.reason))?.unwrap_or_default();
    if reason.trim().is_empty() {
        return Err(Refusal::new(Code::BadRequest, "`reason` has to say why"));
    }
    let commands = request.commands.map(Batch::new).transpose();
    let commands =
        commands.map_err(|error| Refusal::new(Code::BadRequest, format!("`commands`: {error}")))?;
    if commands.is_some() && services.len() != 1 {
        let why = "`commands` are for one service, which runs them";
        return Err(Refusal::new(Code::BadRequest, why));
    }
    Ok(Asked {
        commands,
        requester: caller.name.clone(),
        devices,
        services,
        reason,
        window,
        source: caller.source.ip().to_string(),
    })
}

/// Reads names, each once.
fn names<T: FromStr + Ord>(texts: &[String], field: &str) -> Result<Vec<T>, Refusal> {
    let names: Result<BTreeSet<T>, _> = texts.iter().map(|text| text.parse::<T>()).collect();
    let names =
        names.map_err(|_| Refusal::new(Code::BadName, format!("`{field}` has a name that is none")))?;
    if names.is_empty() || texts.len() > MAX_PLACES {
        let why = format!("`{field}` has to name 1 to {MAX_PLACES}");
        return Err(Refusal::new(Code::BadRequest, why));
    }
    Ok(names.into_iter().collect())
}

fn bounded_reason(reason: Option<String>) -> Result<Option<String>, Refusal> {
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_TEXT) {
        let why = format!("`reason` may have {MAX_TEXT} bytes at most");
        return Err(Refusal::new(Code::BadRequest, why));
    }
    Ok(reason)
}
