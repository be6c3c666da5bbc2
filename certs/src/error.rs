//! Why a certificate is refused.

use tunnel_proto::{Code, UnixTime};

/// Tells why a certificate or its chain is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// There is no certificate.
    #[error("no certificate was shown")]
    Missing,
    /// The chain is longer than a chain may be; nothing of it was looked at.
    #[error("the chain is larger than allowed")]
    TooLarge,
    /// Something is not a certificate.
    #[error("the certificate is damaged")]
    Malformed,
    /// A certificate of the chain has expired.
    #[error("the certificate has expired")]
    Expired {
        /// Until when it was valid, in seconds since the epoch.
        not_after: UnixTime,
    },
    /// A certificate of the chain is not valid yet.
    #[error("the certificate is not valid yet")]
    NotYet {
        /// From when on it is valid, in seconds since the epoch.
        not_before: UnixTime,
    },
    /// No path of right signatures leads to the fleet's root.
    #[error("the certificate is not of this fleet")]
    UnknownCa,
    /// The certificate's usage does not fit its name, or its kind may not do this.
    #[error("a certificate of this kind may not do this")]
    Usage,
    /// The certificate has no name, more than one, or one that is not an identity of this fleet.
    #[error("the certificate does not name exactly one identity of this fleet")]
    Name,
    /// The certificate is right, and somebody else's.
    #[error("the certificate names another identity than the expected one")]
    OtherIdentity,
    /// The identity is right, and its key is not the expected one.
    #[error("the certificate is of another key than the expected one")]
    OtherKey,
    /// The path to the root breaks a rule: authority flag, path length, name constraint, key or extension.
    #[error("the chain from the certificate to the root is not valid")]
    Chain,
    /// The identity, key or certificate was revoked.
    #[error("the certificate or its holder was revoked")]
    Revoked,
}

impl CertError {
    /// Returns the stable code.
    pub const fn code(self) -> Code {
        match self {
            Self::Missing => Code::Unauthenticated,
            Self::TooLarge | Self::Malformed | Self::Chain => Code::CertChain,
            Self::Expired { .. } => Code::CertExpired,
            Self::NotYet { .. } => Code::CertNotYet,
            Self::UnknownCa => Code::CertUnknownCa,
            Self::Usage => Code::CertUsage,
            Self::Name | Self::OtherIdentity | Self::OtherKey => Code::CertName,
            Self::Revoked => Code::Revoked,
        }
    }
}

/// Sorts what the path builder says into what a person can act on.
impl From<webpki::Error> for CertError {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { not_after, .. } => Self::Expired {
                not_after: UnixTime::from_secs(not_after.as_secs()),
            },
            E::CertNotValidYet { not_before, .. } => Self::NotYet {
                not_before: UnixTime::from_secs(not_before.as_secs()),
            },
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownCa,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Self::Usage,
            E::BadDer | E::BadDerTime | E::TrailingData(_) | E::UnsupportedCertVersion => Self::Malformed,
            _ => Self::Chain,
        }
    }
}
