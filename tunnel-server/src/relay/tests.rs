//! The relay on loopback: real sockets, fake legs.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role as End;
use tunnel_proto::bind::{self, Control, Kind};
use tunnel_proto::carrier as message;

use super::*;

mod cut;
mod forwarding;
mod links;
mod silence;
mod websockets;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A relay that runs alone, and what belongs to it.
struct Bed {
    relay: Relay,
    endpoint: quinn::Endpoint,
    events: mpsc::Receiver<RelayEvent>,
    fleet: links::Fleet,
    tasks: JoinSet<()>,
}

fn secret() -> Secret {
    Secret::new([3; 32])
}

fn id(number: u8) -> CircuitId {
    CircuitId::from_bytes([number; 16])
}

fn bed() -> Bed {
    bed_with("127.0.0.1:0", |_| {})
}

fn bed_with(listen: &str, change: impl FnOnce(&mut RelayConfig)) -> Bed {
    let mut config = RelayConfig::new(listen.parse().unwrap(), secret());
    config.sockets = 2;
    change(&mut config);
    let fleet = links::Fleet::new();
    let (relay, endpoint, events) = Relay::start(config, fleet.server()).unwrap();
    Bed {
        relay,
        endpoint,
        events,
        fleet,
        tasks: JoinSet::new(),
    }
}

impl Bed {
    /// Opens circuit 1 and makes its two legs, which are not bound yet.
    async fn legs(&mut self, spec: CircuitSpec, source: Carrier, destination: Carrier) -> (Leg, Leg) {
        self.relay.open(spec).unwrap();
        let source = self.leg(spec.circuit, Role::Source, source).await;
        let destination = self.leg(spec.circuit, Role::Destination, destination).await;
        (source, destination)
    }

    /// Opens circuit 1 and binds its two legs.
    async fn bound(&mut self, spec: CircuitSpec, source: Carrier, destination: Carrier) -> (Leg, Leg) {
        let (mut source, mut destination) = self.legs(spec, source, destination).await;
        source.bind().await;
        destination.bind().await;
        (source, destination)
    }

    async fn leg(&mut self, circuit: CircuitId, role: Role, carrier: Carrier) -> Leg {
        let key = self.relay.admit(circuit, role).unwrap();
        let wire = match carrier {
            Carrier::Udp => Wire::Udp(self.udp().await),
            Carrier::WebSocket => Wire::WebSocket(Box::new(self.websocket().await)),
        };
        Leg {
            wire,
            key,
            circuit,
            role,
            counter: 0,
            waiting: VecDeque::new(),
        }
    }

    async fn udp(&self) -> UdpSocket {
        let relay = self.relay.local_addr();
        let local = if relay.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(local).await.unwrap();
        socket.connect(relay).await.unwrap();
        socket
    }

    async fn websocket(&mut self) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, from) = listener.accept().await.unwrap();
        self.serve(server, from);
        WebSocketStream::from_raw_socket(client, End::Client, None).await
    }

    fn serve<S>(&mut self, stream: S, from: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let relay = self.relay.clone();
        self.tasks.spawn(async move {
            let config = Some(Relay::websocket_config());
            let socket = WebSocketStream::from_raw_socket(stream, End::Server, config).await;
            relay.serve_websocket(socket, from).await;
        });
    }

    async fn event(&mut self) -> RelayEvent {
        in_time("an event", self.events.recv()).await.unwrap()
    }
}

type Client = WebSocketStream<TcpStream>;

enum Wire {
    Udp(UdpSocket),
    WebSocket(Box<Client>),
}

/// A leg at its end, as simple as can be.
struct Leg {
    wire: Wire,
    key: LegKey,
    circuit: CircuitId,
    role: Role,
    counter: u64,
    waiting: VecDeque<Vec<u8>>,
}

impl Leg {
    /// Binds, answering a challenge if there is one.
    async fn bind(&mut self) {
        let answer = self.say(0).await;
        let answer = if answer.kind == Kind::Challenge {
            self.say(answer.value).await
        } else {
            answer
        };
        assert_eq!(answer.kind, Kind::Bound);
    }

    /// Sends a bind with a value and returns the answer.
    async fn say(&mut self, value: u64) -> Control {
        let bind = self.next_bind(value);
        self.send(&bind).await;
        loop {
            let answer = self.receive().await;
            if bind::is_control(&answer) {
                assert!(Control::is_authentic(&answer, &self.key));
                let answer = Control::decode(&answer).unwrap();
                assert_eq!((answer.circuit, answer.role), (self.circuit, self.role));
                assert_eq!(answer.counter, self.counter);
                return answer;
            }
        }
    }

    fn next_bind(&mut self, value: u64) -> [u8; bind::SIZE] {
        self.counter += 1;
        let Self {
            circuit,
            role,
            counter,
            ..
        } = *self;
        Control {
            kind: Kind::Bind,
            circuit,
            role,
            counter,
            value,
        }
        .encode(&self.key)
    }

    async fn send(&mut self, datagram: &[u8]) {
        self.send_all(&[datagram]).await;
    }

    /// Sends datagrams; over WebSocket in one message.
    async fn send_all(&mut self, datagrams: &[&[u8]]) {
        match &mut self.wire {
            Wire::Udp(socket) => {
                for datagram in datagrams {
                    socket.send(datagram).await.unwrap();
                }
            }
            Wire::WebSocket(socket) => socket.send(message_of(datagrams)).await.unwrap(),
        }
    }

    async fn receive(&mut self) -> Vec<u8> {
        in_time("a datagram", self.next()).await
    }

    async fn next(&mut self) -> Vec<u8> {
        loop {
            if let Some(datagram) = self.waiting.pop_front() {
                return datagram;
            }
            match &mut self.wire {
                Wire::Udp(socket) => {
                    let mut buffer = vec![0; 65_536];
                    let length = socket.recv(&mut buffer).await.unwrap();
                    buffer.truncate(length);
                    return buffer;
                }
                Wire::WebSocket(socket) => {
                    let received = socket.next().await.unwrap().unwrap().into_data();
                    self.waiting
                        .extend(message::datagrams(&received).map(<[u8]>::to_vec));
                }
            }
        }
    }

    /// Takes whatever is there already, from a UDP socket.
    fn drain(&self) -> Vec<Vec<u8>> {
        let Wire::Udp(socket) = &self.wire else {
            panic!("a UDP leg")
        };
        drain(socket)
    }

    /// Waits for the end of the circuit, passing data over.
    async fn ended(&mut self) -> Code {
        loop {
            let datagram = self.receive().await;
            if bind::is_control(&datagram) {
                assert!(Control::is_authentic(&datagram, &self.key));
                let control = Control::decode(&datagram).unwrap();
                assert_eq!(control.kind, Kind::Ended);
                return Code::from_number(control.value);
            }
        }
    }
}

/// Asks the kernel itself: the runtime may not have looked yet.
fn drain(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let mut all = Vec::new();
    while let Ok((length, _)) = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
        all.push(buffer[..length].to_vec());
    }
    all
}

fn message_of(datagrams: &[&[u8]]) -> Message {
    let mut bytes = Vec::new();
    datagrams
        .iter()
        .for_each(|datagram| message::push(&mut bytes, datagram));
    Message::Binary(bytes.into())
}

/// A datagram that looks like a QUIC packet with a number in it.
fn packet(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0x40; length];
    bytes[1..5].copy_from_slice(&number.to_be_bytes());
    bytes
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    in_time(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
