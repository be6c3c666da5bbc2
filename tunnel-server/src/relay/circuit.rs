//! A circuit as the forwarding threads see it: two ways, each with a gate, a destination and its counts.
//!
//! Nothing here locks or allocates while both legs are bound to UDP addresses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use tunnel_proto::CircuitId;
use tunnel_proto::api::{LegPath, Traffic};
use tunnel_proto::bind::Role;
use tunnel_proto::carrier::Carrier;

use super::CircuitSpec;
use super::address;
use super::budget::{Budget, Spend};
use super::connection::Connection;
use super::gate::Gate;
use super::train::{Sent, Train};
use super::udp::{Socket, Target};

/// Datagrams that are kept for a leg that is not bound yet: the first flight of a handshake.
const EARLY_DATAGRAMS: usize = 8;

/// Bytes that are kept for a leg that is not bound yet.
const EARLY_BYTES: usize = 16 * 1024;

/// Places of legs that are kept for the record of a tunnel.
const MAX_PATHS: usize = 8;

/// Where a leg is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At a UDP address.
    Udp(Target),
    /// At the other end of a WebSocket connection.
    WebSocket(Arc<Connection>),
}

impl Place {
    /// Returns how datagrams get there.
    pub(super) const fn carrier(&self) -> Carrier {
        match self {
            Self::Udp(_) => Carrier::Udp,
            Self::WebSocket(_) => Carrier::WebSocket,
        }
    }

    /// Returns the address that the network shows.
    fn seen(&self) -> SocketAddr {
        address::canonical(match self {
            Self::Udp(target) => target.to,
            Self::WebSocket(connection) => connection.peer(),
        })
    }

    /// Returns the address that the circuit machine knows it by.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(target) => target.to,
            Self::WebSocket(connection) => connection.address(),
        }
    }

    /// Sends a control datagram there.
    pub(super) fn send_control(&self, datagram: &[u8], socket: &Socket) {
        match self {
            Self::Udp(target) => {
                if let Some(train) = Train::new(datagram, datagram.len(), None) {
                    socket.send(*target, train);
                }
            }
            Self::WebSocket(connection) => connection.queue().push_control(datagram),
        }
    }

    fn send(&self, train: Train<'_>, socket: &Socket) -> Sent {
        match self {
            Self::Udp(target) => socket.send(*target, train),
            Self::WebSocket(connection) => connection.queue().push(train),
        }
    }
}

/// What became of a train.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It was sent, kept, or dropped and counted.
    Done,
    /// As `Done`, and what the circuit has spent of its byte limit is to be written down.
    Due,
    /// It was dropped, and it is the first that the circuit's byte limit does not allow.
    LimitReached,
}

/// Whose datagrams come from an address.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The circuit.
    pub(super) circuit: Arc<Circuit>,
    /// The leg at the address.
    pub(super) role: Role,
}

impl Route {
    /// Forwards what came from the address.
    pub(super) fn forward(&self, train: Train<'_>, socket: &Socket) -> Verdict {
        self.circuit.forward(self.role, train, socket)
    }
}

/// One open circuit.
#[derive(Debug)]
pub(super) struct Circuit {
    id: CircuitId,
    ways: [Way; 2],
    budget: Budget,
    paths: Mutex<Vec<LegPath>>,
}

/// The way from one leg to the other. Aligned to two cache lines, since two threads work on the two ways.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Way {
    gate: Gate,
    to: ArcSwapOption<Place>,
    bytes: AtomicU64,
    datagrams: AtomicU64,
    dropped: AtomicU64,
    early: Mutex<Early>,
}

/// What was sent to a leg before it was bound.
#[derive(Debug, Default)]
struct Early {
    datagrams: Vec<Vec<u8>>,
    bytes: usize,
}

impl Circuit {
    /// Opens a circuit with its limits.
    pub(super) fn new(spec: &CircuitSpec) -> Self {
        Self {
            id: spec.circuit,
            ways: Default::default(),
            budget: Budget::new(spec.max_bytes, spec.spent_bytes, spec.max_bytes_per_sec),
            paths: Mutex::default(),
        }
    }

    /// Returns the circuit's id.
    pub(super) const fn id(&self) -> CircuitId {
        self.id
    }

    /// Forwards what came from a leg to the other one.
    ///
    /// INVARIANT: nothing is sent but between entering and leaving the way's gate; [`Circuit::shut`] relies on it.
    pub(super) fn forward(&self, from: Role, train: Train<'_>, socket: &Socket) -> Verdict {
        let way = &self.ways[from as usize];
        let Some(_pass) = way.gate.enter() else {
            return Verdict::Done;
        };
        let verdict = match self.budget.spend(train.bytes.len(), train.len()) {
            Spend::Allowed => Verdict::Done,
            Spend::Due => Verdict::Due,
            Spend::TooFast => {
                way.count(train, Sent::default());
                return Verdict::Done;
            }
            Spend::UsedUp { first } => {
                way.count(train, Sent::default());
                return if first {
                    Verdict::LimitReached
                } else {
                    Verdict::Done
                };
            }
        };
        match way.to.load().as_deref() {
            Some(place) => way.count(train, place.send(train, socket)),
            None => way.keep(train, socket),
        }
        verdict
    }

    /// Says where a leg is from now on; `None` when nobody knows.
    pub(super) fn set_place(&self, role: Role, place: Option<Place>) {
        if let Some(place) = &place {
            self.note_path(role, place);
        }
        self.ways[role.other() as usize].to.store(place.map(Arc::new));
    }

    /// Keeps where a leg is for the record: the first place of each, and of the others the last ones.
    fn note_path(&self, role: Role, place: &Place) {
        let path = LegPath {
            leg: role.as_str().to_owned(),
            carrier: place.carrier().as_str().to_owned(),
            address: place.seen().to_string(),
        };
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.iter().rev().find(|last| last.leg == path.leg) == Some(&path) {
            return;
        }
        if paths.len() >= MAX_PATHS {
            paths.remove(2);
        }
        paths.push(path);
    }

    /// Returns where a leg is.
    pub(super) fn place(&self, role: Role) -> Option<Arc<Place>> {
        self.ways[role.other() as usize].to.load_full()
    }

    /// Sends a leg what was kept for it. To be called after [`Circuit::set_place`].
    pub(super) fn send_early(&self, to: Role, socket: &Socket) {
        let way = &self.ways[to.other() as usize];
        let Some(_pass) = way.gate.enter() else { return };
        let mut early = way.early();
        let place = way.to.load();
        let Some(place) = place.as_deref() else { return };
        for datagram in std::mem::take(&mut *early).datagrams {
            if let Some(train) = Train::new(&datagram, datagram.len(), None) {
                way.count(train, place.send(train, socket));
            }
        }
    }

    /// Ends all forwarding.
    ///
    /// After this has returned, no byte is handed to a UDP socket or to a connection's queue for the circuit, and what
    /// waited in queues or was kept is gone. A WebSocket message whose writing had begun, of at most 60 KB, is finished,
    /// since a message cannot be broken off without the connection.
    pub(super) fn shut(&self) {
        for way in &self.ways {
            way.gate.shut();
        }
        for way in &self.ways {
            *way.early() = Early::default();
            if let Some(Place::WebSocket(connection)) = way.to.swap(None).as_deref() {
                connection.queue().clear();
            }
        }
    }

    /// Returns how many datagrams have come from a leg so far.
    pub(super) fn heard(&self, from: Role) -> u64 {
        let way = &self.ways[from as usize];
        let (sent, dropped) = (
            way.datagrams.load(Ordering::Relaxed),
            way.dropped.load(Ordering::Relaxed),
        );
        sent.wrapping_add(dropped)
    }

    /// Returns how much of its byte limit is spent, if it has one.
    pub(super) fn spent(&self) -> Option<u64> {
        self.budget.spent()
    }

    /// Returns what was forwarded so far.
    pub(super) fn traffic(&self) -> Traffic {
        let [source, destination] = &self.ways;
        let carrier = |role| self.place(role).map(|place| place.carrier().as_str().to_owned());
        Traffic {
            bytes_in: source.bytes.load(Ordering::Relaxed),
            bytes_out: destination.bytes.load(Ordering::Relaxed),
            datagrams_in: source.datagrams.load(Ordering::Relaxed),
            datagrams_out: destination.datagrams.load(Ordering::Relaxed),
            dropped: source.dropped.load(Ordering::Relaxed) + destination.dropped.load(Ordering::Relaxed),
            source_carrier: carrier(Role::Source),
            destination_carrier: carrier(Role::Destination),
            paths: self.paths.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Way {
    fn count(&self, train: Train<'_>, sent: Sent) {
        self.bytes.fetch_add(sent.bytes as u64, Ordering::Relaxed);
        self.datagrams.fetch_add(sent.datagrams as u64, Ordering::Relaxed);
        let dropped = train.len() - sent.datagrams;
        if dropped > 0 {
            self.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        }
    }

    /// Keeps what came before the other leg was bound.
    ///
    /// The place is read again under the lock: whoever binds sets it first and empties the store under the same lock
    /// afterwards, so that nothing is left lying.
    fn keep(&self, train: Train<'_>, socket: &Socket) {
        let mut early = self.early();
        if let Some(place) = self.to.load().as_deref() {
            self.count(train, place.send(train, socket));
            return;
        }
        for datagram in train.datagrams() {
            let fits = early.bytes + datagram.len() <= EARLY_BYTES;
            if fits && early.datagrams.len() < EARLY_DATAGRAMS {
                early.bytes += datagram.len();
                early.datagrams.push(datagram.to_vec());
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn early(&self) -> std::sync::MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
