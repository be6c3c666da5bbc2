use super::*;
use rustix::net::SendFlags;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sends as fast as the relay counts, so that no socket's buffer drops any.
async fn send_counted(bed: &Bed, source: &mut Leg, count: u64) {
    for number in 1..=count {
        source.send(&packet(0, 1000)).await;
        if number % 20 == 0 {
            let traffic = || bed.relay.traffic(source.circuit).unwrap();
            until("the counts", || {
                traffic().datagrams_in + traffic().dropped == number
            })
            .await;
        }
    }
}

/// A sender in full flight, which never has more under way than a socket's buffer holds while somebody counts.
#[derive(Default)]
struct Flood {
    sent: AtomicU64,
    allowed: AtomicU64,
    stop: AtomicBool,
}

impl Flood {
    fn run(&self, socket: &UdpSocket) {
        while !self.stop.load(Ordering::Relaxed) {
            if self.sent.load(Ordering::Relaxed) < self.allowed.load(Ordering::Relaxed)
                && rustix::net::send(socket, &packet(1, 1200), SendFlags::DONTWAIT).is_ok()
            {
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Ends the flood of a test that fails, too.
struct Stop<'a>(&'a Flood);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The cut is exact: what arrives after `close` has returned was sent before.
#[tokio::test]
async fn nothing_is_forwarded_after_close_has_returned() {
    let mut bed = bed();
    for round in 0..20 {
        let (mut source, destination) = bed
            .bound(CircuitSpec::new(id(round)), Carrier::Udp, Carrier::Udp)
            .await;
        let Wire::Udp(socket) = &source.wire else {
            panic!("a UDP leg")
        };
        let flood = Flood::default();
        std::thread::scope(|scope| {
            let stop = Stop(&flood);
            scope.spawn(|| flood.run(socket));
            let mut seen = 0;
            while seen < 200 {
                flood.allowed.store(seen + 30, Ordering::Relaxed);
                seen += destination.drain().len() as u64;
            }
            let traffic = bed.relay.close(id(round), Code::PolicyChanged).unwrap();
            assert!(traffic.datagrams_in >= 200);
            // The end stands behind all that was forwarded.
            let last = destination.drain().pop().unwrap();
            assert_eq!(Control::decode(&last).unwrap().kind, Kind::Ended);

            let goal = flood.sent.load(Ordering::Relaxed) + 100;
            flood.allowed.store(goal, Ordering::Relaxed);
            while flood.sent.load(Ordering::Relaxed) < goal {
                std::thread::yield_now();
            }
            assert_eq!(destination.drain(), Vec::<Vec<u8>>::new());
            drop(stop);
        });
        assert_eq!(source.ended().await, Code::PolicyChanged);
        assert_eq!(bed.relay.traffic(id(round)), None);
        assert_eq!(bed.relay.close(id(round), Code::PolicyChanged), None);
    }
}

#[tokio::test]
async fn what_waits_for_a_websocket_is_thrown_away_by_a_cut() {
    let mut bed = bed();
    let (near, far) = tokio::io::duplex(1024);
    bed.serve(far, "192.0.2.7:7".parse().unwrap());
    let mut reader = WebSocketStream::from_raw_socket(near, End::Client, None).await;
    let spec = CircuitSpec::new(id(1));
    let (mut source, destination) = bed.legs(spec, Carrier::Udp, Carrier::Udp).await;
    source.bind().await;
    reader
        .send(message_of(&[&destination_bind(&destination)]))
        .await
        .unwrap();
    in_time("the answer", reader.next()).await.unwrap().unwrap();
    send_counted(&bed, &mut source, 400).await;
    bed.relay.close(id(1), Code::Revoked).unwrap();

    // What was being written is whole, and then comes the end, at once.
    let mut data = 0;
    let ended = loop {
        let received = in_time("the end", reader.next())
            .await
            .unwrap()
            .unwrap()
            .into_data();
        let datagrams: Vec<_> = message::datagrams(&received).collect();
        match datagrams.iter().find(|datagram| bind::is_control(datagram)) {
            Some(control) => break Control::decode(control).unwrap(),
            None => data += received.len(),
        }
    };
    assert_eq!(
        (ended.kind, Code::from_number(ended.value)),
        (Kind::Ended, Code::Revoked)
    );
    assert!(data <= 2 * message::FULL, "{data} bytes after the cut");
}

fn destination_bind(leg: &Leg) -> [u8; bind::SIZE] {
    let Leg { circuit, role, .. } = *leg;
    Control {
        kind: Kind::Bind,
        circuit,
        role,
        counter: 1,
        value: 0,
    }
    .encode(&leg.key)
}

#[tokio::test]
async fn the_byte_limit_ends_forwarding_and_is_told_once() {
    let mut bed = bed();
    let mut spec = CircuitSpec::new(id(1));
    spec.max_bytes = Some(3000);
    let (mut source, mut destination) = bed.bound(spec, Carrier::Udp, Carrier::Udp).await;
    for number in 0..5 {
        source.send(&packet(number, 1000)).await;
    }
    for number in 0..3 {
        assert_eq!(destination.receive().await, packet(number, 1000));
    }
    for _ in 0..2 {
        assert!(matches!(bed.event().await, RelayEvent::Bound { .. }));
    }
    for _ in 0..3 {
        assert_eq!(bed.event().await, RelayEvent::BytesSpent { circuit: id(1) });
    }
    assert_eq!(bed.event().await, RelayEvent::ByteLimit { circuit: id(1) });
    assert_eq!(bed.relay.spent(id(1)), Some(3000));
    until("the rest to be dropped", || {
        bed.relay.traffic(id(1)).unwrap().dropped == 2
    })
    .await;
    destination.send(&packet(9, 10)).await;
    until("the other way too", || {
        bed.relay.traffic(id(1)).unwrap().dropped == 3
    })
    .await;
    assert_eq!(bed.relay.close(id(1), Code::ByteLimit).unwrap().bytes_in, 3000);
    assert_eq!(source.ended().await, Code::ByteLimit);
    assert!(bed.events.try_recv().is_err());
}

#[tokio::test]
async fn a_rate_drops_what_is_above_it() {
    let mut bed = bed();
    let mut spec = CircuitSpec::new(id(1));
    spec.max_bytes_per_sec = Some(1000);
    let (mut source, _destination) = bed.bound(spec, Carrier::Udp, Carrier::Udp).await;
    send_counted(&bed, &mut source, 200).await;
    // The burst passes, and what the seconds of the test allow.
    let passed = bed.relay.traffic(id(1)).unwrap().datagrams_in;
    assert!((131..160).contains(&passed), "{passed} passed");
}

#[tokio::test]
async fn a_circuit_that_is_not_bound_in_time_is_reported() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.bind_deadline = Duration::ZERO);
    bed.relay.open(CircuitSpec::new(id(1))).unwrap();
    assert_eq!(bed.event().await, RelayEvent::NeverBound { circuit: id(1) });
    assert!(bed.relay.close(id(1), Code::DeviceSilent).is_some());
}

#[tokio::test]
async fn circuits_are_bounded_and_have_one_id_each() {
    let bed = bed_with("127.0.0.1:0", |config| config.max_circuits = 2);
    assert_eq!(bed.relay.open(CircuitSpec::new(id(1))), Ok(()));
    assert_eq!(bed.relay.open(CircuitSpec::new(id(1))), Err(Code::Internal));
    assert_eq!(bed.relay.open(CircuitSpec::new(id(2))), Ok(()));
    assert_eq!(bed.relay.open(CircuitSpec::new(id(3))), Err(Code::Limit));
    assert_eq!(bed.relay.admit(id(3), Role::Source).unwrap_err(), Code::NotFound);
    bed.relay.close(id(1), Code::TunnelClosed).unwrap();
    assert_eq!(bed.relay.open(CircuitSpec::new(id(3))), Ok(()));
    assert_eq!(bed.relay.stats().circuits, 2);
}
