//! What the forwarding threads, the WebSocket connections and the endpoint of one relay share.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tunnel_proto::api::Traffic;
use tunnel_proto::bind::{self, PADDED_SIZE, RESTARTED, Role, SIZE};
use tunnel_proto::circuit::{Circuits, OpenError, Opening, Output};
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::{CircuitId, Code};

use super::circuit::{Circuit, Place, Route, Verdict};
use super::connection::{Connection, Connections};
use super::inbox::Inbox;
use super::mailbox::{Change, Mailbox};
use super::train::Train;
use super::udp::{Socket, Target};
use super::{CircuitSpec, RelayConfig, RelayEvent, RelayStats, address};

/// Events that wait for the control plane at most, for each circuit that there may be. Only moves of legs can be more, and
/// of those the oldest is given up.
const EVENTS_PER_CIRCUIT: usize = 4;

/// The parts of a relay.
#[derive(Debug)]
pub(super) struct Shared {
    local: SocketAddr,
    secret: Secret,
    bind_deadline: Duration,
    websocket_useless: Duration,
    websocket_idle: Duration,
    max_events: usize,
    sockets: Vec<Arc<Socket>>,
    mailboxes: Vec<Mailbox>,
    inbox: Inbox,
    connections: Connections,
    state: Mutex<State>,
    events: Mutex<VecDeque<RelayEvent>>,
    stop: CancellationToken,
    /// Wakes the task that tells events and watches deadlines.
    work: Notify,
    foreign: AtomicU64,
    unknown: AtomicU64,
    /// Control datagrams of no valid length.
    malformed: AtomicU64,
}

/// What only binds and the control plane change.
///
/// INVARIANT: `open` has exactly the circuits of the machine. Places, routes and mailboxes are written under this lock
/// alone, so that they follow the machine's outputs in their order.
#[derive(Debug)]
struct State {
    machine: Circuits<SocketAddr>,
    open: HashMap<CircuitId, Arc<Circuit>>,
}

/// How a control datagram came in, and how it is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Via<'a> {
    /// Over a UDP socket, at one of our addresses.
    Udp(Target),
    /// Over a WebSocket connection.
    WebSocket(&'a Arc<Connection>),
}

impl Via<'_> {
    fn place(self) -> Place {
        match self {
            Self::Udp(target) => Place::Udp(target),
            Self::WebSocket(connection) => Place::WebSocket(Arc::clone(connection)),
        }
    }
}

/// What a bind leads to outside of the lock.
#[derive(Default)]
struct After {
    answer: Option<[u8; SIZE]>,
    moved: Option<(Arc<Circuit>, Role)>,
}

impl Shared {
    /// Puts the parts together.
    pub(super) fn new(
        config: &RelayConfig,
        process_secret: &Secret,
        sockets: Vec<Arc<Socket>>,
    ) -> std::io::Result<Self> {
        let local = match sockets.first() {
            Some(socket) => socket.local_addr()?,
            None => return Err(std::io::ErrorKind::InvalidInput.into()),
        };
        let mailboxes = sockets.iter().map(|_| Mailbox::new()).collect::<Result<_, _>>()?;
        Ok(Self {
            local,
            secret: config.secret.clone(),
            bind_deadline: config.bind_deadline,
            websocket_useless: config.websocket_useless,
            websocket_idle: config.websocket_idle,
            max_events: config.max_circuits.saturating_mul(EVENTS_PER_CIRCUIT),
            inbox: Inbox::new(sockets.len() + 1),
            sockets,
            mailboxes,
            connections: Connections::new(config.max_connections),
            state: Mutex::new(State {
                machine: Circuits::new(config.max_circuits, process_secret),
                open: HashMap::new(),
            }),
            events: Mutex::default(),
            stop: CancellationToken::new(),
            work: Notify::new(),
            foreign: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
        })
    }

    /// Returns the address that the relay listens on.
    pub(super) const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns the socket of what no thread sends.
    pub(super) fn first_socket(&self) -> &Socket {
        &self.sockets[0]
    }

    /// Returns the socket of a WebSocket connection's datagrams: the connections share the sockets evenly.
    pub(super) fn socket_of(&self, connection: &Connection) -> &Socket {
        let number = address::connection(connection.address()).unwrap_or_default() as usize;
        &self.sockets[number % self.sockets.len()]
    }

    /// Returns the socket of a thread.
    pub(super) fn socket(&self, number: usize) -> &Arc<Socket> {
        &self.sockets[number]
    }

    /// Returns the mailbox of a thread.
    pub(super) fn mailbox(&self, number: usize) -> &Mailbox {
        &self.mailboxes[number]
    }

    /// Returns what the endpoint is to receive.
    pub(super) const fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Returns the WebSocket connections.
    pub(super) const fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Returns how long a WebSocket connection may be of no use, and how long without any message.
    pub(super) const fn websocket_patience(&self) -> (Duration, Duration) {
        (self.websocket_useless, self.websocket_idle)
    }

    /// Returns the token that ends everything.
    pub(super) const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Stops threads, connections and tasks.
    pub(super) fn stop_all(&self) {
        self.stop.cancel();
        self.mailboxes.iter().for_each(Mailbox::stop);
    }

    /// Tells the other end of a control link of before that the server was started anew.
    pub(super) fn tell_restarted(&self, to: SocketAddr) {
        let to = address::for_socket(self.local, to);
        let train = Train::new(&RESTARTED, RESTARTED.len(), None);
        if let (Some(socket), Some(train)) = (self.sockets.first(), train) {
            socket.send(Target { to, from: None }, train);
        }
    }

    /// Opens a circuit.
    pub(super) fn open(&self, spec: &CircuitSpec) -> Result<(), Code> {
        let deadline = (!spec.recovered).then(|| Instant::now() + self.bind_deadline);
        let mut state = self.state();
        let opening = Opening {
            deadline,
            recovered: spec.recovered,
        };
        state
            .machine
            .open(spec.circuit, opening)
            .map_err(|error| match error {
                OpenError::Full => Code::Limit,
                OpenError::Exists => Code::Internal,
            })?;
        state.open.insert(spec.circuit, Arc::new(Circuit::new(spec)));
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Lets a leg bind.
    pub(super) fn admit(&self, circuit: CircuitId, role: Role, rotations: u32) -> Result<LegKey, Code> {
        let key = LegKey::derive_rotated(&self.secret, circuit, role, rotations);
        if self.state().machine.admit(circuit, role, key.clone()) {
            Ok(key)
        } else {
            Err(Code::NotFound)
        }
    }

    /// Lets a leg's key bind no more.
    pub(super) fn lock(&self, circuit: CircuitId, role: Role, rotations: u32) -> Result<(), Code> {
        match self.state().machine.lock(circuit, role, rotations) {
            true => Ok(()),
            false => Err(Code::NotFound),
        }
    }

    /// Ends a circuit: first its forwarding, then the legs are told.
    pub(super) fn close(&self, id: CircuitId, why: Code) -> Option<Traffic> {
        let (circuit, places, outputs) = {
            let mut state = self.state();
            let circuit = state.open.remove(&id)?;
            state.machine.close(id, why);
            let places = [Role::Source, Role::Destination].map(|role| circuit.place(role));
            let outputs: Vec<_> = std::iter::from_fn(|| state.machine.poll_output()).collect();
            for output in &outputs {
                if let Output::Released { address } = output {
                    self.release(*address);
                }
            }
            (circuit, places, outputs)
        };
        let traffic = circuit.traffic();
        circuit.shut();
        for output in outputs {
            let Output::Send { to, datagram } = output else {
                continue;
            };
            if let Some(place) = places.iter().flatten().find(|place| place.address() == to) {
                place.send_control(&datagram, self.first_socket());
            }
        }
        let Traffic {
            source_carrier,
            destination_carrier,
            ..
        } = traffic;
        Some(Traffic {
            source_carrier,
            destination_carrier,
            ..circuit.traffic()
        })
    }

    /// Returns how much of its byte limit a circuit has spent, if it has one.
    pub(super) fn spent(&self, circuit: CircuitId) -> Option<u64> {
        let circuit = Arc::clone(self.state().open.get(&circuit)?);
        circuit.spent()
    }

    /// Returns what was forwarded for a circuit so far.
    pub(super) fn traffic(&self, circuit: CircuitId) -> Option<Traffic> {
        let circuit = Arc::clone(self.state().open.get(&circuit)?);
        Some(circuit.traffic())
    }

    /// Returns for each circuit a number that changes whenever one of its legs is heard: by its data or its binds.
    pub(super) fn signs(&self, from: Role) -> Vec<(CircuitId, u64)> {
        let state = self.state();
        let signs = |(id, circuit): (&CircuitId, &Arc<Circuit>)| {
            let binds = state.machine.binds(*id, from).unwrap_or_default();
            (*id, circuit.heard(from).wrapping_add(binds))
        };
        state.open.iter().map(signs).collect()
    }

    /// Returns counts of what is not of one circuit.
    pub(super) fn stats(&self) -> RelayStats {
        let (circuits, mut refused) = {
            let state = self.state();
            (state.open.len(), state.machine.refused())
        };
        refused.malformed += self.malformed.load(Ordering::Relaxed);
        RelayStats {
            circuits,
            refused,
            connections: self.connections.len(),
            endpoint_dropped: self.inbox.dropped(),
            unknown: self.unknown.load(Ordering::Relaxed),
            foreign: self.foreign.load(Ordering::Relaxed),
        }
    }

    /// A control datagram came.
    pub(super) fn handle_control(&self, via: Via<'_>, socket: &Socket, datagram: &[u8]) {
        // Cheapest first: floods of anything else end here, before the lock.
        let Some(bind) = bind::unpadded(datagram) else {
            self.malformed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (from, doubtful) = match via {
            Via::Udp(target) if is_spoofed(target.to) => return,
            // Anybody can write any address on a UDP packet; that of a WebSocket is proved by TCP.
            Via::Udp(target) => (target.to, true),
            Via::WebSocket(connection) => (connection.address(), false),
        };
        let after = {
            let mut state = self.state();
            state.machine.handle_bind(from, doubtful, bind);
            self.carry_out(&mut state, Some(via))
        };
        if let Some(answer) = after.answer {
            // As long as what it answers, so that it shows what the path carries.
            match datagram.len() {
                PADDED_SIZE => via.place().send_control(&bind::padded(&answer), socket),
                _ => via.place().send_control(&answer, socket),
            }
        }
        if let Some((circuit, role)) = after.moved {
            circuit.send_early(role, socket);
        }
    }

    /// A datagram came from an address that is no leg's: it may be the endpoint's.
    pub(super) fn handle_unknown(
        &self,
        number: usize,
        from: SocketAddr,
        to: Option<IpAddr>,
        train: Train<'_>,
    ) {
        if is_spoofed(from) {
            self.unknown.fetch_add(train.len() as u64, Ordering::Relaxed);
        } else {
            self.inbox.push(number, from, to, train);
        }
    }

    /// A datagram came over a connection that is no leg's.
    pub(super) fn handle_unbound(&self, connection: &Connection, train: Train<'_>) {
        self.inbox
            .push(self.sockets.len(), connection.address(), None, train);
    }

    /// Forwards a train and reports the end of a byte limit.
    pub(super) fn forward(&self, route: &Route, train: Train<'_>, socket: &Socket) {
        let circuit = route.circuit.id();
        match route.forward(train, socket) {
            Verdict::Done => {}
            Verdict::Due => self.tell(RelayEvent::BytesSpent { circuit }),
            Verdict::LimitReached => self.tell(RelayEvent::ByteLimit { circuit }),
        }
    }

    /// A connection has closed.
    pub(super) fn handle_gone(&self, connection: &Connection) {
        self.connections.leave(connection);
        let mut state = self.state();
        state.machine.handle_gone(connection.address());
        self.carry_out(&mut state, None);
    }

    /// Reports circuits that were never bound, and returns when to look again.
    pub(super) fn handle_timeout(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        state.machine.handle_timeout(now);
        self.carry_out(&mut state, None);
        state.machine.poll_timeout()
    }

    /// Returns the oldest event that was not told yet.
    pub(super) fn next_event(&self) -> Option<RelayEvent> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Waits until there may be something to do for the relay's task.
    pub(super) async fn work(&self) {
        self.work.notified().await;
    }

    /// Does what the machine asks for.
    fn carry_out(&self, state: &mut State, via: Option<Via<'_>>) -> After {
        let mut after = After::default();
        while let Some(output) = state.machine.poll_output() {
            match output {
                Output::Send { datagram, .. } => after.answer = Some(datagram),
                Output::Bound { circuit, role, .. } => {
                    if let (Some(circuit), Some(via)) = (state.open.get(&circuit), via) {
                        self.bound(circuit, role, via);
                        after.moved = Some((Arc::clone(circuit), role));
                    }
                }
                Output::Released { address } => self.release(address),
                Output::Lost { circuit, role } => {
                    if let Some(circuit) = state.open.get(&circuit) {
                        circuit.set_place(role, None);
                    }
                }
                Output::Foreign { .. } => {
                    self.foreign.fetch_add(1, Ordering::Relaxed);
                }
                Output::Rotated {
                    circuit,
                    role,
                    rotation: rotations,
                } => self.tell(RelayEvent::Rotated {
                    circuit,
                    role,
                    rotations,
                }),
                Output::NeverBound { circuit } => self.tell(RelayEvent::NeverBound { circuit }),
            }
        }
        after
    }

    /// A leg is at a place from here on.
    fn bound(&self, circuit: &Arc<Circuit>, role: Role, via: Via<'_>) {
        let place = via.place();
        let carrier = place.carrier();
        let route = Route {
            circuit: Arc::clone(circuit),
            role,
        };
        match via {
            Via::Udp(target) => {
                for mailbox in &self.mailboxes {
                    mailbox.post(Change::Add(target.to, route.clone()));
                }
            }
            Via::WebSocket(connection) => connection.set_route(Some(route)),
        }
        circuit.set_place(role, Some(place));
        self.tell(RelayEvent::Bound {
            circuit: circuit.id(),
            role,
            carrier,
        });
    }

    fn release(&self, address: SocketAddr) {
        if address::connection(address).is_none() {
            for mailbox in &self.mailboxes {
                mailbox.post(Change::Remove(address));
            }
        } else if let Some(connection) = self.connections.find(address) {
            connection.set_route(None);
        }
    }

    fn tell(&self, event: RelayEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= self.max_events {
            let moved = events
                .iter()
                .position(|event| matches!(event, RelayEvent::Bound { .. }));
            events.remove(moved.unwrap_or_default());
        }
        events.push_back(event);
        drop(events);
        self.work.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whether no honest sender has such an address: a virtual one, or one that cannot be answered.
fn is_spoofed(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || address::connection(address).is_some()
}
