//! The policy in force: read, checked, replaced.

use std::sync::Arc;

use tunnel_policy::{Engine, check};
use tunnel_proto::api::PolicyState;
use tunnel_proto::{Code, Refusal};

use super::Control;
use super::decide::InForce;
use crate::audit::Event;
use crate::tunnels::reconsider::Touched;

impl Control {
    /// Returns the policy in force.
    pub(crate) fn in_force(&self) -> Arc<InForce> {
        self.policy.borrow().clone()
    }

    /// Returns the policy in force, as the API shows it.
    pub(crate) fn policy_state(&self) -> PolicyState {
        let in_force = self.in_force();
        PolicyState {
            revision: in_force.revision,
            policies: in_force.engine.len() as u64,
            errors: Vec::new(),
            warnings: Vec::new(),
            text: Some(in_force.text.clone()),
            tunnels_cut: None,
        }
    }

    /// Checks a policy without any effect.
    pub(crate) fn check_policy(&self, text: &str) -> PolicyState {
        let checked = check(text);
        PolicyState {
            revision: self.in_force().revision,
            policies: checked.policies as u64,
            errors: checked.errors.iter().map(ToString::to_string).collect(),
            warnings: checked.warnings.iter().map(ToString::to_string).collect(),
            text: None,
            tunnels_cut: None,
        }
    }

    /// Puts a policy into force if it is good, and cuts the tunnels that it no longer allows.
    ///
    /// # Errors
    /// Returns what is wrong with the text; the old policy stays in force then.
    pub(crate) async fn replace_policy(
        self: &Arc<Self>,
        text: String,
        follows: Option<u64>,
        by: &str,
    ) -> Result<PolicyState, Refusal> {
        let mut state = self.check_policy(&text);
        let engine = match Engine::new(&text) {
            Ok(engine) => engine,
            Err(_) => {
                let errors: Vec<_> = state
                    .errors
                    .iter()
                    .take(16)
                    .map(|error| crate::audit::bounded(error))
                    .collect();
                let detail = errors.join("; ");
                self.note(Event::PolicyRefused {
                    errors,
                    by: by.to_owned(),
                })
                .await;
                return Err(Refusal::new(Code::BadRequest, detail));
            }
        };
        let engine = engine.after(&self.in_force().engine);
        let stored = self
            .store
            .set_policy(text.clone(), follows, by.to_owned(), self.now())
            .await;
        let revision = stored
            .map_err(|error| self.store_failed(&error))?
            .map_err(|current| Refusal::new(Code::PolicyStale, format!("revision {current} is in force")))?;
        self.put_into_force(InForce {
            engine,
            revision,
            text,
        });
        state.revision = revision;
        state.tunnels_cut = Some(self.reconsider(&Touched::All, by).await?);
        Ok(state)
    }

    /// Replaces the policy in force, unless a newer one is there already.
    fn put_into_force(&self, new: InForce) {
        self.policy.send_if_modified(|in_force| {
            let newer = new.revision > in_force.revision;
            if newer {
                *in_force = Arc::new(new);
            }
            newer
        });
    }

    /// Takes the policy of the store into force if it is not there yet.
    pub(crate) async fn policy_at_least(&self, revision: u64) {
        if self.in_force().revision >= revision {
            return;
        }
        match self.store.policy().await {
            Ok(Some(record)) => match Engine::new(&record.text) {
                Ok(engine) => {
                    self.put_into_force(InForce {
                        engine: engine.after(&self.in_force().engine),
                        revision: record.revision,
                        text: record.text,
                    });
                }
                Err(_) => tracing::error!(
                    revision = record.revision,
                    "the policy of the store cannot be used"
                ),
            },
            Ok(None) => {}
            Err(error) => drop(self.store_failed(&error)),
        }
    }
}
