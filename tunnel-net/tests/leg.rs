//! Two legs over a small relay made of the real circuit machine: the end-to-end connection, its streams and its end.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use support::fleet::{Connected, Fleet};
use support::in_time;
use support::relay::{Relay, rotated_key};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::link::Try;
use tunnel_net::stream::{read_message, splice, write_message};
use tunnel_proto::Code;
use tunnel_proto::bind::Role;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::message::{OpenSession, SessionAnswer};

/// Connects two ends over a relay on this machine, each by its carrier.
async fn connect(source: Carrier, destination: Carrier) -> (Relay, Connected) {
    let fleet = Fleet::new();
    let relay = Relay::start(Ipv4Addr::LOCALHOST.into(), fleet.api_server()).await;
    let leg = |role, carrier| Relay::leg(&relay.addr, role, fleet.api_client(), Try::Only(carrier));
    let (source, destination) = (leg(Role::Source, source), leg(Role::Destination, destination));
    let ends = fleet.connect(source, destination).await;
    (relay, ends)
}

/// Opens one stream and lets the device's side answer it with `service`, spliced.
async fn session<F, S>(
    ends: &Connected,
    service: S,
) -> (quinn::SendStream, quinn::RecvStream, AbortOnDropHandle<F>)
where
    S: FnOnce(quinn::SendStream, quinn::RecvStream) -> std::pin::Pin<Box<dyn Future<Output = F> + Send>>
        + Send
        + 'static,
    F: Send + 'static,
{
    let device = ends.device.clone();
    let served = AbortOnDropHandle::new(tokio::task::spawn(async move {
        let (mut send, mut recv) = device.accept_bi().await.unwrap();
        let open: OpenSession = read_message(&mut recv).await.unwrap();
        assert_eq!(open.service, "echo");
        write_message(&mut send, &SessionAnswer { refused: None })
            .await
            .unwrap();
        service(send, recv).await
    }));
    let (mut send, mut recv) = ends.operator.open_bi().await.unwrap();
    write_message(
        &mut send,
        &OpenSession {
            service: "echo".into(),
        },
    )
    .await
    .unwrap();
    let answer: SessionAnswer = read_message(&mut recv).await.unwrap();
    assert_eq!(answer.refused, None);
    (send, recv, served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cross_the_relay_and_a_half_close_keeps_the_answer() {
    there_and_back(Carrier::Udp, Carrier::Udp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carriers_mix_in_one_circuit() {
    there_and_back(Carrier::WebSocket, Carrier::Udp).await;
    there_and_back(Carrier::WebSocket, Carrier::WebSocket).await;
}

async fn there_and_back(source: Carrier, destination: Carrier) {
    let (_relay, ends) = connect(source, destination).await;
    let (mut send, mut recv, served) = session(&ends, |send, recv| {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(16 * 1024);
            let (reader, writer) = tokio::io::split(near);
            // A service that answers only after it has seen the end of what was sent to it.
            let service = async {
                let (mut reader, mut writer) = tokio::io::split(far);
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.unwrap();
                writer.write_all(&all).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            tokio::join!(splice(send, recv, reader, writer), service).0
        })
    })
    .await;
    let sent: Vec<u8> = (0..8u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let write = async {
        send.write_all(&sent).await.unwrap();
        send.finish().unwrap();
    };
    let ((), got) = in_time("echoed", async {
        tokio::join!(write, recv.read_to_end(16 << 20))
    })
    .await;
    assert!(got.unwrap() == sent, "the same bytes come back");
    let spliced = in_time("spliced", served).await.unwrap();
    assert_eq!(
        (spliced.sent, spliced.received),
        (sent.len() as u64, sent.len() as u64)
    );
    assert!(spliced.error.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_pushes_back_to_the_sender() {
    let (_relay, ends) = connect(Carrier::Udp, Carrier::Udp).await;
    let (_send, _recv, served) = session(&ends, |send, recv| {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(16 * 1024);
            let (reader, writer) = tokio::io::split(near);
            let service = async {
                let (_reader, mut writer) = tokio::io::split(far);
                let mut written = 0u64;
                let chunk = vec![1; 64 * 1024];
                // Ends when the writer has made no progress for a while: then everything between is full.
                while let Ok(Ok(())) =
                    tokio::time::timeout(Duration::from_secs(2), writer.write_all(&chunk)).await
                {
                    written += chunk.len() as u64;
                }
                written
            };
            tokio::select! {
                written = service => written,
                _ = splice(send, recv, reader, writer) => unreachable!("nobody ends the stream"),
            }
        })
    })
    .await;
    let written = in_time("the sender is held back", served).await.unwrap();
    assert!(
        written < 10 << 20,
        "{written} bytes are on the way to a reader that does not read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_circuit_reaches_the_leg_with_its_reason() {
    let (relay, ends) = connect(Carrier::Udp, Carrier::Udp).await;
    let mut state = ends.source.state();
    relay.close(Code::Revoked).await;
    let ended = in_time("ended", state.wait_for(|state| state.ended.is_some()))
        .await
        .unwrap()
        .ended;
    assert_eq!(ended, Some(Code::Revoked));
}

/// RFC 8305: an address that does not answer costs a stagger, not the patience with a whole carrier, which is 3 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_takes_the_address_that_answers() {
    let fleet = Fleet::new();
    let relay = Relay::start(Ipv4Addr::LOCALHOST.into(), fleet.api_server()).await;
    // Somebody is there, and says nothing.
    let silent = Ipv4Addr::new(127, 0, 0, 9);
    let _socket = tokio::net::UdpSocket::bind((silent, relay.addr.udp_port))
        .await
        .unwrap();
    let leg = |role| {
        let only = Try::Only(Carrier::Udp);
        Relay::leg_beginning_with(Some(silent.into()), &relay.addr, role, fleet.api_client(), only)
    };
    let started = std::time::Instant::now();
    let ends = fleet.connect(leg(Role::Source), leg(Role::Destination)).await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert!(ends.operator.close_reason().is_none());
}

/// The first address that is tried after a move is dead; the other one answers with the keys that the legs have now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_whose_key_was_rotated_takes_the_address_that_answers() {
    let fleet = Fleet::new();
    let first = Ipv4Addr::new(127, 0, 0, 9);
    let relay = Relay::start(first.into(), fleet.api_server()).await;
    let then = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, relay.addr.udp_port))
        .await
        .unwrap();
    let mut addr = relay.addr.clone();
    addr.host = Ipv4Addr::LOCALHOST.to_string();
    let leg = |role| {
        let only = Try::Only(Carrier::Udp);
        Relay::leg_beginning_with(Some(first.into()), &addr, role, fleet.api_client(), only)
    };
    let ends = fleet.connect(leg(Role::Source), leg(Role::Destination)).await;
    relay.rotate().await;
    for (leg, role) in [
        (&ends.source, Role::Source),
        (&ends.destination, Role::Destination),
    ] {
        leg.rekey().rekey(rotated_key(role, 1));
    }
    relay.move_to(then).await;
    let said = async {
        let (mut send, _recv) = ends.operator.open_bi().await.unwrap();
        send.write_all(b"from elsewhere").await.unwrap();
        send.finish().unwrap();
        let (_send, mut recv) = ends.device.accept_bi().await.unwrap();
        recv.read_to_end(100).await.unwrap()
    };
    assert_eq!(in_time("heard after the move", said).await, b"from elsewhere");
}
