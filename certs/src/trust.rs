//! What a fleet trusts, and the check of what a peer shows.

use std::time::Duration;

use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor};
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::Subject;
use tunnel_proto::{Identity, TrustDomain, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

use crate::error::CertError;
use crate::pem;
use crate::serial::Serial;

mod leaf;

#[cfg(feature = "authority")]
pub(crate) use leaf::authority_of;

/// Most certificates in a chain: a leaf, two authorities, and the root.
pub const MAX_CHAIN_CERTS: usize = 4;

/// Most bytes in a chain. One of ours has about 1,700; longer ones are refused before any signature is looked at
/// (THREATS CRT-08).
pub const MAX_CHAIN_BYTES: usize = 8 * 1024;

/// Signatures that are accepted in a chain. RSA is not among them: none of ours has it, and checking it can be made
/// expensive.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] =
    &[webpki::ring::ECDSA_P256_SHA256, webpki::ring::ECDSA_P384_SHA384];

/// The root of a fleet: all that is needed to know its members.
#[derive(Clone, Debug)]
pub struct Trust {
    root: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    fingerprint: [u8; 32],
    trust_domain: TrustDomain,
}

/// Who is at the other end, as its certificate proves it.
///
/// # Security
/// Only [`Trust::verify`] makes one. Whoever holds a `Peer` must also know that the peer has the key: a TLS handshake
/// proves that for the first certificate of the chain, which is the only one that a `Peer` is made from (invariant I4).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Peer {
    /// Its name.
    pub identity: Identity,
    /// The hash of its key.
    pub key: KeyHash,
    /// The serial number of its certificate.
    pub serial: Serial,
    /// From when on the certificate is valid.
    pub not_before: UnixTime,
    /// Until when the certificate is valid.
    pub not_after: UnixTime,
}

impl Trust {
    /// Reads the root of a fleet from a text that has this one certificate.
    ///
    /// # Errors
    /// Fails where it is not one certificate, or not a root.
    pub fn from_pem(text: &str) -> Result<Self, CertError> {
        match pem::read_chain(text)?.as_slice() {
            [root] => Self::from_der(root),
            _ => Err(CertError::Malformed),
        }
    }

    /// Reads the root of a fleet.
    ///
    /// The root tells the fleet's name: its only name is the URI `spiffe://<trust domain>` (SPIFFE X.509-SVID
    /// section 3.1).
    ///
    /// # Errors
    /// Fails where this is no certificate of an authority, or where it does not name a fleet.
    pub fn from_der(root: &CertificateDer<'_>) -> Result<Self, CertError> {
        if root.len() > MAX_CHAIN_BYTES {
            return Err(CertError::TooLarge);
        }
        let trust_domain = leaf::trust_domain_of_root(root)?;
        let anchor = webpki::anchor_from_trusted_cert(root)?.to_owned();
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, root).as_ref());
        Ok(Self {
            root: root.clone().into_owned(),
            anchor,
            fingerprint,
            trust_domain,
        })
    }

    /// Takes the root from the end of a chain, where its fingerprint is known from an enrolment code.
    ///
    /// # Errors
    /// Fails where the last certificate is another one than the fingerprint says, or not a root.
    pub fn of_chain(chain: &[CertificateDer<'_>], fingerprint: &[u8; 32]) -> Result<Self, CertError> {
        within_bounds(chain)?;
        let trust =
            Self::from_der(chain.last().ok_or(CertError::Missing)?).map_err(|_| CertError::UnknownCa)?;
        if trust.fingerprint == *fingerprint {
            Ok(trust)
        } else {
            Err(CertError::UnknownCa)
        }
    }

    /// Verifies what a peer shows: the leaf first, then the authorities above it, in any order.
    ///
    /// The path must lead to the root with right signatures and times, the leaf must have exactly one name, an identity
    /// of this fleet, and exactly the usage that its kind has. Other certificates of the chain never lend it a name.
    /// Whether the peer is revoked is not known here.
    ///
    /// # Errors
    /// Tells which of these fails.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, CertError> {
        within_bounds(chain)?;
        let (leaf, others) = chain.split_first().ok_or(CertError::Missing)?;
        let entity = EndEntityCert::try_from(leaf)?;
        let peer = leaf::read(leaf, &self.trust_domain);
        let usage = Usage(peer.as_ref().ok().map(|peer| match peer.identity.subject {
            Subject::Device(_) | Subject::Operator(_) => KeyUsage::client_auth(),
            Subject::Server(_) => KeyUsage::server_auth(),
        }));
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
        let anchors = std::slice::from_ref(&self.anchor);
        entity.verify_for_usage(ALGORITHMS, anchors, others, now, usage, None, None)?;
        peer
    }

    /// Returns the SHA-256 hash of the root certificate.
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Returns the name of the fleet.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the root certificate.
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Writes the root certificate as PEM.
    pub fn to_pem(&self) -> String {
        pem::write_chain(std::slice::from_ref(&self.root))
    }
}

/// The usage that every authority on the path must allow, if it is restricted at all. There is none where the leaf is
/// refused anyway, and only the reason is still looked for.
struct Usage(Option<KeyUsage>);

impl ExtendedKeyUsageValidator for Usage {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        self.0.map_or(Ok(()), |usage| usage.validate(usages))
    }
}

/// Refuses long chains before anything of them is read.
fn within_bounds(chain: &[CertificateDer<'_>]) -> Result<(), CertError> {
    let bytes = chain
        .iter()
        .fold(0_usize, |sum, certificate| sum.saturating_add(certificate.len()));
    if chain.len() > MAX_CHAIN_CERTS || bytes > MAX_CHAIN_BYTES {
        Err(CertError::TooLarge)
    } else {
        Ok(())
    }
}
