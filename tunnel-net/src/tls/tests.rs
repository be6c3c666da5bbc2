//! Handshakes: each bad one beside the good one that it differs from.

mod early;
mod handshakes;
mod over_quic;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::SystemRandom;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tunnel_certs::{Authority, CertificateRequest, KeyPair, Peer, Trust, request};
use tunnel_proto::defaults::SERVER_NAME;
use tunnel_proto::{Code, Identity, UnixTime};

use super::*;

/// When the tests play.
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

const LIFE: Duration = Duration::from_secs(3600);
const DEVICE: &str = "spiffe://fleet.example/device/pump-17";
const OPERATOR: &str = "spiffe://fleet.example/operator/ana";
const SERVER: &str = "spiffe://fleet.example/server/n1";

/// A clock that stands.
#[derive(Debug)]
struct At(UnixTime);

impl Clock for At {
    fn now(&self) -> UnixTime {
        self.0
    }
}

/// Has revoked one key.
#[derive(Debug)]
struct Revoked(KeyHash);

impl Revocations for Revoked {
    fn is_revoked(&self, peer: &Peer) -> bool {
        peer.key == self.0
    }
}

fn nobody() -> Arc<dyn Revocations> {
    Arc::new(NoRevocations)
}

struct Fleet {
    trust: Arc<Trust>,
    authority: Authority,
}

impl Fleet {
    fn new() -> Self {
        let new = Authority::create(&"fleet.example".parse().unwrap(), NOW, &SystemRandom::new()).unwrap();
        Self {
            trust: Arc::new(Trust::from_pem(&new.root_pem).unwrap()),
            authority: Authority::load(&new.issuing_pem, &new.issuing_key_pem, &new.root_pem).unwrap(),
        }
    }

    fn ends(&self) -> Ends {
        self.ends_at(NOW)
    }

    fn ends_at(&self, time: UnixTime) -> Ends {
        Ends::new(Arc::clone(&self.trust), Arc::new(At(time)))
    }

    fn credentials(&self, identity: &str) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let asked = CertificateRequest::from_pem(&request(&key).unwrap()).unwrap();
        let issued = self
            .authority
            .issue(&asked, &id(identity), NOW, LIFE, [7; 16])
            .unwrap();
        Credentials::load(&issued.chain_pem, &key.to_pem()).unwrap()
    }
}

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

/// What client and server each say of a handshake and of one byte there and back.
async fn shake(client: ClientConfig, server: ServerConfig) -> (Result<(), Code>, Result<(), Code>) {
    let (client_end, server_end) = tokio::io::duplex(64 * 1024);
    let client = async {
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, client_end)
            .await?;
        stream.write_all(&[1]).await?;
        stream.read_u8().await
    };
    let server = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(server_end).await?;
        let byte = stream.read_u8().await?;
        stream.write_all(&[byte]).await?;
        stream.shutdown().await?;
        Ok(byte)
    };
    let (client, server) = tokio::join!(client, server);
    (in_codes(client), in_codes(server))
}

fn in_codes(result: io::Result<u8>) -> Result<(), Code> {
    match result {
        Ok(1) => Ok(()),
        Ok(other) => panic!("{other} came back"),
        Err(error) => Err(io_refusal(&error).unwrap_or_else(|| panic!("no refusal: {error:?}"))),
    }
}

const GOOD: (Result<(), Code>, Result<(), Code>) = (Ok(()), Ok(()));

/// Both ends tell the same cause.
fn both(code: Code) -> (Result<(), Code>, Result<(), Code>) {
    (Err(code), Err(code))
}
