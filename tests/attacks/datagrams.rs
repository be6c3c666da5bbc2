//! Datagrams of all sizes and kinds: what comes back is counted, and what is a leg's goes through whole.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tunnel_e2e::bare::{self, BareCircuit, socket};
use tunnel_e2e::bytes::noise;
use tunnel_e2e::needs;
use tunnel_e2e::puppet::{Puppet, credentials};
use tunnel_e2e::raw::{self, Raw};
use tunnel_e2e::skip::Need;
use tunnel_net::tls;
use tunnel_proto::defaults::MAX_DATAGRAM;

use crate::quic::{Bare, LINK_ID, TUNNEL_ID, parameters};
use crate::world::{HERE, assert_silent, scaled, world};

/// How datagrams begin that might be for somebody: control, short headers, and QUIC's packets of several versions with ids
/// of several lengths.
const BEGINNINGS: [&[u8]; 14] = [
    &[0x00],
    &[0x01],
    &[0x02],
    &[0x04],
    &[0x3f],
    &[0x40],
    &[0x7f],
    &[0xc0, 0, 0, 0, 1, 20],
    &[0xc3, 0, 0, 0, 1, 16],
    &[0xc3, 0, 0, 0, 1, 8],
    &[0xe0, 0, 0, 0, 1, 20],
    &[0xf0, 0, 0, 0, 1, 20],
    &[0xc0, 0, 0, 0, 0, 20],
    &[0xc0, 0x6b, 0x33, 0x43, 0xcf, 20],
];

/// Up to which length each beginning is tried; above that they take turns, unless more is asked for.
const ALL_KINDS: usize = 1500;

#[test]
fn dat_08_nobody_gets_more_bytes_than_he_sent() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let stranger = socket(HERE, circuit.source.relay);
    let content = noise(MAX_DATAGRAM, 8);
    let all = scaled(1) > 1;
    let mut sent = 0u64;
    for length in 0..=MAX_DATAGRAM {
        let kinds = BEGINNINGS.iter().enumerate();
        for (_, beginning) in
            kinds.filter(|(at, _)| all || length < ALL_KINDS || length % BEGINNINGS.len() == *at)
        {
            let mut datagram = content[..length].to_vec();
            let begun = length.min(beginning.len());
            datagram[..begun].copy_from_slice(&beginning[..begun]);
            stranger.send(&datagram).unwrap();
            sent += 1;
            // Not more at once than the relay's socket holds: what it has no room for was not tried.
            if sent.is_multiple_of(16) {
                assert_silent(&stranger, &mut circuit.source);
            }
        }
    }
    assert_silent(&stranger, &mut circuit.source);
    assert!(sent > 80_000, "{sent}");
    circuit.check();

    // First packets of a handshake are asked for a proof of the address, which is less than they are.
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let mut firsts: Vec<_> = [1200, 1252, 1400]
        .map(|length| {
            let socket = socket(HERE, circuit.source.relay);
            let config = tls::link_client(&ends, &own);
            let sender = socket.try_clone().unwrap();
            let mut first = Bare::new(socket, config, LINK_ID, length, &parameters(1000)).first();
            first.resize(usize::try_from(length).unwrap(), 0);
            sender.send(&first).unwrap();
            (sender, first.len(), 0)
        })
        .into();
    // Were a handshake begun, it would repeat its answer after a second.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for (socket, _, back) in &mut firsts {
            *back += bare::receive(socket, Duration::from_millis(50)).map_or(0, |bytes| bytes.len());
        }
    }
    for (_, length, back) in firsts {
        assert!(back > 0 && back <= length, "{back} bytes for {length}");
    }
}

/// A tunnel's first packet that reaches the relay before its leg is bound is not answered in the device's place.
#[test]
fn dat_08_the_first_packet_of_a_tunnel_is_not_taken_for_a_links() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let first = |id| {
        let socket = socket(HERE, circuit.source.relay);
        let sender = socket.try_clone().unwrap();
        let config = tls::link_client(&ends, &own);
        let first = Bare::new(socket, config, id, 5, &parameters(1000)).first();
        sender.send(&first).unwrap();
        sender
    };
    let (tunnel, link) = (first(TUNNEL_ID), first(LINK_ID));
    assert!(bare::receive(&link, Duration::from_secs(10)).is_some());
    assert_silent(&tunnel, &mut circuit.source);
}

#[test]
fn dat_09_datagrams_of_every_size_go_through_whole_or_not_at_all() {
    let (fleet, mut puppet) = world();
    let circuit = BareCircuit::bound(&fleet, &mut puppet);
    circuit.check();
    for length in [
        1,
        2,
        20,
        49,
        50,
        51,
        1199,
        1200,
        1201,
        1472,
        9000,
        32_768,
        MAX_DATAGRAM,
    ] {
        let mut datagram = noise(length, 9);
        datagram[0] |= 0x40;
        circuit.source.send(&[]);
        circuit.source.send(&datagram);
        assert_eq!(circuit.destination.receive(), datagram, "{length}");
    }
    circuit.check();
}

#[test]
fn dat_09_fragments_are_put_together_or_dropped() {
    needs!(Need::Root);
    let (fleet, mut puppet) = world();
    let circuit = BareCircuit::bound(&fleet, &mut puppet);
    let v4 = |address| match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(_) => panic!("loopback is IPv4 here"),
    };
    let (from, to) = (v4(local(&circuit.source.socket)), v4(circuit.source.relay));
    let mut datagram = noise(4000, 9);
    datagram[0] |= 0x40;
    let whole = raw::udp(from, to, &datagram);
    let part = |from: usize, to: usize| (from, whole[from..to].to_vec(), to < whole.len());
    let last = whole.len();
    let raw = Raw::open();
    raw.fragments(from, to, 1, [part(0, 1480), part(1480, 2960), part(2960, last)]);
    assert_eq!(circuit.destination.receive(), datagram);
    // In the wrong order it is the same datagram.
    raw.fragments(from, to, 2, [part(2960, last), part(0, 1480), part(1480, 2960)]);
    assert_eq!(circuit.destination.receive(), datagram);
    // What overlaps, what has holes, and what ends twice does not go through, nor does it stop what does.
    raw.fragments(from, to, 3, [part(0, 1480), part(1400, 2960), part(2960, last)]);
    raw.fragments(from, to, 4, [part(0, 1480), part(2960, last)]);
    raw.fragments(
        from,
        to,
        5,
        [part(0, 1480), (1480, vec![0; 8], false), part(2960, last)],
    );
    let first = |number| circuit.destination.try_receive(Duration::from_millis(200)) == Some(number);
    assert!(!first(datagram.clone()));
    circuit.check();
}

fn local(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

/// Bytes that nobody has made on purpose, to everybody who listens: none stops a program (THREATS part 8).
#[test]
fn dat_14_malformed_datagrams_stop_nobody() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let (ends, own) = credentials(&fleet.device_state("pump-17"));
    let stranger = socket(HERE, circuit.source.relay);
    let seeds: Vec<Vec<u8>> = (0..8)
        .map(|seed| {
            let config = tls::link_client(&ends, &own);
            let socket = stranger.try_clone().unwrap();
            Bare::new(socket, config, LINK_ID, seed, &parameters(1000)).first()
        })
        .collect();
    for round in 0..scaled(20_000) {
        let random = noise(64, round);
        let at = |byte: usize| usize::from(random[byte]) << 8 | usize::from(random[byte + 1]);
        let mut bytes = seeds[at(0) % seeds.len()].clone();
        // Mostly the head, where meaning is.
        for change in 0..1 + at(2) % 6 {
            let place = at(4 + 4 * change) % if random[3] & 1 == 0 { 60 } else { bytes.len() };
            bytes[place] = random[6 + 4 * change];
        }
        if random[40] & 3 == 0 {
            bytes.truncate(at(42) % bytes.len());
        }
        if random[40] & 12 == 0 {
            let other = noise(at(44) % 200, round);
            bytes.extend(other);
        }
        stranger.send(&bytes).unwrap();
        if round % 200 == 199 {
            // Some of them are good handshakes still, and are answered: a leg's bind is what is waited for.
            let bind = circuit.source.next_bind(0);
            circuit.source.send(&bind);
            circuit.source.answer();
            bare::drain(&stranger);
        }
    }
    circuit.check();
    assert!(puppet.is_linked());
    drop(Puppet::new(&fleet, "pump-18"));
}
