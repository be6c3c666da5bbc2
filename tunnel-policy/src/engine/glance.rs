//! The quick no: what can be said about a live tunnel without weighing every policy.
//!
//! After a change thousands of tunnels may have to end, and each millisecond counts. Most that have to end are forbidden
//! by what has just come, or nothing permits them any more: both take a few policies, where a whole decision with its reasons
//! takes all that can concern the request.

use std::collections::HashSet;

use cedar_policy::Effect;

use super::{Engine, concerns};
use crate::check::SCHEMAS;
use crate::entities;
use crate::index::Index;
use crate::question::{Action, Question, Request, Terms};

/// The action that tunnels live by.
const CONNECT: &str = "connect";

impl Engine {
    /// Takes the place of another policy set: what forbids here and did not there is looked at first from now on.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        let known: HashSet<String> = before.policies().map(|(_, policy)| policy.to_string()).collect();
        let mut fresh = Index::default();
        for (_, policy) in self.policies() {
            let note = self.notes.get(policy.id());
            if policy.effect() == Effect::Forbid
                && note.is_some_and(|note| note.annotations.approvals == 0)
                && concerns(policy, CONNECT)
                && !known.contains(&policy.to_string())
            {
                fresh.add(policy);
            }
        }
        self.fresh = fresh;
        self
    }

    /// Says whether a tunnel is denied by what is quickly found: a `forbid` that is new, or that no `permit` fits. If so,
    /// [`Engine::weigh`] denies it too; if not, nothing is said.
    pub fn denies_at_once(&self, question: &Question) -> bool {
        // What an authoriser said can only narrow what is permitted without.
        let terms = Terms {
            authoriser: None,
            ..question.terms.clone()
        };
        terms.services.iter().any(|service| {
            let request = Request {
                operator: &question.operator,
                action: Action::Connect {
                    device: &question.device,
                    service,
                    terms: &terms,
                },
                circumstances: &question.circumstances,
            };
            self.is_denied_at_once(&request)
        })
    }

    fn is_denied_at_once(&self, request: &Request<'_>) -> bool {
        let Some(rules) = self.rules.get(request.action.as_str()) else {
            return true;
        };
        let built = self
            .groups_of(request)
            .and_then(|groups| entities::build(request, &groups, &SCHEMAS.actions));
        // What cannot be put into Cedar's terms is denied with its reason by the whole decision.
        built.is_ok_and(|(entities, asked)| {
            let weigh = |index: &Index| index.weigh(&self.authorizer, &asked, &entities);
            !weigh(&self.fresh).forbids.is_empty() || weigh(&rules.permits).permits.is_empty()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{device, operator, question};

    const PERMIT: &str = r#"@id("all") permit (principal, action, resource);"#;

    fn denied(before: &str, now: &str) -> bool {
        let engine = Engine::new(now).unwrap().after(&Engine::new(before).unwrap());
        let asked = question(
            &operator("ana", &["technicians"]),
            &device("pump-17", &["pumps"]),
            &["ssh"],
            None,
        );
        let denied = engine.denies_at_once(&asked);
        assert!(!denied || !engine.weigh(&asked).is_allowed());
        denied
    }

    #[test]
    fn what_has_come_to_forbid_and_what_nothing_permits_is_denied_at_once() {
        let forbid = format!(
            r#"{PERMIT} @id("no") forbid (principal, action == Action::"connect", resource in DeviceGroup::"pumps");"#
        );
        assert!(denied(PERMIT, &forbid));
        let others = forbid.replace("pumps", "mills");
        assert!(!denied(PERMIT, &others), "the forbid is about others");
        assert!(!denied(PERMIT, PERMIT));
        let narrower = PERMIT.replace("principal,", r#"principal in OperatorGroup::"admins","#);
        assert!(denied(PERMIT, &narrower), "nothing permits it any more");
    }

    #[test]
    fn what_an_approval_takes_away_is_left_to_the_whole_decision() {
        let asks = format!(
            r#"{PERMIT} @id("two") @approvals("2") forbid (principal, action == Action::"connect", resource);"#
        );
        assert!(!denied(PERMIT, &asks));
    }
}
