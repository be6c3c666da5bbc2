//! A policy set in use.

mod glance;

use std::collections::{BTreeMap, HashMap};

use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Effect, Entities, Policy, PolicyId, PolicySet,
    ResourceConstraint,
};
use tunnel_proto::ServiceName;

use crate::check::{self, PolicyErrors, SCHEMAS};
use crate::entities;
use crate::index::{Answer, Index};
use crate::limits::{self, Annotations, Limits};
use crate::question::{Action, Approval, Device, MAX_APPROVALS, Operator, Question, Request};

/// A policy set that was checked and decides.
pub struct Engine {
    /// Of each action, the policies that can concern it.
    rules: BTreeMap<&'static str, Rules>,
    groups: Groups,
    notes: HashMap<PolicyId, Note>,
    all: PolicySet,
    /// What forbids tunnels and did not in the policy before.
    fresh: Index,
    authorizer: Authorizer,
}

/// The policies of one action. Those that forbid only what too few have agreed to stand apart, since agreements take them
/// away.
#[derive(Default)]
struct Rules {
    permits: Index,
    forbids: Index,
    /// By how many they ask for.
    unless_approved: BTreeMap<u32, Index>,
}

/// The policies that say which devices belong to a reported group.
#[derive(Default)]
struct Groups {
    names: Vec<String>,
    policies: Index,
}

/// What is looked up about a policy after it has decided.
struct Note {
    name: String,
    annotations: Annotations,
}

/// What came of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Decision {
    /// What it is.
    pub outcome: Outcome,
    /// The policies that decided, by their `@id`: the permits of a permission, the forbids of a denial, those that ask
    /// for an approval, or the ones that failed and thereby took a permission away. None fitted if this is empty.
    pub policies: Vec<String>,
    /// What failed in the evaluation, if anything did. The request is then denied, and somebody should look.
    pub errors: Vec<String>,
    /// The limits of a permission.
    pub limits: Limits,
}

/// The decision about one request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Outcome {
    /// It is permitted.
    Allow,
    /// It is not.
    Deny,
    /// It would be permitted if others agreed.
    NeedsApproval,
}

/// What came of asking for a tunnel: all of its services are permitted, or one is named that is not.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Verdict {
    /// Whether the operator may know that the device is there at all.
    pub visible: bool,
    /// The decision: about the service that is not permitted, or about all of them together.
    pub decision: Decision,
    /// The first service that is not permitted.
    pub denied: Option<ServiceName>,
}

impl Decision {
    /// Says whether the request is permitted.
    pub fn is_allowed(&self) -> bool {
        self.outcome == Outcome::Allow
    }

    fn deny(policies: Vec<String>, errors: Vec<String>) -> Self {
        Self {
            outcome: Outcome::Deny,
            policies,
            errors,
            limits: Limits::default(),
        }
    }
}

impl Verdict {
    /// Says whether the tunnel is permitted.
    pub fn is_allowed(&self) -> bool {
        self.visible && self.decision.is_allowed()
    }
}

impl Engine {
    /// Takes a policy set into use.
    ///
    /// # Errors
    /// Returns everything that is wrong with the text, each with its line.
    pub fn new(text: &str) -> Result<Self, PolicyErrors> {
        check::parse(text).map(|all| Self::of(all, Index::add))
    }

    /// As [`Engine::new`], but each decision weighs all policies of its action.
    #[cfg(test)]
    pub(crate) fn unsorted(text: &str) -> Result<Self, PolicyErrors> {
        check::parse(text).map(|all| Self::of(all, Index::add_unsorted))
    }

    /// Returns an engine that denies everything, for when there is no policy that can be used.
    pub fn deny_all() -> Self {
        Self::of(PolicySet::new(), Index::add)
    }

    /// Sorts a checked policy set by what each policy can concern.
    fn of(all: PolicySet, add: fn(&mut Index, &Policy)) -> Self {
        let mut engine = Self {
            rules: Action::NAMES
                .iter()
                .map(|name| (*name, Rules::default()))
                .collect(),
            groups: Groups::default(),
            notes: HashMap::new(),
            all: all.clone(),
            fresh: Index::default(),
            authorizer: Authorizer::new(),
        };
        for policy in all.policies() {
            engine.sort(policy, add);
        }
        engine.groups.names.sort_unstable();
        engine.groups.names.dedup();
        engine
    }

    fn sort(&mut self, policy: &Policy, add: fn(&mut Index, &Policy)) {
        // What the check has let pass can be read, and no name is there twice.
        let annotations = limits::read(policy).unwrap_or_default();
        let note = Note {
            name: limits::name(policy),
            annotations,
        };
        self.notes.insert(policy.id().clone(), note);
        if check::is_about_groups(policy) {
            if let ResourceConstraint::Eq(group) = policy.resource_constraint() {
                self.groups.names.push(group.id().unescaped().to_owned());
            }
            add(&mut self.groups.policies, policy);
            return;
        }
        for (action, rules) in &mut self.rules {
            if concerns(policy, action) {
                let index = match (policy.effect(), annotations.approvals) {
                    (Effect::Permit, _) => &mut rules.permits,
                    (Effect::Forbid, 0) => &mut rules.forbids,
                    (Effect::Forbid, count) => rules.unless_approved.entry(count).or_default(),
                };
                add(index, policy);
            }
        }
    }

    /// Decides whether an operator may have a tunnel, and with which limits.
    pub fn weigh(&self, question: &Question) -> Verdict {
        self.weigh_each(question, |service| self.connect(question, service))
    }

    /// Decides whether an operator may agree to what another asks for: the question is put by who would agree, and its
    /// terms are those of the other. Nobody agrees to an own request (THREATS POL-12).
    pub fn weigh_approval(&self, question: &Question, requester: &Operator) -> Verdict {
        self.weigh_each(question, |service| {
            if requester.name == question.operator.name {
                return Decision::deny(Vec::new(), Vec::new());
            }
            let Question { device, terms, .. } = question;
            self.ask(
                question,
                Action::Approve {
                    device,
                    service,
                    terms,
                    requester,
                },
            )
        })
    }

    /// Returns how many have to agree before a tunnel is permitted; `None` if that does not help.
    pub fn approvals_needed(&self, question: &Question) -> Option<u32> {
        let mut question = question.clone();
        (0..=MAX_APPROVALS).find(|count| {
            question.terms.approval = Approval::supposed(*count, question.circumstances.now);
            self.weigh(&question).is_allowed()
        })
    }

    fn ask(&self, question: &Question, action: Action<'_>) -> Decision {
        self.decide(&Request {
            operator: &question.operator,
            action,
            circumstances: &question.circumstances,
        })
    }

    /// Decides about one service of a tunnel.
    ///
    /// # Security
    /// What an authoriser said narrows: the service has to be permitted without its facts and with them, and the narrower
    /// limits count.
    fn connect(&self, question: &Question, service: &ServiceName) -> Decision {
        if question.terms.authoriser.is_none() {
            return self.connect_with(question, service);
        }
        let mut bare = question.clone();
        bare.terms.authoriser = None;
        let without = self.connect_with(&bare, service);
        if !without.is_allowed() {
            return without;
        }
        let with = self.connect_with(question, service);
        Decision {
            limits: with.limits.narrowest(without.limits),
            ..with
        }
    }

    /// Decides about one service with all that is said. Who breaks the glass needs the right to connect as if all had agreed, and
    /// the right to do that.
    fn connect_with(&self, question: &Question, service: &ServiceName) -> Decision {
        let Question { device, terms, .. } = question;
        let connect = self.ask(
            question,
            Action::Connect {
                device,
                service,
                terms,
            },
        );
        if !terms.break_glass || !connect.is_allowed() {
            return connect;
        }
        let alone = self.ask(
            question,
            Action::BreakGlass {
                device,
                service,
                terms,
            },
        );
        if !alone.is_allowed() {
            return alone;
        }
        let mut policies = connect.policies;
        policies.extend(alone.policies);
        Decision {
            policies,
            limits: connect.limits.narrowest(alone.limits),
            ..connect
        }
    }

    /// Decides about all services together; one that may not see the device learns no more.
    fn weigh_each(&self, question: &Question, decide: impl Fn(&ServiceName) -> Decision) -> Verdict {
        let view = self.ask(question, Action::View(&question.device));
        if !view.is_allowed() {
            return Verdict {
                visible: false,
                decision: view,
                denied: None,
            };
        }
        let mut all = Decision {
            outcome: if question.terms.services.is_empty() {
                Outcome::Deny
            } else {
                Outcome::Allow
            },
            policies: Vec::new(),
            errors: Vec::new(),
            limits: Limits::default(),
        };
        let mut denied: Option<(Decision, ServiceName)> = None;
        for service in &question.terms.services {
            let decision = decide(service);
            match decision.outcome {
                Outcome::Allow => {
                    all.limits = all.limits.narrowest(decision.limits);
                    all.policies.extend(decision.policies);
                }
                // An approval does not help as long as something else stands in the way.
                Outcome::NeedsApproval => drop(denied.get_or_insert((decision, service.clone()))),
                Outcome::Deny => {
                    denied = Some((decision, service.clone()));
                    break;
                }
            }
        }
        all.policies.sort_unstable();
        all.policies.dedup();
        let (decision, denied) = denied.map_or((all, None), |(decision, service)| (decision, Some(service)));
        Verdict {
            visible: true,
            decision,
            denied,
        }
    }

    /// Decides about one of the services that a tunnel is asked for with, as if it were the only one that counts.
    pub(crate) fn weigh_service(&self, question: &Question, service: &ServiceName) -> Outcome {
        if self.ask(question, Action::View(&question.device)).is_allowed() {
            self.connect(question, service).outcome
        } else {
            Outcome::Deny
        }
    }

    /// Decides one request.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let Some(rules) = self.rules.get(request.action.as_str()) else {
            return Decision::deny(Vec::new(), Vec::new());
        };
        let built = self
            .groups_of(request)
            .and_then(|groups| entities::build(request, &groups, &SCHEMAS.actions));
        match built {
            Ok((entities, asked)) => self.judge(rules, request, &entities, &asked),
            Err(error) => Decision::deny(Vec::new(), vec![error]),
        }
    }

    fn judge(
        &self,
        rules: &Rules,
        request: &Request<'_>,
        entities: &Entities,
        asked: &cedar_policy::Request,
    ) -> Decision {
        let agreed = match &request.action {
            Action::Connect { terms, .. } => terms.agreed(),
            _ => 0,
        };
        let mut answer = rules.forbids.weigh(&self.authorizer, asked, entities);
        let permits = rules.permits.weigh(&self.authorizer, asked, entities);
        answer.permits = permits.permits;
        answer.failed.extend(permits.failed);
        if !answer.is_permitted() {
            return Decision::deny(self.names(&answer.forbids), errors(&answer));
        }
        if let Some(failed) = self.failed(&answer) {
            return failed;
        }
        let mut soft = Answer::default();
        for (_, index) in rules.unless_approved.iter().filter(|(count, _)| **count > agreed) {
            let answer = index.weigh(&self.authorizer, asked, entities);
            soft.forbids.extend(answer.forbids);
            soft.failed.extend(answer.failed);
        }
        if let Some(failed) = self.failed(&soft) {
            return failed;
        }
        if !soft.forbids.is_empty() {
            return Decision {
                outcome: Outcome::NeedsApproval,
                ..Decision::deny(self.names(&soft.forbids), Vec::new())
            };
        }
        let notes: Vec<&Note> = answer
            .permits
            .iter()
            .filter_map(|id| self.notes.get(id))
            .collect();
        let counting: Vec<&&Note> = notes
            .iter()
            .filter(|note| agreed >= note.annotations.approvals)
            .collect();
        if counting.is_empty() {
            return Decision {
                outcome: Outcome::NeedsApproval,
                ..Decision::deny(self.names(&answer.permits), Vec::new())
            };
        }
        let mut policies: Vec<String> = counting.iter().map(|note| note.name.clone()).collect();
        policies.sort_unstable();
        let limits = counting.iter().map(|note| note.annotations.limits);
        Decision {
            outcome: Outcome::Allow,
            policies,
            errors: Vec::new(),
            limits: limits.fold(Limits::default(), Limits::narrowest),
        }
    }

    /// Returns the reported groups that the device of a request belongs to.
    fn groups_of(&self, request: &Request<'_>) -> Result<Vec<String>, String> {
        match request.action.device() {
            Some(device) if !self.groups.names.is_empty() => {
                self.reported_groups(device, request.circumstances.clock())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the reported groups that a device belongs to by what it says of itself, at a time; without one, rules that
    /// ask for ages fail.
    ///
    /// # Errors
    /// Returns what failed: then nobody knows.
    pub fn reported_groups(
        &self,
        device: &Device,
        clock: Option<tunnel_proto::UnixTime>,
    ) -> Result<Vec<String>, String> {
        let mut groups = Vec::new();
        let entities = entities::of_device(device, clock, &SCHEMAS.groups)?;
        for group in &self.groups.names {
            let asked = entities::belongs(device, group)?;
            let answer = self.groups.policies.weigh(&self.authorizer, &asked, &entities);
            if let Some(error) = errors(&answer).pop() {
                return Err(error);
            }
            if answer.is_permitted() {
                groups.push(group.clone());
            }
        }
        Ok(groups)
    }

    /// Returns the denial of an answer in whose making a policy failed.
    fn failed(&self, answer: &Answer) -> Option<Decision> {
        let mut failed: Vec<String> = answer
            .failed
            .iter()
            .map(|AuthorizationError::PolicyEvaluationError(failed)| self.name(failed.policy_id()))
            .collect();
        failed.sort_unstable();
        (!failed.is_empty()).then(|| Decision::deny(failed, errors(answer)))
    }

    fn names(&self, ids: &[PolicyId]) -> Vec<String> {
        let mut names: Vec<String> = ids.iter().map(|id| self.name(id)).collect();
        names.sort_unstable();
        names
    }

    fn name(&self, id: &PolicyId) -> String {
        self.notes
            .get(id)
            .map_or_else(|| id.to_string(), |note| note.name.clone())
    }

    /// Returns how many policies there are.
    pub fn len(&self) -> usize {
        self.all.num_of_policies()
    }

    /// Says whether there is no policy, so that everything is denied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the policies with their names.
    pub(crate) fn policies(&self) -> impl Iterator<Item = (&str, &Policy)> {
        let name = |policy: &Policy| self.notes.get(policy.id()).map_or("", |note| note.name.as_str());
        self.all.policies().map(move |policy| (name(policy), policy))
    }

    /// Says whether the passing of time alone can change a decision: then live tunnels are weighed anew now and then.
    pub fn depends_on_time(&self) -> bool {
        const WORDS: [&str; 5] = ["context.now", "context.utc", "age_secs", "\"now\"", "\"utc\""];
        self.policies().any(|(_, policy)| {
            let text = policy.to_string();
            WORDS.iter().any(|word| text.contains(word))
        })
    }
}

fn errors(answer: &Answer) -> Vec<String> {
    let mut errors: Vec<String> = answer.failed.iter().map(ToString::to_string).collect();
    errors.sort_unstable();
    errors
}

/// Says whether a policy can have a say about an action, by its scope.
fn concerns(policy: &Policy, action: &str) -> bool {
    let is = |other: &cedar_policy::EntityUid| other.id().unescaped() == action;
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => is(&one),
        ActionConstraint::In(many) => many.iter().any(is),
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("policies", &self.len())
            .finish_non_exhaustive()
    }
}
