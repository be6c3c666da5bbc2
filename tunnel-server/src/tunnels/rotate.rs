//! Fresh keys for the legs of a live tunnel: the old one binds nothing from here on, and sessions go on.
//!
//! The new number of rotations is durable before the old key is locked, and an end is given fresh tokens until it has bound
//! with the new key. So a crash at any point leaves the old key or the new one in force, and an end that knows neither yet
//! is asked again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tunnel_policy::Action;
use tunnel_proto::api::{RotateTunnel, RotatedLeg, RotatedTunnel};
use tunnel_proto::bind::Role;
use tunnel_proto::keys::LegKey;
use tunnel_proto::message::{FromServer, Rotate};
use tunnel_proto::{CircuitId, Code, Identity, Refusal, TunnelId};

use super::table::{Live, Phase};
use crate::api::caller::Caller;
use crate::control::{Control, to_base64};
use crate::links::Link;

/// How long the answer waits for the ends to bind with their new keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// The legs of a tunnel, by role.
#[derive(Debug)]
pub(crate) struct Legs {
    state: Mutex<[Leg; 2]>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

/// The key of a leg.
#[derive(Clone, Copy, Debug, Default)]
struct Leg {
    rotations: u32,
    /// Whether the end has not bound with the key of the last rotation.
    due: bool,
}

impl Legs {
    /// Starts with what the store has. After a restart nobody knows which key an end has, so it is asked once more.
    pub(crate) fn new(rotations: [u32; 2]) -> Self {
        let leg = |rotations| Leg {
            rotations,
            due: rotations > 0,
        };
        Self {
            state: Mutex::new(rotations.map(leg)),
            changes: watch::Sender::new(0),
        }
    }

    /// Says whether an end has to bind with a new key.
    pub(crate) fn is_due(&self, role: Role) -> bool {
        self.state()[role as usize].due
    }

    /// Returns a receiver that hears of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, [Leg; 2]> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Control {
    /// Lets a leg bind with the key that counts. No rotation comes between the look at the number and the relay.
    pub(super) fn admit_leg(&self, live: &Live, role: Role) -> Result<LegKey, Code> {
        let legs = live.legs.state();
        self.relay
            .admit_rotated(live.facts.circuit, role, legs[role as usize].rotations)
    }

    /// Rotates the keys of a tunnel's legs, and waits a little for the ends to bind with them.
    ///
    /// # Errors
    /// Refuses a tunnel that is not alive, or that is another's without the right to cut it; fails if it cannot be recorded.
    pub(crate) async fn rotate(
        self: &Arc<Self>,
        caller: &Caller,
        id: TunnelId,
        request: RotateTunnel,
    ) -> Result<RotatedTunnel, Refusal> {
        let roles = match (request.source, request.destination) {
            (true, false) => &[Role::Source][..],
            (false, true) => &[Role::Destination],
            _ => &[Role::Source, Role::Destination],
        };
        let live = self.tunnels.get(id).ok_or(Code::NotFound)?;
        if live.facts.operator != caller.name && !self.may(caller, Action::Cut).await? {
            return Err(Code::NotFound.into());
        }
        let begun = Instant::now();
        for &role in roles {
            self.rotate_leg(&live, role, &caller.by()).await?;
        }
        let mut bound = vec![None; roles.len()];
        let mut changes = live.legs.watch();
        let watched = async {
            loop {
                changes.borrow_and_update();
                for (bound, role) in bound.iter_mut().zip(roles) {
                    if bound.is_none() && !live.legs.is_due(*role) {
                        *bound = Some(begun.elapsed());
                    }
                }
                if bound.iter().all(Option::is_some) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let mut phase = live.watch();
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, watched) => {}
            _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))) => {}
            () = self.stopping() => {}
        }
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let legs = roles.iter().zip(bound).map(|(role, bound)| RotatedLeg {
            leg: role.as_str().to_owned(),
            bound_micros: bound.map(micros),
        });
        Ok(RotatedTunnel {
            tunnel: id,
            legs: legs.collect(),
        })
    }

    async fn rotate_leg(&self, live: &Live, role: Role, by: &str) -> Result<(), Code> {
        let rotated = self.store.rotate(live.facts.id, role, by).await;
        let rotations = rotated
            .map_err(|error| self.store_failed(&error))?
            .ok_or(Code::TunnelClosed)?;
        {
            let mut legs = live.legs.state();
            let leg = &mut legs[role as usize];
            // Two at once: the later one counts.
            leg.rotations = leg.rotations.max(rotations);
            leg.due = true;
            self.relay.lock(live.facts.circuit, role)?;
        }
        live.legs.changed();
        if role == Role::Destination
            && let Some(link) = self.links.get(&live.facts.device)
        {
            self.send_rotation(&link, live);
        }
        Ok(())
    }

    /// Sends a device fresh tokens for its legs whose keys were rotated and that have not bound since.
    pub(crate) fn rotate_again(&self, link: &Link) {
        let live = self.tunnels.table().of_identity(&link.peer.identity);
        for live in live {
            if live.legs.is_due(Role::Destination) {
                self.send_rotation(link, &live);
            }
        }
    }

    fn send_rotation(&self, link: &Link, live: &Live) {
        let token = self.token(
            &live.facts,
            Role::Destination,
            &link.peer.identity,
            live.facts.device_key,
        );
        let tunnel = live.facts.id;
        link.send(FromServer::Rotate(Rotate { tunnel, token }));
    }

    /// Returns a fresh source token if the operator's leg has to bind with a new key, for whose leg it is.
    pub(crate) fn source_rotation(&self, caller: &Caller, live: &Live) -> Option<String> {
        let facts = &live.facts;
        let is_holder = caller.name == facts.operator && caller.key == facts.holder_key;
        if !is_holder || !live.legs.is_due(Role::Source) {
            return None;
        }
        let identity = Identity::operator(&self.identity.trust_domain, &facts.operator);
        Some(to_base64(&self.token(
            facts,
            Role::Source,
            &identity,
            facts.holder_key,
        )))
    }

    /// Notes that a leg has bound with its new key.
    pub(super) fn leg_rotated(&self, circuit: CircuitId, role: Role) {
        let live = self.tunnels.table().of_circuit(circuit);
        if let Some(live) = live {
            live.legs.state()[role as usize].due = false;
            live.legs.changed();
        }
    }
}
