//! An operator with a valid tunnel, or a device with a valid link, who abuses the streams, credits and paths of QUIC.

use std::net::Ipv4Addr;
use std::time::Duration;

use tunnel_e2e::bare::{self, BareLeg, socket};
use tunnel_e2e::process::Memory;
use tunnel_e2e::puppet::{Puppet, credentials};
use tunnel_e2e::service::Service;
use tunnel_e2e::{Agent, Fleet};
use tunnel_net::tls;
use tunnel_proto::message::OpenSession;

use crate::handshakes::new_ids;
use crate::quic::{
    Bare, CONNECTION_ID_LIMIT, LINK_ID, PROTOCOL_VIOLATION, STREAM_LIMIT, TUNNEL_ID, parameters, reset,
    stream, varint,
};
use crate::world::{HERE, scaled, world};

/// How much an abuser may cost a program.
const GROWTH: u64 = 16 << 20;

/// A fleet with a device that runs its own agent, and offers an echo and a service that pours.
struct Field {
    fleet: Fleet,
    agent: Agent,
    _services: [Service; 2],
}

impl Field {
    fn new() -> Self {
        let fleet = Fleet::on_loopback();
        let services = [
            Service::echo(fleet.devices_place()),
            Service::pours(fleet.devices_place()),
        ];
        let device = fleet
            .device("pump-17")
            .service("echo", &services[0].target())
            .service("pours", &services[1].target());
        let agent = fleet.link(device);
        Self {
            fleet,
            agent,
            _services: services,
        }
    }

    /// Opens a tunnel and makes its connection with a client that can be told anything.
    fn abuser(&self, window: u64) -> Bare {
        let leg = BareLeg::to(&self.fleet, "pump-17", &["echo", "pours"]);
        let (ends, own) = credentials(&self.fleet.admin.home());
        let device = format!("spiffe://{}/device/pump-17", tunnel_e2e::server::TRUST_DOMAIN);
        let config = tls::tunnel_client(&ends, &own, device.parse().unwrap());
        Bare::connect(leg.socket, config, TUNNEL_ID, &parameters(window))
    }

    /// Checks that another tunnel to the device is as good as ever, and that the abuser has cost the agent little.
    #[track_caller]
    fn check(&self, before: Memory) {
        let output = self
            .fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "echo"], b"hello");
        assert_eq!(output.ok(), "hello");
        let grown = Memory::of(self.agent.process().pid())
            .peak
            .saturating_sub(before.now);
        assert!(grown < GROWTH, "the agent has grown by {} kB", grown / 1024);
    }

    fn memory(&self) -> Memory {
        // What one honest tunnel costs is there before.
        let output = self
            .fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "echo"], b"hello");
        assert_eq!(output.ok(), "hello");
        Memory::of(self.agent.process().pid())
    }
}

/// The first frame of a session with a service.
fn open(service: &str) -> Vec<u8> {
    let service = service.to_owned();
    tunnel_proto::frame::encode(&OpenSession { service })
}

#[test]
fn dat_15_streams_without_end_are_bounded() {
    let field = Field::new();
    let before = field.memory();
    // More at once than allowed.
    let mut abuser = field.abuser(1 << 20);
    abuser.send(&stream(4 * 100_000, 0, b"x"));
    assert_eq!(abuser.end(), STREAM_LIMIT);
    // As many as allowed, opened and reset over and over, as credit comes back.
    let mut abuser = field.abuser(1 << 20);
    for number in 0..scaled(10_000) {
        abuser.send(&[stream(4 * number, 0, b"x"), reset(4 * number, 1)].concat());
        if number % 50 == 49 {
            let packets = abuser.packets;
            abuser.run(Duration::from_millis(20), |abuser| abuser.packets > packets + 4);
        }
        if abuser.closed.is_some() {
            break;
        }
    }
    assert!(
        matches!(abuser.closed, None | Some(STREAM_LIMIT)),
        "{:?}",
        abuser.closed
    );
    // All that are allowed stay open, and nobody says what for.
    let mut abuser = field.abuser(1 << 20);
    for number in 0..500 {
        abuser.send(&stream(4 * number, 0, &[0]));
    }
    assert!(abuser.lives());
    field.check(before);
}

#[test]
fn dat_16_streams_full_of_holes_are_bounded() {
    let field = Field::new();
    let before = field.memory();
    let mut abuser = field.abuser(1 << 20);
    abuser.send(&stream(0, 0, &open("echo")));
    // Single bytes with a hole behind each, over the whole window of the stream.
    let mut offset = 1000;
    while offset < 1 << 20 && abuser.closed.is_none() {
        let mut frames = Vec::new();
        while frames.len() < 1000 {
            frames.extend(stream(0, offset, b"x"));
            offset += 2;
        }
        abuser.send(&frames);
        if offset % 64 < 2 {
            abuser.run(Duration::from_millis(1), |abuser| abuser.closed.is_some());
        }
    }
    abuser.run(Duration::from_millis(300), |abuser| abuser.closed.is_some());
    field.check(before);
}

#[test]
fn dat_17_credit_that_never_comes_and_receipts_that_are_false() {
    let field = Field::new();
    let before = field.memory();
    // No credit: the service stands still, and nobody else does.
    let mut starved = field.abuser(0);
    starved.send(&stream(0, 0, &open("pours")));
    assert!(starved.lives());
    // One byte at a time.
    let mut miser = field.abuser(1);
    miser.send(&stream(0, 0, &open("pours")));
    for credit in 2..50 {
        miser.send(&[vec![0x10], varint(credit), vec![0x11, 0], varint(credit)].concat());
    }
    let came = |miser: &Bare| miser.streams.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    assert!(miser.run(Duration::from_secs(20), |miser| came(miser) >= 10
        || miser.closed.is_some()));
    assert!(miser.closed.is_none() && came(&miser) < 200, "{}", came(&miser));
    // Receipts for packets that were never sent.
    let mut liar = field.abuser(1 << 20);
    let receipt = liar.false_ack(100_000);
    liar.send(&receipt);
    assert_eq!(liar.end(), PROTOCOL_VIOLATION);
    field.check(before);
}

#[test]
fn dat_18_ids_challenges_and_moves_without_end_are_bounded() {
    let (fleet, puppet) = world();
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let relay = fleet.server.address();
    let connect = || {
        Bare::connect(
            socket(HERE, relay),
            tls::link_client(&ends, &own),
            LINK_ID,
            &parameters(1000),
        )
    };
    let before = Memory::of(fleet.server.process().pid()).now;
    let mut ids = connect();
    ids.send(&new_ids(30));
    assert_eq!(ids.end(), CONNECTION_ID_LIMIT);
    // Challenges are answered one by one at most, and never by more than they were.
    let mut challenger = connect();
    let challenges = [&[0x1a][..], &[7; 8]].concat().repeat(100);
    for _ in 0..scaled(50) {
        challenger.send(&challenges);
    }
    assert!(challenger.lives());
    let answered = challenger.packets;
    assert!(answered < 5_000, "{answered} packets came back");
    // One connection from a thousand addresses: each is asked for a proof, and gets no more than came from it.
    let mut mover = connect();
    for number in 0..scaled(1_000) {
        let ip = Ipv4Addr::new(127, 5, (number >> 8) as u8, number as u8);
        let packet = mover.protect(&[0x01, 0, 0, 0]);
        let from = socket(ip.into(), relay);
        from.send(&packet).unwrap();
        if number % 100 == 0 {
            let back = bare::receive(&from, Duration::from_millis(300)).map_or(0, |bytes| bytes.len());
            assert!(
                back <= 3 * packet.len().max(400),
                "{back} bytes for {}",
                packet.len()
            );
        }
    }
    let grown = Memory::of(fleet.server.process().pid())
        .peak
        .saturating_sub(before);
    assert!(grown < GROWTH, "the server has grown by {} kB", grown / 1024);
    drop(Puppet::new(&fleet, "pump-18"));
    assert!(puppet.is_linked());
}
