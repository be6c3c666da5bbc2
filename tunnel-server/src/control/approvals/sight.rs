//! Who may see an approval, and decide about it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tunnel_policy::{Operator, Outcome};
use tunnel_proto::{Code, DeviceId, OperatorName};

use super::terms;
use crate::approvals::Approval;
use crate::control::Control;
use crate::control::decide::{Asker, InForce};
use crate::store::DeviceRecord;

/// What a caller may do with an approval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sight {
    pub(super) own: bool,
    pub(super) may_approve: bool,
}

/// What approvals are weighed with: many share few operators and devices.
#[derive(Debug)]
struct Known {
    operators: HashMap<OperatorName, Operator>,
    devices: HashMap<DeviceId, DeviceRecord>,
}

impl Control {
    /// Says of each approval what a caller may do with it. It takes many decisions; nobody else waits for them.
    pub(super) async fn sights(
        &self,
        asker: &Arc<Asker>,
        approvals: Vec<Approval>,
    ) -> Result<Vec<(Approval, Sight)>, Code> {
        let known = self.known_of(&approvals).await?;
        let (asker, in_force) = (asker.clone(), self.in_force());
        let weighed = tokio::task::spawn_blocking(move || {
            let approvals = approvals.into_iter();
            let with_sight = |approval: Approval| {
                let own = approval.asked.requester == asker.operator().name;
                let may_approve = !own && known.may_approve(&in_force, &asker, &approval);
                (approval, Sight { own, may_approve })
            };
            approvals.map(with_sight).collect()
        });
        weighed.await.map_err(|_| Code::Internal)
    }

    async fn known_of(&self, approvals: &[Approval]) -> Result<Known, Code> {
        let asked = || approvals.iter().map(|approval| &approval.asked);
        let requesters: BTreeSet<_> = asked().map(|asked| asked.requester.clone()).collect();
        let devices: BTreeSet<_> = asked().flat_map(|asked| asked.devices.iter().cloned()).collect();
        let (operators, devices) = tokio::join!(
            self.store.operators_among(&requesters),
            self.store.devices_among(&devices)
        );
        let operators = operators.map_err(|error| self.store_failed(&error))?;
        let devices = devices.map_err(|error| self.store_failed(&error))?;
        Ok(Known {
            operators: operators
                .iter()
                .map(|operator| (operator.name.clone(), operator.into()))
                .collect(),
            devices: devices
                .into_iter()
                .map(|device| (device.id.clone(), device))
                .collect(),
        })
    }
}

impl Known {
    /// Says whether somebody may agree to an approval: on each device and service of it. A device that is gone is nobody's,
    /// and who has asked and is gone has no groups.
    fn may_approve(&self, in_force: &InForce, asker: &Asker, approval: &Approval) -> bool {
        let asked = &approval.asked;
        let gone = || Operator {
            name: asked.requester.clone(),
            groups: Vec::new(),
        };
        let requester = self.operators.get(&asked.requester).cloned().unwrap_or_else(gone);
        asked.devices.iter().all(|id| {
            let Some(device) = self.devices.get(id) else {
                return false;
            };
            let question = asker.question(device, terms(asked));
            let verdict = in_force.engine.weigh_approval(&question, &requester);
            verdict.visible && verdict.decision.outcome == Outcome::Allow
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::try_join_all;
    use tunnel_proto::{ApprovalId, UnixTime};

    use super::*;
    use crate::approvals::{Asked, State};
    use crate::tunnels::tests::{caller, server_that};

    fn of(requester: &str, number: u16, at: UnixTime) -> Approval {
        let asked = Asked {
            requester: requester.parse().unwrap(),
            devices: vec!["pump".parse().unwrap()],
            services: vec!["ssh".parse().unwrap()],
            reason: "INC-7".into(),
            window: Duration::from_secs(3600),
            commands: None,
            source: "192.0.2.1".into(),
        };
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        Approval::new(ApprovalId::from_bytes(id), asked, 1, at)
    }

    #[tokio::test]
    async fn what_others_ask_for_takes_no_place_in_a_list() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let (control, now) = (server.control(), server.control().now());
        let old = of("tess", 0, now.before(Duration::from_secs(60)));
        assert!(control.store.ask_approval(old.clone(), now).await.unwrap());
        let others = (1..=600).map(|number| of(&format!("ana-{}", number % 10), number, now));
        let asked = others.map(|one| control.store.ask_approval(one, now));
        assert!(try_join_all(asked).await.unwrap().into_iter().all(|room| room));
        for (name, count) in [("tess", 1), ("ana-3", 60), ("eve", 0)] {
            let listed = control.approvals(&caller(control, name), false).await.unwrap();
            assert_eq!(listed.len(), count, "{name}");
            assert!(listed.iter().all(|one| one.requester == name), "{listed:?}");
        }
    }

    #[tokio::test]
    async fn what_has_ended_is_kept_up_to_a_number_and_what_lives_stays() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let (store, now) = (&server.control().store, server.control().now());
        let long_ago = now.before(Duration::from_secs(60));
        for alive in [of("tess", 0, long_ago), of("tom", 1, long_ago)] {
            assert!(store.ask_approval(alive, now).await.unwrap());
        }
        let denied = (2..302).map(|number| Approval {
            state: State::Denied,
            ..of("tess", number, now)
        });
        try_join_all(denied.map(|one| store.ask_approval(one, now)))
            .await
            .unwrap();
        let kept = store.approvals(None, None, 1000).await.unwrap();
        // Two that live, and one more that has ended than is left when one is asked for.
        assert_eq!(kept.len(), 2 + 257);
        assert_eq!(store.approvals(Some(now), None, 1000).await.unwrap().len(), 2);
    }
}
