//! Reads the names, the usage and the times of one certificate. Signatures are the path builder's part.

use rustls_pki_types::CertificateDer;
use tunnel_proto::names::Subject;
use tunnel_proto::{Identity, TrustDomain, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName};
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::Peer;
use crate::error::CertError;
use crate::key::PublicKey;
use crate::serial::Serial;

/// Reads who a leaf speaks for.
pub(super) fn read(leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Peer, CertError> {
    let certificate = parse(leaf)?;
    let identity: Identity = uri(&certificate)?.parse().map_err(|_| CertError::Name)?;
    if identity.trust_domain != *trust_domain {
        return Err(CertError::Name);
    }
    check_usage(&certificate, &identity.subject)?;
    let key = PublicKey::from_spki(certificate.public_key().raw).ok_or(CertError::Chain)?;
    Ok(Peer {
        identity,
        key: key.key_hash(),
        serial: Serial::from_der_content(certificate.raw_serial()).ok_or(CertError::Chain)?,
        not_before: time(certificate.validity().not_before)?,
        not_after: time(certificate.validity().not_after)?,
    })
}

/// Reads the name of the fleet from its root.
pub(super) fn trust_domain_of_root(root: &CertificateDer<'_>) -> Result<TrustDomain, CertError> {
    let certificate = parse(root)?;
    if !certificate.is_ca() {
        return Err(CertError::Chain);
    }
    uri(&certificate)?
        .strip_prefix("spiffe://")
        .and_then(|name| name.parse().ok())
        .ok_or(CertError::Name)
}

/// What an authority's certificate says of itself.
#[cfg(feature = "authority")]
pub(crate) struct About {
    pub(crate) key: PublicKey,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// Reads an authority's certificate, which the root must have signed.
#[cfg(feature = "authority")]
pub(crate) fn authority_of(der: &CertificateDer<'_>, root: &CertificateDer<'_>) -> Result<About, CertError> {
    let (certificate, root) = (parse(der)?, parse(root)?);
    if certificate.issuer().as_raw() != root.subject().as_raw()
        || certificate.verify_signature(Some(root.public_key())).is_err()
    {
        return Err(CertError::UnknownCa);
    }
    if !certificate.is_ca() {
        return Err(CertError::Chain);
    }
    Ok(About {
        key: PublicKey::from_spki(certificate.public_key().raw).ok_or(CertError::Chain)?,
        not_before: time(certificate.validity().not_before)?,
        not_after: time(certificate.validity().not_after)?,
    })
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertError::Malformed),
    }
}

/// Returns the only name of a certificate, which is a URI. A common name is not a name.
fn uri<'a>(certificate: &'a X509Certificate<'a>) -> Result<&'a str, CertError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| CertError::Malformed)?
        .ok_or(CertError::Name)?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Ok(uri),
        _ => Err(CertError::Name),
    }
}

/// Demands that a leaf signs, signs no certificates, and has the one usage that its kind has: servers are TLS servers,
/// devices and operators are TLS clients. A device keeps that usage where it is the server inside of a tunnel: both
/// ends know each other by name there.
fn check_usage(certificate: &X509Certificate<'_>, subject: &Subject) -> Result<(), CertError> {
    let basic = certificate
        .basic_constraints()
        .map_err(|_| CertError::Malformed)?;
    if basic.is_some_and(|basic| basic.value.ca) {
        return Err(CertError::Chain);
    }
    let key = certificate
        .key_usage()
        .map_err(|_| CertError::Malformed)?
        .ok_or(CertError::Usage)?
        .value;
    if !key.digital_signature() || key.key_cert_sign() || key.crl_sign() {
        return Err(CertError::Usage);
    }
    let extended = certificate
        .extended_key_usage()
        .map_err(|_| CertError::Malformed)?
        .ok_or(CertError::Usage)?;
    let fits = match (only_usage(extended.value), subject) {
        (Some(Only::Client), Subject::Device(_) | Subject::Operator(_)) => true,
        (Some(Only::Server), Subject::Server(_)) => true,
        (Some(Only::Client | Only::Server) | None, _) => false,
    };
    if fits { Ok(()) } else { Err(CertError::Usage) }
}

/// The usage of a certificate that has just one.
enum Only {
    Client,
    Server,
}

fn only_usage(usage: &ExtendedKeyUsage<'_>) -> Option<Only> {
    let ExtendedKeyUsage {
        any: false,
        server_auth,
        client_auth,
        code_signing: false,
        email_protection: false,
        time_stamping: false,
        ocsp_signing: false,
        other,
    } = usage
    else {
        return None;
    };
    match (client_auth, server_auth, other.is_empty()) {
        (true, false, true) => Some(Only::Client),
        (false, true, true) => Some(Only::Server),
        _ => None,
    }
}

fn time(time: ASN1Time) -> Result<UnixTime, CertError> {
    u64::try_from(time.timestamp())
        .map(UnixTime::from_secs)
        .map_err(|_| CertError::Malformed)
}
