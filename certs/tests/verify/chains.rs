//! THREATS CRT-03, CRT-05, CRT-07, CRT-08.

use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CustomExtension, IsCa, Issuer, PublicKeyData, SanType};
use tunnel_certs::trust::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTS};
use tunnel_certs::{CertError, CertificateDer, KeyPair, Trust};
use tunnel_proto::Code;

use crate::forge::{Der, Fleet, LIFE, NOW, authority, date, leaf, sign, sign_for, uri};

const DEVICE: &str = "spiffe://fleet.example/device/pump-17";
const VICTIM: &str = "spiffe://fleet.example/device/pump-18";

/// Every order of the given certificates.
fn orders(of: &[Der]) -> Vec<Vec<Der>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in 0..of.len() {
        let mut rest = of.to_vec();
        let first = rest.remove(first);
        all.extend(
            orders(&rest)
                .into_iter()
                .map(|tail| [vec![first.clone()], tail].concat()),
        );
    }
    all
}

#[test]
fn a_chain_of_this_fleet_passes() {
    let fleet = Fleet::new();
    let chain = fleet.issue(DEVICE);
    assert_eq!(chain.len(), 3);
    assert!(fleet.verify(&chain).is_ok());
    assert!(fleet.verify(&chain[..2]).is_ok());
}

/// CRT-03.
#[test]
fn a_chain_of_another_root_is_refused() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let chain = foreign.issue(DEVICE);
    assert!(foreign.verify(&chain).is_ok());
    assert_eq!(fleet.verify(&chain), Err(CertError::UnknownCa));
    let ours_appended = [
        chain[0].clone(),
        chain[1].clone(),
        fleet.issuing.clone(),
        fleet.root.clone(),
    ];
    assert_eq!(fleet.verify(&ours_appended), Err(CertError::UnknownCa));
    let theirs_appended = [&fleet.issue(DEVICE)[..2], &[foreign.root]].concat();
    assert!(
        fleet.verify(&theirs_appended).is_ok(),
        "another certificate at the end is no harm"
    );
}

/// CRT-03.
#[test]
fn a_self_signed_certificate_is_refused() {
    let fleet = Fleet::new();
    let key = KeyPair::generate().unwrap();
    let alone: Der = leaf(DEVICE).self_signed(&key).unwrap().into();
    assert_eq!(
        fleet.verify(std::slice::from_ref(&alone)),
        Err(CertError::UnknownCa)
    );
    assert_eq!(
        fleet.verify(&[alone, fleet.issuing.clone()]),
        Err(CertError::UnknownCa)
    );
}

/// CRT-03: an authority that only has the names of ours.
#[test]
fn a_chain_of_a_namesake_is_refused() {
    let fleet = Fleet::new();
    let key = KeyPair::generate().unwrap();
    let namesake = Issuer::from_ca_cert_der(&fleet.issuing, &key).unwrap();
    let forged: Der = leaf(DEVICE)
        .signed_by(&KeyPair::generate().unwrap(), &namesake)
        .unwrap()
        .into();
    assert_eq!(
        fleet.verify(&[forged, fleet.issuing.clone()]),
        Err(CertError::UnknownCa)
    );
}

#[test]
fn a_missing_chain_is_refused() {
    let fleet = Fleet::new();
    assert_eq!(fleet.verify(&[]), Err(CertError::Missing));
    assert_eq!(CertError::Missing.code(), Code::Unauthenticated);
    assert_eq!(
        fleet.verify(&fleet.issue(DEVICE)[..1]),
        Err(CertError::UnknownCa),
        "without its authority"
    );
}

/// CRT-05, invariant I4.
#[test]
fn only_the_first_certificate_lends_its_name() {
    let fleet = Fleet::new();
    let (own, victim) = (fleet.issue(DEVICE), fleet.issue(VICTIM));
    for rest in orders(&[victim[0].clone(), fleet.issuing.clone(), fleet.root.clone()]) {
        let chain = [&own[..1], &rest].concat();
        let peer = fleet.verify(&chain).unwrap();
        assert_eq!(peer.identity.to_string(), DEVICE);
        assert_eq!(peer.key, fleet.verify(&own).unwrap().key);
    }
    let foreign = Fleet::new().issue(DEVICE);
    for rest in orders(&[victim[0].clone(), fleet.issuing.clone(), fleet.root.clone()]) {
        assert!(fleet.verify(&[&foreign[..1], &rest].concat()).is_err());
    }
}

/// CRT-07.
#[test]
fn a_leaf_signs_no_leaf() {
    let fleet = Fleet::new();
    let key = KeyPair::generate().unwrap();
    let mut middle = leaf(VICTIM);
    middle.distinguished_name = authority("middle").distinguished_name;
    let middle = sign_for(&middle, &key, &fleet.issuing, &fleet.issuing_key);
    let chain = [sign(&leaf(DEVICE), &middle, &key), middle, fleet.issuing.clone()];
    assert_eq!(fleet.verify(&chain).unwrap_err().code(), Code::CertChain);
}

/// CRT-07: the issuing certificate allows no authority below it.
#[test]
fn an_authority_below_the_issuing_one_is_refused() {
    let fleet = Fleet::new();
    let key = KeyPair::generate().unwrap();
    let extra = sign_for(&authority("extra"), &key, &fleet.issuing, &fleet.issuing_key);
    let chain = [sign(&leaf(DEVICE), &extra, &key), extra, fleet.issuing.clone()];
    assert_eq!(fleet.verify(&chain), Err(CertError::Chain));

    let (free, free_key) = fleet.subordinate(|_| ());
    let extra = sign_for(&authority("extra"), &key, &free, &free_key);
    let chain = [sign(&leaf(DEVICE), &extra, &key), extra, free];
    assert!(fleet.verify(&chain).is_ok(), "one that has no such limit may");
}

/// CRT-07.
#[test]
fn an_authority_is_no_peer() {
    let fleet = Fleet::new();
    let flagged = fleet.forge(DEVICE, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
    });
    assert_eq!(fleet.verify(&flagged).unwrap_err().code(), Code::CertChain);
    for chain in [
        vec![fleet.issuing.clone()],
        vec![fleet.issuing.clone(), fleet.root.clone()],
        vec![fleet.root.clone()],
    ] {
        assert!(fleet.verify(&chain).is_err());
    }
}

/// CRT-07: the issuing certificate is good for no hosts, addresses or mailboxes.
#[test]
fn a_broken_name_constraint_is_refused() {
    let fleet = Fleet::new();
    for name in [
        SanType::DnsName("bank.example".try_into().unwrap()),
        SanType::IpAddress([192, 0, 2, 1].into()),
        SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
        SanType::Rfc822Name("ana@bank.example".try_into().unwrap()),
    ] {
        let chain = fleet.forge(DEVICE, |params| params.subject_alt_names = vec![name]);
        assert_eq!(fleet.verify(&chain), Err(CertError::Chain));
    }
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let fleet = Fleet::new();
    let with = |critical| {
        fleet.verify(&fleet.forge(DEVICE, |params| {
            let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            unknown.set_criticality(critical);
            params.custom_extensions.push(unknown);
        }))
    };
    assert!(with(false).is_ok());
    assert_eq!(with(true), Err(CertError::Chain));
}

/// CRT-08: a key as large as this has no signature checked with it.
#[test]
fn a_key_of_another_kind_is_refused() {
    struct Rsa(Vec<u8>);
    impl PublicKeyData for Rsa {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_RSA_SHA256
        }
    }
    let fleet = Fleet::new();
    let issuer = Issuer::from_ca_cert_der(&fleet.issuing, &fleet.issuing_key).unwrap();
    let large: Der = leaf(DEVICE)
        .signed_by(&Rsa(vec![0x55; 16_384 / 8]), &issuer)
        .unwrap()
        .into();
    assert_eq!(
        fleet.verify(&[large, fleet.issuing.clone()]),
        Err(CertError::Chain)
    );
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let other: Der = leaf(DEVICE).signed_by(&p384, &issuer).unwrap().into();
    assert_eq!(
        fleet.verify(&[other, fleet.issuing.clone()]),
        Err(CertError::Chain)
    );
}

/// CRT-08.
#[test]
fn long_chains_are_refused_unread() {
    let fleet = Fleet::new();
    let chain = fleet.issue(DEVICE);
    let filled = |count: usize, filler: Der| [&chain[..2], &vec![filler; count]].concat();
    let junk = |length: usize| CertificateDer::from(vec![0xff; length]);
    let room = MAX_CHAIN_BYTES - chain[0].len() - chain[1].len();
    assert!(
        fleet
            .verify(&filled(MAX_CHAIN_CERTS - 2, fleet.root.clone()))
            .is_ok()
    );
    assert!(
        fleet.verify(&filled(1, junk(room))).is_ok(),
        "filler that nothing points to is not read"
    );
    for long in [
        filled(MAX_CHAIN_CERTS - 1, fleet.root.clone()),
        filled(1000, fleet.issuing.clone()),
        filled(1, junk(room + 1)),
        filled(1, junk(16 * 1024)),
        filled(1, junk(1024 * 1024)),
        vec![junk(1024 * 1024)],
    ] {
        assert_eq!(fleet.verify(&long), Err(CertError::TooLarge));
    }
}

/// CRT-08: the worst that fits: authorities of one name that sign each other, none of which leads to the root.
#[test]
fn the_worst_chain_is_cheap() {
    let fleet = Fleet::new();
    let namesakes: Vec<Der> = (0..MAX_CHAIN_CERTS - 1)
        .map(|_| {
            let key = KeyPair::generate().unwrap();
            let impostor = KeyPair::generate().unwrap();
            // Its subject and its issuer are the root's name, so each could stand above each, and all below the root.
            let mut params = authority("x");
            params.not_after = date(NOW.after(LIFE));
            params.distinguished_name = root_name(&fleet);
            sign_for(&params, &key, &fleet.root, &impostor)
        })
        .collect();
    let key = KeyPair::generate().unwrap();
    let chain = [vec![sign(&leaf(DEVICE), &fleet.root, &key)], namesakes].concat();
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        assert_eq!(fleet.verify(&chain), Err(CertError::UnknownCa));
        best = best.min(start.elapsed());
    }
    assert!(best < Duration::from_millis(5), "{best:?}");
}

/// The subject of the root, which the encoder wrote from a common name.
fn root_name(fleet: &Fleet) -> rcgen::DistinguishedName {
    let hash = &fleet.root_key.key_hash().to_string()[..16];
    authority(&format!("tunnel root {hash}")).distinguished_name
}

#[test]
fn a_root_is_known_by_its_fingerprint() {
    let fleet = Fleet::new();
    let chain = fleet.issue("spiffe://fleet.example/server/n1");
    let fingerprint = fleet.trust.fingerprint();
    let found = Trust::of_chain(&chain, &fingerprint).unwrap();
    assert_eq!(found.trust_domain().as_str(), "fleet.example");
    assert!(found.verify(&chain, NOW).is_ok());
    let foreign = Fleet::new().issue("spiffe://fleet.example/server/n1");
    assert_eq!(
        Trust::of_chain(&foreign, &fingerprint).unwrap_err(),
        CertError::UnknownCa
    );
    assert_eq!(
        Trust::of_chain(&chain[..2], &fingerprint).unwrap_err(),
        CertError::UnknownCa
    );
    assert_eq!(
        Trust::of_chain(&[], &fingerprint).unwrap_err(),
        CertError::Missing
    );
    let grafted = [&foreign[..2], &chain[2..]].concat();
    let found = Trust::of_chain(&grafted, &fingerprint).unwrap();
    assert_eq!(found.verify(&grafted, NOW), Err(CertError::UnknownCa));
}

/// An authority of the owner's own may have a larger key; the members' keys are P-256 all the same.
#[test]
fn a_root_with_a_p384_key_is_a_root() {
    let root_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = authority("external root");
    params.subject_alt_names = vec![uri("spiffe://fleet.example")];
    let root: Der = params.self_signed(&root_key).unwrap().into();
    let issuer = Issuer::from_ca_cert_der(&root, &root_key).unwrap();
    let member: Der = leaf(DEVICE)
        .signed_by(&KeyPair::generate().unwrap(), &issuer)
        .unwrap()
        .into();
    assert_eq!(
        Trust::from_der(&root)
            .unwrap()
            .verify(&[member], NOW)
            .unwrap()
            .identity
            .to_string(),
        DEVICE
    );
}

#[test]
fn only_a_root_is_a_root() {
    let fleet = Fleet::new();
    assert!(Trust::from_der(&fleet.root).is_ok());
    assert!(Trust::from_der(&fleet.issue(DEVICE)[0]).is_err());
    let key = KeyPair::generate().unwrap();
    let nameless: Der = authority("no fleet").self_signed(&key).unwrap().into();
    assert_eq!(Trust::from_der(&nameless).unwrap_err(), CertError::Name);
    assert!(Trust::from_pem(&tunnel_certs::pem::write_chain(&fleet.issue(DEVICE))).is_err());
}
