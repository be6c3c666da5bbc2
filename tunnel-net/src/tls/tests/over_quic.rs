//! The same checks inside of QUIC, and what is left of their causes there.

use std::net::{Ipv4Addr, SocketAddr};

use quinn::Endpoint;

use super::*;

/// What both ends of a QUIC handshake say: who the other is, or the code of the refusal.
async fn shake_quic(
    client: ClientConfig,
    server: ServerConfig,
    trust: &Trust,
) -> (Result<Identity, Code>, Result<Identity, Code>) {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Endpoint::server(quinn::ServerConfig::with_crypto(quic_server(server)), local).unwrap();
    let dialer = Endpoint::client(local).unwrap();
    let config = quinn::ClientConfig::new(quic_client(client));
    let connecting = dialer
        .connect_with(config, listener.local_addr().unwrap(), SERVER_NAME)
        .unwrap();
    let connect = async {
        let connection = connecting.await?;
        let other = connection_peer(&connection, trust, NOW).unwrap().identity;
        // The server's verdict comes after the client's handshake is done.
        let _ = connection.accept_uni().await?;
        Ok(other)
    };
    let accept = async {
        let connection = listener.accept().await.unwrap().await?;
        let other = connection_peer(&connection, trust, NOW).unwrap().identity;
        let mut stream = connection.open_uni().await?;
        let _ = stream.write_all(&[1]).await;
        let _ = stream.finish();
        let _ = stream.stopped().await;
        Ok(other)
    };
    let (connected, accepted) = tokio::join!(connect, accept);
    (in_codes(connected), in_codes(accepted))
}

fn in_codes(result: Result<Identity, quinn::ConnectionError>) -> Result<Identity, Code> {
    result.map_err(|error| connection_refusal(&error).unwrap_or_else(|| panic!("no refusal: {error:?}")))
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, server) = (fleet.credentials(DEVICE), fleet.credentials(SERVER));
    let result = shake_quic(
        link_client(&ends, &device),
        link_server(&ends, &server, nobody()),
        &fleet.trust,
    )
    .await;
    assert_eq!(result, (Ok(id(SERVER)), Ok(id(DEVICE))));
}

#[tokio::test]
async fn refusals_keep_their_cause() {
    let fleet = Fleet::new();
    let (device, server, operator) = (
        fleet.credentials(DEVICE),
        fleet.credentials(SERVER),
        fleet.credentials(OPERATOR),
    );
    let ends = fleet.ends();
    let late = fleet.ends_at(NOW.after(LIFE * 2));
    let early = fleet.ends_at(NOW.before(LIFE));
    let revoked: Arc<dyn Revocations> = Arc::new(Revoked(device.key_hash()));
    let foreign = Fleet::new().credentials(DEVICE);
    let link = |ends: &Ends, revocations| link_server(ends, &server, revocations);
    let tunnel = tunnel_server(&ends, &device, id(OPERATOR), operator.key_hash());
    let stranger = fleet.credentials("spiffe://fleet.example/operator/mallory");
    let cases = [
        (
            link_client(&ends, &device),
            link(&late, nobody()),
            Code::CertExpired,
            Code::CertExpired,
        ),
        (
            link_client(&ends, &device),
            link(&early, nobody()),
            Code::CertExpired,
            Code::CertNotYet,
        ),
        (
            link_client(&early, &device),
            link(&ends, nobody()),
            Code::CertNotYet,
            Code::CertExpired,
        ),
        (
            link_client(&ends, &device),
            link(&ends, revoked),
            Code::Revoked,
            Code::Revoked,
        ),
        (
            link_client(&ends, &foreign),
            link(&ends, nobody()),
            Code::CertUnknownCa,
            Code::CertUnknownCa,
        ),
        (
            link_client(&ends, &fleet.credentials(SERVER)),
            link(&ends, nobody()),
            Code::CertUsage,
            Code::CertUsage,
        ),
        (
            tunnel_client(&ends, &stranger, id(DEVICE)),
            tunnel,
            Code::CertName,
            Code::CertName,
        ),
    ];
    for (client, server, at_client, at_server) in cases {
        let result = shake_quic(client, server, &fleet.trust).await;
        assert_eq!(result, (Err(at_client), Err(at_server)));
    }
}

#[tokio::test]
async fn a_link_without_a_certificate_is_refused() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let server = fleet.credentials(SERVER);
    let mut bare = api_client(&ends, None);
    bare.alpn_protocols = vec![ALPN_LINK.to_vec()];
    let result = shake_quic(bare, link_server(&ends, &server, nobody()), &fleet.trust).await;
    assert_eq!(result, (Err(Code::Unauthenticated), Err(Code::Unauthenticated)));
}
