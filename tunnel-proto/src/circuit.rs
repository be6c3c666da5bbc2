//! The circuits of a relay: which leg is bound to which address, and what a bind message changes.
//!
//! A circuit is opened and its legs are admitted by the control plane. An admitted leg shows by bind messages where it is:
//! each that comes from elsewhere than the leg is gets a challenge first, so that only who hears the relay at the new
//! address moves the leg there. Only where the transport proves the address, as TCP does, the first one ties it at once.
//! Everything else gets silence and changes nothing.
//!
//! Calls leave outputs behind; the caller drains them by [`Circuits::poll_output`] after each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use ring::hmac;

use crate::bind::{Control, Kind, Role, SIZE};
use crate::code::Code;
use crate::ids::CircuitId;
use crate::keys::{LegKey, Secret};

#[cfg(test)]
mod tests;

/// Where a leg can be.
pub trait Address: Copy + Ord + std::fmt::Debug {
    /// Returns bytes that no other address has, for the challenge that belongs to this one.
    fn bytes(&self) -> [u8; 18];
}

impl Address for SocketAddr {
    fn bytes(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        let ip = match self {
            Self::V4(v4) => v4.ip().to_ipv6_mapped(),
            Self::V6(v6) => *v6.ip(),
        };
        bytes[..16].copy_from_slice(&ip.octets());
        bytes[16..].copy_from_slice(&self.port().to_be_bytes());
        bytes
    }
}

/// What the caller is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output<A> {
    /// Send a control datagram.
    Send {
        /// Its receiver: who sent the bind that it answers, or a leg of a circuit that was closed.
        to: A,
        /// The datagram.
        datagram: [u8; SIZE],
    },
    /// A leg is at an address: send there what is for it, and forward what comes from there.
    Bound {
        /// The circuit.
        circuit: CircuitId,
        /// The leg.
        role: Role,
        /// Where it is.
        at: A,
    },
    /// An address is no leg's any more: forward nothing that comes from there.
    Released {
        /// The address.
        address: A,
    },
    /// A leg is nowhere: its address went away, or was proved by another leg.
    Lost {
        /// The circuit.
        circuit: CircuitId,
        /// The leg.
        role: Role,
    },
    /// Somebody at a bound address sent a bind that is not its own leg's (THREATS DAT-07).
    Foreign {
        /// The circuit whose leg is bound there.
        circuit: CircuitId,
        /// That leg.
        role: Role,
    },
    /// A leg whose key was rotated has bound with the new one.
    Rotated {
        /// The circuit.
        circuit: CircuitId,
        /// The leg.
        role: Role,
        /// The number of the rotation, as it was locked for.
        rotation: u32,
    },
    /// The deadline of a circuit has passed before both of its legs were bound.
    NeverBound {
        /// The circuit.
        circuit: CircuitId,
    },
}

/// How a circuit is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening {
    /// Until when both legs must have been bound once.
    pub deadline: Option<Instant>,
    /// The circuit existed before a restart of the relay. Its counters are forgotten, so even a first bind is challenged:
    /// a captured one would be as good as the real one otherwise.
    pub recovered: bool,
}

/// Why a circuit cannot be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// There are as many circuits as there may be.
    #[error("the relay holds as many circuits as it may")]
    Full,
    /// There is one of this id.
    #[error("the circuit is open already")]
    Exists,
}

/// How many binds were refused, by cause. Whoever sent one got silence, whatever the cause (THREATS I8).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RefusedBinds {
    /// They were no bind messages by their form.
    pub malformed: u64,
    /// They named a leg that is not admitted, or were not made with its key.
    pub wrong_key: u64,
    /// Their counter had been used before.
    pub old_counter: u64,
    /// They named a circuit that the relay has never had, or has long forgotten.
    pub unknown_circuit: u64,
    /// They named a circuit that has ended.
    pub ended_tunnel: u64,
    /// They came from where the other leg of the same circuit is.
    pub both_ends: u64,
}

/// Circuits that are remembered after their end, so that binds for them are counted as what they are.
const MAX_ENDED: usize = 4096;

/// The circuits that ended last.
#[derive(Debug, Default)]
struct Ended {
    known: BTreeSet<CircuitId>,
    order: VecDeque<CircuitId>,
}

impl Ended {
    fn add(&mut self, circuit: CircuitId) {
        if !self.known.insert(circuit) {
            return;
        }
        self.order.push_back(circuit);
        if self.order.len() > MAX_ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// The circuits of one relay.
#[derive(Debug)]
pub struct Circuits<A> {
    max: usize,
    challenges: hmac::Key,
    /// Checked in place of the key of a leg that is not there, so that a miss takes as long as a hit (THREATS DAT-05).
    decoy: LegKey,
    circuits: BTreeMap<CircuitId, Circuit<A>>,
    addresses: BTreeMap<A, (CircuitId, Role)>,
    deadlines: BTreeSet<(Instant, CircuitId)>,
    ended: Ended,
    refused: RefusedBinds,
    outputs: VecDeque<Output<A>>,
}

#[derive(Debug)]
struct Circuit<A> {
    legs: [Leg<A>; 2],
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Leg<A> {
    /// There once the leg is admitted.
    key: Option<LegKey>,
    /// Its key counts no more for binds, and it has not bound with the next one. What is bound goes on.
    rotating: Rotating,
    place: Place<A>,
    /// Where the leg was until it moved: what it sent from there just before is still taken.
    before: Option<A>,
    /// Lowest counter that a bind may have.
    lowest: u64,
    bound_once: bool,
}

/// How far the rotation of a leg's key is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rotating {
    /// None is under way.
    No,
    /// The old key counts no more, and the one of this rotation was not handed out.
    Locked(u32),
    /// The key of this rotation was handed out, and the leg has not bound with it.
    Admitted(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place<A> {
    /// Nowhere, and the next bind counts at once.
    New,
    /// Nowhere, and the next bind is challenged.
    Unproven,
    /// Bound.
    At(A),
}

/// What an authentic bind leads to.
enum Answer {
    /// Silence: the counter was used before.
    OldCounter,
    /// Silence: the circuit's other leg is there.
    BothEnds,
    Challenge,
    Bound,
}

impl<A: Address> Circuits<A> {
    /// Makes room for at most `max` circuits. The secret is drawn at random at each start of the relay.
    pub fn new(max: usize, secret: &Secret) -> Self {
        Self {
            max,
            challenges: hmac::Key::new(hmac::HMAC_SHA256, secret.expose()),
            decoy: LegKey::new(secret.clone()),
            circuits: BTreeMap::new(),
            addresses: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ended: Ended::default(),
            refused: RefusedBinds::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Opens a circuit. Its legs are bound to nothing and nobody is admitted.
    ///
    /// # Errors
    /// Fails when there is one of this id, or no room.
    pub fn open(&mut self, circuit: CircuitId, opening: Opening) -> Result<(), OpenError> {
        if self.circuits.contains_key(&circuit) {
            return Err(OpenError::Exists);
        }
        if self.circuits.len() >= self.max {
            return Err(OpenError::Full);
        }
        let place = if opening.recovered {
            Place::Unproven
        } else {
            Place::New
        };
        let leg = || Leg {
            key: None,
            rotating: Rotating::No,
            place,
            before: None,
            lowest: 0,
            bound_once: false,
        };
        let state = Circuit {
            legs: [leg(), leg()],
            deadline: opening.deadline,
        };
        self.circuits.insert(circuit, state);
        if let Some(deadline) = opening.deadline {
            self.deadlines.insert((deadline, circuit));
        }
        self.debug_check(circuit);
        Ok(())
    }

    /// Lets a leg bind with its key. Says whether there is such a circuit.
    #[must_use]
    pub fn admit(&mut self, circuit: CircuitId, role: Role, key: LegKey) -> bool {
        let Some(state) = self.circuits.get_mut(&circuit) else {
            return false;
        };
        let leg = &mut state.legs[role as usize];
        leg.key = Some(key);
        if let Rotating::Locked(rotation) = leg.rotating {
            leg.rotating = Rotating::Admitted(rotation);
            // What was counted with the old key says nothing about the new one: who had stolen it may have counted far.
            leg.lowest = 0;
        }
        true
    }

    /// Takes the right to bind from a leg's key until the leg is admitted with another one. What is bound stays where it
    /// is. The number comes back with [`Output::Rotated`]. Says whether there is such a circuit.
    #[must_use]
    pub fn lock(&mut self, circuit: CircuitId, role: Role, rotation: u32) -> bool {
        let Some(state) = self.circuits.get_mut(&circuit) else {
            return false;
        };
        state.legs[role as usize].rotating = Rotating::Locked(rotation);
        true
    }

    /// Closes a circuit and tells the legs that are bound why. Says whether there was one.
    pub fn close(&mut self, circuit: CircuitId, why: Code) -> bool {
        let Some(state) = self.circuits.remove(&circuit) else {
            return false;
        };
        self.ended.add(circuit);
        if let Some(deadline) = state.deadline {
            self.deadlines.remove(&(deadline, circuit));
        }
        for (leg, role) in state.legs.iter().zip([Role::Source, Role::Destination]) {
            if let (Place::At(to), Some(key)) = (leg.place, &leg.key) {
                let counter = leg.lowest.saturating_sub(1);
                let ended = Control {
                    kind: Kind::Ended,
                    circuit,
                    role,
                    counter,
                    value: why as u64,
                };
                self.outputs.push_back(Output::Send {
                    to,
                    datagram: ended.encode(key),
                });
                self.release(to);
            }
            if let Some(before) = leg.before {
                self.release(before);
            }
        }
        true
    }

    /// A datagram came that may be a bind message. Anything but an authentic bind of an admitted leg gets silence.
    ///
    /// A `doubtful` address is one that anybody could have written on the datagram, as all of UDP are: it is challenged
    /// even when the leg was never bound. Without that, one spoofed bind would make the relay send to any host that the
    /// spoofer names, and take what it answers for the leg's (THREATS DAT-10); and since no relay answers a challenge,
    /// relays are never made to forward to each other (THREATS DAT-11).
    pub fn handle_bind(&mut self, from: A, doubtful: bool, datagram: &[u8]) {
        let Some(bind) = Control::decode(datagram).filter(|bind| bind.kind == Kind::Bind) else {
            self.refused.malformed += 1;
            return;
        };
        let leg = self
            .circuits
            .get(&bind.circuit)
            .map(|circuit| &circuit.legs[bind.role as usize]);
        let key = leg
            .filter(|leg| !matches!(leg.rotating, Rotating::Locked(_)))
            .and_then(|leg| leg.key.as_ref());
        let authentic = Control::is_authentic(datagram, key.unwrap_or(&self.decoy));
        let (Some(leg), Some(key), true) = (leg, key, authentic) else {
            self.count_unauthentic(&bind);
            self.note_foreign(from);
            return;
        };
        let challenge = self.challenge(&bind, from);
        let (kind, value) = match self.answer(leg, &bind, from, doubtful, challenge) {
            Answer::OldCounter => {
                self.refused.old_counter += 1;
                return;
            }
            Answer::BothEnds => {
                self.refused.both_ends += 1;
                return;
            }
            Answer::Challenge => (Kind::Challenge, challenge),
            Answer::Bound => (Kind::Bound, 0),
        };
        let answer = Control { kind, value, ..bind }.encode(key);
        if kind == Kind::Bound {
            self.bind(&bind, from);
        }
        self.outputs.push_back(Output::Send {
            to: from,
            datagram: answer,
        });
        self.debug_check(bind.circuit);
    }

    /// An address has ceased to exist, as that of a WebSocket connection does when it closes.
    pub fn handle_gone(&mut self, address: A) {
        let Some((circuit, role)) = self.addresses.get(&address).copied() else {
            return;
        };
        self.take_away(address, circuit, role);
        self.debug_check(circuit);
    }

    /// Reports the circuits whose deadline has passed. Call it when [`Circuits::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, circuit)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.pop_first();
            if let Some(state) = self.circuits.get_mut(&circuit) {
                state.deadline = None;
            }
            self.outputs.push_back(Output::NeverBound { circuit });
        }
    }

    /// Returns when [`Circuits::handle_timeout`] is to be called next. Opening, closing and binding change the answer.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Returns what is to be done next. Call it after every other call until it returns `None`.
    pub fn poll_output(&mut self) -> Option<Output<A>> {
        self.outputs.pop_front()
    }

    /// Returns where a leg is.
    pub fn place(&self, circuit: CircuitId, role: Role) -> Option<A> {
        match self.circuits.get(&circuit)?.legs[role as usize].place {
            Place::At(address) => Some(address),
            Place::New | Place::Unproven => None,
        }
    }

    /// Returns how many binds were refused so far.
    pub const fn refused(&self) -> RefusedBinds {
        self.refused
    }

    /// Returns a number that grows with each authentic bind of a leg.
    pub fn binds(&self, circuit: CircuitId, role: Role) -> Option<u64> {
        Some(self.circuits.get(&circuit)?.legs[role as usize].lowest)
    }

    /// Returns how many circuits are open.
    pub fn len(&self) -> usize {
        self.circuits.len()
    }

    /// Says whether no circuit is open.
    pub fn is_empty(&self) -> bool {
        self.circuits.is_empty()
    }

    /// Decides about an authentic bind of an admitted leg.
    fn answer(&self, leg: &Leg<A>, bind: &Control, from: A, doubtful: bool, challenge: u64) -> Answer {
        if bind.counter < leg.lowest || bind.counter == u64::MAX {
            return Answer::OldCounter;
        }
        let owner = self.addresses.get(&from).copied();
        if owner == Some((bind.circuit, bind.role.other())) {
            // One address cannot be both ends: it would be sent its own datagrams.
            return Answer::BothEnds;
        }
        if leg.place == Place::At(from) {
            return Answer::Bound;
        }
        let free = owner.is_none() && leg.place == Place::New && !doubtful;
        if free || bind.value == challenge {
            Answer::Bound
        } else {
            Answer::Challenge
        }
    }

    /// Ties a leg to an address. The address is its own from here on, whosever it was before.
    fn bind(&mut self, bind: &Control, from: A) {
        let (circuit, role) = (bind.circuit, bind.role);
        if let Some((other, other_role)) = self.addresses.get(&from).copied()
            && (other, other_role) != (circuit, role)
        {
            self.take_away(from, other, other_role);
        }
        let Some(state) = self.circuits.get_mut(&circuit) else {
            return;
        };
        let leg = &mut state.legs[role as usize];
        leg.lowest = bind.counter + 1;
        leg.bound_once = true;
        if let Rotating::Locked(rotation) | Rotating::Admitted(rotation) =
            std::mem::replace(&mut leg.rotating, Rotating::No)
        {
            self.outputs.push_back(Output::Rotated {
                circuit,
                role,
                rotation,
            });
        }
        let was = std::mem::replace(&mut leg.place, Place::At(from));
        if was != Place::At(from) {
            let forgotten = leg.before.take().filter(|&before| before != from);
            if let Place::At(was) = was {
                leg.before = Some(was);
            }
            if let Some(forgotten) = forgotten {
                self.release(forgotten);
            }
            self.addresses.insert(from, (circuit, role));
            self.outputs.push_back(Output::Bound {
                circuit,
                role,
                at: from,
            });
        }
        self.settle_deadline(circuit);
    }

    /// Takes an address away from the leg that has it.
    fn take_away(&mut self, address: A, circuit: CircuitId, role: Role) {
        let Some(state) = self.circuits.get_mut(&circuit) else {
            return;
        };
        let leg = &mut state.legs[role as usize];
        if leg.before == Some(address) {
            leg.before = None;
        }
        if leg.place == Place::At(address) {
            leg.place = Place::Unproven;
            self.outputs.push_back(Output::Lost { circuit, role });
        }
        self.release(address);
    }

    fn release(&mut self, address: A) {
        if self.addresses.remove(&address).is_some() {
            self.outputs.push_back(Output::Released { address });
        }
    }

    fn settle_deadline(&mut self, circuit: CircuitId) {
        let Some(state) = self.circuits.get_mut(&circuit) else {
            return;
        };
        if state.legs.iter().all(|leg| leg.bound_once)
            && let Some(deadline) = state.deadline.take()
        {
            self.deadlines.remove(&(deadline, circuit));
        }
    }

    /// Counts a bind that no leg has made. The work with its key is done by then, the same for each cause.
    fn count_unauthentic(&mut self, bind: &Control) {
        let count = if self.circuits.contains_key(&bind.circuit) {
            &mut self.refused.wrong_key
        } else if self.ended.known.contains(&bind.circuit) {
            &mut self.refused.ended_tunnel
        } else {
            &mut self.refused.unknown_circuit
        };
        *count += 1;
    }

    fn note_foreign(&mut self, from: A) {
        if let Some(&(circuit, role)) = self.addresses.get(&from) {
            self.outputs.push_back(Output::Foreign { circuit, role });
        }
    }

    /// Returns the value that shows that a leg hears us at an address. It is never 0, which means "none".
    ///
    /// Nothing is stored for it: it is made again from the secret, so that challenges cost no memory.
    fn challenge(&self, bind: &Control, from: A) -> u64 {
        let mut data = [0; 35];
        data[..16].copy_from_slice(bind.circuit.as_bytes());
        data[16] = bind.role as u8;
        data[17..].copy_from_slice(&from.bytes());
        let tag = hmac::sign(&self.challenges, &data);
        let mut value = [0; 8];
        value.copy_from_slice(&tag.as_ref()[..8]);
        u64::from_be_bytes(value).max(1)
    }

    /// Names the first invariant that does not hold.
    ///
    /// # Errors
    /// - C1: there are at most as many circuits as there is room for.
    /// - C2: an address belongs to one leg, and that leg is or was just there.
    /// - C3: a leg that is somewhere was admitted.
    /// - C4: the two legs of a circuit are in different places.
    /// - C5: a circuit with a deadline is listed, and has a leg that was never bound.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.circuits.len() > self.max {
            return Err("C1");
        }
        if !self
            .addresses
            .iter()
            .all(|(&address, &(circuit, role))| self.is_of(address, circuit, role))
        {
            return Err("C2");
        }
        if !self
            .deadlines
            .iter()
            .all(|(at, id)| self.circuits.get(id).is_some_and(|c| c.deadline == Some(*at)))
        {
            return Err("C5");
        }
        self.circuits
            .keys()
            .try_for_each(|&circuit| self.check_circuit(circuit))
    }

    fn is_of(&self, address: A, circuit: CircuitId, role: Role) -> bool {
        let leg = self
            .circuits
            .get(&circuit)
            .map(|state| &state.legs[role as usize]);
        leg.is_some_and(|leg| leg.place == Place::At(address) || leg.before == Some(address))
    }

    fn check_circuit(&self, id: CircuitId) -> Result<(), &'static str> {
        let Some(circuit) = self.circuits.get(&id) else {
            return Ok(());
        };
        for (leg, role) in circuit.legs.iter().zip([Role::Source, Role::Destination]) {
            let at = match leg.place {
                Place::At(address) => Some(address),
                Place::New | Place::Unproven => None,
            };
            if at
                .into_iter()
                .chain(leg.before)
                .any(|address| self.addresses.get(&address) != Some(&(id, role)))
            {
                return Err("C2");
            }
            if at.is_some() && (leg.key.is_none() || !leg.bound_once) {
                return Err("C3");
            }
        }
        let [source, destination] = &circuit.legs;
        if matches!(source.place, Place::At(_)) && source.place == destination.place {
            return Err("C4");
        }
        let waiting = circuit.deadline.is_some_and(|deadline| {
            self.deadlines.contains(&(deadline, id)) && circuit.legs.iter().any(|leg| !leg.bound_once)
        });
        if circuit.deadline.is_some() && !waiting {
            return Err("C5");
        }
        Ok(())
    }

    fn debug_check(&self, circuit: CircuitId) {
        debug_assert_eq!(self.check_circuit(circuit), Ok(()));
    }
}
