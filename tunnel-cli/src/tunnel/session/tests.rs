use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint};
use ring::rand::SystemRandom;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel_certs::{Authority, CertificateRequest, KeyPair, Trust};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::stream::{read_message, write_message};
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_proto::{Identity, defaults};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// An operator's and a device's end of one connection.
struct Pair {
    operator: Connection,
    device: Connection,
    _endpoints: [Endpoint; 2],
}

impl Pair {
    async fn new() -> Self {
        let domain = "fleet.test".parse().unwrap();
        let made = Authority::create(&domain, SystemClock.now(), &SystemRandom::new()).unwrap();
        let authority = Authority::load(&made.issuing_pem, &made.issuing_key_pem, &made.root_pem).unwrap();
        let issue = |identity: &str, serial: u8| {
            let identity: Identity = identity.parse().unwrap();
            let key = KeyPair::generate().unwrap();
            let request = CertificateRequest::from_pem(&tunnel_certs::request(&key).unwrap()).unwrap();
            let hour = Duration::from_secs(3600);
            let issued = authority
                .issue(&request, &identity, SystemClock.now(), hour, [serial; 16])
                .unwrap();
            (
                identity,
                Credentials::load(&issued.chain_pem, &key.to_pem()).unwrap(),
            )
        };
        let ends = Ends::new(
            Arc::new(Trust::from_pem(&made.root_pem).unwrap()),
            Arc::new(SystemClock),
        );
        let (ana, ana_has) = issue("spiffe://fleet.test/operator/ana", 1);
        let (pump, pump_has) = issue("spiffe://fleet.test/device/pump-17", 2);
        let server = tls::tunnel_server(&ends, &pump_has, ana, ana_has.key_hash());
        let server = quinn::ServerConfig::with_crypto(tls::quic_server(server));
        let listener = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        let dialler = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(tls::quic_client(tls::tunnel_client(&ends, &ana_has, pump)));
        let connecting = dialler
            .connect_with(config, listener.local_addr().unwrap(), defaults::DEVICE_NAME)
            .unwrap();
        let accepting = async { listener.accept().await.unwrap().await.unwrap() };
        let (operator, device) = tokio::join!(connecting, accepting);
        Self {
            operator: operator.unwrap(),
            device,
            _endpoints: [listener, dialler],
        }
    }

    /// Takes the next session at the device and answers it.
    async fn accept(&self, answer: SessionAnswer) -> (SendStream, RecvStream) {
        let (mut send, mut recv) = self.device.accept_bi().await.unwrap();
        assert_eq!(
            read_message::<OpenSession>(&mut recv).await.unwrap().service,
            "ssh"
        );
        write_message(&mut send, &answer).await.unwrap();
        (send, recv)
    }
}

fn ssh() -> ServiceName {
    "ssh".parse().unwrap()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("it ends in time")
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let pair = Pair::new().await;
    let (near, far) = tokio::io::duplex(64);
    let (reader, writer) = tokio::io::split(near);
    let (mut answers, mut asks) = tokio::io::split(far);
    let service = ssh();
    let session = run(&pair.operator, &service, reader, writer, || ());
    let device = async {
        let (mut send, mut recv) = pair.accept(SessionAnswer { refused: None }).await;
        // The whole question, to its end, and only then the answer.
        let question = recv.read_to_end(100_000).await.unwrap();
        send.write_all(&vec![b'a'; question.len() * 2]).await.unwrap();
        send.finish().unwrap();
    };
    let person = async {
        asks.write_all(&[b'q'; 30_000]).await.unwrap();
        asks.shutdown().await.unwrap();
        let mut text = Vec::new();
        answers.read_to_end(&mut text).await.unwrap();
        assert_eq!(text.len(), 60_000);
    };
    let (session, (), ()) = in_time(async { tokio::join!(session, device, person) }).await;
    session.unwrap();
}

#[tokio::test]
async fn early_bytes_go_out_without_waiting_for_the_answer() {
    let pair = Pair::new().await;
    let service = ssh();
    let session = run(
        &pair.operator,
        &service,
        b"SSH-2.0-x\r\n".as_slice(),
        tokio::io::sink(),
        || (),
    );
    let device = async {
        let (mut send, mut recv) = pair.device.accept_bi().await.unwrap();
        read_message::<OpenSession>(&mut recv).await.unwrap();
        assert_eq!(recv.read_to_end(100).await.unwrap(), b"SSH-2.0-x\r\n");
        write_message(&mut send, &SessionAnswer { refused: None })
            .await
            .unwrap();
        send.finish().unwrap();
    };
    in_time(async { tokio::join!(session, device) }).await.0.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_at_once_although_the_local_side_waits() {
    let pair = Pair::new().await;
    let (near, _far) = tokio::io::duplex(64);
    let (reader, writer) = tokio::io::split(near);
    let service = ssh();
    let session = run(&pair.operator, &service, reader, writer, || ());
    let device = async {
        let refused = Some(Refusal::new(Code::TargetRefused, "port 22"));
        let (mut send, mut recv) = pair.accept(SessionAnswer { refused }).await;
        recv.stop(0u32.into()).unwrap();
        send.finish().unwrap();
        send
    };
    let (session, _send) = in_time(async { tokio::join!(session, device) }).await;
    let Err(SessionError::Refused(refusal)) = session else {
        panic!("{session:?}")
    };
    assert_eq!(refusal, Refusal::new(Code::TargetRefused, "port 22"));
}

#[tokio::test]
async fn half_of_a_file_does_not_pass_for_the_whole() {
    let pair = Pair::new().await;
    let service = ssh();
    // The local side sends for ever, and takes nothing any more.
    let (near, far) = tokio::io::duplex(64);
    let (reader, _keeps_open) = tokio::io::split(near);
    let mut asks = far;
    asks.write_all(b"half").await.unwrap();
    let (closed, gone) = tokio::io::duplex(64);
    drop(gone);
    let session = run(&pair.operator, &service, reader, closed, || ());
    let device = async {
        let (mut send, mut recv) = pair.accept(SessionAnswer { refused: None }).await;
        send.write_all(b"an answer that nobody takes").await.unwrap();
        recv.read_to_end(100).await
    };
    let (session, received) = in_time(async { tokio::join!(session, device) }).await;
    assert!(matches!(session, Err(SessionError::Local(_))), "{session:?}");
    assert!(
        matches!(
            received,
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(_)))
        ),
        "{received:?}"
    );
}

#[tokio::test]
async fn the_end_of_the_tunnel_is_no_fault_of_the_session() {
    let pair = Pair::new().await;
    let (near, _far) = tokio::io::duplex(64);
    let (reader, writer) = tokio::io::split(near);
    let service = ssh();
    let session = run(&pair.operator, &service, reader, writer, || ());
    let device = async {
        let streams = pair.accept(SessionAnswer { refused: None }).await;
        pair.device.close((Code::PolicyChanged as u32).into(), b"");
        streams
    };
    let (session, _streams) = in_time(async { tokio::join!(session, device) }).await;
    assert!(matches!(session, Err(SessionError::Tunnel)), "{session:?}");
}

#[tokio::test]
async fn a_slow_answer_is_told_of_and_a_quick_one_not() {
    let told = tokio_util::sync::CancellationToken::new();
    let quick = std::pin::pin!(async { 7 });
    assert_eq!(patiently(quick, SLOW, || told.cancel()).await, 7);
    assert!(!told.is_cancelled());
    let slow = std::pin::pin!(async {
        told.cancelled().await;
        8
    });
    assert_eq!(patiently(slow, Duration::ZERO, || told.cancel()).await, 8);
}
