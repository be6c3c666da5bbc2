//! Binds and packets of those who may not: nothing comes back, nothing changes, nobody else is sent anything.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use tunnel_e2e::bare::{self, BareCircuit, packet, socket};
use tunnel_e2e::bytes::noise;
use tunnel_e2e::needs;
use tunnel_e2e::raw::Raw;
use tunnel_e2e::skip::Need;
use tunnel_proto::bind::{Control, Kind, Role, SIZE, padded};

use crate::world::{HERE, assert_silent, scaled, world};

#[test]
fn dat_01_a_bind_that_is_not_its_legs_gets_silence() {
    let (fleet, mut puppet) = world();
    let mut mine = BareCircuit::bound(&fleet, &mut puppet);
    let theirs = BareCircuit::bound(&fleet, &mut puppet);
    let good = mine.source.sign(Kind::Bind, 50, 0);
    let claim = Control::decode(&good).unwrap();
    let mut bad: Vec<Vec<u8>> = (0..SIZE * 8)
        .map(|bit| {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            bad
        })
        .collect();
    let other_role = Control {
        role: Role::Destination,
        ..claim
    };
    let other_circuit = Control {
        circuit: theirs.source.circuit,
        ..claim
    };
    bad.extend([other_role, other_circuit].map(|claim| claim.encode(&mine.source.key).to_vec()));
    for kind in [Kind::Bound, Kind::Challenge, Kind::Ended] {
        bad.push(mine.source.sign(kind, 50, 0).to_vec());
    }
    for length in [1, 17, SIZE - 1, SIZE + 1, 1199, 1201] {
        let mut cut = padded(&good).to_vec();
        cut.resize(length, 0);
        bad.push(cut);
    }
    let stranger = socket(HERE, mine.source.relay);
    for bad in &bad {
        stranger.send(bad).unwrap();
    }
    assert_silent(&stranger, &mut mine.source);
    // From the leg's own address they get no more, and the leg binds as before.
    for bad in &bad {
        mine.source.send(bad);
    }
    mine.source.bind();
    assert!(mine.source.drain().is_empty());
    mine.check();
    theirs.check();
}

#[test]
fn dat_02_a_bind_that_was_captured_does_not_move_the_leg() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let thief = socket(HERE, circuit.source.relay);
    let first = circuit.source.counter;
    circuit.source.bind();
    for counter in [1, first, circuit.source.counter] {
        for value in [0, 1, u64::MAX] {
            let captured = circuit.source.sign(Kind::Bind, counter, value);
            thief.send(&captured).unwrap();
            thief.send(&padded(&captured)).unwrap();
        }
    }
    assert_silent(&thief, &mut circuit.source);
    circuit.check();
    assert!(bare::drain(&thief).is_empty(), "the leg's data went to a thief");
}

#[test]
fn dat_03_a_leg_moves_once_it_has_answered_where_it_is() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let start = Instant::now();
    let old = circuit.source.move_to(Ipv4Addr::new(127, 0, 0, 9).into());
    let challenge = circuit.source.say(0);
    assert_eq!(challenge.kind, Kind::Challenge);
    // Until it is answered, data goes where the leg was.
    for number in 0..20 {
        circuit.destination.send(&packet(number, 1200));
    }
    for number in 0..20 {
        let there = bare::receive(&old, Duration::from_secs(10));
        assert_eq!(there, Some(packet(number, 1200)));
    }
    let new: usize = circuit.source.drain().iter().map(Vec::len).sum();
    assert!(
        new <= 2 * SIZE,
        "{new} bytes went to an address that had sent {SIZE}"
    );
    assert_eq!(circuit.source.say(challenge.value).kind, Kind::Bound);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    circuit.check();
    assert!(bare::drain(&old).is_empty());
}

#[test]
fn dat_04_one_who_copies_binds_and_is_faster_gets_nothing() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::open(&fleet, &mut puppet);
    circuit.destination.bind();
    let thief = socket(Ipv4Addr::new(127, 0, 0, 8).into(), circuit.source.relay);
    // The leg binds for the first time, moves, and binds again; each time a copy is there first.
    for round in 0..3 {
        let mut value = 0;
        loop {
            let bind = circuit.source.next_bind(value);
            thief.send(&bind).unwrap();
            let challenge = bare::receive(&thief, Duration::from_secs(10)).unwrap();
            assert_eq!(Control::decode(&challenge).unwrap().kind, Kind::Challenge);
            circuit.source.send(&bind);
            let answer = circuit.source.answer();
            match answer.kind {
                Kind::Bound => break,
                _ => value = answer.value,
            }
        }
        circuit.check();
        assert!(
            bare::drain(&thief).is_empty(),
            "round {round}: data went to a thief"
        );
        circuit.source.move_to(HERE);
    }
}

/// How long the relay takes for a batch of bad binds and one good one behind them.
fn time_of(batch: &[Vec<u8>], socket: &UdpSocket, circuit: &mut BareCircuit) -> Duration {
    let start = Instant::now();
    for bad in batch {
        socket.send(bad).unwrap();
    }
    assert_silent(socket, &mut circuit.source);
    start.elapsed()
}

#[test]
fn dat_05_random_circuits_and_tags_find_nothing_and_tell_nothing() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let stranger = socket(HERE, circuit.source.relay);
    let random = |seed: u64| {
        let mut bind = noise(SIZE, seed);
        bind[0] = Kind::Bind as u8;
        bind[17] &= 1;
        bind
    };
    let hit = |seed: u64| {
        let mut bind = random(seed);
        bind[1..17].copy_from_slice(circuit.source.circuit.as_bytes());
        bind
    };
    let hits: Vec<Vec<u8>> = (0..100).map(|seed| hit(seed << 32)).collect();
    for part in 0..scaled(300) {
        let batch: Vec<Vec<u8>> = (0..100).map(|n| random(part * 100 + n)).collect();
        time_of(&batch, &stranger, &mut circuit);
    }
    // Whether there is such a circuit does not show in the time that the relay takes: the same work is done for both. The
    // samples alternate, so that what else the machine does falls on both; a busy machine gets more than one chance.
    let differs = |circuit: &mut BareCircuit| {
        let mut times = [const { Vec::new() }; 2];
        for round in 0..60 {
            let misses: Vec<Vec<u8>> = (0..100).map(|n| random(round << 40 | n)).collect();
            times[0].push(time_of(&misses, &stranger, circuit));
            times[1].push(time_of(&hits, &stranger, circuit));
        }
        let [miss, hit] = times.map(|mut times| {
            times.sort();
            times[times.len() / 2].as_secs_f64()
        });
        !(0.67..1.5).contains(&(miss / hit))
    };
    let told = (0..4).all(|_| differs(&mut circuit));
    assert!(
        !told,
        "the time tells a circuit that is there from one that is not"
    );
    circuit.check();
}

#[test]
fn dat_06_a_circuit_that_was_closed_is_silent_for_ever() {
    let (fleet, mut puppet) = world();
    let mut other = BareCircuit::bound(&fleet, &mut puppet);
    let mut closed = BareCircuit::bound(&fleet, &mut puppet);
    closed.check();
    closed.close(&fleet);
    for leg in [&closed.source, &closed.destination] {
        assert_eq!(leg.control().kind, Kind::Ended);
    }
    for round in 0..5 {
        for leg in [&mut closed.source, &mut closed.destination] {
            let bind = leg.next_bind(0);
            for datagram in [
                &bind[..],
                &padded(&bind),
                &packet(round, 1200),
                &packet(round, 40),
            ] {
                leg.send(datagram);
            }
            assert_silent(&leg.socket, &mut other.source);
        }
    }
    other.check();
}

#[test]
fn dat_07_a_member_of_one_circuit_cannot_touch_another() {
    let (fleet, mut puppet) = world();
    let mut mine = BareCircuit::bound(&fleet, &mut puppet);
    let theirs = BareCircuit::bound(&fleet, &mut puppet);
    for (role, counter) in [(Role::Source, 90), (Role::Destination, 91)] {
        let (kind, circuit, value) = (Kind::Bind, theirs.source.circuit, 0);
        let claim = Control {
            kind,
            circuit,
            role,
            counter,
            value,
        };
        mine.source.send(&claim.encode(&mine.source.key));
    }
    mine.source.bind();
    assert!(mine.source.drain().is_empty());
    theirs.check();
    mine.check();
    assert!(
        mine.source.drain().is_empty(),
        "something of another circuit came"
    );
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(_) => panic!("loopback is IPv4 here"),
    }
}

/// A rogue with a valid key writes other hosts' addresses on its binds, so that the relay sends there.
#[test]
fn dat_10_the_relay_sends_nothing_to_an_address_that_did_not_answer() {
    needs!(Need::Root);
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::open(&fleet, &mut puppet);
    circuit.source.bind();
    let relay = v4(circuit.source.relay);
    let (raw, victim) = (Raw::open(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let sources = [
        v4(victim.local_addr().unwrap()),
        relay,
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1), 0),
        SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 5353),
        SocketAddrV4::new(Ipv4Addr::BROADCAST, 9),
        SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80),
        SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 1), 53),
    ];
    for from in sources {
        let bind = circuit.destination.next_bind(0);
        raw.udp(from, relay, &bind);
    }
    let stranger = socket(HERE, circuit.source.relay);
    assert_silent(&stranger, &mut circuit.source);
    for number in 0..20 {
        circuit.source.send(&packet(number, 1000));
    }
    circuit.source.bind();
    let mut buffer = [0; 2000];
    victim.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let challenge = victim.recv(&mut buffer).unwrap();
    assert_eq!(
        Control::decode(&buffer[..challenge]).unwrap().kind,
        Kind::Challenge
    );
    victim.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(
        victim.recv(&mut buffer).is_err(),
        "the relay sends to a third host"
    );
    assert_eq!(circuit.traffic(&fleet)["datagrams_in"], 0);
    // Who answers is bound, and gets what was kept.
    circuit.destination.bind();
    circuit.check();
}

/// Two relays are made to look like each other's legs.
#[test]
fn dat_11_relays_do_not_forward_to_each_other() {
    needs!(Need::Root);
    let (fleet, mut puppet) = world();
    let second = fleet.another();
    let mut other_puppet = tunnel_e2e::puppet::Puppet::new(&second, "pump-18");
    let mut ours = BareCircuit::open(&fleet, &mut puppet);
    let mut theirs = BareCircuit::open(&second, &mut other_puppet);
    ours.destination.bind();
    theirs.destination.bind();
    let (raw, here, there) = (Raw::open(), v4(ours.source.relay), v4(theirs.source.relay));
    for _ in 0..50 {
        raw.udp(there, here, &ours.source.next_bind(0));
        raw.udp(here, there, &theirs.source.next_bind(0));
    }
    for number in 0..50 {
        ours.destination.send(&packet(number, 1000));
        theirs.destination.send(&packet(number, 1000));
    }
    ours.destination.bind();
    theirs.destination.bind();
    assert_eq!(ours.traffic(&fleet)["datagrams_out"], 0);
    assert_eq!(theirs.traffic(&second)["datagrams_out"], 0);
    for (circuit, fleet) in [(&mut ours, &fleet), (&mut theirs, &second)] {
        circuit.source.bind();
        circuit.check();
        let counted = circuit.traffic(fleet)["datagrams_out"].as_u64().unwrap();
        // What was kept, at most eight, and the check.
        assert!(counted < 20, "{counted} datagrams");
    }
}
