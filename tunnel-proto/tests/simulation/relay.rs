//! The relay: the machine of its circuits, and the table by which it forwards, made of nothing but what the machine says.

use std::collections::{BTreeMap, BTreeSet};

use tunnel_proto::bind::{Role, SIZE};
use tunnel_proto::circuit::{Circuits, Opening, Output};
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::{CircuitId, Code};

use crate::address::Addr;

/// A relay process. What it forgets at its end is all of this.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) circuits: Circuits<Addr>,
    from: BTreeMap<Addr, (CircuitId, Role)>,
    to: BTreeMap<(CircuitId, u8), Addr>,
}

/// The key of a leg: it follows from the tunnel and not from the process.
pub(crate) fn key(circuit: CircuitId, role: Role) -> LegKey {
    LegKey::derive(&Secret::new([7; 32]), circuit, role)
}

impl Relay {
    /// Starts a process that finds these circuits in its store.
    pub(crate) fn start(secret: u64, open: &BTreeSet<CircuitId>) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&secret.to_be_bytes());
        let mut relay = Self {
            circuits: Circuits::new(64, &Secret::new(bytes)),
            from: BTreeMap::new(),
            to: BTreeMap::new(),
        };
        for &circuit in open {
            relay.open(circuit, true);
        }
        relay
    }

    pub(crate) fn open(&mut self, circuit: CircuitId, recovered: bool) {
        let opening = Opening {
            deadline: None,
            recovered,
        };
        self.circuits.open(circuit, opening).unwrap();
        for role in [Role::Source, Role::Destination] {
            assert!(self.circuits.admit(circuit, role, key(circuit, role)));
        }
    }

    pub(crate) fn close(&mut self, circuit: CircuitId) -> Vec<(Addr, [u8; SIZE])> {
        assert!(self.circuits.close(circuit, Code::TunnelClosed));
        self.drain()
    }

    pub(crate) fn bind(&mut self, from: Addr, datagram: &[u8]) -> Vec<(Addr, [u8; SIZE])> {
        // What came over UDP may have been written by anybody.
        let doubtful = !matches!(from, Addr::WebSocket(_));
        self.circuits.handle_bind(from, doubtful, datagram);
        let answers = self.drain();
        assert!(
            answers.iter().all(|(to, _)| *to == from),
            "an answer goes to who asked"
        );
        assert!(answers.len() <= 1, "nobody gets more than he sent");
        answers
    }

    pub(crate) fn gone(&mut self, address: Addr) {
        self.circuits.handle_gone(address);
        assert!(self.drain().is_empty());
    }

    /// Returns where data from an address goes.
    pub(crate) fn forward(&self, from: Addr) -> Option<Addr> {
        let (circuit, role) = self.from.get(&from)?;
        self.to.get(&(*circuit, role.other() as u8)).copied()
    }

    fn drain(&mut self) -> Vec<(Addr, [u8; SIZE])> {
        let mut answers = Vec::new();
        while let Some(output) = self.circuits.poll_output() {
            match output {
                Output::Send { to, datagram } => answers.push((to, datagram)),
                Output::Bound { circuit, role, at } => {
                    self.from.insert(at, (circuit, role));
                    self.to.insert((circuit, role as u8), at);
                }
                Output::Released { address } => {
                    self.from.remove(&address);
                    self.to.retain(|_, at| *at != address);
                }
                Output::Lost { circuit, role } => drop(self.to.remove(&(circuit, role as u8))),
                Output::Foreign { .. } | Output::Rotated { .. } | Output::NeverBound { .. } => {}
            }
        }
        answers
    }

    /// Checks the machine, and that the table says the same.
    pub(crate) fn check(&self, open: &BTreeSet<CircuitId>) {
        assert_eq!(self.circuits.check(), Ok(()));
        for (&(circuit, role), &at) in &self.to {
            assert!(
                open.contains(&circuit),
                "a circuit that is closed is forwarded to"
            );
            let role = Role::from_number(role).unwrap();
            assert_eq!(self.circuits.place(circuit, role), Some(at));
            assert_eq!(
                self.from.get(&at),
                Some(&(circuit, role)),
                "who is sent to may send"
            );
        }
        for (circuit, _) in self.from.values() {
            assert!(
                open.contains(circuit),
                "a circuit that is closed is forwarded for"
            );
        }
    }
}
