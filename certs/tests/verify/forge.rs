//! A fleet whose keys the tests have, so that they can sign what no authority would.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use ring::rand::SystemRandom;
use time::OffsetDateTime;
use tunnel_certs::{
    Authority, CertError, CertificateDer, CertificateRequest, KeyPair, Peer, Trust, pem, request,
};
use tunnel_proto::{Identity, TrustDomain, UnixTime};

/// When the tests play.
pub(crate) const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// Life of what the tests issue.
pub(crate) const LIFE: Duration = Duration::from_secs(3600);

pub(crate) type Der = CertificateDer<'static>;

pub(crate) struct Fleet {
    pub(crate) trust: Trust,
    pub(crate) authority: Authority,
    pub(crate) root: Der,
    pub(crate) root_key: KeyPair,
    pub(crate) issuing: Der,
    pub(crate) issuing_key: KeyPair,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::named("fleet.example")
    }

    pub(crate) fn named(trust_domain: &str) -> Self {
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let new = Authority::create(&trust_domain, NOW, &SystemRandom::new()).unwrap();
        let one = |text: &str| pem::read_chain(text).unwrap().remove(0);
        Self {
            trust: Trust::from_pem(&new.root_pem).unwrap(),
            authority: Authority::load(&new.issuing_pem, &new.issuing_key_pem, &new.root_pem).unwrap(),
            root: one(&new.root_pem),
            root_key: KeyPair::from_pem(&new.root_key_pem).unwrap(),
            issuing: one(&new.issuing_pem),
            issuing_key: KeyPair::from_pem(&new.issuing_key_pem).unwrap(),
        }
    }

    /// What the authority itself issues: leaf, issuing certificate and root.
    pub(crate) fn issue(&self, identity: &str) -> Vec<Der> {
        let key = KeyPair::generate().unwrap();
        let asked = CertificateRequest::from_pem(&request(&key).unwrap()).unwrap();
        let identity: Identity = identity.parse().unwrap();
        let issued = self
            .authority
            .issue(&asked, &identity, NOW, LIFE, [7; 16])
            .unwrap();
        pem::read_chain(&issued.chain_pem).unwrap()
    }

    /// A chain whose leaf is a good one, but for what `change` does to it.
    pub(crate) fn forge(&self, identity: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<Der> {
        let mut params = leaf(identity);
        change(&mut params);
        vec![
            sign(&params, &self.issuing, &self.issuing_key),
            self.issuing.clone(),
        ]
    }

    /// An authority below `above`, and its key.
    pub(crate) fn subordinate(&self, change: impl FnOnce(&mut CertificateParams)) -> (Der, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = authority("another issuing");
        change(&mut params);
        (sign_for(&params, &key, &self.root, &self.root_key), key)
    }

    pub(crate) fn verify(&self, chain: &[Der]) -> Result<Peer, CertError> {
        self.trust.verify(chain, NOW)
    }
}

/// A good leaf.
pub(crate) fn leaf(identity: &str) -> CertificateParams {
    let mut params = blank();
    params.subject_alt_names = vec![uri(identity)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match identity.contains("/server/") {
        true => ExtendedKeyUsagePurpose::ServerAuth,
        false => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params
}

/// A good authority with the given subject.
pub(crate) fn authority(subject: &str) -> CertificateParams {
    let mut params = blank();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn blank() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(NOW);
    params.not_after = date(NOW.after(LIFE));
    params
}

pub(crate) fn date(time: UnixTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).unwrap()).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Signs for a new key that nobody keeps.
pub(crate) fn sign(params: &CertificateParams, issuer: &Der, issuer_key: &KeyPair) -> Der {
    sign_for(params, &KeyPair::generate().unwrap(), issuer, issuer_key)
}

pub(crate) fn sign_for(params: &CertificateParams, key: &KeyPair, issuer: &Der, issuer_key: &KeyPair) -> Der {
    params
        .signed_by(key, &Issuer::from_ca_cert_der(issuer, issuer_key).unwrap())
        .unwrap()
        .into()
}
