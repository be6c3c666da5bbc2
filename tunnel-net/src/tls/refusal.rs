//! Why a handshake failed, in our codes.
//!
//! The end that refuses knows the cause; the other end learns it from the alert, which is coarser: a certificate that is
//! not valid yet and one that has expired have the same.

use std::io;

use quinn::ConnectionError;
use rustls::{AlertDescription, CertificateError, Error};
use tunnel_certs::CertError;
use tunnel_proto::Code;

/// Errors of certificates whose cause is lost where QUIC turns them into text.
const KEPT_AS_TEXT: [CertificateError; 7] = [
    CertificateError::Expired,
    CertificateError::NotValidYet,
    CertificateError::UnknownIssuer,
    CertificateError::InvalidPurpose,
    CertificateError::NotValidForName,
    CertificateError::ApplicationVerificationFailure,
    CertificateError::Revoked,
];

/// Returns the code of a TLS error; nothing where it is no matter of trust or protocol.
pub fn refusal(error: &Error) -> Option<Code> {
    match error {
        Error::InvalidCertificate(error) => Some(of_certificate(error)),
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::NoCertificatesPresented => Some(Code::Unauthenticated),
        Error::NoApplicationProtocol | Error::PeerIncompatible(_) | Error::PeerMisbehaved(_) => {
            Some(Code::Protocol)
        }
        _ => None,
    }
}

/// Returns the code of an error of a TLS stream; nothing where it is of another kind.
pub fn io_refusal(error: &io::Error) -> Option<Code> {
    error.get_ref()?.downcast_ref::<Error>().and_then(refusal)
}

/// Returns the code of a failed QUIC handshake; nothing where it failed for another cause.
pub fn connection_refusal(error: &ConnectionError) -> Option<Code> {
    match error {
        ConnectionError::TransportError(error) => KEPT_AS_TEXT
            .iter()
            .find(|&kept| Error::InvalidCertificate(kept.clone()).to_string() == error.reason)
            .map(of_certificate)
            .or_else(|| of_transport(error.code.into())),
        ConnectionError::ConnectionClosed(close) => of_transport(close.error_code.into()),
        _ => None,
    }
}

/// Reads an alert out of QUIC's error code (RFC 9001 section 4.8).
fn of_transport(code: u64) -> Option<Code> {
    let alert = code
        .checked_sub(0x100)
        .and_then(|alert| u8::try_from(alert).ok())?;
    of_alert(AlertDescription::from(alert))
}

fn of_certificate(error: &CertificateError) -> Code {
    match error {
        CertificateError::Expired => Code::CertExpired,
        CertificateError::NotValidYet => Code::CertNotYet,
        CertificateError::UnknownIssuer => Code::CertUnknownCa,
        CertificateError::InvalidPurpose => Code::CertUsage,
        CertificateError::NotValidForName | CertificateError::ApplicationVerificationFailure => {
            Code::CertName
        }
        CertificateError::Revoked => Code::Revoked,
        CertificateError::Other(other) => other
            .0
            .downcast_ref::<CertError>()
            .map_or(Code::CertChain, |error| error.code()),
        _ => Code::CertChain,
    }
}

fn of_alert(alert: AlertDescription) -> Option<Code> {
    Some(match alert {
        AlertDescription::CertificateExpired => Code::CertExpired,
        AlertDescription::UnknownCA => Code::CertUnknownCa,
        AlertDescription::UnsupportedCertificate => Code::CertUsage,
        AlertDescription::BadCertificate | AlertDescription::AccessDenied => Code::CertName,
        AlertDescription::CertificateRevoked => Code::Revoked,
        AlertDescription::CertificateUnknown | AlertDescription::DecryptError => Code::CertChain,
        AlertDescription::CertificateRequired => Code::Unauthenticated,
        AlertDescription::NoApplicationProtocol
        | AlertDescription::ProtocolVersion
        | AlertDescription::HandshakeFailure
        | AlertDescription::UnexpectedMessage
        | AlertDescription::IllegalParameter
        | AlertDescription::DecodeError => Code::Protocol,
        _ => return None,
    })
}
