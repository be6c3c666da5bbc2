//! The TCP port: slow and stalled peers, broken WebSockets, pages in browsers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tunnel_e2e::Fleet;
use tunnel_e2e::bare::{BareCircuit, packet};
use tunnel_e2e::bytes::noise;
use tunnel_e2e::process::Memory;
use tunnel_e2e::puppet::credentials;
use tunnel_e2e::service::Service;
use tunnel_net::tls;
use tunnel_proto::bind::{self, Control, Kind};
use tunnel_proto::carrier;
use tunnel_proto::defaults::{CARRIER_PATH, CARRIER_PROTOCOL, SERVER_NAME};

use crate::world::world;

/// What is patient enough for anything that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much a connection may cost the server.
const GROWTH: u64 = 16 << 20;

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What is sent, its bytes, and the codes of farewells that are right; none is where the server is gone before it is heard.
type Case<'a> = (&'a str, Vec<u8>, &'a [Option<u16>]);

/// A WebSocket, frame by frame.
struct Web {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

fn config(fleet: &Fleet) -> Arc<ClientConfig> {
    let (ends, _) = credentials(&fleet.admin.home());
    Arc::new(tls::api_client(&ends, None))
}

fn connect(fleet: &Fleet, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect(fleet.server.address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    let client = ClientConnection::new(Arc::clone(config), SERVER_NAME.try_into().unwrap()).unwrap();
    StreamOwned::new(client, socket)
}

/// Asks for a WebSocket with more header fields; the head of the answer.
fn ask(stream: &mut StreamOwned<ClientConnection, TcpStream>, more: &str) -> String {
    let request = format!(
        "GET {CARRIER_PATH} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {CARRIER_PROTOCOL}\r\n{more}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

impl Web {
    fn open(fleet: &Fleet) -> Self {
        let mut stream = connect(fleet, &config(fleet));
        let head = ask(&mut stream, "");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self { stream }
    }

    /// Sends a frame; what the peer does not take because it has left is its own affair.
    fn frame(&mut self, first: u8, content: &[u8]) -> std::io::Result<()> {
        let mut bytes = vec![first];
        match u16::try_from(content.len()) {
            Ok(length @ 0..126) => bytes.push(0x80 | length as u8),
            Ok(length) => {
                bytes.push(0x80 | 126);
                bytes.extend(length.to_be_bytes());
            }
            Err(_) => {
                bytes.push(0x80 | 127);
                bytes.extend((content.len() as u64).to_be_bytes());
            }
        }
        // A mask of zeros is a mask.
        bytes.extend([0; 4]);
        bytes.extend(content);
        self.raw(&bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads a frame: its kind and content; nothing at the end of the connection.
    fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).ok()?;
        let mut length = usize::from(head[1] & 0x7f);
        if length == 126 {
            let mut long = [0; 2];
            self.stream.read_exact(&mut long).ok()?;
            length = u16::from_be_bytes(long).into();
        }
        let mut content = vec![0; length];
        self.stream.read_exact(&mut content).ok()?;
        Some((head[0] & 0x0f, content))
    }

    /// Reads to the end: the code of the farewell, if there was one.
    fn end(&mut self) -> Option<u16> {
        let start = Instant::now();
        while let Some((kind, content)) = self.read() {
            if kind == CLOSE {
                return content.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
        }
        assert!(start.elapsed() < PATIENCE, "the connection stays open");
        None
    }

    /// Sends a datagram of the carrier.
    fn datagram(&mut self, datagram: &[u8]) -> std::io::Result<()> {
        let mut message = Vec::new();
        carrier::push(&mut message, datagram);
        self.frame(0x80 | BINARY, &message)
    }

    /// Binds a leg to this connection.
    fn bind(&mut self, leg: &mut tunnel_e2e::bare::BareLeg) {
        let mut value = 0;
        loop {
            self.datagram(&leg.next_bind(value)).unwrap();
            let answer = loop {
                let (_, message) = self.read().expect("an answer");
                if let Some(answer) = carrier::datagrams(&message).find(|datagram| bind::is_control(datagram))
                {
                    break Control::decode(answer).unwrap();
                }
            };
            match answer.kind {
                Kind::Bound => return,
                _ => value = answer.value,
            }
        }
    }
}

#[test]
fn dat_20_stalled_and_slow_peers_are_sent_away_and_others_come_in() {
    let (fleet, _puppet) = world();
    let address = fleet.server.address();
    let connect_from = |ip: Ipv4Addr| -> TcpStream {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(ip.into(), 0)).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    // Handshakes that stall: 64 of one source at once, and each for five seconds.
    let start = Instant::now();
    let stalled: Vec<_> = (0..200)
        .map(|_| connect_from(Ipv4Addr::new(127, 0, 0, 66)))
        .collect();
    fleet.admin.tunnel(&["status"]).ok();
    let is_gone = |stream: &mut TcpStream| {
        let read = stream.read(&mut [0; 16]);
        !matches!(read, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    };
    let mut there = stalled;
    there
        .iter()
        .for_each(|stream| stream.set_nonblocking(true).unwrap());
    tunnel_e2e::until("all but 64 to be sent away at once", PATIENCE, || {
        there.retain_mut(|stream| !is_gone(stream));
        (there.len() <= 64).then_some(())
    });
    let at_once = start.elapsed();
    tunnel_e2e::until("the others to be sent away in time", PATIENCE, || {
        there.retain_mut(|stream| !is_gone(stream));
        there.is_empty().then_some(())
    });
    let in_time = start.elapsed();
    assert!(
        in_time >= Duration::from_secs(4) && at_once < in_time,
        "{at_once:?}, {in_time:?}"
    );
    // A head that comes byte by byte, and one that is larger than a head may be.
    let config = config(&fleet);
    let mut slow: Vec<_> = (0..20).map(|_| connect(&fleet, &config)).collect();
    let start = Instant::now();
    for stream in &mut slow {
        stream.write_all(b"GET /v1/st").unwrap();
    }
    fleet.admin.tunnel(&["status"]).ok();
    for mut stream in slow {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "a head that never came was answered"
        );
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    let mut large = connect(&fleet, &config);
    let head = format!("GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(40_000));
    let _ = large.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = large.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    fleet.admin.tunnel(&["status"]).ok();
}

#[test]
fn dat_21_a_websocket_that_breaks_the_rules_is_closed_and_never_buffered() {
    let (fleet, mut puppet) = world();
    let before = Memory::of(fleet.server.process().pid()).now;
    let huge = |length: u64| {
        [
            &[0x80 | BINARY, 0x80 | 127],
            length.to_be_bytes().as_slice(),
            &[0; 4],
        ]
        .concat()
    };
    let protocol: &[Option<u16>] = &[Some(1002), Some(1003), None];
    let size: &[Option<u16>] = &[Some(1009), Some(1002), Some(1003), None];
    let cases: [Case<'_>; 9] = [
        ("a length of 2^63", huge(1 << 63), size),
        ("64 MiB", [huge(64 << 20), vec![0; 1 << 20]].concat(), size),
        (
            "one byte too many",
            [huge((64 << 10) + 1), vec![0; (64 << 10) + 1]].concat(),
            size,
        ),
        ("no mask", vec![0x80 | BINARY, 1, 0], protocol),
        ("an unknown kind", vec![0x80 | 3, 0x80, 0, 0, 0, 0], protocol),
        (
            "reserved bits, as of compression",
            vec![0xc0 | BINARY, 0x80, 0, 0, 0, 0],
            protocol,
        ),
        ("a ping in pieces", vec![PING, 0x80, 0, 0, 0, 0], protocol),
        (
            "a continuation of nothing",
            vec![0x80, 0x80, 0, 0, 0, 0],
            protocol,
        ),
        ("text", vec![0x81, 0x81, 0, 0, 0, 0, b'x'], protocol),
    ];
    for (what, bytes, codes) in cases {
        let mut web = Web::open(&fleet);
        let _ = web.raw(&bytes);
        let code = web.end();
        assert!(codes.contains(&code), "{what}: {code:?}");
    }
    // Fragments without end, pings whose answers nobody reads, and a message in pieces that is too large in all.
    let mut fragments = Web::open(&fleet);
    let mut many = [0x00, 0x80, 0, 0, 0, 0].repeat(20_000);
    many[0] = BINARY;
    for _ in 0..10 {
        if fragments.raw(&many).is_err() {
            break;
        }
        many[0] = 0;
    }
    let mut pings = Web::open(&fleet);
    pings
        .stream
        .sock
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    for _ in 0..20_000 {
        if pings.frame(0x80 | PING, &[7; 120]).is_err() {
            break;
        }
    }
    let mut pieces = Web::open(&fleet);
    let part = noise(16 << 10, 1);
    let _ = pieces.frame(BINARY, &part);
    for _ in 0..8 {
        let _ = pieces.frame(0, &part);
    }
    assert!(size.contains(&pieces.end()));
    let grown = Memory::of(fleet.server.process().pid())
        .peak
        .saturating_sub(before);
    assert!(grown < GROWTH, "the server has grown by {} kB", grown / 1024);
    // A good one beside them: pinged, bound, and of use.
    let mut circuit = BareCircuit::open(&fleet, &mut puppet);
    let mut good = Web::open(&fleet);
    good.frame(0x80 | PING, b"there?").unwrap();
    assert_eq!(good.read(), Some((PONG, b"there?".to_vec())));
    good.bind(&mut circuit.source);
    circuit.destination.bind();
    good.datagram(&packet(5, 500)).unwrap();
    assert_eq!(circuit.destination.receive(), packet(5, 500));
}

#[test]
fn dat_22_a_receiver_that_does_not_read_costs_only_itself() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::open(&fleet, &mut puppet);
    let other = BareCircuit::bound(&fleet, &mut puppet);
    circuit.source.bind();
    let mut web = Web::open(&fleet);
    web.bind(&mut circuit.destination);
    let before = Memory::of(fleet.server.process().pid()).now;
    let mut rounds = 0;
    while circuit.traffic(&fleet)["dropped"].as_u64().unwrap() < 5_000 {
        for number in 0..2_000 {
            circuit.source.send(&packet(number, 1200));
        }
        rounds += 1;
        assert!(rounds < 1_000, "nothing is dropped");
    }
    let grown = Memory::of(fleet.server.process().pid())
        .peak
        .saturating_sub(before);
    assert!(grown < GROWTH, "the server has grown by {} kB", grown / 1024);
    other.check();
    // It is heard all the while, and goes on where it reads again.
    web.datagram(&packet(9, 900)).unwrap();
    assert_eq!(circuit.source.receive(), packet(9, 900));
    assert!(web.read().is_some());
}

/// Nothing that a peer writes of itself counts: not where a page is from, not whom it comes for.
#[test]
fn dat_23_pages_in_browsers_are_refused_and_claims_of_headers_do_not_count() {
    let fleet = Fleet::on_loopback();
    let config = config(&fleet);
    for origin in ["https://evil.example", "null", &format!("https://{SERVER_NAME}")] {
        let mut stream = connect(&fleet, &config);
        let head = ask(&mut stream, &format!("Origin: {origin}\r\n"));
        assert!(head.starts_with("HTTP/1.1 4"), "{origin}: {head}");
    }
    let mut stream = connect(&fleet, &config);
    let claims = "X-Forwarded-For: 203.0.113.9\r\nForwarded: for=203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let head = ask(&mut stream, claims).to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(!head.contains("sec-websocket-extensions"), "{head}");
    // What the server writes down of a tunnel over that carrier is where its packets came from.
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let mut command = fleet.admin.cli(&["connect", "pump-17", "echo"]);
    command.env("TUNNEL_CARRIER", "websocket");
    let output = tunnel_e2e::process::run_with(&mut command, b"hello", PATIENCE);
    assert_eq!(output.ok(), "hello");
    let audit = serde_json::to_string(&fleet.admin.audit()).unwrap();
    assert!(audit.contains("127.0.0.1") && !audit.contains("203.0.113.9"));
}
