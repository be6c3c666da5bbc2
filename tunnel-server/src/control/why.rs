//! Explaining decisions, to each as far as it may know (THREATS POL-01).
//!
//! Everybody may ask for itself, and learns no more than by asking for tunnels: whether, by which permits, and which of
//! the things that it could add itself would help. What forbids, what rules say and what is known of others is for who may
//! read policies or the audit chain.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tunnel_policy::{Action, Outcome, Question, Rule, Terms};
use tunnel_proto::api::{AskWhy, Why, WhyAuthoriser, WhyRule};
use tunnel_proto::defaults::{TUNNEL_LIFETIME, TUNNEL_LIFETIME_MAX};
use tunnel_proto::names::{FactName, FactValue};
use tunnel_proto::{Code, DeviceId, OperatorName, Refusal, ServiceName};

use super::Control;
use super::authoriser::{Authoriser, Forbidden, Said, WHY_ASKED};
use super::decide::{Asker, InForce};
use crate::api::caller::Caller;
use crate::audit::MAX_TEXT;
use crate::tunnels::limits::to_api;

impl Control {
    /// Explains how a request for a tunnel would be decided.
    ///
    /// # Errors
    /// Refuses what could not be asked for, questions about others by who may not ask those, and a device that the operator
    /// may not see as one that is not there.
    pub(crate) async fn why(&self, caller: &Caller, request: AskWhy) -> Result<Why, Refusal> {
        if !self
            .quotas
            .explanations
            .take(Instant::now(), &caller.peer.identity)
        {
            return Err(Code::Limit.into());
        }
        let terms = terms(&request)?;
        let device: DeviceId = request.device.parse().map_err(|_| Code::BadName)?;
        let own = self.asker(caller).await?;
        let in_force = self.in_force();
        let knows_why = in_force.may_know_why(&own);
        let asker = match &request.operator {
            Some(name) if *name != caller.name.as_str() => {
                // Who may not ask is told so, whether there is such an operator or not, and it is recorded.
                if !knows_why {
                    self.demand(caller, Action::ReadAudit).await?;
                }
                self.asker_of(caller, name, request.source.as_deref()).await?
            }
            _ => own,
        };
        let record = self.store.device(&device).await;
        let record = record.map_err(|error| self.store_failed(&error))?;
        let record = record.ok_or(Code::NotFound)?;
        let mut question = asker.question(&record, terms);
        let authoriser = match &self.authoriser {
            Some(authoriser) => Some(self.hear(authoriser, &in_force, knows_why, &mut question).await),
            None => None,
        };
        let policy = in_force.clone();
        // An explanation takes many decisions; nobody else is to wait for them, and who will not see it causes less.
        let why = tokio::task::spawn_blocking(move || match knows_why {
            true => policy.engine.why(&question),
            false => policy.engine.outline(&question),
        });
        let why = why.await.map_err(|_| Code::Internal)?;
        if !why.verdict.visible && !knows_why {
            return Err(Code::NotFound.into());
        }
        let decision = &why.verdict.decision;
        let stopped = authoriser.as_ref().is_some_and(Heard::stops);
        let outcome = if why.verdict.visible && !stopped {
            decision.outcome
        } else {
            Outcome::Deny
        };
        let names_policies = knows_why || outcome == Outcome::Allow;
        Ok(Why {
            operator: asker.operator().name.to_string(),
            device: request.device,
            service: request.service,
            outcome: outcome.as_str().to_owned(),
            policy_revision: in_force.revision,
            policies: if names_policies {
                decision.policies.clone()
            } else {
                Vec::new()
            },
            limits: to_api(&decision.limits),
            missing: why.missing.iter().map(|need| need.as_str().to_owned()).collect(),
            groups: asker.operator().groups.iter().map(ToString::to_string).collect(),
            rules: shown(why.rules),
            near: shown(why.near),
            facts: why.facts,
            authoriser: authoriser.map(Heard::shown),
        })
    }

    /// Asks the authoriser about what policy permits, for who may know why: what it says is told to nobody else, and a service
    /// that answers people's requests is not to be kept busy by anybody's questions. What it says becomes part of the
    /// question.
    async fn hear(
        &self,
        authoriser: &Authoriser,
        in_force: &InForce,
        knows_why: bool,
        question: &mut Question,
    ) -> Heard {
        if !knows_why || !in_force.weigh(question).is_allowed() {
            return Heard::Unasked;
        }
        match self.consult(authoriser, WHY_ASKED, question).await {
            Ok(said) => {
                question.terms.authoriser = Some(said.facts.clone());
                Heard::Said(said)
            }
            Err(forbidden) => Heard::Forbidden(forbidden),
        }
    }

    /// Describes another operator, as if it had just logged in.
    async fn asker_of(&self, caller: &Caller, name: &str, source: Option<&str>) -> Result<Asker, Refusal> {
        let name: OperatorName = name.parse().map_err(|_| Code::BadName)?;
        let source = source.map_or(Ok(caller.source.ip()), |source| source.parse::<IpAddr>());
        let source = source.map_err(|_| Refusal::new(Code::BadRequest, "`source` is no IP address"))?;
        let operator = self.store.operator(&name).await;
        let operator = operator.map_err(|error| self.store_failed(&error))?;
        let operator = operator.ok_or(Code::NotFound)?;
        Ok(Asker::of_another((&operator).into(), source, self.moment()))
    }
}

/// What an authoriser says to a question that opens nothing.
enum Heard {
    Unasked,
    Said(Said),
    Forbidden(Forbidden),
}

impl Heard {
    /// Says whether nothing would open.
    const fn stops(&self) -> bool {
        matches!(self, Self::Forbidden(_))
    }

    fn shown(self) -> WhyAuthoriser {
        let text = |(name, value): (FactName, FactValue)| (name.to_string(), value.to_string());
        match self {
            Self::Unasked => WhyAuthoriser::default(),
            Self::Said(said) => WhyAuthoriser {
                asked: true,
                answer: Some(said.consulted.answer),
                facts: said.facts.into_iter().map(text).collect(),
            },
            Self::Forbidden(forbidden) => WhyAuthoriser {
                asked: true,
                answer: Some(forbidden.consulted.answer),
                ..WhyAuthoriser::default()
            },
        }
    }
}

fn terms(request: &AskWhy) -> Result<Terms, Refusal> {
    let service: ServiceName = request.service.parse().map_err(|_| Code::BadName)?;
    let ttl = request.ttl_secs.map_or(TUNNEL_LIFETIME, Duration::from_secs);
    let reason = request.reason.clone();
    if ttl.is_zero()
        || ttl > TUNNEL_LIFETIME_MAX
        || reason.as_ref().is_some_and(|reason| reason.len() > MAX_TEXT)
    {
        return Err(Refusal::new(
            Code::BadRequest,
            "no tunnel can be asked for with this",
        ));
    }
    Ok(Terms {
        services: vec![service],
        ttl,
        reason,
        approval: None,
        break_glass: false,
        batch: request.batch,
        authoriser: None,
    })
}

fn shown(rules: Vec<Rule>) -> Vec<WhyRule> {
    let rule = |rule: Rule| WhyRule {
        name: rule.name,
        permits: rule.permits,
        text: rule.text,
    };
    rules.into_iter().map(rule).collect()
}
