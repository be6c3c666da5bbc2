//! The legs of a circuit without the programs around them: one UDP socket each, that says what a test tells it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunnel_proto::CircuitId;
use tunnel_proto::bind::{self, Control, Kind, Role, SIZE};
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::{LegKey, Secret};

use crate::api::Api;
use crate::fleet::Fleet;
use crate::puppet::Puppet;
use crate::wait::SOON;

/// One leg.
#[derive(Debug)]
pub struct BareLeg {
    /// Its socket, which takes from the relay alone.
    pub socket: UdpSocket,
    /// Its key.
    pub key: LegKey,
    /// Its circuit.
    pub circuit: CircuitId,
    /// Which end it is.
    pub role: Role,
    /// The counter of its last bind.
    pub counter: u64,
    /// Where the relay is.
    pub relay: SocketAddr,
}

/// Both legs of a tunnel that was asked for and accepted as any other; its operator's and its device's end are the test's.
#[derive(Debug)]
pub struct BareCircuit {
    /// The tunnel.
    pub tunnel: String,
    /// The operator's leg.
    pub source: BareLeg,
    /// The device's leg.
    pub destination: BareLeg,
}

impl BareCircuit {
    /// Has the first operator of a fleet open a tunnel to a puppet, and redeems both tokens. No leg is bound.
    ///
    /// # Panics
    /// When that is refused.
    #[track_caller]
    pub fn open(fleet: &Fleet, puppet: &mut Puppet) -> Self {
        let api = Api::of(fleet.server.address(), &fleet.admin.home());
        let wish = json!({ "device": puppet.id(), "services": ["echo"] });
        let (opened, offer) = std::thread::scope(|scope| {
            let opening = scope.spawn(|| good(&api, "POST", "/v1/tunnels", Some(&wish)));
            let offer = puppet.accept();
            (opening.join().expect("the tunnel is opened"), offer)
        });
        let tunnel = opened["tunnel"].as_str().expect("an id").to_owned();
        let (circuit, key) = attach(&api, &opened);
        let theirs = puppet.attach(&offer);
        let relay = fleet.server.address();
        Self {
            tunnel,
            source: BareLeg::new(relay, circuit, Role::Source, key),
            destination: BareLeg::new(relay, circuit, Role::Destination, LegKey::new(theirs.leg_key)),
        }
    }

    /// As [`BareCircuit::open`], with both legs bound.
    ///
    /// # Panics
    /// As there.
    #[track_caller]
    pub fn bound(fleet: &Fleet, puppet: &mut Puppet) -> Self {
        let mut circuit = Self::open(fleet, puppet);
        circuit.source.bind();
        circuit.destination.bind();
        circuit
    }

    /// Checks that a datagram passes each way.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn check(&self) {
        self.source.reaches(&self.destination);
        self.destination.reaches(&self.source);
    }

    /// Closes the tunnel, as its operator.
    ///
    /// # Panics
    /// When that is refused.
    pub fn close(&self, fleet: &Fleet) {
        let api = Api::of(fleet.server.address(), &fleet.admin.home());
        good(&api, "DELETE", &format!("/v1/tunnels/{}", self.tunnel), None);
    }

    /// Returns what the relay has counted for it.
    ///
    /// # Panics
    /// When the server does not tell.
    pub fn traffic(&self, fleet: &Fleet) -> Value {
        let api = Api::of(fleet.server.address(), &fleet.admin.home());
        good(&api, "GET", &format!("/v1/tunnels/{}", self.tunnel), None)["traffic"].clone()
    }
}

/// Redeems the operator's token of a tunnel.
#[track_caller]
fn attach(api: &Api, opened: &Value) -> (CircuitId, LegKey) {
    let tunnel = opened["tunnel"].as_str().expect("an id");
    let token = json!({ "token": opened["token"] });
    let attached = good(api, "POST", &format!("/v1/tunnels/{tunnel}/attach"), Some(&token));
    let text = |name: &str| attached[name].as_str().expect("a text").to_owned();
    let key = unhex(&text("leg_key")).expect("a key");
    (
        text("circuit").parse().expect("a circuit"),
        LegKey::new(Secret::new(key)),
    )
}

#[track_caller]
fn good(api: &Api, method: &str, path: &str, body: Option<&Value>) -> Value {
    let answer = api.request(method, path, body).expect("an answer");
    assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
    answer.body
}

impl BareLeg {
    /// Opens a tunnel to a device whose agent runs, as the first operator of a fleet, and binds its leg.
    ///
    /// # Panics
    /// When that is refused.
    #[track_caller]
    pub fn to(fleet: &Fleet, device: &str, services: &[&str]) -> Self {
        let api = Api::of(fleet.server.address(), &fleet.admin.home());
        let wish = json!({ "device": device, "services": services });
        let opened = good(&api, "POST", "/v1/tunnels", Some(&wish));
        let (circuit, key) = attach(&api, &opened);
        let mut leg = Self::new(fleet.server.address(), circuit, Role::Source, key);
        leg.bind();
        leg
    }

    /// Takes a leg that was admitted; it is not bound.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn new(relay: SocketAddr, circuit: CircuitId, role: Role, key: LegKey) -> Self {
        Self {
            socket: socket(Ipv4Addr::LOCALHOST.into(), relay),
            key,
            circuit,
            role,
            counter: 0,
            relay,
        }
    }

    /// Takes another socket, as a device does that has moved. The old one is returned.
    pub fn move_to(&mut self, ip: IpAddr) -> UdpSocket {
        std::mem::replace(&mut self.socket, socket(ip, self.relay))
    }

    /// Makes the next bind.
    pub fn next_bind(&mut self, value: u64) -> [u8; SIZE] {
        self.counter += 1;
        self.sign(Kind::Bind, self.counter, value)
    }

    /// Makes a control datagram of this leg.
    pub fn sign(&self, kind: Kind, counter: u64, value: u64) -> [u8; SIZE] {
        let Self { circuit, role, .. } = *self;
        Control {
            kind,
            circuit,
            role,
            counter,
            value,
        }
        .encode(&self.key)
    }

    /// Sends a bind with a value, and returns the answer; data that comes before is passed over.
    #[track_caller]
    pub fn say(&mut self, value: u64) -> Control {
        let bind = self.next_bind(value);
        self.send(&bind);
        self.answer()
    }

    /// Waits for the relay's answer to the last bind.
    ///
    /// # Panics
    /// When none comes, or one that is not authentic.
    #[track_caller]
    pub fn answer(&self) -> Control {
        loop {
            let control = self.control();
            if control.counter == self.counter {
                return control;
            }
        }
    }

    /// Waits for a control datagram.
    ///
    /// # Panics
    /// When none comes, or one that is not authentic.
    #[track_caller]
    pub fn control(&self) -> Control {
        loop {
            let datagram = self.receive();
            if bind::is_control(&datagram) {
                assert!(Control::is_authentic(&datagram, &self.key));
                return Control::decode(&datagram).expect("a control datagram");
            }
        }
    }

    /// Binds, answering a challenge if there is one.
    ///
    /// # Panics
    /// When the relay does not confirm it.
    #[track_caller]
    pub fn bind(&mut self) {
        let mut answer = self.say(0);
        if answer.kind == Kind::Challenge {
            answer = self.say(answer.value);
        }
        assert_eq!(answer.kind, Kind::Bound);
    }

    /// Sends a datagram to the relay. What the system has no room for is lost, as on any path.
    pub fn send(&self, datagram: &[u8]) {
        let _ = self.socket.send(datagram);
    }

    /// Waits for a datagram.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn receive(&self) -> Vec<u8> {
        self.try_receive(SOON).expect("a datagram in time")
    }

    /// Waits for a datagram for some time.
    pub fn try_receive(&self, patience: Duration) -> Option<Vec<u8>> {
        receive(&self.socket, patience)
    }

    /// Takes whatever is there.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        drain(&self.socket)
    }

    /// Checks that a datagram gets from here to the other leg; what came there before is passed over.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn reaches(&self, other: &Self) {
        static MARKS: AtomicU32 = AtomicU32::new(1 << 31);
        let mark = packet(MARKS.fetch_add(1, Ordering::Relaxed), 100);
        // Loopback loses a datagram only where a buffer is full, which may be so after a flood.
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            self.send(&mark);
            let again = Instant::now() + Duration::from_millis(500);
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                match other.try_receive(left.max(Duration::from_millis(1))) {
                    Some(datagram) if datagram == mark => return,
                    Some(_) => {}
                    None => break,
                }
            }
        }
        panic!("nothing gets through the circuit");
    }
}

/// Opens a socket on one of this machine's addresses that takes from the relay alone.
///
/// # Panics
/// When there is no port for it.
pub fn socket(ip: IpAddr, relay: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).expect("a port is free");
    socket.connect(relay).expect("a UDP socket connects");
    socket
}

/// Waits for a datagram for some time.
pub fn receive(socket: &UdpSocket, patience: Duration) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(patience)).expect("a time");
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Takes whatever is there.
pub fn drain(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let mut all = Vec::new();
    while let Ok((length, _)) = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
        all.push(buffer[..length].to_vec());
    }
    all
}

/// A datagram that looks like a QUIC packet with a number in it.
///
/// # Panics
/// When it is shorter than five bytes.
pub fn packet(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0x40; length];
    bytes[1..5].copy_from_slice(&number.to_be_bytes());
    bytes
}
