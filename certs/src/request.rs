//! Certificate requests (PKCS#10, RFC 2986) that hold a key and nothing else.
//!
//! Who the key belongs to is what the enrolment code, or the proved certificate, says. So a request has no name, no
//! usage and no extension that could be mistaken for a wish to be granted; every byte of it is given, except the key
//! and the signature, and reading it is a comparison (THREATS ENR-03, ENR-04).

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use tunnel_proto::Code;
use tunnel_proto::keys::KeyHash;

use crate::key::{KeyError, KeyPair, PublicKey};
use crate::pem;

/// Longest request that is looked at, in bytes of text.
const MAX_TEXT: usize = 2048;

/// `SEQUENCE { version 0, subject {}` up to the key.
const BEFORE_KEY: [u8; 7] = [0x30, 0x62, 0x02, 0x01, 0x00, 0x30, 0x00];

/// `attributes {} }` after the key.
const AFTER_KEY: [u8; 2] = [0xa0, 0x00];

/// Length of a P-256 SubjectPublicKeyInfo.
const KEY: usize = 91;

/// Length of what is signed.
const SIGNED: usize = BEFORE_KEY.len() + KEY + AFTER_KEY.len();

/// `ecdsa-with-SHA256` (RFC 5758 section 3.2).
const ALGORITHM: [u8; 12] = [
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];

/// Tells why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The text is too long, or has no block of the right kind.
    #[error("the text has no `CERTIFICATE REQUEST` block, or too much else")]
    Pem,
    /// The request has a name, an extension, a usage or an attribute, a key of another kind, or is damaged.
    #[error("the request is not of the documented form: a P-256 key, an empty subject, no attributes")]
    Form,
    /// The signature was not made by the key of the request.
    #[error("the request is not signed by its own key")]
    Signature,
}

impl RequestError {
    /// Returns the stable code.
    pub const fn code(self) -> Code {
        Code::EnrolCsr
    }
}

/// Makes a request for a certificate of this key, as PEM.
///
/// # Errors
/// Fails where the system has no random bytes.
pub fn request(key: &KeyPair) -> Result<String, KeyError> {
    let signed = [&BEFORE_KEY, key.public().to_spki().as_slice(), &AFTER_KEY].concat();
    let signature = key.sign(&signed)?;
    let bits = [&[0x03, short(1 + signature.len()), 0x00], signature.as_slice()].concat();
    let body = [signed.as_slice(), &ALGORITHM, &bits].concat();
    let der = [&[0x30, 0x81, short(body.len())], body.as_slice()].concat();
    Ok(pem::write("CERTIFICATE REQUEST", &der))
}

/// Returns a length that fits one byte: an ECDSA signature has 72 bytes at most, a request 190.
fn short(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

/// A request whose form is right and whose sender has the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateRequest {
    key: PublicKey,
}

impl CertificateRequest {
    /// Reads and proves a request.
    ///
    /// # Errors
    /// Tells whether the text, the form or the signature is wrong.
    pub fn from_pem(text: &str) -> Result<Self, RequestError> {
        if text.len() > MAX_TEXT {
            return Err(RequestError::Pem);
        }
        let der =
            CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| RequestError::Pem)?;
        Self::from_der(&der)
    }

    /// Reads and proves a request.
    ///
    /// # Errors
    /// Tells whether the form or the signature is wrong.
    pub fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        let (signed, key, signature) = parts(der).ok_or(RequestError::Form)?;
        if key.verifies(signed, signature) {
            Ok(Self { key })
        } else {
            Err(RequestError::Signature)
        }
    }

    /// Returns the key that a certificate is asked for.
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Returns the hash of that key.
    pub fn key_hash(&self) -> KeyHash {
        self.key.key_hash()
    }
}

/// Takes a request apart into what is signed, the key in it, and the signature.
fn parts(der: &[u8]) -> Option<(&[u8], PublicKey, &[u8])> {
    let &[0x30, 0x81, length, ref body @ ..] = der else {
        return None;
    };
    if usize::from(length) != body.len() {
        return None;
    }
    let (signed, rest) = body.split_at_checked(SIGNED)?;
    let spki = signed.strip_prefix(&BEFORE_KEY)?.strip_suffix(&AFTER_KEY)?;
    let &[0x03, length, 0x00, ref signature @ ..] = rest.strip_prefix(&ALGORITHM)? else {
        return None;
    };
    if usize::from(length) != signature.len() + 1 {
        return None;
    }
    Some((signed, PublicKey::from_spki(spki)?, signature))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
        ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    };

    use super::*;

    fn der_of(text: &str) -> Vec<u8> {
        CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .unwrap()
            .to_vec()
    }

    /// A request of another program, with what `change` puts in.
    fn foreign(change: impl FnOnce(&mut CertificateParams)) -> Result<CertificateRequest, RequestError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        CertificateRequest::from_pem(&params.serialize_request(&key).unwrap().pem().unwrap())
    }

    #[test]
    fn a_request_proves_its_key() {
        let key = KeyPair::generate().unwrap();
        let text = request(&key).unwrap();
        assert_eq!(
            CertificateRequest::from_pem(&text).unwrap().key_hash(),
            key.key_hash()
        );
    }

    #[test]
    fn a_bare_request_of_another_program_passes() {
        assert!(foreign(|_| ()).is_ok());
    }

    /// THREATS ENR-03, ENR-04.
    #[test]
    fn a_request_that_asks_for_anything_is_refused() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let form = Err(RequestError::Form);
        assert_eq!(
            foreign(|p| p.distinguished_name.push(DnType::CommonName, "pump-18")),
            form
        );
        assert_eq!(
            foreign(|p| p.subject_alt_names.push(uri("spiffe://f/device/pump-18"))),
            form
        );
        assert_eq!(
            foreign(|p| p
                .subject_alt_names
                .push(SanType::DnsName("a.example".try_into().unwrap()))),
            form
        );
        assert_eq!(
            foreign(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            form
        );
        assert_eq!(foreign(|p| p.is_ca = IsCa::ExplicitNoCa), form);
        assert_eq!(foreign(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)), form);
        assert_eq!(
            foreign(|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth)),
            form
        );
        assert_eq!(
            foreign(|p| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                unknown.set_criticality(true);
                p.custom_extensions.push(unknown);
            }),
            form
        );
    }

    /// THREATS ENR-05.
    #[test]
    fn keys_of_other_kinds_are_refused() {
        for kind in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = rcgen::KeyPair::generate_for(kind).unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            let text = params.serialize_request(&key).unwrap().pem().unwrap();
            assert_eq!(CertificateRequest::from_pem(&text), Err(RequestError::Form));
        }
    }

    /// THREATS ENR-05: somebody else's public key, without its private half.
    #[test]
    fn a_request_without_proof_of_key_is_refused() {
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut der = der_of(&request(&own).unwrap());
        der[3 + BEFORE_KEY.len()..][..KEY].copy_from_slice(&other.public().to_spki());
        assert_eq!(CertificateRequest::from_der(&der), Err(RequestError::Signature));
        let mut off_curve = der_of(&request(&own).unwrap());
        off_curve[3 + BEFORE_KEY.len() + 27..][..64].fill(0);
        assert_eq!(
            CertificateRequest::from_der(&off_curve),
            Err(RequestError::Signature)
        );
    }

    /// THREATS CRT-13.
    #[test]
    fn a_damaged_request_is_refused() {
        let good = der_of(&request(&KeyPair::generate().unwrap()).unwrap());
        for length in 0..good.len() {
            assert!(CertificateRequest::from_der(&good[..length]).is_err());
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(CertificateRequest::from_der(&bad).is_err(), "bit {bit}");
        }
        let longer = [good.as_slice(), &[0]].concat();
        assert!(CertificateRequest::from_der(&longer).is_err());
    }

    #[test]
    fn a_text_without_a_request_is_refused() {
        assert_eq!(CertificateRequest::from_pem(""), Err(RequestError::Pem));
        assert_eq!(
            CertificateRequest::from_pem(&"x".repeat(MAX_TEXT + 1)),
            Err(RequestError::Pem)
        );
        let key = KeyPair::generate().unwrap();
        assert_eq!(
            CertificateRequest::from_pem(&key.to_pem()),
            Err(RequestError::Pem)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = CertificateRequest::from_der(&bytes);
        }
    }
}
