//! The check that runs inside of each handshake.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tunnel_certs::{CertError, Peer, Trust};
use tunnel_proto::Identity;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::Subject;

use super::{Ends, NoRevocations, Revocations, foreign, provider};
use crate::clock::Clock;

/// What the chain must lead to.
#[derive(Debug)]
pub(super) enum Roots {
    /// The fleet's root, which is known.
    Known(Ends),
    /// A root of which only the fingerprint is known; the chain must bring it.
    Pinned {
        fingerprint: [u8; 32],
        clock: Arc<dyn Clock>,
    },
}

/// Who may be at the other end.
#[derive(Debug)]
pub(super) enum Allowed {
    /// Servers.
    Servers,
    /// Devices and operators.
    Clients,
    /// One identity, with one key if that is known.
    Exactly {
        identity: Identity,
        key: Option<KeyHash>,
    },
}

impl Allowed {
    fn check(&self, peer: &Peer) -> Result<(), CertError> {
        let fits = match (self, &peer.identity.subject) {
            (Self::Exactly { identity, .. }, _) if *identity != peer.identity => {
                return Err(CertError::OtherIdentity);
            }
            (Self::Exactly { key: Some(key), .. }, _) if *key != peer.key => return Err(CertError::OtherKey),
            (Self::Exactly { .. }, _) => true,
            (Self::Servers, Subject::Server(_)) => true,
            (Self::Clients, Subject::Device(_) | Subject::Operator(_)) => true,
            (Self::Servers | Self::Clients, _) => false,
        };
        if fits { Ok(()) } else { Err(CertError::Usage) }
    }
}

/// Verifies the peer of a handshake, at either end.
#[derive(Debug)]
pub(super) struct Verifier {
    roots: Roots,
    allowed: Allowed,
    revocations: Arc<dyn Revocations>,
    mandatory: bool,
}

impl Verifier {
    pub(super) fn new(roots: Roots, allowed: Allowed) -> Self {
        Self {
            roots,
            allowed,
            revocations: Arc::new(NoRevocations),
            mandatory: true,
        }
    }

    /// Refuses the revoked.
    pub(super) fn with_revocations(self, revocations: Arc<dyn Revocations>) -> Self {
        Self { revocations, ..self }
    }

    /// Lets clients in that show no certificate at all.
    pub(super) fn optional(self) -> Self {
        Self {
            mandatory: false,
            ..self
        }
    }

    fn verify(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.judge(leaf, others).map_err(|error| {
            if matches!(error, CertError::UnknownCa | CertError::TooLarge) {
                foreign::note(leaf);
            }
            Error::InvalidCertificate(in_tls_words(error))
        })
    }

    fn judge(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), CertError> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(others).map(borrowed).collect();
        let peer = match &self.roots {
            Roots::Known(ends) => ends.trust.verify(&chain, ends.clock.now())?,
            Roots::Pinned { fingerprint, clock } => {
                Trust::of_chain(&chain, fingerprint)?.verify(&chain, clock.now())?
            }
        };
        if self.revocations.is_revoked(&peer) {
            return Err(CertError::Revoked);
        }
        self.allowed.check(&peer)
    }
}

/// Returns the same certificate without copying it.
fn borrowed<'a>(certificate: &'a CertificateDer<'_>) -> CertificateDer<'a> {
    CertificateDer::from_slice(certificate)
}

/// Returns what makes the peer's alert tell the cause.
fn in_tls_words(error: CertError) -> CertificateError {
    match error {
        CertError::Expired { .. } => CertificateError::Expired,
        CertError::NotYet { .. } => CertificateError::NotValidYet,
        CertError::UnknownCa => CertificateError::UnknownIssuer,
        CertError::Usage => CertificateError::InvalidPurpose,
        CertError::Name => CertificateError::NotValidForName,
        CertError::OtherIdentity | CertError::OtherKey => CertificateError::ApplicationVerificationFailure,
        CertError::Revoked => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// The only signature that a handshake of ours has.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

fn verify_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signed.scheme != SCHEME {
        return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
    }
    verify_tls13_signature(
        message,
        leaf,
        signed,
        &provider().signature_verification_algorithms,
    )
}

/// TLS 1.2 is not spoken, so this is never asked for.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, others)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    /// Asks for more than is accepted, so that who intercepts TLS shows a certificate, which is refused by name, in
    /// place of an alert that says nothing.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, others)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SCHEME]
    }
}
