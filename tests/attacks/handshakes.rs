//! Floods of handshakes, and handshakes that are none.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tunnel_e2e::Fleet;
use tunnel_e2e::bare::{self, BareCircuit, packet, socket};
use tunnel_e2e::bytes::noise;
use tunnel_e2e::process::Memory;
use tunnel_e2e::puppet::{Puppet, credentials};
use tunnel_net::tls;

use crate::quic::{
    Bare, CONNECTION_ID_LIMIT, CONNECTION_REFUSED, FRAME_ENCODING, LINK_ID, PROTOCOL_VIOLATION, STREAM_LIMIT,
    TRANSPORT_PARAMETER, parameters, stream, varint,
};
use crate::world::{HERE, scaled, world};

/// How many handshakes of one source may be in progress once its address is proven.
const PER_PROVEN_SOURCE: u64 = 512;
/// How much the server may grow under a flood.
const GROWTH: u64 = 64 << 20;

fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 7, 0, 1)) + number)
}

/// First packets of handshakes that nobody will go on with, each of a connection of its own.
fn firsts(fleet: &Fleet, count: u64) -> Vec<Vec<u8>> {
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let nowhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    let first = |seed| {
        let config = tls::link_client(&ends, &own);
        Bare::new(
            nowhere.try_clone().unwrap(),
            config,
            LINK_ID,
            seed,
            &parameters(1000),
        )
        .first()
    };
    (0..count).map(|seed| first(seed * 2 + 1_000_000)).collect()
}

/// Says whether a packet asks for a proof of the address.
fn is_retry(packet: &[u8]) -> bool {
    packet[0] & 0xf0 == 0xf0
}

/// How many of some datagrams get through a circuit, sent slowly enough to be lost by nobody but a busy relay.
fn get_through(circuit: &BareCircuit, count: u32) -> u32 {
    (0..count)
        .filter(|number| {
            let mark = packet(*number, 200);
            circuit.source.send(&mark);
            let end = Instant::now() + Duration::from_secs(2);
            std::iter::from_fn(|| {
                let left = end.checked_duration_since(Instant::now())?;
                circuit
                    .destination
                    .try_receive(left.max(Duration::from_millis(1)))
            })
            .any(|datagram| datagram == mark)
        })
        .count() as u32
}

#[test]
fn dat_12_a_flood_of_handshakes_is_asked_for_proofs_and_stops_nobody() {
    let (fleet, mut puppet) = world();
    let circuit = BareCircuit::bound(&fleet, &mut puppet);
    let relay = circuit.source.relay;
    let flood = firsts(&fleet, scaled(1500));
    let before = Memory::of(fleet.server.process().pid()).now;
    let (stop, retries) = (AtomicBool::new(false), AtomicU64::new(0));
    let through = std::thread::scope(|scope| {
        scope.spawn(|| {
            let sockets: Vec<_> = (0..1000)
                .map(|number| socket(source(number).into(), relay))
                .collect();
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for (socket, first) in sockets.iter().cycle().zip(&flood) {
                    let _ = socket.send(first);
                    sent += 1;
                    if sent.is_multiple_of(100) {
                        // Others need the processor that this thread runs on.
                        std::thread::yield_now();
                    }
                }
                let answers = sockets.iter().flat_map(bare::drain);
                let asked = answers.filter(|answer| is_retry(answer)).count();
                retries.fetch_add(asked as u64, Ordering::Relaxed);
            }
        });
        tunnel_e2e::until("proofs to be asked for", Duration::from_secs(30), || {
            (retries.load(Ordering::Relaxed) > 500).then_some(())
        });
        let through = get_through(&circuit, 500);
        // A newcomer gets in by its proof.
        drop(Puppet::new(&fleet, "pump-18"));
        stop.store(true, Ordering::Relaxed);
        through
    });
    assert!(through >= 450, "{through} of 500 datagrams of a live circuit");
    assert!(puppet.is_linked());
    let grown = Memory::of(fleet.server.process().pid())
        .peak
        .saturating_sub(before);
    assert!(grown < GROWTH, "the server has grown by {} kB", grown / 1024);
}

/// A source that proves its address has a share of the handshakes, and others have theirs.
#[test]
fn dat_12_one_source_has_its_share_and_no_more() {
    let (fleet, puppet) = world();
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    // Each proves its address, has its handshake begun, and says nothing more.
    let mut halves: Vec<_> = (0..PER_PROVEN_SOURCE + 60)
        .map(|seed| {
            let config = tls::link_client(&ends, &own);
            let socket = socket(source(77).into(), fleet.server.address());
            let mut bare = Bare::new(socket, config, LINK_ID, seed * 2 + 3_000_000, &parameters(1000));
            let first = bare.first();
            let _ = bare.socket.send(&first);
            bare
        })
        .collect();
    let (mut begun, mut refused) = (0, 0);
    for half in &mut halves {
        half.prove();
    }
    for half in &mut halves {
        // The answer to the proof is the server's handshake, or the end.
        half.read_one();
        match half.closed {
            None => begun += 1,
            Some(CONNECTION_REFUSED) => refused += 1,
            Some(other) => panic!("{other:#x}"),
        }
    }
    assert!(
        begun <= PER_PROVEN_SOURCE && refused > 0,
        "{begun} begun, {refused} refused"
    );
    drop(Puppet::new(&fleet, "pump-18"));
    assert!(puppet.is_linked());
}

#[test]
fn dat_13_handshakes_with_a_proof_all_succeed() {
    let (fleet, puppet) = world();
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    for round in 0..scaled(200) {
        let start = Instant::now();
        let config = tls::link_client(&ends, &own);
        let mut bare = Bare::connect(socket(HERE, relay_of(&fleet)), config, LINK_ID, &parameters(1000));
        assert_eq!((bare.closed, bare.retried), (None, true), "round {round}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        bare.close();
    }
    assert!(puppet.is_linked());
}

/// Packets that are QUIC by their protection, and break its rules inside.
#[test]
fn dat_14_malformed_handshakes_end_themselves() {
    let (fleet, puppet) = world();
    let relay = fleet.server.address();
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let new = |seed, parameters: &[(u64, Vec<u8>)]| {
        let socket = socket(HERE, relay);
        let sender = socket.try_clone().unwrap();
        (
            Bare::new(socket, tls::link_client(&ends, &own), LINK_ID, seed, parameters),
            sender,
        )
    };
    for round in 0..scaled(300) {
        let (mut bare, sender) = new(round * 2 + 7_000_000, &parameters(1000));
        let length = 1 + usize::from(noise(1, round)[0]) * 4;
        sender.send(&bare.first_with(&noise(length, round))).unwrap();
    }
    // Parameters of the wrong length, twice, out of bounds, and those that only a server may send.
    let bad: [Vec<(u64, Vec<u8>)>; 6] = [
        vec![(0x04, vec![0xff])],
        vec![(0x04, varint(5)), (0x04, varint(5))],
        vec![(0x03, varint(1))],
        vec![(0x0a, varint(21))],
        vec![(0x02, vec![1; 16])],
        vec![(0x0e, varint(1))],
    ];
    for parameters in &bad {
        let config = tls::link_client(&ends, &own);
        let mut bare = Bare::connect(socket(HERE, relay), config, LINK_ID, parameters);
        let code = bare.end();
        assert!(
            [TRANSPORT_PARAMETER, FRAME_ENCODING].contains(&code),
            "{parameters:?}: {code:#x}"
        );
    }
    drop(Puppet::new(&fleet, "pump-18"));
    assert!(puppet.is_linked());
}

/// A valid device breaks the rules of QUIC on its link.
#[test]
fn dat_14_malformed_frames_of_a_valid_peer_end_its_connection_only() {
    let (fleet, puppet) = world();
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let connect = || {
        let config = tls::link_client(&ends, &own);
        Bare::connect(socket(HERE, relay_of(&fleet)), config, LINK_ID, &parameters(1000))
    };
    let cases: [(&str, Vec<u8>, &[u64]); 9] = [
        ("an unknown frame", vec![0x3f, 0, 0, 0], &[FRAME_ENCODING]),
        (
            "a frame that is cut off",
            vec![0x06, 0, 0x44, 0x44],
            &[FRAME_ENCODING],
        ),
        ("a stream too many", stream(4 * 50, 0, b"x"), &[STREAM_LIMIT]),
        ("a stream of the server's", stream(1, 0, b"x"), &[0x05]),
        (
            "more than the window",
            stream(0, 10 << 20, b"x"),
            &[crate::quic::FLOW_CONTROL],
        ),
        ("a server's frame", vec![0x1e, 0, 0, 0], &[PROTOCOL_VIOLATION]),
        ("ids without end", new_ids(20), &[CONNECTION_ID_LIMIT]),
        (
            "an answer to no challenge",
            [vec![0x19], varint(9)].concat(),
            &[PROTOCOL_VIOLATION],
        ),
        ("a packet of nothing", Vec::new(), &[PROTOCOL_VIOLATION]),
    ];
    for (what, frames, codes) in cases {
        let mut bare = connect();
        if frames.is_empty() {
            // Padding is all that is in it, which is allowed: the connection lives.
            bare.send(&[]);
            assert!(bare.lives(), "{what}");
            bare.close();
            continue;
        }
        bare.send(&frames);
        let code = bare.end();
        assert!(codes.contains(&code), "{what}: {code:#x}");
    }
    for round in 0..scaled(20) {
        let mut bare = connect();
        for part in 0..20 {
            bare.send(&noise(200, round << 8 | part));
        }
        bare.close();
    }
    drop(Puppet::new(&fleet, "pump-18"));
    assert!(puppet.is_linked());
}

/// Frames with connection ids of the client.
pub(crate) fn new_ids(count: u64) -> Vec<u8> {
    (1..=count)
        .flat_map(|number| {
            let id = noise(8, number);
            let token = noise(16, number + 500);
            [vec![0x18], varint(number), varint(0), vec![8], id, token].concat()
        })
        .collect()
}

fn relay_of(fleet: &Fleet) -> SocketAddr {
    fleet.server.address()
}
