//! Policies sorted by what their scope fixes, so that only those are weighed whose scope can fit.
//!
//! A policy whose scope does not fit is not satisfied and cannot fail either: Cedar looks at the scope before anything
//! else. So leaving it out changes nothing in the answer, and that is compared with the whole set in the tests.

use std::collections::HashMap;

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, Entities, EntityUid, Policy, PolicyId, PolicySet,
    PrincipalConstraint, Request, ResourceConstraint,
};

/// What a scope fixes about one of principal and resource: that it is this entity or in it; `None` if any will do.
type Fixed = Option<EntityUid>;

/// A set of policies, by what their scope fixes of principal and resource.
#[derive(Default)]
pub(crate) struct Index {
    rules: HashMap<Fixed, HashMap<Fixed, PolicySet>>,
}

/// What a set of policies says about a request.
#[derive(Default)]
pub(crate) struct Answer {
    /// The forbids that fit.
    pub(crate) forbids: Vec<PolicyId>,
    /// The permits that fit.
    pub(crate) permits: Vec<PolicyId>,
    /// The policies that failed.
    pub(crate) failed: Vec<AuthorizationError>,
}

impl Index {
    /// Takes a policy in. Its id is in no policy that was taken in before.
    pub(crate) fn add(&mut self, policy: &Policy) {
        self.add_as(principal(policy), resource(policy), policy);
    }

    /// Takes a policy in as one that may concern everything, which is the slow way to the same answer.
    #[cfg(test)]
    pub(crate) fn add_unsorted(&mut self, policy: &Policy) {
        self.add_as(None, None, policy);
    }

    fn add_as(&mut self, principal: Fixed, resource: Fixed, policy: &Policy) {
        let set = self
            .rules
            .entry(principal)
            .or_default()
            .entry(resource)
            .or_default();
        // Each has an id of its own, and none is a template.
        let _ = set.add(policy.clone());
    }

    /// Weighs the policies that can concern a request. Where permits and forbids are in one set, a forbid that fits may hide permits.
    pub(crate) fn weigh(&self, authorizer: &Authorizer, asked: &Request, entities: &Entities) -> Answer {
        let (principals, resources) = (
            matching(asked.principal(), entities),
            matching(asked.resource(), entities),
        );
        let mut all = Answer::default();
        for rules in principals.iter().filter_map(|fixed| self.rules.get(fixed)) {
            for rules in resources.iter().filter_map(|fixed| rules.get(fixed)) {
                all.take_in(&authorizer.is_authorized(asked, rules, entities));
            }
        }
        all
    }
}

impl Answer {
    /// Says whether the request is permitted, by what did not fail.
    pub(crate) const fn is_permitted(&self) -> bool {
        self.forbids.is_empty() && !self.permits.is_empty()
    }

    fn take_in(&mut self, answer: &cedar_policy::Response) {
        let found = answer.diagnostics();
        let deciding = match answer.decision() {
            Decision::Allow => &mut self.permits,
            // Without a reason if nothing fits.
            Decision::Deny => &mut self.forbids,
        };
        deciding.extend(found.reason().cloned());
        self.failed.extend(found.errors().cloned());
    }
}

/// Returns what a scope may fix so that it fits an entity: nothing, the entity itself, or what it is in.
fn matching(entity: Option<&EntityUid>, entities: &Entities) -> Vec<Fixed> {
    let above = entity.and_then(|entity| entities.ancestors(entity));
    let known = entity.into_iter().chain(above.into_iter().flatten());
    [None].into_iter().chain(known.cloned().map(Some)).collect()
}

fn principal(policy: &Policy) -> Fixed {
    match policy.principal_constraint() {
        PrincipalConstraint::In(entity)
        | PrincipalConstraint::Eq(entity)
        | PrincipalConstraint::IsIn(_, entity) => Some(entity),
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
    }
}

fn resource(policy: &Policy) -> Fixed {
    match policy.resource_constraint() {
        ResourceConstraint::In(entity)
        | ResourceConstraint::Eq(entity)
        | ResourceConstraint::IsIn(_, entity) => Some(entity),
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
    }
}
