//! A fleet with one server, one operator and one device.

use std::sync::Arc;
use std::time::Duration;

use ring::rand::SystemRandom;
use tunnel_certs::{Authority, CertificateRequest, KeyPair, Trust, request};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::leg::Leg;
use tunnel_net::quic;
use tunnel_net::tls::{self, Credentials, Ends, NoRevocations};
use tunnel_net::wake::Wake;
use tunnel_proto::Identity;

use super::in_time;

/// A fleet.
pub(crate) struct Fleet {
    pub(crate) ends: Ends,
    server: Credentials,
    operator: (Identity, Credentials),
    device: (Identity, Credentials),
}

/// A connection from end to end, as each of its ends has it, and the legs below.
pub(crate) struct Connected {
    pub(crate) operator: quinn::Connection,
    pub(crate) device: quinn::Connection,
    pub(crate) source: Leg,
    pub(crate) destination: Leg,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let domain = "fleet.test".parse().unwrap();
        let made = Authority::create(&domain, SystemClock.now(), &SystemRandom::new()).unwrap();
        let authority = Authority::load(&made.issuing_pem, &made.issuing_key_pem, &made.root_pem).unwrap();
        let issue = |identity: &str, serial: u8| {
            let identity: Identity = identity.parse().unwrap();
            let key = KeyPair::generate().unwrap();
            let request = CertificateRequest::from_pem(&request(&key).unwrap()).unwrap();
            let hour = Duration::from_secs(3600);
            let issued = authority
                .issue(&request, &identity, SystemClock.now(), hour, [serial; 16])
                .unwrap();
            (
                identity,
                Credentials::load(&issued.chain_pem, &key.to_pem()).unwrap(),
            )
        };
        let trust = Arc::new(Trust::from_pem(&made.root_pem).unwrap());
        Self {
            ends: Ends::new(trust, Arc::new(SystemClock)),
            server: issue("spiffe://fleet.test/server/n1", 3).1,
            operator: issue("spiffe://fleet.test/operator/ana", 1),
            device: issue("spiffe://fleet.test/device/pump-17", 2),
        }
    }

    /// TLS of the server's port.
    pub(crate) fn api_server(&self) -> Arc<rustls::ServerConfig> {
        Arc::new(tls::api_server(&self.ends, &self.server, Arc::new(NoRevocations)))
    }

    /// TLS of who connects to that port.
    pub(crate) fn api_client(&self) -> Arc<rustls::ClientConfig> {
        Arc::new(tls::api_client(&self.ends, None))
    }

    /// QUIC of the server's end of control links.
    pub(crate) fn link_server(&self) -> quinn::ServerConfig {
        let tls = tls::link_server(&self.ends, &self.server, Arc::new(NoRevocations));
        let mut server = quinn::ServerConfig::with_crypto(tls::quic_server(tls));
        server.transport_config(quic::link_transport());
        server
    }

    /// QUIC of the device's end of its control link.
    pub(crate) fn link_client(&self) -> quinn::ClientConfig {
        let tls = tls::link_client(&self.ends, &self.device.1);
        let mut client = quinn::ClientConfig::new(tls::quic_client(tls));
        client.transport_config(quic::link_transport());
        client
    }

    /// QUIC of the device's end of a tunnel.
    pub(crate) fn tunnel_server(&self, wake: &Wake) -> quinn::ServerConfig {
        let tls = tls::tunnel_server(
            &self.ends,
            &self.device.1,
            self.operator.0.clone(),
            self.operator.1.key_hash(),
        );
        let mut server = quinn::ServerConfig::with_crypto(tls::quic_server(tls));
        server.transport_config(quic::agent_transport(16, Duration::from_secs(12 * 3600), wake));
        server
    }

    /// QUIC of the operator's end of a tunnel.
    pub(crate) fn tunnel_client(&self, wake: &Wake) -> quinn::ClientConfig {
        let tls = tls::tunnel_client(&self.ends, &self.operator.1, self.device.0.clone());
        let mut client = quinn::ClientConfig::new(tls::quic_client(tls));
        client.transport_config(quic::cli_transport(wake));
        client
    }

    /// Connects the two ends over their legs.
    pub(crate) async fn connect(&self, source: Leg, destination: Leg) -> Connected {
        let endpoint = destination.accept_endpoint(self.tunnel_server(destination.wake()));
        let connecting = source.connect(self.tunnel_client(source.wake())).unwrap();
        let accepting = async { endpoint.accept().await.unwrap().await.unwrap() };
        let both = async { tokio::join!(async { connecting.await.unwrap() }, accepting) };
        let (operator, device) = in_time("connected", both).await;
        Connected {
            operator,
            device,
            source,
            destination,
        }
    }
}
