//! The authority of a fleet: it makes the root and the issuing certificate, and answers requests.
//!
//! Names and usages of what it issues come from here and from the identity that the caller has decided on, never from
//! the request.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
    SigningKey,
};
use ring::rand::SecureRandom;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::Subject;
use tunnel_proto::{Identity, TrustDomain, UnixTime};
use zeroize::Zeroizing;

use crate::error::CertError;
use crate::key::{KeyError, KeyPair, PublicKey};
use crate::pem;
use crate::request::CertificateRequest;
use crate::serial::Serial;
use crate::trust::{Trust, authority_of};

/// Life of a root: longer than a device stays in the field.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(25 * 365 * 24 * 3600);

/// Life of an issuing certificate. What it issues ends with it at the latest.
pub const ISSUING_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How far certificates reach back, for peers whose clock is slow.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Tells why an authority could not be made or loaded, or did not issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A certificate of the authority is refused.
    #[error("the authority's certificate is not usable")]
    Certificate(#[source] CertError),
    /// A key of the authority is refused.
    #[error("the authority's key is not usable")]
    Key(#[source] KeyError),
    /// Key and certificate are not a pair.
    #[error("the authority's key is not the one of its certificate")]
    KeyMismatch,
    /// The issuing certificate has expired, or is not valid yet.
    #[error("the authority's certificate is not valid at this time")]
    Time,
    /// The identity is of another fleet.
    #[error("the authority is of another fleet than the identity")]
    TrustDomain,
    /// The certificate could not be written; this is a fault of ours.
    #[error("the certificate could not be written")]
    Encoding,
}

impl From<KeyError> for AuthorityError {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<rcgen::Error> for AuthorityError {
    fn from(_: rcgen::Error) -> Self {
        Self::Encoding
    }
}

/// A fleet's new root and issuing authority, for files of their own. Keys go into files of mode 0600.
#[non_exhaustive]
pub struct NewAuthority {
    /// The root certificate.
    pub root_pem: String,
    /// The root's key. It is needed again only to make the next issuing certificate, and may be kept offline.
    pub root_key_pem: Zeroizing<String>,
    /// The issuing certificate.
    pub issuing_pem: String,
    /// The issuing key.
    pub issuing_key_pem: Zeroizing<String>,
}

impl fmt::Debug for NewAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAuthority")
            .field("root_pem", &self.root_pem)
            .finish_non_exhaustive()
    }
}

/// The issuing authority of a fleet.
pub struct Authority {
    trust: Trust,
    issuing: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_before: UnixTime,
    not_after: UnixTime,
}

/// A certificate that was just issued.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The leaf, the issuing certificate and the root.
    pub chain_pem: String,
    /// The leaf alone.
    pub leaf_der: CertificateDer<'static>,
    /// Its serial number.
    pub serial: Serial,
    /// From when on it is valid.
    pub not_before: UnixTime,
    /// Until when it is valid.
    pub not_after: UnixTime,
    /// The hash of its key.
    pub key: KeyHash,
}

impl Authority {
    /// Makes the root and the issuing authority of a new fleet.
    ///
    /// # Errors
    /// Fails where there are no random bytes.
    pub fn create(
        trust_domain: &TrustDomain,
        now: UnixTime,
        random: &dyn SecureRandom,
    ) -> Result<NewAuthority, AuthorityError> {
        let root_key = KeyPair::generate()?;
        let mut root = authority_template(trust_domain, "root", &root_key, now, ROOT_LIFETIME, random)?;
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let root_der = root.self_signed(&root_key)?;

        let issuing_key = KeyPair::generate()?;
        let mut issuing = authority_template(
            trust_domain,
            "issuing",
            &issuing_key,
            now,
            ISSUING_LIFETIME,
            random,
        )?;
        issuing.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        issuing.use_authority_key_identifier_extension = true;
        issuing.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        issuing.name_constraints = Some(no_other_names());
        let issuing_der = issuing.signed_by(&issuing_key, &Issuer::from_params(&root, &root_key))?;

        Ok(NewAuthority {
            root_pem: pem::write_chain(&[root_der.into()]),
            root_key_pem: root_key.to_pem(),
            issuing_pem: pem::write_chain(&[issuing_der.into()]),
            issuing_key_pem: issuing_key.to_pem(),
        })
    }

    /// Takes an authority from its files.
    ///
    /// # Errors
    /// Tells whether a certificate or the key is not usable, or whether they do not fit together.
    pub fn load(issuing_pem: &str, issuing_key_pem: &str, root_pem: &str) -> Result<Self, AuthorityError> {
        let trust = Trust::from_pem(root_pem).map_err(AuthorityError::Certificate)?;
        let [issuing] =
            <[_; 1]>::try_from(pem::read_chain(issuing_pem).map_err(AuthorityError::Certificate)?)
                .map_err(|_| AuthorityError::Certificate(CertError::Malformed))?;
        let key = KeyPair::from_pem(issuing_key_pem)?;
        let about = authority_of(&issuing, trust.root()).map_err(AuthorityError::Certificate)?;
        if about.key != *key.public() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&issuing, key)?;
        Ok(Self {
            trust,
            issuing,
            issuer,
            not_before: about.not_before,
            not_after: about.not_after,
        })
    }

    /// Issues a certificate for the key of a request, in the name of an identity that the caller has decided on.
    ///
    /// It ends with the issuing certificate at the latest.
    ///
    /// # Errors
    /// Fails where the identity is of another fleet or the authority's own time is over.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        identity: &Identity,
        now: UnixTime,
        lifetime: Duration,
        serial: [u8; 16],
    ) -> Result<Issued, AuthorityError> {
        if identity.trust_domain != *self.trust.trust_domain() {
            return Err(AuthorityError::TrustDomain);
        }
        if now < self.not_before || now >= self.not_after {
            return Err(AuthorityError::Time);
        }
        let serial = Serial::from_random(serial);
        let not_before = now.before(BACKDATE).max(self.not_before);
        let not_after = now.after(lifetime).min(self.not_after);
        let template = leaf_template(identity, not_before, not_after, serial)?;
        let leaf: CertificateDer<'static> = template
            .signed_by(&Subjected(request.key()), &self.issuer)?
            .into();
        let chain = [leaf.clone(), self.issuing.clone(), self.trust.root().clone()];
        let chain_pem = pem::write_chain(&chain);
        Ok(Issued {
            chain_pem,
            leaf_der: leaf,
            serial,
            not_before,
            not_after,
            key: request.key_hash(),
        })
    }

    /// Returns the root that this authority stands under.
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Returns until when this authority can issue.
    pub const fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", self.trust.trust_domain())
            .finish_non_exhaustive()
    }
}

/// What root and issuing certificates have in common. The subject is unlike that of any other fleet.
fn authority_template(
    trust_domain: &TrustDomain,
    role: &str,
    key: &KeyPair,
    now: UnixTime,
    lifetime: Duration,
    random: &dyn SecureRandom,
) -> Result<CertificateParams, AuthorityError> {
    let mut serial = [0; 16];
    random.fill(&mut serial).map_err(|_| KeyError::Random)?;
    let mut template = empty_template(
        now.before(BACKDATE),
        now.after(lifetime),
        Serial::from_random(serial),
    )?;
    let short = &key.key_hash().to_string()[..16];
    template
        .distinguished_name
        .push(DnType::CommonName, format!("tunnel {role} {short}"));
    template.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    template.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(template)
}

/// The one form of a leaf: no subject, one URI, one usage, no authority.
fn leaf_template(
    identity: &Identity,
    not_before: UnixTime,
    not_after: UnixTime,
    serial: Serial,
) -> Result<CertificateParams, AuthorityError> {
    let mut template = empty_template(not_before, not_after, serial)?;
    template.subject_alt_names = vec![uri(&identity.to_string())?];
    template.is_ca = IsCa::ExplicitNoCa;
    template.use_authority_key_identifier_extension = true;
    template.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    template.extended_key_usages = vec![match identity.subject {
        Subject::Device(_) | Subject::Operator(_) => ExtendedKeyUsagePurpose::ClientAuth,
        Subject::Server(_) => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    Ok(template)
}

fn empty_template(
    not_before: UnixTime,
    not_after: UnixTime,
    serial: Serial,
) -> Result<CertificateParams, AuthorityError> {
    let mut template = CertificateParams::default();
    template.distinguished_name = DistinguishedName::new();
    template.not_before = date(not_before)?;
    template.not_after = date(not_after)?;
    template.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    Ok(template)
}

/// Forbids every kind of name below the issuing certificate but the URI: nothing that it signs is good for a host, an
/// address or a mailbox, wherever else the root may come to be trusted. The URI's own form, and its fleet, is checked
/// by [`Trust::verify`]: path builders do not support constraints on SPIFFE ids.
fn no_other_names() -> NameConstraints {
    NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![
            GeneralSubtree::DnsName(String::new()),
            GeneralSubtree::Rfc822Name(String::new()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    }
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into()?))
}

fn date(time: UnixTime) -> Result<OffsetDateTime, AuthorityError> {
    let seconds = i64::try_from(time.as_secs()).map_err(|_| AuthorityError::Encoding)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Encoding)
}

/// The key of a request, in the words of the encoder.
struct Subjected<'a>(&'a PublicKey);

impl PublicKeyData for Subjected<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.public().point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Self::sign(self, message).map_err(|_| rcgen::Error::RingUnspecified)
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;
    use crate::request::request;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn create() -> NewAuthority {
        Authority::create(&"fleet.example".parse().unwrap(), NOW, &SystemRandom::new()).unwrap()
    }

    fn load(new: &NewAuthority) -> Result<Authority, AuthorityError> {
        Authority::load(&new.issuing_pem, &new.issuing_key_pem, &new.root_pem)
    }

    fn asked() -> CertificateRequest {
        CertificateRequest::from_pem(&request(&KeyPair::generate().unwrap()).unwrap()).unwrap()
    }

    fn device(text: &str) -> Identity {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_issued_is_what_was_decided() {
        let authority = load(&create()).unwrap();
        let identity = device("spiffe://fleet.example/device/pump-17");
        let asked = asked();
        let issued = authority.issue(&asked, &identity, NOW, DAY, [0xff; 16]).unwrap();
        let peer = authority
            .trust()
            .verify(&pem::read_chain(&issued.chain_pem).unwrap(), NOW)
            .unwrap();
        assert_eq!(peer.identity, identity);
        assert_eq!((peer.key, peer.serial), (asked.key_hash(), issued.serial));
        assert_eq!(
            (peer.not_before, peer.not_after),
            (NOW.before(BACKDATE), NOW.after(DAY))
        );
        assert_eq!(
            (issued.not_before, issued.not_after, issued.key),
            (peer.not_before, peer.not_after, peer.key)
        );
        assert_eq!(pem::read_chain(&issued.chain_pem).unwrap()[0], issued.leaf_der);
    }

    /// Names of the greatest length, and a chain that still fits.
    #[test]
    fn long_names_fit() {
        let label = "x".repeat(63);
        let trust_domain: TrustDomain = format!("{label}.{label}.{label}").parse().unwrap();
        let new = Authority::create(&trust_domain, NOW, &SystemRandom::new()).unwrap();
        let authority = load(&new).unwrap();
        let identity = Identity::operator(&trust_domain, &"y".repeat(64).parse().unwrap());
        let issued = authority.issue(&asked(), &identity, NOW, DAY, [1; 16]).unwrap();
        let chain = pem::read_chain(&issued.chain_pem).unwrap();
        assert_eq!(authority.trust().verify(&chain, NOW).unwrap().identity, identity);
    }

    /// THREATS ENR-04.
    #[test]
    fn a_life_ends_with_the_authority() {
        let authority = load(&create()).unwrap();
        let identity = device("spiffe://fleet.example/device/pump-17");
        let issue = |now, life| authority.issue(&asked(), &identity, now, life, [1; 16]);
        assert_eq!(issue(NOW, DAY * 36_500).unwrap().not_after, authority.not_after());
        assert_eq!(
            issue(NOW, Duration::MAX).unwrap().not_after,
            authority.not_after()
        );
        assert_eq!(authority.not_after(), NOW.after(ISSUING_LIFETIME));
        assert_eq!(issue(authority.not_after(), DAY), Err(AuthorityError::Time));
        assert_eq!(issue(NOW.before(DAY), DAY), Err(AuthorityError::Time));
    }

    #[test]
    fn another_fleet_is_not_issued_for() {
        let authority = load(&create()).unwrap();
        let identity = device("spiffe://other.example/device/pump-17");
        assert_eq!(
            authority.issue(&asked(), &identity, NOW, DAY, [1; 16]),
            Err(AuthorityError::TrustDomain)
        );
    }

    #[test]
    fn parts_of_two_authorities_do_not_load() {
        let (new, other) = (create(), create());
        assert!(load(&new).is_ok());
        let key = Authority::load(&new.issuing_pem, &other.issuing_key_pem, &new.root_pem);
        assert_eq!(key.unwrap_err(), AuthorityError::KeyMismatch);
        let root = Authority::load(&new.issuing_pem, &new.issuing_key_pem, &other.root_pem);
        assert_eq!(
            root.unwrap_err(),
            AuthorityError::Certificate(CertError::UnknownCa)
        );
        let leaf = load(&new).unwrap().issue(
            &asked(),
            &device("spiffe://fleet.example/server/n1"),
            NOW,
            DAY,
            [1; 16],
        );
        let leaf_pem = pem::write_chain(&[leaf.unwrap().leaf_der]);
        assert!(Authority::load(&leaf_pem, &new.issuing_key_pem, &new.root_pem).is_err());
    }

    #[test]
    fn keys_of_an_authority_are_not_printed() {
        let new = create();
        let line = new.issuing_key_pem.lines().nth(1).unwrap().to_owned();
        let text = format!("{new:?}{:?}", load(&new).unwrap());
        assert!(!text.contains(&line) && !text.contains("PRIVATE"));
    }
}
