//! Fresh keys for the legs of a live tunnel: the old one binds nothing from here on, and sessions go on.
//!
//! The new number of rotations is durable before the old key is locked, and an end is given fresh tokens until it has bound
//! with the new key. So a crash at any point leaves the old key or the new one in force, and an end that knows neither yet
//! is asked again.
//!
//! A leg's rotations follow each other: while one is under way, who asks for another is given that one. So no two keys of a
//! leg are on their way to its end, where the older one could come last.

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

/// How long an end has, once it was asked, before it is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the answer waits for the ends to bind with their new keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// The legs of a tunnel, by role.
#[derive(Debug)]
pub(crate) struct Legs {
    state: Mutex<[Leg; 2]>,
    /// Held by who rotates.
    turn: tokio::sync::Mutex<()>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

/// The key of a leg.
#[derive(Clone, Copy, Debug, Default)]
struct Leg {
    rotations: u32,
    due: Due,
}

/// Whether an end has to bind with the key of the last rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Due {
    /// It has, or there was no rotation.
    #[default]
    No,
    /// The server was restarted since, and nobody knows whether it has. The key may be an old one.
    Unknown,
    /// It has not; it was asked to at this time.
    Asked(Instant),
}

impl Legs {
    /// Starts with what the store has. After a restart nobody knows which key an end has, so it is asked once more.
    pub(crate) fn new(rotations: [u32; 2]) -> Self {
        let leg = |rotations| Leg {
            rotations,
            due: if rotations > 0 { Due::Unknown } else { Due::No },
        };
        Self {
            state: Mutex::new(rotations.map(leg)),
            turn: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Says whether an end has to bind with a new key.
    pub(crate) fn is_due(&self, role: Role) -> bool {
        self.state()[role as usize].due != Due::No
    }

    /// Says whether a rotation of the leg is under way, and if so, whether its end is to be asked again.
    fn under_way(&self, role: Role, now: Instant) -> Option<bool> {
        let due = &mut self.state()[role as usize].due;
        let Due::Asked(at) = *due else { return None };
        let again = now >= at + AGAIN;
        if again {
            *due = Due::Asked(now);
        }
        Some(again)
    }

    /// A leg has bound with the key that it has after so many rotations. If there was another one since, it says nothing.
    fn bound(&self, role: Role, rotations: u32) {
        let leg = &mut self.state()[role as usize];
        if leg.rotations == rotations {
            leg.due = Due::No;
        }
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

    /// Rotates the keys of a tunnel's legs, and waits a little for the ends to bind with them. Where a rotation is under
    /// way that this process began, its end is asked again instead.
    ///
    /// # Errors
    /// Refuses who asks too often, and a tunnel that is not alive, or that is another's without the right to cut it; fails if it cannot be recorded.
    pub(crate) async fn rotate(
        self: &Arc<Self>,
        caller: &Caller,
        id: TunnelId,
        request: RotateTunnel,
    ) -> Result<RotatedTunnel, Refusal> {
        if !self.quotas.decisions.take(Instant::now(), &caller.peer.identity) {
            return Err(Code::Limit.into());
        }
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
        let _turn = live.legs.turn.lock().await;
        let under_way = live.legs.under_way(role, Instant::now());
        if under_way.is_none() {
            let rotated = self.store.rotate(live.facts.id, role, by).await;
            let rotations = rotated
                .map_err(|error| self.store_failed(&error))?
                .ok_or(Code::TunnelClosed)?;
            let mut legs = live.legs.state();
            let due = Due::Asked(Instant::now());
            legs[role as usize] = Leg { rotations, due };
            self.relay.lock(live.facts.circuit, role, rotations)?;
        }
        if under_way == Some(false) {
            return Ok(());
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
    pub(super) fn leg_rotated(&self, circuit: CircuitId, role: Role, rotations: u32) {
        let live = self.tunnels.table().of_circuit(circuit);
        if let Some(live) = live {
            live.legs.bound(role, rotations);
            live.legs.changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_rotation_says_nothing_about_the_next() {
        let legs = Legs::new([0; 2]);
        legs.state()[0] = Leg {
            rotations: 2,
            due: Due::Asked(Instant::now()),
        };
        legs.bound(Role::Source, 1);
        assert!(legs.is_due(Role::Source));
        legs.bound(Role::Source, 2);
        assert!(!legs.is_due(Role::Source));
    }

    #[test]
    fn an_end_is_asked_again_now_and_then_and_after_a_restart_the_leg_is_rotated() {
        let (legs, now) = (Legs::new([0, 3]), Instant::now());
        assert_eq!(legs.under_way(Role::Source, now), None);
        assert!(legs.is_due(Role::Destination));
        assert_eq!(
            legs.under_way(Role::Destination, now),
            None,
            "its key may be an old one"
        );
        legs.state()[0].due = Due::Asked(now);
        assert_eq!(legs.under_way(Role::Source, now), Some(false));
        assert_eq!(legs.under_way(Role::Source, now + AGAIN), Some(true));
        assert_eq!(legs.under_way(Role::Source, now + AGAIN), Some(false));
    }
}
