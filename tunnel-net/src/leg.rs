//! An end's leg: a QUIC endpoint whose datagrams reach the other end through a circuit of a relay, over whichever carrier
//! works.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tunnel_proto::bind::{self, Role};
use tunnel_proto::carrier::Carrier;
use tunnel_proto::keys::LegKey;
use tunnel_proto::leg::{Leg as Machine, Output};
use tunnel_proto::{CircuitId, Code, defaults};

use crate::addr::ServerAddr;
use crate::dial::STAGGER;
use crate::link::Try;
use crate::network::{self, Changes, Sign};
use crate::quic;
use crate::resolve::Search;
use crate::wake::Wake;
use crate::websocket::{self, Pipe};
use crate::wire::{Control, PEER, Udp, Wire};

/// How long it is waited before a connection is woken. What wakes it may have come with a stateless reset, which ends it: quinn
/// (0.11.12) panics where it learns of both at once, and does nothing where the end came first.
const NUDGE_AFTER: Duration = Duration::from_millis(1);

/// How often the leg looks at what was sent and received while data flows.
const LOOK: Duration = Duration::from_millis(400);

/// What a leg needs, all of it handed out by the relay or known before.
#[derive(Debug)]
pub struct LegConfig {
    /// The relay.
    pub server: ServerAddr,
    /// An address of the relay that answered a moment ago; tried before its name is looked up.
    pub proven: Option<IpAddr>,
    /// The circuit.
    pub circuit: CircuitId,
    /// Which end this is.
    pub role: Role,
    /// The key of the leg, until it is given another one.
    pub key: LegKey,
    /// TLS for the WebSocket carrier.
    pub websocket_tls: Arc<ClientConfig>,
    /// Which carriers are used.
    pub carriers: Try,
}

/// What is known of a leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct LegState {
    /// The carrier in use; `None` before the relay has confirmed one.
    pub active: Option<Carrier>,
    /// Whether the relay is silent: it confirms nothing, and all ways to it are being tried.
    pub silent: bool,
    /// When the relay was last heard again after it had been silent.
    pub heard_again: Option<Instant>,
    /// Why the circuit has ended, if the relay said so.
    pub ended: Option<Code>,
}

/// A leg; dropping it gives the carriers up.
#[derive(Debug)]
pub struct Leg {
    endpoint: quinn::Endpoint,
    state: watch::Receiver<LegState>,
    wire: Arc<Wire>,
    wake: Wake,
    rekey: Rekey,
    _driver: AbortOnDropHandle<()>,
}

/// Gives a leg another key while it is in use.
#[derive(Clone, Debug)]
pub struct Rekey(Arc<watch::Sender<Option<LegKey>>>);

impl Rekey {
    /// Has the leg bind anew with a key that the relay has just handed out. What is under way goes on.
    pub fn rekey(&self, key: LegKey) {
        self.0.send_replace(Some(key));
    }
}

impl Leg {
    /// Starts to bind the leg; must be called in a tokio runtime.
    ///
    /// # Errors
    /// Fails only when no QUIC endpoint can be made at all.
    pub fn open(config: LegConfig) -> io::Result<Self> {
        let (wire, controls, hints) = Wire::new();
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            quic::endpoint_config(),
            None,
            wire.clone(),
            Arc::new(quinn::TokioRuntime),
        )?;
        let (state_out, state) = watch::channel(LegState::default());
        let (rekey, keys) = watch::channel(None);
        let only = config.carriers.only();
        let machine = Machine::new(
            Instant::now(),
            config.circuit,
            config.role,
            config.key.clone(),
            only,
        );
        let wake = Wake::default();
        let driver = Driver {
            machine,
            config,
            wire: Arc::clone(&wire),
            wake: wake.clone(),
            endpoint: endpoint.clone(),
            controls,
            hints,
            tasks: JoinSet::new(),
            running: [None, None],
            paths: [None, None],
            changes: Changes::listen(),
            keys,
            generation: 0,
            choosing: None,
            nudge: None,
            state: state_out,
        };
        let driver = AbortOnDropHandle::new(tokio::task::spawn(driver.run()));
        Ok(Self {
            endpoint,
            state,
            wire,
            wake,
            rekey: Rekey(Arc::new(rekey)),
            _driver: driver,
        })
    }

    /// Returns what the transport of the one connection over this leg has to be made with.
    pub const fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Returns what tells when the other end was heard last.
    pub fn heard(&self) -> Heard {
        Heard(Arc::clone(&self.wire))
    }

    /// Lets the other end connect, and returns the endpoint to accept it from.
    pub fn accept_endpoint(&self, config: quinn::ServerConfig) -> quinn::Endpoint {
        self.endpoint.set_server_config(Some(config));
        self.endpoint.clone()
    }

    /// Connects to the other end. The first packets wait until a carrier is confirmed.
    ///
    /// # Errors
    /// Fails when the configuration does not fit.
    pub fn connect(&self, mut config: quinn::ClientConfig) -> Result<quinn::Connecting, quinn::ConnectError> {
        quic::mark_as_tunnel(&mut config);
        self.endpoint.connect_with(config, PEER, defaults::DEVICE_NAME)
    }

    /// Returns the endpoint, to wait for its last packets.
    pub fn endpoint(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    /// Returns what gives the leg another key.
    pub fn rekey(&self) -> Rekey {
        self.rekey.clone()
    }

    /// Returns what is known of the leg, as it changes.
    pub fn state(&self) -> watch::Receiver<LegState> {
        self.state.clone()
    }
}

/// Tells when the other end of a leg was heard last.
#[derive(Clone, Debug)]
pub struct Heard(Arc<Wire>);

impl Heard {
    /// Returns when data of the other end came last; `None` before the first.
    pub fn last(&self) -> Option<Instant> {
        self.0.activity().received
    }
}

/// The task of a leg: hands what happens to the machine, and does what it says.
struct Driver {
    machine: Machine,
    config: LegConfig,
    wire: Arc<Wire>,
    wake: Wake,
    endpoint: quinn::Endpoint,
    controls: mpsc::Receiver<Control>,
    hints: mpsc::Receiver<Carrier>,
    tasks: JoinSet<Event>,
    /// The attempt that counts for each carrier, with the handle that ends it.
    running: [Option<(u64, tokio::task::AbortHandle)>; 2],
    /// The way that each carrier takes, once it is there.
    paths: [Option<Path>; 2],
    changes: Changes,
    keys: watch::Receiver<Option<LegKey>>,
    generation: u64,
    /// The last bind over UDP while it is open which of the relay's addresses answers.
    choosing: Option<Vec<u8>>,
    /// What wakes the connections in a moment.
    nudge: Option<AbortOnDropHandle<()>>,
    state: watch::Sender<LegState>,
}

/// Where a carrier goes, and from which of this machine's addresses.
#[derive(Clone, Copy)]
struct Path {
    to: SocketAddr,
    from: IpAddr,
}

impl Path {
    fn new(to: io::Result<SocketAddr>, from: io::Result<SocketAddr>) -> Option<Self> {
        Some(Self {
            to: to.ok()?,
            from: from.ok()?.ip(),
        })
    }
}

/// How an attempt at a carrier has gone on.
enum Event {
    /// A socket to the next address of the relay, or none if there is no other, and how to go on.
    Udp(u64, Option<Udp>, Box<Search>),
    Connected(u64, Result<Box<Stream>, websocket::WebSocketError>),
    /// A WebSocket that worked has ended.
    Ended(u64),
}

type Stream = tokio_tungstenite::WebSocketStream<websocket::TlsStream>;

impl Driver {
    async fn run(mut self) {
        loop {
            self.drain();
            let deadline = self.deadline();
            let sleep = tokio::time::sleep_until(deadline.into());
            // Every branch is cancel-safe: channels, a join set, changes, a notification, a timer.
            tokio::select! {
                Some(control) = self.controls.recv() => self.handle_control(&control),
                Some(carrier) = self.hints.recv() => self.handle_broken(carrier),
                sign = self.changes.changed() => self.handle_sign(sign),
                Ok(()) = self.keys.changed() => {
                    let key = self.keys.borrow_and_update().clone();
                    if let Some(key) = key {
                        self.machine.handle_rekey(Instant::now(), key);
                    }
                }
                Some(done) = self.tasks.join_next() => {
                    if let Ok(event) = done {
                        self.handle_event(event);
                    }
                }
                () = self.wire.activity_changed().notified() => {}
                () = sleep => {}
            }
            self.machine.handle_timeout(Instant::now(), self.wire.activity());
        }
    }

    /// Returns when to go on without being woken. While data flows, sending does not wake this task, so it looks.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let activity = self.wire.activity();
        let flows = activity.received.is_some_and(|at| now < at + 2 * LOOK);
        let far = now + Duration::from_secs(3600);
        let next = self.machine.poll_timeout(activity).unwrap_or(far);
        if flows { next.min(now + LOOK) } else { next }
    }

    /// The network may have changed. Most changes are none for this leg: an address of a container, say.
    fn handle_sign(&mut self, sign: Sign) {
        let now = Instant::now();
        if self.has_moved() {
            self.move_on(now);
        } else if let (Sign::Changed, Some(active)) = (sign, self.machine.active()) {
            self.machine.handle_hint(now, active);
        }
    }

    fn handle_broken(&mut self, carrier: Carrier) {
        let now = Instant::now();
        if self.has_moved() {
            self.move_on(now);
        } else {
            self.machine.handle_hint(now, carrier);
        }
    }

    /// Says whether this machine would reach the relay from another address than the one in use. Where there is no
    /// path, the preferred carrier must not even be under way: each change would set it back otherwise.
    fn has_moved(&self) -> bool {
        let active = self
            .machine
            .active()
            .and_then(|carrier| self.paths[carrier as usize]);
        match active.or_else(|| self.paths.into_iter().flatten().next()) {
            Some(path) => network::source(path.to) != Some(path.from),
            None => self.running[self.config.carriers.only().unwrap_or(Carrier::Udp) as usize].is_none(),
        }
    }

    fn move_on(&mut self, now: Instant) {
        tracing::debug!("the way to the relay has changed");
        self.wire.hold();
        self.machine.handle_network_change(now);
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Start(carrier) => self.start(carrier),
                Output::Stop(carrier) => self.stop(carrier),
                Output::Send {
                    carrier,
                    datagram,
                    padded,
                } => {
                    let long = padded.then(|| bind::padded(&datagram));
                    let bytes = long.as_ref().map_or(&datagram[..], |long| &long[..]);
                    self.wire.send_control(carrier, bytes);
                    if let (Carrier::Udp, Some(last)) = (carrier, &mut self.choosing) {
                        bytes.clone_into(last);
                    }
                }
                Output::Use(carrier) => {
                    tracing::debug!(%carrier, "carrier in use");
                    if let (Carrier::Udp, Some(path)) = (carrier, self.paths[carrier as usize]) {
                        self.config.proven = Some(path.to.ip());
                    }
                    self.wake.moved();
                    self.wire.set_active(carrier);
                    self.state.send_modify(|state| state.active = Some(carrier));
                }
                Output::Silent(silent) => {
                    tracing::debug!(silent, "relay");
                    self.state.send_modify(|state| {
                        state.silent = silent;
                        state.heard_again = (!silent).then(Instant::now).or(state.heard_again);
                    });
                }
                Output::Repeat => self.nudge(),
                Output::Ended(code) => self.state.send_modify(|state| state.ended = Some(code)),
            }
        }
    }

    /// Makes quinn send at once instead of waiting for a probe timer that has backed off during an outage.
    fn nudge(&mut self) {
        let (endpoint, wire, wake) = (self.endpoint.clone(), self.wire.clone(), self.wake.clone());
        self.nudge = Some(AbortOnDropHandle::new(tokio::task::spawn(async move {
            tokio::time::sleep(NUDGE_AFTER).await;
            tracing::debug!("what was lost is repeated");
            wake.moved();
            wake.call();
            if let Err(error) = endpoint.rebind_abstract(wire) {
                tracing::debug!(%error, "could not wake the connections");
            }
        })));
    }

    fn start(&mut self, carrier: Carrier) {
        self.stop(carrier);
        self.generation += 1;
        let generation = self.generation;
        let server = self.config.server.clone();
        let handle = match carrier {
            Carrier::Udp => {
                let search = server.search(server.udp_port);
                let search = Box::new(search.beginning_with(self.config.proven));
                self.tasks.spawn(next_udp(generation, search, Duration::ZERO))
            }
            Carrier::WebSocket => {
                let tls = self.config.websocket_tls.clone();
                self.tasks.spawn(async move {
                    Event::Connected(generation, websocket::connect(&server, tls).await.map(Box::new))
                })
            }
        };
        self.running[carrier as usize] = Some((generation, handle));
    }

    fn stop(&mut self, carrier: Carrier) {
        if let Some((_, handle)) = self.running[carrier as usize].take() {
            handle.abort();
        }
        self.paths[carrier as usize] = None;
        match carrier {
            Carrier::Udp => {
                self.choosing = None;
                self.wire.set_udp(None);
            }
            Carrier::WebSocket => self.wire.set_websocket(None),
        }
    }

    fn is_current(&self, carrier: Carrier, generation: u64) -> bool {
        self.running[carrier as usize]
            .as_ref()
            .is_some_and(|(current, _)| *current == generation)
    }

    fn handle_event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Udp(generation, udp, search) if self.is_current(Carrier::Udp, generation) => {
                self.handle_udp(now, generation, udp, search);
            }
            Event::Connected(generation, result) if self.is_current(Carrier::WebSocket, generation) => {
                match result {
                    Ok(stream) => self.run_websocket(generation, stream),
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no WebSocket");
                        self.machine.handle_failed(now, Carrier::WebSocket);
                    }
                }
            }
            Event::Ended(generation) if self.is_current(Carrier::WebSocket, generation) => {
                self.machine.handle_failed(now, Carrier::WebSocket);
            }
            Event::Udp(..) | Event::Connected(..) | Event::Ended(_) => {}
        }
    }

    /// Takes a socket to one of the relay's addresses, and the next a moment later, until one answers.
    fn handle_udp(&mut self, now: Instant, generation: u64, udp: Option<Udp>, search: Box<Search>) {
        let first = self.paths[Carrier::Udp as usize].is_none();
        match udp {
            None if first => self.machine.handle_failed(now, Carrier::Udp),
            None => {}
            Some(udp) => {
                if first {
                    self.paths[Carrier::Udp as usize] = Path::new(Ok(udp.peer()), udp.local_addr());
                    self.wire.set_udp(Some(Arc::new(udp)));
                    self.choosing = Some(Vec::new());
                    self.machine.handle_ready(now, Carrier::Udp);
                } else if let Some(bind) = &self.choosing {
                    self.wire.add_udp(Arc::new(udp));
                    self.wire.send_control(Carrier::Udp, bind);
                } else {
                    return;
                }
                let handle = self.tasks.spawn(next_udp(generation, search, STAGGER));
                self.running[Carrier::Udp as usize] = Some((generation, handle));
            }
        }
    }

    /// Takes what the relay says. The first of its addresses that answers is the one that is used from then on.
    fn handle_control(&mut self, control: &Control) {
        let is_relays = self
            .machine
            .handle_control(Instant::now(), control.carrier, &control.datagram);
        if let Some(from) = control.from.filter(|_| is_relays && self.choosing.is_some()) {
            self.choosing = None;
            self.wire.keep_udp(from);
            let path = network::source(from).map(|source| Path {
                to: from,
                from: source,
            });
            self.paths[Carrier::Udp as usize] = path.or(self.paths[Carrier::Udp as usize]);
            if let Some((_, handle)) = &self.running[Carrier::Udp as usize] {
                handle.abort();
            }
        }
    }

    fn run_websocket(&mut self, generation: u64, stream: Box<Stream>) {
        let tcp = stream.get_ref().get_ref().0;
        self.paths[Carrier::WebSocket as usize] = Path::new(tcp.peer_addr(), tcp.local_addr());
        let pipe = Pipe::new();
        self.wire.set_websocket(Some(pipe.clone()));
        let handle = self.tasks.spawn(async move {
            if let Err(error) = pipe.run(*stream).await {
                tracing::debug!(%error, "WebSocket ended");
            }
            Event::Ended(generation)
        });
        self.running[Carrier::WebSocket as usize] = Some((generation, handle));
        self.machine.handle_ready(Instant::now(), Carrier::WebSocket);
    }
}

/// Waits, and opens a UDP socket to the next of the relay's addresses to which there is a way.
async fn next_udp(generation: u64, mut search: Box<Search>, wait: Duration) -> Event {
    tokio::time::sleep(wait).await;
    while let Some(addr) = search.next().await {
        match Udp::connect(addr).await {
            Ok(udp) => return Event::Udp(generation, Some(udp), search),
            Err(error) => tracing::debug!(%error, %addr, "no UDP"),
        }
    }
    Event::Udp(generation, None, search)
}
