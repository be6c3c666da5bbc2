//! The relay: forwards datagrams between the two legs of a circuit, and knows nothing of what they carry.
//!
//! One UDP port, one socket and one thread for each core. A thread receives a batch, looks each train of datagrams up by
//! its source address in a table of its own, and sends it on in one call. A bind message changes the tables; a QUIC packet
//! from an address that is no leg's goes to the relay's own endpoint, for control links; anything else gets nothing back.
//! WebSocket connections carry the same datagrams, and have virtual addresses, so that a leg or a link may be on either.
//!
//! What ties legs to addresses is decided by [`tunnel_proto::circuit`]; this is its shell.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tunnel_proto::api::Traffic;
use tunnel_proto::bind::Role;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::circuit::RefusedBinds;
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::{CircuitId, Code, defaults};

use self::shared::Shared;

mod address;
mod budget;
mod circuit;
mod connection;
mod endpoint;
mod forwarder;
mod gate;
mod inbox;
mod mailbox;
mod queue;
mod shared;
mod train;
mod udp;
mod websocket;

#[cfg(test)]
mod tests;

/// Events that wait in the channel to the control plane; more wait inside the relay.
const EVENTS: usize = 256;

/// Most circuits of one relay: each costs about a kilobyte, and its legs' datagrams what they send.
const MAX_CIRCUITS: usize = 65_536;

/// Most WebSocket connections of one relay: 10,000 agents and their tunnels.
const MAX_CONNECTIONS: usize = 16_384;

/// How long a WebSocket connection may be of no use: more than an attempt to connect may take at its peer.
const WEBSOCKET_USELESS: Duration = Duration::from_secs(10);

/// How long a WebSocket connection may be without any message: more than the longest keepalive of a link.
const WEBSOCKET_IDLE: Duration = Duration::from_secs(300);

/// How a relay is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Address and port to listen on. On `[::]` IPv4 is served too.
    pub listen: SocketAddr,
    /// Sockets and threads; 0 for one per core.
    pub sockets: usize,
    /// The secret that leg keys come from. It is kept over restarts, so that admitted legs are known again.
    pub secret: Secret,
    /// Most circuits at once.
    pub max_circuits: usize,
    /// Most WebSocket connections at once.
    pub max_connections: usize,
    /// How long both legs have to bind before a circuit is reported as never bound.
    pub bind_deadline: Duration,
    /// How long a WebSocket connection may be of no use: it has bound no leg, and no handshake was answered on it.
    pub websocket_useless: Duration,
    /// How long a WebSocket connection may be without any message.
    pub websocket_idle: Duration,
}

impl RelayConfig {
    /// Sets a relay up with the usual limits.
    pub const fn new(listen: SocketAddr, secret: Secret) -> Self {
        Self {
            listen,
            sockets: 0,
            secret,
            max_circuits: MAX_CIRCUITS,
            max_connections: MAX_CONNECTIONS,
            bind_deadline: defaults::BIND_DEADLINE,
            websocket_useless: WEBSOCKET_USELESS,
            websocket_idle: WEBSOCKET_IDLE,
        }
    }
}

/// A circuit to be opened.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CircuitSpec {
    /// Its id.
    pub circuit: CircuitId,
    /// Bytes that it may carry, both ways together.
    pub max_bytes: Option<u64>,
    /// How many of these it has spent before.
    pub spent_bytes: u64,
    /// Bytes that it may carry in a second, both ways together.
    pub max_bytes_per_sec: Option<u64>,
    /// It was open before a restart: its legs have to show by a challenge that they hear this relay, and have no deadline.
    pub recovered: bool,
}

impl CircuitSpec {
    /// Describes a circuit without limits.
    pub const fn new(circuit: CircuitId) -> Self {
        Self {
            circuit,
            max_bytes: None,
            spent_bytes: 0,
            max_bytes_per_sec: None,
            recovered: false,
        }
    }
}

/// Returns how many bytes of a circuit's limit are to be kept as spent in advance: what a crash costs it at most.
pub fn byte_step(max_bytes: u64) -> u64 {
    budget::step(max_bytes)
}

/// What the control plane is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A leg was bound, or has moved.
    Bound {
        /// The circuit.
        circuit: CircuitId,
        /// The leg.
        role: Role,
        /// How its datagrams travel.
        carrier: Carrier,
    },
    /// A leg whose key was rotated has bound with the new one.
    Rotated {
        /// The circuit.
        circuit: CircuitId,
        /// The leg.
        role: Role,
        /// How many times its key was rotated up to then.
        rotations: u32,
    },
    /// What a circuit has spent of its byte limit is to be kept, with [`byte_step`] in advance.
    BytesSpent {
        /// The circuit.
        circuit: CircuitId,
    },
    /// A circuit has carried what it may; nothing more is forwarded for it.
    ByteLimit {
        /// The circuit.
        circuit: CircuitId,
    },
    /// A leg of a circuit was not bound in time. The circuit stays open until it is closed.
    NeverBound {
        /// The circuit.
        circuit: CircuitId,
    },
}

/// Counts of what is not of one circuit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RelayStats {
    /// Circuits that are open.
    pub circuits: usize,
    /// WebSocket connections that are open.
    pub connections: usize,
    /// Datagrams from addresses that are no leg's, and that were not for the endpoint or found no room.
    pub endpoint_dropped: u64,
    /// Datagrams from addresses that nobody can have.
    pub unknown: u64,
    /// Binds that came from a leg's address and were not that leg's.
    pub foreign: u64,
    /// Binds that were refused, by cause. Nobody was answered.
    pub refused: RefusedBinds,
}

/// A running relay. Clones are the same relay; it stops with the last of them, or by [`Relay::shutdown`].
#[derive(Clone, Debug)]
pub struct Relay {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Relay {
    /// Starts a relay. To be called inside a tokio runtime.
    ///
    /// Returns the QUIC endpoint that control links reach over both carriers, and the events for the control plane.
    ///
    /// # Errors
    /// Fails when the address is taken or the system has no more sockets, threads or random bytes.
    pub fn start(
        config: RelayConfig,
        quic: quinn::ServerConfig,
    ) -> io::Result<(Self, quinn::Endpoint, mpsc::Receiver<RelayEvent>)> {
        let count = match config.sockets {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        };
        let process_secret = random_secret()?;
        let shared = Arc::new(Shared::new(
            &config,
            &process_secret,
            udp::open(config.listen, count)?,
        )?);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint::config(&config.secret),
            Some(quic),
            Arc::new(endpoint::EndpointSocket(Arc::clone(&shared))),
            Arc::new(quinn::TokioRuntime),
        )?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(tell_events(Arc::clone(&shared), events));
        let mut running = Running {
            shared,
            threads: Mutex::default(),
            tasks: Mutex::new(tasks),
        };
        for number in 0..count {
            let thread = forwarder::start(&running.shared, number)?;
            running
                .threads
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok((
            Self {
                running: Arc::new(running),
            },
            endpoint,
            receiver,
        ))
    }

    /// Returns the address that the relay listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.running.shared.local_addr()
    }

    /// Opens a circuit. Nobody may bind a leg of it yet.
    ///
    /// # Errors
    /// [`Code::Limit`] when there are as many as there may be, [`Code::Internal`] when it is open already.
    pub fn open(&self, spec: CircuitSpec) -> Result<(), Code> {
        self.running.shared.open(&spec)
    }

    /// Lets a leg of a circuit bind, and returns the key that it does so with. It is the same each time.
    ///
    /// # Errors
    /// [`Code::NotFound`] when there is no such circuit.
    pub fn admit(&self, circuit: CircuitId, role: Role) -> Result<LegKey, Code> {
        self.admit_rotated(circuit, role, 0)
    }

    /// As [`Relay::admit`], for a leg whose key was rotated so many times.
    ///
    /// # Errors
    /// [`Code::NotFound`] when there is no such circuit.
    pub fn admit_rotated(&self, circuit: CircuitId, role: Role, rotations: u32) -> Result<LegKey, Code> {
        self.running.shared.admit(circuit, role, rotations)
    }

    /// Lets a leg's key bind no more, until the leg is admitted with the one that it has after so many rotations. What is
    /// bound goes on.
    ///
    /// # Errors
    /// [`Code::NotFound`] when there is no such circuit.
    pub fn lock(&self, circuit: CircuitId, role: Role, rotations: u32) -> Result<(), Code> {
        self.running.shared.lock(circuit, role, rotations)
    }

    /// Closes a circuit and tells both legs why. Returns what it has carried, or `None` if there is no such circuit.
    ///
    /// After this has returned not one byte more is handed to a socket for the circuit. The one exception is the rest of a
    /// WebSocket message of at most 60 KB whose writing had begun: a message cannot be broken off. The call waits for
    /// threads that are just sending, which takes microseconds, and blocks for nothing else.
    pub fn close(&self, circuit: CircuitId, why: Code) -> Option<Traffic> {
        self.running.shared.close(circuit, why)
    }

    /// Returns how much of its byte limit a circuit has spent; `None` if it has no limit, or there is no such circuit.
    pub fn spent(&self, circuit: CircuitId) -> Option<u64> {
        self.running.shared.spent(circuit)
    }

    /// Returns what a circuit has carried so far.
    pub fn traffic(&self, circuit: CircuitId) -> Option<Traffic> {
        self.running.shared.traffic(circuit)
    }

    /// Returns how a peer of the endpoint is reached, and its real address.
    pub fn peer_of(&self, address: SocketAddr) -> (Carrier, SocketAddr) {
        match self.running.shared.connections().find(address) {
            Some(connection) => (Carrier::WebSocket, address::canonical(connection.peer())),
            None if address::connection(address).is_some() => (Carrier::WebSocket, address),
            None => (Carrier::Udp, address::canonical(address)),
        }
    }

    /// Says to where a control link was that the server was started anew.
    pub fn tell_restarted(&self, to: SocketAddr) {
        self.running.shared.tell_restarted(to);
    }

    /// Returns for each circuit a number that changes whenever one of its legs is heard.
    pub fn signs(&self, from: Role) -> Vec<(CircuitId, u64)> {
        self.running.shared.signs(from)
    }

    /// Returns counts of what is not of one circuit.
    pub fn stats(&self) -> RelayStats {
        self.running.shared.stats()
    }

    /// Returns the settings that a WebSocket must be made with before it is handed to [`Relay::serve_websocket`].
    pub fn websocket_config() -> WebSocketConfig {
        websocket::config()
    }

    /// Serves a WebSocket connection until it ends. `from` is the address of its peer, as the TCP socket shows it.
    ///
    /// The connection is closed when it is of no use for ten seconds, or when nothing travels for five minutes.
    pub async fn serve_websocket<S>(&self, socket: WebSocketStream<S>, from: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        websocket::serve(&self.running.shared, socket, from).await;
    }

    /// Stops forwarding, ends the WebSocket connections and waits for the threads. Legs are not told: they look for the
    /// relay until it is back.
    pub fn shutdown(&self) {
        self.running.shutdown();
    }
}

impl Running {
    fn shutdown(&self) {
        self.shared.stop_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a forwarding thread of the relay has failed");
            }
        }
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Hands events to the control plane and watches the deadlines of circuits.
async fn tell_events(shared: Arc<Shared>, events: mpsc::Sender<RelayEvent>) {
    loop {
        let next = shared.handle_timeout(std::time::Instant::now());
        while let Some(event) = shared.next_event() {
            if events.send(event).await.is_err() {
                return;
            }
        }
        let deadline = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        // Losing either wait is harmless: both are asked anew.
        tokio::select! {
            () = shared.work() => {}
            () = deadline => {}
        }
    }
}

fn random_secret() -> io::Result<Secret> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(Secret::new(bytes))
}
