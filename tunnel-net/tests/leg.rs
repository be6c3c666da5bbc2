//! Two legs over a small relay made of the real circuit machine: the end-to-end connection, its streams and its end.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::SystemRandom;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tunnel_certs::{Authority, CertificateRequest, KeyPair, Trust, request};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::leg::{Leg, LegConfig};
use tunnel_net::link::Try;
use tunnel_net::stream::{read_message, splice, write_message};
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_net::{ServerAddr, quic};
use tunnel_proto::bind::{self, Role};
use tunnel_proto::carrier::Carrier;
use tunnel_proto::circuit::{Circuits, Opening, Output};
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::message::{OpenSession, SessionAnswer};
use tunnel_proto::{CircuitId, Code, Identity};

const CIRCUIT: CircuitId = CircuitId::from_bytes([1; 16]);
const DEADLINE: Duration = Duration::from_secs(20);

fn leg_key(role: Role) -> LegKey {
    LegKey::derive(&Secret::new([3; 32]), CIRCUIT, role)
}

/// A relay for one circuit over UDP.
struct Relay {
    addr: SocketAddr,
    close: mpsc::Sender<Code>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let (close, closes) = mpsc::channel(1);
        let task = AbortOnDropHandle::new(tokio::task::spawn(forward(socket, closes)));
        Self { addr, close, _task: task }
    }

    fn leg(&self, role: Role, websocket_tls: Arc<rustls::ClientConfig>) -> Leg {
        Leg::open(LegConfig {
            server: ServerAddr { host: "127.0.0.1".into(), tcp_port: 1, udp_port: self.addr.port() },
            proven: None,
            circuit: CIRCUIT,
            role,
            key: leg_key(role),
            websocket_tls,
            carriers: Try::Only(Carrier::Udp),
        })
        .unwrap()
    }
}

async fn forward(socket: UdpSocket, mut closes: mpsc::Receiver<Code>) {
    let mut circuits = Circuits::new(1, &Secret::new([4; 32]));
    circuits.open(CIRCUIT, Opening::default()).unwrap();
    for role in [Role::Source, Role::Destination] {
        assert!(circuits.admit(CIRCUIT, role, leg_key(role)));
    }
    let mut roles = HashMap::new();
    let mut buffer = vec![0; 65_536];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (length, from) = received.unwrap();
                let datagram = &buffer[..length];
                if bind::is_control(datagram) {
                    circuits.handle_bind(from, false, datagram);
                } else if let Some(role) = roles.get(&from).copied() {
                    let role: Role = role;
                    if let Some(to) = circuits.place(CIRCUIT, role.other()) {
                        socket.send_to(datagram, to).await.unwrap();
                    }
                }
            }
            Some(why) = closes.recv() => {
                circuits.close(CIRCUIT, why);
            }
        }
        while let Some(output) = circuits.poll_output() {
            match output {
                Output::Send { to, datagram } => {
                    socket.send_to(&datagram, to).await.unwrap();
                }
                Output::Bound { role, at, .. } => {
                    roles.insert(at, role);
                }
                Output::Released { address } => {
                    roles.remove(&address);
                }
                Output::Lost { .. } | Output::Foreign { .. } | Output::NeverBound { .. } => {}
            }
        }
    }
}

/// A fleet with one operator and one device.
struct Fleet {
    ends: Ends,
    operator: (Identity, Credentials),
    device: (Identity, Credentials),
}

impl Fleet {
    fn new() -> Self {
        let domain = "fleet.test".parse().unwrap();
        let made = Authority::create(&domain, SystemClock.now(), &SystemRandom::new()).unwrap();
        let authority = Authority::load(&made.issuing_pem, &made.issuing_key_pem, &made.root_pem).unwrap();
        let issue = |identity: &str, serial: u8| {
            let identity: Identity = identity.parse().unwrap();
            let key = KeyPair::generate().unwrap();
            let request = CertificateRequest::from_pem(&request(&key).unwrap()).unwrap();
            let hour = Duration::from_secs(3600);
            let issued = authority.issue(&request, &identity, SystemClock.now(), hour, [serial; 16]).unwrap();
            (identity, Credentials::load(&issued.chain_pem, &key.to_pem()).unwrap())
        };
        let trust = Arc::new(Trust::from_pem(&made.root_pem).unwrap());
        Self {
            ends: Ends::new(trust, Arc::new(SystemClock)),
            operator: issue("spiffe://fleet.test/operator/ana", 1),
            device: issue("spiffe://fleet.test/device/pump-17", 2),
        }
    }

    /// Connects the two ends through the relay; returns the operator's and the device's side.
    async fn connect(&self, relay: &Relay) -> Ends2 {
        let websocket_tls = Arc::new(tls::api_client(&self.ends, None));
        let source = relay.leg(Role::Source, websocket_tls.clone());
        let destination = relay.leg(Role::Destination, websocket_tls);
        let server_tls = tls::tunnel_server(
            &self.ends,
            &self.device.1,
            self.operator.0.clone(),
            self.operator.1.key_hash(),
        );
        let mut server = quinn::ServerConfig::with_crypto(tls::quic_server(server_tls));
        server.transport_config(quic::agent_transport(16));
        let endpoint = destination.accept_endpoint(server);
        let client_tls = tls::tunnel_client(&self.ends, &self.operator.1, self.device.0.clone());
        let mut client = quinn::ClientConfig::new(tls::quic_client(client_tls));
        client.transport_config(quic::cli_transport());
        let connecting = source.connect(client).unwrap();
        let accepting = async { endpoint.accept().await.unwrap().await.unwrap() };
        let (operator, device) = tokio::join!(async { connecting.await.unwrap() }, accepting);
        Ends2 { operator, device, source, _destination: destination }
    }
}

struct Ends2 {
    operator: quinn::Connection,
    device: quinn::Connection,
    source: Leg,
    _destination: Leg,
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Opens one stream and lets the device's side answer it with `service`, spliced.
async fn session<F, S>(ends: &Ends2, service: S) -> (quinn::SendStream, quinn::RecvStream, AbortOnDropHandle<F>)
where
    S: FnOnce(quinn::SendStream, quinn::RecvStream) -> std::pin::Pin<Box<dyn Future<Output = F> + Send>>
        + Send
        + 'static,
    F: Send + 'static,
{
    let device = ends.device.clone();
    let served = AbortOnDropHandle::new(tokio::task::spawn(async move {
        let (mut send, mut recv) = device.accept_bi().await.unwrap();
        let open: OpenSession = read_message(&mut recv).await.unwrap();
        assert_eq!(open.service, "echo");
        write_message(&mut send, &SessionAnswer { refused: None }).await.unwrap();
        service(send, recv).await
    }));
    let (mut send, mut recv) = ends.operator.open_bi().await.unwrap();
    write_message(&mut send, &OpenSession { service: "echo".into() }).await.unwrap();
    let answer: SessionAnswer = read_message(&mut recv).await.unwrap();
    assert_eq!(answer.refused, None);
    (send, recv, served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cross_the_relay_and_a_half_close_keeps_the_answer() {
    let (relay, fleet) = (Relay::start().await, Fleet::new());
    let ends = in_time("connected", fleet.connect(&relay)).await;
    let (mut send, mut recv, served) = session(&ends, |send, recv| {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(16 * 1024);
            let (reader, writer) = tokio::io::split(near);
            // A service that answers only after it has seen the end of what was sent to it.
            let service = async {
                let (mut reader, mut writer) = tokio::io::split(far);
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.unwrap();
                writer.write_all(&all).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            tokio::join!(splice(send, recv, reader, writer), service).0
        })
    })
    .await;
    let sent: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let write = async {
        send.write_all(&sent).await.unwrap();
        send.finish().unwrap();
    };
    let ((), got) = in_time("echoed", async { tokio::join!(write, recv.read_to_end(16 << 20)) }).await;
    assert!(got.unwrap() == sent, "the same bytes come back");
    let spliced = in_time("spliced", served).await.unwrap();
    assert_eq!((spliced.sent, spliced.received), (sent.len() as u64, sent.len() as u64));
    assert!(spliced.error.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_pushes_back_to_the_sender() {
    let (relay, fleet) = (Relay::start().await, Fleet::new());
    let ends = in_time("connected", fleet.connect(&relay)).await;
    let (_send, mut recv, served) = session(&ends, |send, recv| {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(16 * 1024);
            let (reader, writer) = tokio::io::split(near);
            let service = async {
                let (_reader, mut writer) = tokio::io::split(far);
                let mut written = 0u64;
                let chunk = vec![1; 64 * 1024];
                // Ends when the writer has made no progress for a while: then everything between is full.
                while let Ok(Ok(())) =
                    tokio::time::timeout(Duration::from_secs(2), writer.write_all(&chunk)).await
                {
                    written += chunk.len() as u64;
                }
                written
            };
            tokio::select! {
                written = service => written,
                _ = splice(send, recv, reader, writer) => unreachable!("nobody ends the stream"),
            }
        })
    })
    .await;
    let written = in_time("the sender is held back", served).await.unwrap();
    assert!(written < 10 << 20, "{written} bytes are on the way to a reader that does not read");
    assert!(recv.read_chunk(1, true).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_circuit_reaches_the_leg_with_its_reason() {
    let (relay, fleet) = (Relay::start().await, Fleet::new());
    let ends = in_time("connected", fleet.connect(&relay)).await;
    let mut state = ends.source.state();
    relay.close.send(Code::Revoked).await.unwrap();
    let ended = in_time("ended", state.wait_for(|state| state.ended.is_some())).await.unwrap().ended;
    assert_eq!(ended, Some(Code::Revoked));
}
