//! What must not be negotiated: old versions, weak suites, resumption, early data.

use rustls::{HandshakeKind, ServerConnection};

use super::*;

fn api() -> ServerConfig {
    let fleet = Fleet::new();
    api_server(&fleet.ends(), &fleet.credentials(SERVER), nobody())
}

/// A hello as TLS 1.2 and before have it: without the extension that names versions.
fn old_hello(version: [u8; 2], suites: &[u8]) -> Vec<u8> {
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let schemes = [0, 13, 0, 4, 0, 2, 4, 3];
    let extensions = [groups, schemes].concat();
    let body = [
        &version[..],
        &[5; 32],
        &[0],
        &[0, u8::try_from(suites.len()).unwrap()],
        suites,
        &[1, 0],
        &[0, u8::try_from(extensions.len()).unwrap()],
        &extensions,
    ]
    .concat();
    let length = u8::try_from(body.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], body.as_slice()].concat()
}

/// Returns the alert that the server answers with.
fn alert_to(hello: &[u8]) -> u8 {
    let mut server = ServerConnection::new(Arc::new(api())).unwrap();
    server.read_tls(&mut &hello[..]).unwrap();
    assert!(server.process_new_packets().is_err());
    let mut answer = Vec::new();
    server.write_tls(&mut answer).unwrap();
    assert_eq!((answer[0], answer.len()), (21, 7), "one alert and nothing else");
    answer[6]
}

/// THREATS CRT-15.
#[test]
fn old_versions_are_refused() {
    const PROTOCOL_VERSION: u8 = 70;
    let ecdsa_suites = [0xc0, 0x2b, 0xc0, 0x2c];
    for version in [[3, 3], [3, 2], [3, 1], [3, 0]] {
        assert_eq!(
            alert_to(&old_hello(version, &ecdsa_suites)),
            PROTOCOL_VERSION,
            "{version:?}"
        );
    }
    assert_eq!(
        alert_to(&old_hello([3, 3], &[0x00, 0x05])),
        PROTOCOL_VERSION,
        "RC4"
    );
}

#[test]
fn only_strong_suites_are_offered() {
    for suite in &provider().cipher_suites {
        assert!(suite.tls13().is_some(), "{suite:?}");
    }
}

/// THREATS CRT-16, TOK-12: each handshake is a full one, so each is checked in full.
#[tokio::test]
async fn nothing_is_resumed_and_nothing_is_early() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let server = Arc::new(api_server(&ends, &fleet.credentials(SERVER), nobody()));
    let client = Arc::new(api_client(&ends, Some(&fleet.credentials(OPERATOR))));
    assert!(!client.enable_early_data && server.max_early_data_size == 0 && server.send_tls13_tickets == 0);
    for _ in 0..2 {
        let (client_end, server_end) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let connect = TlsConnector::from(Arc::clone(&client)).connect(name, client_end);
        let accept = TlsAcceptor::from(Arc::clone(&server)).accept(server_end);
        let (connected, accepted) = tokio::join!(connect, accept);
        assert_eq!(
            connected.unwrap().get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
        assert_eq!(
            accepted.unwrap().get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
}
