//! A relay for one circuit, made of the real circuit machine: one UDP port, and WebSockets over TLS.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::ServerAddr;
use tunnel_net::leg::{Leg, LegConfig};
use tunnel_net::link::Try;
use tunnel_net::websocket;
use tunnel_proto::bind::{self, Role};
use tunnel_proto::circuit::{Circuits, Opening, Output};
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::{CircuitId, Code, carrier, defaults};

const CIRCUIT: CircuitId = CircuitId::from_bytes([1; 16]);

/// Messages that wait for a WebSocket at most; what comes after is lost, as on any path.
const QUEUE: usize = 1000;

/// What comes in: a datagram of an address, or the word that the address is gone.
type Incoming = (SocketAddr, Option<Vec<u8>>);

fn leg_key(role: Role) -> LegKey {
    rotated_key(role, 0)
}

/// Returns the key of a leg after so many rotations.
pub(crate) fn rotated_key(role: Role, rotations: u32) -> LegKey {
    LegKey::derive_rotated(&Secret::new([3; 32]), CIRCUIT, role, rotations)
}

/// What a test has the relay do.
enum Order {
    /// End the circuit.
    Close(Code),
    /// Give both legs other keys, once.
    Rotate,
    /// Work on another socket. The one before stays, and says nothing.
    Move(UdpSocket),
}

/// A relay; it ends with this value.
pub(crate) struct Relay {
    pub(crate) addr: ServerAddr,
    orders: mpsc::Sender<Order>,
    binds: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    /// Starts at an address, on ports of the kernel's choice.
    pub(crate) async fn start(at: IpAddr, tls: Arc<rustls::ServerConfig>) -> Self {
        let udp = UdpSocket::bind((at, 0)).await.unwrap();
        let tcp = TcpListener::bind((at, 0)).await.unwrap();
        let addr = ServerAddr {
            host: at.to_string(),
            tcp_port: tcp.local_addr().unwrap().port(),
            udp_port: udp.local_addr().unwrap().port(),
            proxy: None,
            proven: tunnel_net::resolve::Proven::default(),
        };
        let (orders, ordered) = mpsc::channel(4);
        let forwarder = Forwarder::new(udp);
        let binds = forwarder.binds.clone();
        let task = AbortOnDropHandle::new(tokio::task::spawn(forwarder.run(tcp, tls, ordered)));
        Self {
            addr,
            orders,
            binds,
            _task: task,
        }
    }

    /// Opens an end's leg; must be called where that end is.
    pub(crate) fn leg(
        addr: &ServerAddr,
        role: Role,
        websocket_tls: Arc<rustls::ClientConfig>,
        carriers: Try,
    ) -> Leg {
        Self::leg_beginning_with(None, addr, role, websocket_tls, carriers)
    }

    /// As [`Relay::leg`], with an address that is tried before all others.
    pub(crate) fn leg_beginning_with(
        proven: Option<IpAddr>,
        addr: &ServerAddr,
        role: Role,
        websocket_tls: Arc<rustls::ClientConfig>,
        carriers: Try,
    ) -> Leg {
        let config = LegConfig {
            server: addr.clone(),
            proven,
            circuit: CIRCUIT,
            role,
            key: leg_key(role),
            websocket_tls,
            carriers,
        };
        Leg::open(config).unwrap()
    }

    /// Returns how often a leg was bound to an address.
    pub(crate) fn binds(&self) -> usize {
        self.binds.load(Ordering::Relaxed)
    }

    /// Ends the circuit.
    pub(crate) async fn close(&self, why: Code) {
        self.order(Order::Close(why)).await;
    }

    /// Gives both legs other keys: from here on only [`rotated_key`] binds.
    pub(crate) async fn rotate(&self) {
        self.order(Order::Rotate).await;
    }

    /// Has UDP work on another socket from here on; the one before falls silent.
    pub(crate) async fn move_to(&self, udp: UdpSocket) {
        self.order(Order::Move(udp)).await;
    }

    async fn order(&self, order: Order) {
        assert!(self.orders.send(order).await.is_ok(), "the relay is there");
    }
}

struct Forwarder {
    udp: UdpSocket,
    /// Where it was before it moved.
    before: Option<UdpSocket>,
    circuits: Circuits<SocketAddr>,
    roles: HashMap<SocketAddr, Role>,
    websockets: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>,
    binds: Arc<AtomicUsize>,
}

impl Forwarder {
    fn new(udp: UdpSocket) -> Self {
        let mut circuits = Circuits::new(1, &Secret::new([4; 32]));
        circuits.open(CIRCUIT, Opening::default()).unwrap();
        for role in [Role::Source, Role::Destination] {
            assert!(circuits.admit(CIRCUIT, role, leg_key(role)));
        }
        Self {
            udp,
            before: None,
            circuits,
            roles: HashMap::new(),
            websockets: HashMap::new(),
            binds: Arc::default(),
        }
    }

    async fn run(
        mut self,
        tcp: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        mut ordered: mpsc::Receiver<Order>,
    ) {
        let (arrived, mut arrivals) = mpsc::channel(QUEUE);
        let mut connections = JoinSet::new();
        let mut buffer = vec![0; 65_536];
        loop {
            tokio::select! {
                received = self.udp.recv_from(&mut buffer) => {
                    // An ICMP answer is an error here, and means nothing.
                    if let Ok((length, from)) = received {
                        self.handle(from, &buffer[..length]).await;
                    }
                }
                accepted = tcp.accept() => {
                    let number = u16::try_from(connections.len() + 1).unwrap();
                    let address = SocketAddr::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 1, 0).into(), number);
                    let (queue, queued) = mpsc::channel(QUEUE);
                    self.websockets.insert(address, queue);
                    let tls = TlsAcceptor::from(tls.clone());
                    connections.spawn(serve(accepted.unwrap().0, tls, address, arrived.clone(), queued));
                }
                Some((from, datagram)) = arrivals.recv() => match datagram {
                    Some(datagram) => self.handle(from, &datagram).await,
                    None => self.circuits.handle_gone(from),
                },
                Some(order) = ordered.recv() => self.obey(order),
            }
            self.drain().await;
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Close(why) => drop(self.circuits.close(CIRCUIT, why)),
            Order::Rotate => {
                for role in [Role::Source, Role::Destination] {
                    assert!(self.circuits.lock(CIRCUIT, role, 1));
                    assert!(self.circuits.admit(CIRCUIT, role, rotated_key(role, 1)));
                }
            }
            Order::Move(udp) => self.before = Some(std::mem::replace(&mut self.udp, udp)),
        }
    }

    async fn handle(&mut self, from: SocketAddr, datagram: &[u8]) {
        if let Some(bind) = bind::unpadded(datagram).filter(|_| bind::is_control(datagram)) {
            let doubtful = !self.websockets.contains_key(&from);
            self.circuits.handle_bind(from, doubtful, bind);
            while let Some(output) = self.circuits.poll_output() {
                match output {
                    Output::Send { to, datagram: answer } if datagram.len() == bind::PADDED_SIZE => {
                        self.send(to, &bind::padded(&answer)).await;
                    }
                    output => self.carry_out(output).await,
                }
            }
        } else if let Some(role) = self.roles.get(&from)
            && let Some(to) = self.circuits.place(CIRCUIT, role.other())
        {
            self.send(to, datagram).await;
        }
    }

    async fn drain(&mut self) {
        while let Some(output) = self.circuits.poll_output() {
            self.carry_out(output).await;
        }
    }

    async fn carry_out(&mut self, output: Output<SocketAddr>) {
        match output {
            Output::Send { to, datagram } => self.send(to, &datagram).await,
            Output::Bound { role, at, .. } => {
                self.roles.insert(at, role);
                self.binds.fetch_add(1, Ordering::Relaxed);
            }
            Output::Released { address } => {
                self.roles.remove(&address);
            }
            Output::Lost { .. }
            | Output::Foreign { .. }
            | Output::Rotated { .. }
            | Output::NeverBound { .. } => {}
        }
    }

    async fn send(&self, to: SocketAddr, datagram: &[u8]) {
        match self.websockets.get(&to) {
            Some(queue) => drop(queue.try_send(datagram.to_vec())),
            // What cannot be sent is lost, as on any path.
            None => drop(self.udp.send_to(datagram, to).await),
        }
    }
}

/// Carries the datagrams of one WebSocket.
async fn serve(
    tcp: TcpStream,
    tls: TlsAcceptor,
    address: SocketAddr,
    arrived: mpsc::Sender<Incoming>,
    mut queued: mpsc::Receiver<Vec<u8>>,
) {
    tcp.set_nodelay(true).unwrap();
    let Ok(stream) = tls.accept(tcp).await else { return };
    #[allow(clippy::result_large_err, reason = "the library's callback has this form")]
    let answer = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let protocol = defaults::CARRIER_PROTOCOL.parse().unwrap();
        response.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        Ok(response)
    };
    let config = Some(websocket::config());
    let Ok(stream) = tokio_tungstenite::accept_hdr_async_with_config(stream, answer, config).await else {
        return;
    };
    let (mut sink, mut source) = stream.split();
    loop {
        tokio::select! {
            Some(datagram) = queued.recv() => {
                let mut message = Vec::new();
                carrier::push(&mut message, &datagram);
                if sink.send(Message::Binary(message.into())).await.is_err() {
                    break;
                }
            }
            message = source.next() => match message {
                Some(Ok(Message::Binary(message))) => {
                    for datagram in carrier::datagrams(&message) {
                        arrived.send((address, Some(datagram.to_vec()))).await.unwrap();
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
    }
    let _ = arrived.send((address, None)).await;
}
