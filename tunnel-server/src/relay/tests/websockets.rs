use super::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

async fn close_code<S>(socket: &mut WebSocketStream<S>) -> Option<CloseCode>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match socket.next().await? {
            Ok(Message::Close(frame)) => return frame.map(|frame| frame.code),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// THREATS DAT-22: a receiver that stops reading while its peer sends at full rate.
#[tokio::test]
async fn dat_22_a_receiver_that_does_not_read_costs_only_itself() {
    let mut bed = bed();
    let (mut source, mut destination) = bed
        .bound(CircuitSpec::new(id(1)), Carrier::WebSocket, Carrier::WebSocket)
        .await;
    let (mut other_source, mut other_destination) = bed
        .bound(CircuitSpec::new(id(2)), Carrier::WebSocket, Carrier::WebSocket)
        .await;
    let packets: Vec<Vec<u8>> = (0..40).map(|number| packet(number, 1200)).collect();
    let all: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let connection = {
        let shared = &bed.relay.running.shared;
        (0..10).find_map(|number| {
            let connection = shared.connections().find(address::of_connection(number))?;
            (connection.route()?.role == Role::Destination).then_some(connection)
        })
    };
    let connection = connection.unwrap();
    // Nobody reads `destination`: the buffers of its TCP connection fill, then its queue, and then it drops.
    let mut rounds = 0;
    while bed.relay.traffic(id(1)).unwrap().dropped < 10_000 {
        source.send_all(&all).await;
        assert!(connection.queue().bytes() <= queue::LIMIT);
        rounds += 1;
        assert!(rounds < 10_000, "nothing was dropped");
    }
    // Another circuit goes on meanwhile, and so does this one when its receiver reads again.
    other_source.send(&packet(7, 100)).await;
    assert_eq!(other_destination.receive().await, packet(7, 100));
    assert_eq!(destination.receive().await, packet(0, 1200));
    source.send(&packet(77, 77)).await;
    destination.send(&packet(8, 88)).await;
    assert_eq!(source.receive().await, packet(8, 88));
}

#[tokio::test]
async fn dat_21_what_is_not_of_the_carrier_ends_the_connection() {
    let mut bed = bed();
    let mut socket = bed.websocket().await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(
        in_time("the end", close_code(&mut socket)).await,
        Some(CloseCode::Unsupported)
    );

    let mut socket = bed.websocket().await;
    let large = vec![0x40; defaults::MAX_WS_MESSAGE + 1];
    // The relay may be gone before all of it was written.
    let _ = socket.send(Message::Binary(large.into())).await;
    let code = in_time("the end", close_code(&mut socket)).await;
    assert!(matches!(code, Some(CloseCode::Size) | None), "{code:?}");
    until("both to be forgotten", || bed.relay.stats().connections == 0).await;
}

#[tokio::test]
async fn a_ping_is_answered_and_a_farewell_too() {
    let mut bed = bed();
    let mut socket = bed.websocket().await;
    socket.send(Message::Ping(vec![1, 2].into())).await.unwrap();
    let pong = in_time("a pong", socket.next()).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong(vec![1, 2].into()));
    socket.close(None).await.unwrap();
    assert!(in_time("the end", close_code(&mut socket)).await.is_none());
    until("it to be forgotten", || bed.relay.stats().connections == 0).await;
}

#[tokio::test]
async fn a_connection_of_no_use_is_closed() {
    let mut bed = bed_with("127.0.0.1:0", |config| {
        config.websocket_useless = Duration::from_millis(50)
    });
    let mut socket = bed.websocket().await;
    let start = std::time::Instant::now();
    socket.send(message_of(&[&packet(1, 100)])).await.unwrap();
    assert_eq!(
        in_time("the end", close_code(&mut socket)).await,
        Some(CloseCode::Policy)
    );
    assert!(start.elapsed() >= Duration::from_millis(40));
}

#[tokio::test]
async fn a_bound_connection_is_closed_only_when_nothing_travels_for_long() {
    let mut bed = bed_with("127.0.0.1:0", |config| {
        config.websocket_useless = Duration::from_secs(5);
        config.websocket_idle = Duration::from_millis(100);
    });
    bed.relay.open(CircuitSpec::new(id(1))).unwrap();
    let mut leg = bed.leg(id(1), Role::Source, Carrier::WebSocket).await;
    leg.bind().await;
    let start = std::time::Instant::now();
    let Wire::WebSocket(socket) = &mut leg.wire else {
        panic!("a WebSocket leg")
    };
    assert_eq!(
        in_time("the end", close_code(socket)).await,
        Some(CloseCode::Policy)
    );
    assert!(start.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn connections_are_bounded() {
    let mut bed = bed_with("127.0.0.1:0", |config| config.max_connections = 1);
    let _first = bed.websocket().await;
    until("the first to be there", || bed.relay.stats().connections == 1).await;
    let mut second = bed.websocket().await;
    assert_eq!(
        in_time("the refusal", close_code(&mut second)).await,
        Some(CloseCode::Again)
    );
}

#[tokio::test]
async fn a_relay_that_stops_says_farewell() {
    let mut bed = bed();
    let mut socket = bed.websocket().await;
    until("the connection to be there", || {
        bed.relay.stats().connections == 1
    })
    .await;
    bed.relay.shutdown();
    assert_eq!(
        in_time("the end", close_code(&mut socket)).await,
        Some(CloseCode::Restart)
    );
}
