//! TLS set-up: who may be at the other end of each kind of connection.
//!
//! Everything is TLS 1.3 with certificates of the fleet. Hosts' names mean nothing: a peer is known by its SPIFFE id.
//! Nothing is resumed and nothing is sent early, so each connection is verified anew and nothing in it can be replayed
//! (THREATS CRT-16, TOK-12).

use std::fmt::Debug;
use std::sync::{Arc, LazyLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tunnel_certs::{CertError, Peer, Trust};
use tunnel_proto::defaults::{ALPN_LINK, ALPN_TUNNEL};
use tunnel_proto::keys::KeyHash;
use tunnel_proto::{Identity, UnixTime};

use crate::clock::Clock;

mod credentials;
mod foreign;
mod refusal;
mod verifier;

pub use credentials::{Credentials, CredentialsError};
pub(crate) use foreign::{is_plain_text, watch};
pub use refusal::{connection_refusal, io_refusal, refusal};
use verifier::{Allowed, Roots, Verifier};

/// ALPN of the API and of the WebSocket carrier.
pub const ALPN_API: &[u8] = b"http/1.1";

/// Knows who was revoked, by identity, key or serial number.
pub trait Revocations: Send + Sync + Debug + 'static {
    /// Says whether this peer is no longer trusted. Called in each handshake, so it must not block.
    fn is_revoked(&self, peer: &Peer) -> bool;
}

/// Knows of nobody who was revoked: for agents and operators, whose servers tell them whom to talk to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoRevocations;

impl Revocations for NoRevocations {
    fn is_revoked(&self, _: &Peer) -> bool {
        false
    }
}

/// What every verification needs: the fleet's root, and the time.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Whom to trust.
    pub trust: Arc<Trust>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl Ends {
    /// Makes them from a root and a clock.
    pub fn new(trust: Arc<Trust>, clock: Arc<dyn Clock>) -> Self {
        Self { trust, clock }
    }
}

/// Returns the cryptography of all connections: `ring`, with the cipher first that this machine is fastest at.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites = if has_fast_aes() {
            vec![
                TLS13_AES_128_GCM_SHA256,
                TLS13_AES_256_GCM_SHA384,
                TLS13_CHACHA20_POLY1305_SHA256,
            ]
        } else {
            vec![
                TLS13_CHACHA20_POLY1305_SHA256,
                TLS13_AES_128_GCM_SHA256,
                TLS13_AES_256_GCM_SHA384,
            ]
        };
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// Says whether the processor has instructions for AES-GCM.
fn has_fast_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Makes the agent's end of a control link: it talks to servers only.
pub fn link_client(ends: &Ends, credentials: &Credentials) -> ClientConfig {
    client(
        Roots::Known(ends.clone()),
        Allowed::Servers,
        Some(&credentials.without_root(&ends.trust)),
        ALPN_LINK,
    )
}

/// Makes the server's end of control links: it talks to devices, and to operators, who may measure the way and nothing
/// else.
pub fn link_server(
    ends: &Ends,
    credentials: &Credentials,
    revocations: Arc<dyn Revocations>,
) -> ServerConfig {
    let verifier = Verifier::new(Roots::Known(ends.clone()), Allowed::Clients).with_revocations(revocations);
    server(verifier, &credentials.without_root(&ends.trust), ALPN_LINK)
}

/// Makes the client's end of the API and of the WebSocket carrier: it talks to servers only.
pub fn api_client(ends: &Ends, credentials: Option<&Credentials>) -> ClientConfig {
    let credentials = credentials.map(|credentials| credentials.without_root(&ends.trust));
    client(
        Roots::Known(ends.clone()),
        Allowed::Servers,
        credentials.as_ref(),
        ALPN_API,
    )
}

/// Makes the server's end of the API and of the WebSocket carrier.
///
/// A client may come without a certificate, to enrol or to carry; one that it does show must be valid, of a device or
/// an operator, and not revoked. The server shows its whole chain, for newcomers that know the root's fingerprint only.
pub fn api_server(ends: &Ends, credentials: &Credentials, revocations: Arc<dyn Revocations>) -> ServerConfig {
    let verifier = Verifier::new(Roots::Known(ends.clone()), Allowed::Clients)
        .with_revocations(revocations)
        .optional();
    server(verifier, credentials, ALPN_API)
}

/// Makes a newcomer's end of the API: it talks to a server whose chain ends in the root of this fingerprint.
///
/// Afterwards, [`Trust::of_chain`] of the connection's certificates gives the root.
pub fn enrol_client(root_fingerprint: [u8; 32], clock: Arc<dyn Clock>) -> ClientConfig {
    client(
        Roots::Pinned {
            fingerprint: root_fingerprint,
            clock,
        },
        Allowed::Servers,
        None,
        ALPN_API,
    )
}

/// Makes the operator's end of a tunnel: it talks to this device only.
pub fn tunnel_client(ends: &Ends, credentials: &Credentials, device: Identity) -> ClientConfig {
    let allowed = Allowed::Exactly {
        identity: device,
        key: None,
    };
    client(
        Roots::Known(ends.clone()),
        allowed,
        Some(&credentials.without_root(&ends.trust)),
        ALPN_TUNNEL,
    )
}

/// Makes the agent's end of a tunnel: it talks to the operator that the grant names, with the key that it names, only.
pub fn tunnel_server(
    ends: &Ends,
    credentials: &Credentials,
    operator: Identity,
    holder_key: KeyHash,
) -> ServerConfig {
    let allowed = Allowed::Exactly {
        identity: operator,
        key: Some(holder_key),
    };
    let verifier = Verifier::new(Roots::Known(ends.clone()), allowed);
    server(verifier, &credentials.without_root(&ends.trust), ALPN_TUNNEL)
}

/// Returns who showed this chain, leaf first.
///
/// # Errors
/// Tells why the chain is refused.
pub fn peer(trust: &Trust, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, CertError> {
    trust.verify(chain, now)
}

/// Returns who is at the other end of a QUIC connection.
///
/// # Errors
/// Tells why its chain is refused; it may have expired since the handshake.
pub fn connection_peer(
    connection: &quinn::Connection,
    trust: &Trust,
    now: UnixTime,
) -> Result<Peer, CertError> {
    let identity = connection.peer_identity().ok_or(CertError::Missing)?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| CertError::Missing)?;
    peer(trust, &chain, now)
}

/// Wraps a client's configuration for QUIC.
///
/// # Panics
/// Never: the provider has the cipher suite of QUIC's first packets.
pub fn quic_client(config: ClientConfig) -> Arc<QuicClientConfig> {
    Arc::new(config.try_into().expect("the provider has AES-128-GCM"))
}

/// Wraps a server's configuration for QUIC.
///
/// # Panics
/// Never: the provider has the cipher suite of QUIC's first packets.
pub fn quic_server(config: ServerConfig) -> Arc<QuicServerConfig> {
    Arc::new(config.try_into().expect("the provider has AES-128-GCM"))
}

fn client(roots: Roots, allowed: Allowed, credentials: Option<&Credentials>, alpn: &[u8]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(roots, allowed)));
    let mut config = match credentials {
        Some(credentials) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

fn server(verifier: Verifier, credentials: &Credentials, alpn: &[u8]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // A small device chooses what it can afford; another takes what the client is best at.
    config.ignore_client_order = !has_fast_aes();
    config
}

#[cfg(test)]
mod tests;
