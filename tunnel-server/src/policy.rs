//! The policy engine: facts and a request in, a decision with its reasons out.
//!
//! The module is pure: no clock, no store, no network. Deny is the default, `forbid` wins over `permit`, and a policy that
//! fails while it is evaluated denies, since a `forbid` that failed may have been the one that counts (THREATS I3).

mod check;
mod facts;

#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use cedar_policy::{AuthorizationError, Authorizer, PolicyId, PolicySet, Schema};

pub use check::{Checked, MAX_POLICY_BYTES, PolicyErrors, Problem, check};
pub use facts::{Action, Circumstances, Device, Operator, Request};

/// The schema: what policies can speak about, in Cedar's own form.
pub const SCHEMA_TEXT: &str = include_str!("policy/schema.cedarschema");

/// The policy that a new fleet starts with.
pub const FIRST_POLICY: &str = include_str!("policy/first.cedar");

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let (schema, _) =
        Schema::from_cedarschema_str(SCHEMA_TEXT).expect("the schema is part of the program, and tested");
    schema
});

/// A policy set that was checked and decides.
pub struct Engine {
    policies: PolicySet,
    authorizer: Authorizer,
}

/// What came of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Decision {
    /// Whether it is permitted.
    pub allow: bool,
    /// The policies that decided, by their `@id`: the permits of a permission, the forbids of a denial, or the ones that
    /// failed and thereby took a permission away. None fitted if this is empty.
    pub policies: Vec<String>,
    /// What failed in the evaluation, if anything did. The request is then denied, and somebody should look.
    pub errors: Vec<String>,
}

impl Engine {
    /// Takes a policy set into use.
    ///
    /// # Errors
    /// Returns everything that is wrong with the text, each with its line.
    pub fn new(text: &str) -> Result<Self, PolicyErrors> {
        let policies = check::parse(text)?;
        Ok(Self {
            policies,
            authorizer: Authorizer::new(),
        })
    }

    /// Returns an engine that denies everything, for when there is no policy that can be used.
    pub fn deny_all() -> Self {
        Self {
            policies: PolicySet::new(),
            authorizer: Authorizer::new(),
        }
    }

    /// Decides one request.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let (entities, asked) = match facts::build(request, &SCHEMA) {
            Ok(built) => built,
            Err(error) => {
                return Decision {
                    allow: false,
                    policies: Vec::new(),
                    errors: vec![error],
                };
            }
        };
        let answer = self.authorizer.is_authorized(&asked, &self.policies, &entities);
        let errors: Vec<String> = answer.diagnostics().errors().map(ToString::to_string).collect();
        let permitted = answer.decision() == cedar_policy::Decision::Allow;
        let mut policies: Vec<String> = if permitted && !errors.is_empty() {
            answer
                .diagnostics()
                .errors()
                .map(|AuthorizationError::PolicyEvaluationError(failed)| self.name(failed.policy_id()))
                .collect()
        } else {
            answer.diagnostics().reason().map(|id| self.name(id)).collect()
        };
        policies.sort_unstable();
        Decision {
            allow: permitted && errors.is_empty(),
            policies,
            errors,
        }
    }

    /// Returns how many policies there are.
    pub fn len(&self) -> usize {
        self.policies.num_of_policies()
    }

    /// Says whether there is no policy, so that everything is denied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn name(&self, id: &PolicyId) -> String {
        self.policies
            .annotation(id, "id")
            .map_or_else(|| id.to_string(), str::to_owned)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("policies", &self.len())
            .finish_non_exhaustive()
    }
}
