use super::*;

/// Sends from an address that is no leg's, then makes sure that all of it was handled, and returns what came back.
async fn replies(bed: &Bed, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let stranger = bed.udp().await;
    for datagram in datagrams {
        stranger.send(datagram).await.unwrap();
    }
    // The endpoint handles what comes in its order: after a handshake it has seen the rest.
    bed.fleet.handshake(bed).await;
    drain(&stranger)
}

fn forged(circuit: u8, role: Role, key: &LegKey) -> Vec<u8> {
    Control {
        kind: Kind::Bind,
        circuit: id(circuit),
        role,
        counter: 50,
        value: 0,
    }
    .encode(key)
    .to_vec()
}

/// THREATS DAT-01, DAT-05: a bind for an unknown circuit, of another leg, or with a flipped bit.
#[tokio::test]
async fn dat_01_a_bind_that_is_not_its_legs_gets_nothing_back() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.sockets = 1);
    let (mut source, mut destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    let mut junk = vec![
        forged(2, Role::Source, &source.key),
        forged(1, Role::Destination, &source.key),
        forged(1, Role::Source, &LegKey::new(Secret::new([0; 32]))),
    ];
    let good = forged(1, Role::Source, &source.key);
    junk.extend((0..bind::SIZE).map(|byte| {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        bad
    }));
    assert_eq!(replies(&bed, &junk).await, Vec::<Vec<u8>>::new());
    destination.send(&packet(1, 100)).await;
    assert_eq!(source.receive().await, packet(1, 100));
}

/// THREATS DAT-08, DAT-09: datagrams of every kind and size from nobody.
#[tokio::test]
async fn dat_08_an_unknown_source_gets_nothing_back() {
    let bed = bed_with("127.0.0.1:0", |config| config.sockets = 1);
    let mut junk = Vec::new();
    for first in [0x00, 0x01, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff] {
        for length in [
            0, 1, 5, 7, 21, 49, 50, 51, 100, 1199, 1200, 1472, 1473, 9000, 65_507,
        ] {
            for version in [0_u32, 1, 2, 0xff00_001d, 0x1a2a_3a4a] {
                let mut bytes = vec![first; length];
                if let Some(field) = bytes.get_mut(1..5) {
                    field.copy_from_slice(&version.to_be_bytes());
                }
                junk.push(bytes);
            }
        }
    }
    assert_eq!(replies(&bed, &junk).await, Vec::<Vec<u8>>::new());
}

/// THREATS DAT-08: an answer is as long as what it answers, which shows what the path carries both ways.
#[tokio::test]
async fn dat_08_a_padded_bind_is_answered_in_its_own_length() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.sockets = 1);
    let (mut source, _destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    let bind = source.next_bind(0);
    source.send(&bind::padded(&bind)).await;
    let answer = source.receive().await;
    assert_eq!(answer.len(), bind::PADDED_SIZE);
    let bound = bind::unpadded(&answer).unwrap();
    assert!(Control::is_authentic(bound, &source.key));
    assert_eq!(Control::decode(bound).unwrap().kind, Kind::Bound);
    let bind = source.next_bind(0);
    source.send(&bind).await;
    assert_eq!(source.receive().await.len(), bind::SIZE);
}

/// THREATS DAT-06: packets for a circuit that was closed.
#[tokio::test]
async fn dat_06_a_closed_circuit_answers_nothing() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.sockets = 1);
    let (mut source, mut destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    bed.relay.close(id(1), Code::TunnelClosed).unwrap();
    assert_eq!(source.ended().await, Code::TunnelClosed);
    assert_eq!(destination.ended().await, Code::TunnelClosed);
    let bind = source.next_bind(0);
    source.send(&bind).await;
    source.send(&packet(1, 1200)).await;
    bed.fleet.handshake(&bed).await;
    assert_eq!(source.drain(), Vec::<Vec<u8>>::new());
    assert_eq!(destination.drain(), Vec::<Vec<u8>>::new());
}

/// THREATS DAT-07: a member of one circuit writes the tag of another.
#[tokio::test]
async fn dat_07_a_member_of_one_circuit_is_noted_when_it_tries_another() {
    let mut bed = bed();
    let (mut source, _) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    bed.relay.open(CircuitSpec::new(id(2))).unwrap();
    let theirs = forged(2, Role::Source, &source.key);
    source.send(&theirs).await;
    until("it to be noted", || bed.relay.stats().foreign == 1).await;
    assert_eq!(bed.relay.traffic(id(2)).unwrap().source_carrier, None);
}

/// THREATS DAT-10, DAT-11: an address is sent nothing but a challenge before it has answered one.
#[tokio::test]
async fn dat_10_a_first_bind_over_udp_is_challenged() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.sockets = 1);
    let (mut source, mut destination) = bed
        .legs(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    source.bind().await;
    let challenge = destination.say(0).await;
    assert_eq!(challenge.kind, Kind::Challenge);
    source.send(&packet(1, 100)).await;
    destination.send(&packet(2, 100)).await;
    bed.fleet.handshake(&bed).await;
    assert_eq!((source.drain(), destination.drain()), (vec![], vec![]));
    assert_eq!(destination.say(challenge.value).await.kind, Kind::Bound);
    assert_eq!(destination.receive().await, packet(1, 100));
}

/// A resumed leg with a wrong key, an old counter, a foreign circuit, a tunnel that has ended: refused, counted, and not
/// answered with a byte.
#[tokio::test]
async fn refused_binds_are_counted_and_not_answered() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.sockets = 1);
    let (mut source, _destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    bed.relay.open(CircuitSpec::new(id(2))).unwrap();
    let ended = bed.relay.admit(id(2), Role::Source).unwrap();
    bed.relay.close(id(2), Code::TunnelClosed).unwrap();
    source.counter -= 1;
    let old = source.next_bind(0);
    let refused = [
        forged(1, Role::Source, &ended),
        old.to_vec(),
        forged(3, Role::Source, &source.key),
        forged(2, Role::Source, &ended),
        forged(1, Role::Source, &source.key)[1..].to_vec(),
    ];
    assert_eq!(replies(&bed, &refused).await, Vec::<Vec<u8>>::new());
    let counted = bed.relay.stats().refused;
    assert_eq!(
        [
            counted.wrong_key,
            counted.old_counter,
            counted.unknown_circuit,
            counted.ended_tunnel,
            counted.malformed,
        ],
        [1; 5]
    );
    assert_eq!(source.say(0).await.kind, Kind::Bound);
}
