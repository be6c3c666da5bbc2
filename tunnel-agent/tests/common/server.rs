//! A server and relay of few words, and an operator, to see an agent from both of its ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tunnel_agent::agent::{Agent, Options};
use tunnel_agent::config::Config;
use tunnel_agent::state::StateDir;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::leg::{Leg, LegConfig};
use tunnel_net::link::Try;
use tunnel_net::tls::{self, Credentials, NoRevocations};
use tunnel_net::{ServerAddr, quic, stream};
use tunnel_proto::bind::{Control, Kind, Role, is_control, padded, unpadded};
use tunnel_proto::carrier::Carrier;
use tunnel_proto::cose::SigningKey;
use tunnel_proto::grant::{Grant, Limits};
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::lock::Permit;
use tunnel_proto::message::{
    Attached, FromAgent, FromServer, Hello, Offer, OpenSession, Pong, SessionAnswer, Welcome,
};
use tunnel_proto::{CircuitId, Code, TunnelId, UnixTime};

use super::{Fleet, SOON, closed_port, write_config};

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, wanted).await {
        Ok(got) => got,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// The server's side of everything.
pub(crate) struct Server {
    pub(crate) fleet: Fleet,
    endpoint: quinn::Endpoint,
    signer: SigningKey,
    relay: Relay,
    pub(crate) addr: ServerAddr,
    pub(crate) operator: Credentials,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let fleet = Fleet::new();
        let ends = fleet.ends();
        let credentials = fleet.credentials("server/node-1");
        let tls = tls::link_server(&ends, &credentials, Arc::new(NoRevocations));
        let mut config = quinn::ServerConfig::with_crypto(tls::quic_server(tls));
        config.transport_config(quic::link_transport());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(quic::endpoint_config(), Some(config), socket, runtime).unwrap();
        let addr: ServerAddr = format!("127.0.0.1:{}", closed_port()).parse().unwrap();
        Self {
            operator: fleet.credentials("operator/ana"),
            fleet,
            endpoint,
            signer: SigningKey::from_seed(&Secret::new([3; 32])).unwrap(),
            relay: Relay::start().await,
            addr: addr.with_udp_port(port),
        }
    }

    /// Waits for an agent, and welcomes it.
    pub(crate) async fn link(&self) -> Link {
        self.link_at(SystemClock.now()).await
    }

    /// As [`Server::link`], with a clock that says `clock` now.
    pub(crate) async fn link_at(&self, clock: UnixTime) -> Link {
        self.link_as(clock, true).await
    }

    /// As [`Server::link_at`]; a server of before does not confirm ends of sessions.
    pub(crate) async fn link_as(&self, clock: UnixTime, keeps_sessions: bool) -> Link {
        let since = Instant::now();
        let incoming = soon("an agent", self.endpoint.accept()).await.unwrap();
        let connection = soon("a handshake", incoming.accept().unwrap()).await.unwrap();
        let (mut send, mut recv) = soon("a stream", connection.accept_bi()).await.unwrap();
        let hello = soon("a hello", stream::read_message::<FromAgent>(&mut recv))
            .await
            .unwrap();
        let FromAgent::Hello(hello) = hello else {
            panic!("{hello:?}")
        };
        let welcome = FromServer::Welcome(Welcome {
            node: "node-1".parse().unwrap(),
            clock,
            grant_key: self.signer.verifying_key(),
            ended: Vec::new(),
            keeps_sessions,
        });
        stream::write_message(&mut send, &welcome).await.unwrap();
        Link {
            connection,
            send,
            recv,
            hello,
            clock: (clock, since),
            confirms: keeps_sessions,
        }
    }

    /// Returns a grant of some services for ana.
    pub(crate) fn grant(&self, link: &Link, number: u8, services: &[&str]) -> Grant {
        let now = SystemClock.now();
        Grant {
            batch: None,
            reason: None,
            trust_domain: "fleet.example".parse().unwrap(),
            tunnel: TunnelId::from_bytes([number; 16]),
            operator: "ana".parse().unwrap(),
            holder_key: self.operator.key_hash(),
            device: "pump".parse().unwrap(),
            services: services.iter().map(|name| name.parse().unwrap()).collect(),
            relay: "node-1".parse().unwrap(),
            policy_revision: 1,
            nonce: link.hello.nonce,
            issued_at: now,
            expires_at: now.after(Duration::from_secs(3600)),
            limits: Limits {
                sessions: 16,
                bytes: None,
                bytes_per_sec: None,
                idle_secs: 900,
            },
        }
    }

    /// Offers a tunnel and returns the answer.
    pub(crate) async fn offer(&self, link: &mut Link, grant: &Grant) -> Option<Code> {
        self.offer_with(link, grant, None).await
    }

    /// Offers a tunnel with a permit and returns the answer.
    pub(crate) async fn offer_with(
        &self,
        link: &mut Link,
        grant: &Grant,
        permit: Option<&Permit>,
    ) -> Option<Code> {
        let offer = Offer {
            grant: grant.sign(&self.signer),
            token: vec![1, 2, 3],
            tunnel: grant.tunnel,
            permit: permit.map(Permit::to_bytes),
        };
        link.say(FromServer::Offer(offer)).await;
        loop {
            match link.next().await {
                FromAgent::OfferAnswer(answer) if answer.tunnel == grant.tunnel => {
                    return answer.refused.map(|why| why.code);
                }
                // Of a tunnel of before.
                FromAgent::SessionEnded(_) | FromAgent::TunnelEnded(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Lets the agent attach to a tunnel that it accepted.
    pub(crate) async fn attach(&self, link: &mut Link, grant: &Grant) {
        match link.next().await {
            FromAgent::Attach(attach) => {
                assert_eq!((attach.tunnel, attach.token), (grant.tunnel, vec![1, 2, 3]))
            }
            other => panic!("{other:?}"),
        }
        link.say(FromServer::Attached(self.attached(grant))).await;
    }

    /// Returns what lets the agent's leg bind.
    pub(crate) fn attached(&self, grant: &Grant) -> Attached {
        let circuit = CircuitId::from_bytes(*grant.tunnel.as_bytes());
        Attached {
            tunnel: grant.tunnel,
            circuit,
            leg_key: self.relay.key(circuit, Role::Destination).secret().clone(),
            udp_port: self.relay.port,
            websocket_port: self.addr.tcp_port,
        }
    }

    /// Opens a tunnel from offer to end-to-end connection.
    pub(crate) async fn tunnel(&self, link: &mut Link, grant: &Grant) -> Tunnel {
        assert_eq!(self.offer(link, grant).await, None);
        self.attach(link, grant).await;
        soon("the tunnel", self.connect(grant, &self.operator))
            .await
            .unwrap()
    }

    /// Connects through a tunnel's circuit as an operator does.
    pub(crate) async fn connect(
        &self,
        grant: &Grant,
        operator: &Credentials,
    ) -> Result<Tunnel, quinn::ConnectionError> {
        let ends = self.fleet.ends();
        let circuit = CircuitId::from_bytes(*grant.tunnel.as_bytes());
        let leg = Leg::open(LegConfig {
            server: self.addr.clone().with_udp_port(self.relay.port),
            proven: None,
            circuit,
            role: Role::Source,
            key: self.relay.key(circuit, Role::Source),
            websocket_tls: Arc::new(tls::api_client(&ends, None)),
            carriers: Try::Only(Carrier::Udp),
        })
        .unwrap();
        let tls = tls::tunnel_client(&ends, operator, grant.device_identity());
        let mut config = quinn::ClientConfig::new(tls::quic_client(tls));
        config.transport_config(quic::cli_transport(leg.wake()));
        let connection = leg.connect(config).unwrap().await?;
        Ok(Tunnel {
            connection,
            _leg: leg,
        })
    }

    /// Tells the agent's leg that the circuit has ended.
    pub(crate) async fn end_circuit(&self, grant: &Grant, code: Code) {
        self.relay
            .end(CircuitId::from_bytes(*grant.tunnel.as_bytes()), code)
            .await;
    }
}

/// An agent's control link, at the server.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    pub(crate) hello: Hello,
    /// What the server's clock said when.
    clock: (UnixTime, Instant),
    /// Whether ends of sessions are confirmed.
    pub(crate) confirms: bool,
}

impl Link {
    pub(crate) async fn say(&mut self, message: FromServer) {
        stream::write_message(&mut self.send, &message).await.unwrap();
    }

    /// Returns the next message that is no keepalive; keepalives and ends of sessions are answered.
    pub(crate) async fn next(&mut self) -> FromAgent {
        loop {
            match soon("a message", stream::read_message(&mut self.recv))
                .await
                .unwrap()
            {
                FromAgent::Ping(ping) => {
                    let pong = Pong {
                        seq: ping.seq,
                        proof: 9,
                        seen_as: Some("a".into()),
                        clock: self.clock.0.after(self.clock.1.elapsed()),
                    };
                    // An agent that is about to go takes no answer, and may have more to say.
                    let _ = stream::write_message(&mut self.send, &FromServer::Pong(pong)).await;
                }
                message => {
                    if let FromAgent::SessionEnded(ended) = &message
                        && self.confirms
                    {
                        let keys = ended.key().into_iter().collect();
                        // As above.
                        let _ = stream::write_message(&mut self.send, &FromServer::SessionsKept(keys)).await;
                    }
                    return message;
                }
            }
        }
    }

    /// Returns why a tunnel has ended; ends of sessions on the way are passed over.
    pub(crate) async fn tunnel_ended(&mut self, grant: &Grant) -> Code {
        loop {
            match self.next().await {
                FromAgent::TunnelEnded(ended) if ended.tunnel == grant.tunnel => return ended.reason,
                FromAgent::SessionEnded(_) | FromAgent::Report(_) | FromAgent::Outages(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The operator's end of a tunnel.
pub(crate) struct Tunnel {
    pub(crate) connection: Connection,
    _leg: Leg,
}

impl Tunnel {
    /// Asks for a session; the streams are of use when it is not refused.
    pub(crate) async fn session(&self, service: &str) -> (Option<Code>, SendStream, RecvStream) {
        let (mut send, mut recv) = soon("a stream", self.connection.open_bi()).await.unwrap();
        stream::write_message(
            &mut send,
            &OpenSession {
                service: service.into(),
            },
        )
        .await
        .unwrap();
        let answer = soon("an answer", stream::read_message::<SessionAnswer>(&mut recv))
            .await
            .unwrap();
        (answer.refused.map(|why| why.code), send, recv)
    }

    /// Returns the code with which the agent closed the connection.
    pub(crate) async fn closed(&self) -> Code {
        match soon("the end of the tunnel", self.connection.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                Code::from_number(close.error_code.into_inner())
            }
            other => panic!("{other:?}"),
        }
    }
}

type Places = Arc<Mutex<BTreeMap<(CircuitId, bool), SocketAddr>>>;

/// A relay that trusts everybody and knows where they are.
struct Relay {
    port: u16,
    secret: Secret,
    socket: Arc<UdpSocket>,
    places: Places,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    async fn start() -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (secret, places) = (Secret::new([4; 32]), Places::default());
        let task = forward(Arc::clone(&socket), secret.clone(), Arc::clone(&places));
        Self {
            port: socket.local_addr().unwrap().port(),
            secret,
            socket,
            places,
            _task: AbortOnDropHandle::new(tokio::task::spawn(task)),
        }
    }

    fn key(&self, circuit: CircuitId, role: Role) -> LegKey {
        LegKey::derive(&self.secret, circuit, role)
    }

    async fn end(&self, circuit: CircuitId, code: Code) {
        let place = self.places.lock().unwrap()[&(circuit, true)];
        let key = self.key(circuit, Role::Destination);
        let ended = Control {
            kind: Kind::Ended,
            circuit,
            role: Role::Destination,
            counter: u64::MAX,
            value: code as u64,
        };
        self.socket.send_to(&ended.encode(&key), place).await.unwrap();
    }
}

async fn forward(socket: Arc<UdpSocket>, secret: Secret, places: Places) {
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let datagram = &buffer[..length];
        if is_control(datagram) {
            let Some((bind, plain)) =
                unpadded(datagram).and_then(|plain| Some((Control::decode(plain)?, plain)))
            else {
                continue;
            };
            let key = LegKey::derive(&secret, bind.circuit, bind.role);
            if Control::is_authentic(plain, &key) {
                places
                    .lock()
                    .unwrap()
                    .insert((bind.circuit, bind.role == Role::Destination), from);
                let bound = Control {
                    kind: Kind::Bound,
                    ..bind
                }
                .encode(&key);
                let answer = if length == bound.len() {
                    bound.to_vec()
                } else {
                    padded(&bound).to_vec()
                };
                let _ = socket.send_to(&answer, from).await;
            }
            continue;
        }
        let other = {
            let places = places.lock().unwrap();
            let leg = places
                .iter()
                .find(|(_, place)| **place == from)
                .map(|(leg, _)| *leg);
            leg.and_then(|(circuit, device)| places.get(&(circuit, !device)).copied())
        };
        if let Some(other) = other {
            let _ = socket.send_to(datagram, other).await;
        }
    }
}

/// A device with a running agent.
pub(crate) struct Device {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: PathBuf,
    pub(crate) state: StateDir,
    stop: CancellationToken,
    reload: mpsc::Sender<()>,
    task: AbortOnDropHandle<()>,
}

impl Device {
    /// Starts an agent with these services.
    pub(crate) async fn start(server: &Server, services: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = server
            .fleet
            .enrol(&dir.path().join("state"), "pump", &server.addr, 90);
        Self::start_in(dir, state, services)
    }

    pub(crate) fn start_in(dir: tempfile::TempDir, state: StateDir, services: &str) -> Self {
        let text = format!("state_dir = \"{}\"\n{services}", state.path().display());
        let config = write_config(dir.path(), &text);
        let options = Options {
            config: Config::load(&config).unwrap(),
            config_file: Some(config.clone()),
            carriers: Try::Only(Carrier::Udp),
        };
        let stop = CancellationToken::new();
        let (reload, receiver) = mpsc::channel(1);
        let agent = Agent::new(options).unwrap();
        let task = AbortOnDropHandle::new(tokio::task::spawn(agent.run(stop.clone(), receiver)));
        Self {
            dir,
            config,
            state,
            stop,
            reload,
            task,
        }
    }

    /// Changes the services and lets the agent read them.
    pub(crate) async fn reconfigure(&self, services: &str) {
        let text = format!("state_dir = \"{}\"\n{services}", self.state.path().display());
        write_config(self.dir.path(), &text);
        self.reload.send(()).await.unwrap();
    }

    /// Stops the agent in good order.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        soon("the agent's end", self.task).await.unwrap();
    }
}
