use super::*;

/// Sends packets of many sizes both ways, and looks that each arrives as it was, in order.
async fn exchange(source: Carrier, destination: Carrier) {
    let mut bed = bed();
    let (mut source, mut destination) = bed.bound(CircuitSpec::new(id(1)), source, destination).await;
    let sizes = [1200, 1200, 1200, 40, 1452, 1452, 6, 1200, 9000, 30];
    let packets: Vec<Vec<u8>> = (0..)
        .zip(sizes.repeat(3))
        .map(|(n, size)| packet(n, size))
        .collect();
    let all: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    for _ in 0..2 {
        source.send_all(&all).await;
        for packet in &packets {
            assert_eq!(destination.receive().await, *packet);
        }
        std::mem::swap(&mut source, &mut destination);
    }

    let carriers = [source.wire.carrier(), destination.wire.carrier()].map(|c| Some(c.as_str().to_owned()));
    let bytes = packets.iter().map(Vec::len).sum::<usize>() as u64;
    let expected = Traffic {
        bytes_in: bytes,
        bytes_out: bytes,
        datagrams_in: packets.len() as u64,
        datagrams_out: packets.len() as u64,
        dropped: 0,
        source_carrier: carriers[0].clone(),
        destination_carrier: carriers[1].clone(),
        paths: bed.relay.traffic(id(1)).unwrap().paths,
    };
    let places: Vec<_> = expected
        .paths
        .iter()
        .map(|path| (path.leg.clone(), Some(path.carrier.clone())))
        .collect();
    for (leg, carrier) in ["source", "destination"].into_iter().zip(&carriers) {
        assert!(places.contains(&(leg.to_owned(), carrier.clone())), "{places:?}");
    }
    assert!(
        expected
            .paths
            .iter()
            .all(|path| path.address.starts_with("127.0.0.1:")),
        "{:?}",
        expected.paths
    );
    // What is counted was sent: the count comes a moment later.
    until("the counts", || {
        bed.relay.traffic(id(1)).as_ref() == Some(&expected)
    })
    .await;
    assert_eq!(bed.relay.close(id(1), Code::TunnelClosed), Some(expected));
    assert_eq!(source.ended().await, Code::TunnelClosed);
    assert_eq!(destination.ended().await, Code::TunnelClosed);
}

impl Wire {
    fn carrier(&self) -> Carrier {
        match self {
            Self::Udp(_) => Carrier::Udp,
            Self::WebSocket(_) => Carrier::WebSocket,
        }
    }
}

#[tokio::test]
async fn udp_to_udp() {
    exchange(Carrier::Udp, Carrier::Udp).await;
}

#[tokio::test]
async fn udp_to_websocket() {
    exchange(Carrier::Udp, Carrier::WebSocket).await;
}

#[tokio::test]
async fn websocket_to_udp() {
    exchange(Carrier::WebSocket, Carrier::Udp).await;
}

#[tokio::test]
async fn websocket_to_websocket() {
    exchange(Carrier::WebSocket, Carrier::WebSocket).await;
}

#[tokio::test]
async fn a_train_is_forwarded_whole_and_a_bind_inside_it_is_taken_out() {
    let mut bed = bed();
    let (mut source, mut destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    let bind = source.next_bind(0);
    let mut train: Vec<u8> = (0..60).flat_map(|number| packet(number, 50)).collect();
    train.extend(bind);
    train.extend(packet(60, 50));
    let Wire::Udp(socket) = &source.wire else {
        panic!("a UDP leg")
    };
    let state = quinn_udp::UdpSocketState::new(socket.into()).unwrap();
    let transmit = quinn_udp::Transmit {
        destination: bed.relay.local_addr(),
        ecn: Some(quinn_udp::EcnCodepoint::Ect0),
        contents: &train,
        segment_size: Some(50),
        src_ip: None,
    };
    in_time("room", socket.writable()).await.unwrap();
    state.try_send(socket.into(), &transmit).unwrap();
    for number in 0..61 {
        assert_eq!(destination.receive().await, packet(number, 50));
    }
    let answer = Control::decode(&source.receive().await).unwrap();
    assert_eq!((answer.kind, answer.counter), (Kind::Bound, source.counter));
}

#[tokio::test]
async fn early_datagrams_are_kept_up_to_a_bound() {
    let mut bed = bed();
    let (mut source, mut destination) = bed
        .legs(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    source.bind().await;
    for number in 0..12 {
        source.send(&packet(number, 1200)).await;
    }
    until("all to arrive", || bed.relay.traffic(id(1)).unwrap().dropped == 4).await;
    // A challenge comes first: nobody is sent anything at an address that is not proven.
    let challenge = destination.say(0).await;
    assert_eq!(challenge.kind, Kind::Challenge);
    assert_eq!(bed.relay.traffic(id(1)).unwrap().datagrams_in, 0);
    let proof = destination.next_bind(challenge.value);
    destination.send(&proof).await;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let datagram = destination.receive().await;
        if !bind::is_control(&datagram) {
            seen.push(datagram);
        }
    }
    assert_eq!(
        seen,
        (0..8).map(|number| packet(number, 1200)).collect::<Vec<_>>()
    );
    source.send(&packet(99, 1200)).await;
    assert_eq!(destination.receive().await, packet(99, 1200));
}

#[tokio::test]
async fn early_datagrams_are_bounded_in_bytes() {
    let mut bed = bed();
    let (mut source, _destination) = bed
        .legs(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    source.bind().await;
    for number in 0..3 {
        source.send(&packet(number, 7000)).await;
    }
    until("one to be dropped", || {
        bed.relay.traffic(id(1)).unwrap().dropped == 1
    })
    .await;
}

/// THREATS DAT-03, DAT-24: the leg moves, and nothing that it still sends from where it was is lost.
#[tokio::test]
async fn a_leg_moves_between_addresses_and_carriers() {
    let mut bed = bed();
    let (mut source, mut destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    for (number, carrier) in (0..).zip([Carrier::Udp, Carrier::WebSocket, Carrier::WebSocket, Carrier::Udp]) {
        let mut moved = bed.leg(id(1), Role::Source, carrier).await;
        moved.counter = source.counter;
        assert_eq!(moved.say(0).await.kind, Kind::Challenge);
        destination.send(&packet(number, 100)).await;
        assert_eq!(source.receive().await, packet(number, 100));
        moved.bind().await;
        destination.send(&packet(number, 200)).await;
        assert_eq!(moved.receive().await, packet(number, 200));
        moved.send(&packet(number, 300)).await;
        assert_eq!(destination.receive().await, packet(number, 300));
        source.send(&packet(number, 400)).await;
        assert_eq!(destination.receive().await, packet(number, 400));
        source = moved;
    }
    let mut carriers = Vec::new();
    for _ in 0..6 {
        let RelayEvent::Bound { role, carrier, .. } = bed.event().await else {
            panic!("a bind")
        };
        carriers.push((role, carrier));
    }
    let source = Role::Source;
    let expected = [Carrier::Udp, Carrier::WebSocket, Carrier::WebSocket, Carrier::Udp];
    assert_eq!(carriers[2..], expected.map(|carrier| (source, carrier)));
}

#[tokio::test]
async fn a_closed_websocket_leaves_its_leg_nowhere_until_it_binds_again() {
    let mut bed = bed();
    let (source, mut destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::WebSocket, Carrier::Udp)
        .await;
    let counter = source.counter;
    drop(source);
    until("the leg to be nowhere", || {
        bed.relay.traffic(id(1)).unwrap().source_carrier.is_none()
    })
    .await;
    destination.send(&packet(7, 100)).await;
    let mut source = bed.leg(id(1), Role::Source, Carrier::WebSocket).await;
    source.counter = counter;
    assert_eq!(source.say(0).await.kind, Kind::Challenge);
    source.bind().await;
    assert_eq!(source.receive().await, packet(7, 100));
}

#[tokio::test]
async fn a_restarted_relay_knows_its_legs_and_challenges_them() {
    let mut bed = bed();
    let (source, _) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    bed.relay.shutdown();

    let mut restarted = bed_with("127.0.0.1:0", |_| {});
    let mut spec = CircuitSpec::new(id(1));
    spec.recovered = true;
    let (mut again, mut destination) = restarted.legs(spec, Carrier::Udp, Carrier::Udp).await;
    assert_eq!(again.key.secret(), source.key.secret());
    again.counter = source.counter;
    assert_eq!(again.say(0).await.kind, Kind::Challenge);
    again.bind().await;
    destination.bind().await;
    again.send(&packet(1, 100)).await;
    assert_eq!(destination.receive().await, packet(1, 100));
}

#[tokio::test]
async fn both_address_families_meet_in_one_circuit() {
    let mut bed = bed_with("[::]:0", |_| {});
    let port = bed.relay.local_addr().port();
    let (mut source, mut destination) = bed
        .legs(CircuitSpec::new(id(1)), Carrier::Udp, Carrier::Udp)
        .await;
    for (leg, local, relay) in [
        (&mut source, "127.0.0.1:0", "127.0.0.1"),
        (&mut destination, "[::1]:0", "::1"),
    ] {
        let socket = UdpSocket::bind(local).await.unwrap();
        socket.connect((relay, port)).await.unwrap();
        leg.wire = Wire::Udp(socket);
        leg.bind().await;
    }
    source.send(&packet(1, 1200)).await;
    assert_eq!(destination.receive().await, packet(1, 1200));
    destination.send(&packet(2, 1200)).await;
    assert_eq!(source.receive().await, packet(2, 1200));
}
