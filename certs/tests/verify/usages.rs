//! THREATS CRT-04: what a certificate is for follows from the kind of its name.

use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use tunnel_certs::CertError;

use crate::forge::{Fleet, leaf, sign};

const DEVICE: &str = "spiffe://fleet.example/device/pump-17";
const OPERATOR: &str = "spiffe://fleet.example/operator/ana@example.org";
const SERVER: &str = "spiffe://fleet.example/server/n1";

#[test]
fn each_kind_has_its_own_usage() {
    let fleet = Fleet::new();
    for identity in [DEVICE, OPERATOR, SERVER] {
        let peer = fleet.verify(&fleet.issue(identity)).unwrap();
        assert_eq!(peer.identity.to_string(), identity);
        assert!(fleet.verify(&fleet.forge(identity, |_| ())).is_ok());
    }
}

#[test]
fn another_usage_is_refused() {
    let fleet = Fleet::new();
    let with = |identity: &str, usages: &[ExtendedKeyUsagePurpose]| {
        fleet.verify(&fleet.forge(identity, |params| params.extended_key_usages = usages.to_vec()))
    };
    for client in [DEVICE, OPERATOR] {
        assert!(with(client, &[ClientAuth]).is_ok());
        for usages in [
            &[][..],
            &[ServerAuth],
            &[ClientAuth, ServerAuth],
            &[Any],
            &[ClientAuth, CodeSigning],
        ] {
            assert_eq!(with(client, usages), Err(CertError::Usage), "{client} {usages:?}");
        }
    }
    assert!(with(SERVER, &[ServerAuth]).is_ok());
    for usages in [&[][..], &[ClientAuth], &[ServerAuth, ClientAuth], &[Any]] {
        assert_eq!(with(SERVER, usages), Err(CertError::Usage), "{usages:?}");
    }
}

#[test]
fn a_leaf_signs_handshakes_and_nothing_else() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    let fleet = Fleet::new();
    let with = |usages: &[KeyUsagePurpose]| {
        fleet.verify(&fleet.forge(DEVICE, |params| params.key_usages = usages.to_vec()))
    };
    assert!(with(&[DigitalSignature]).is_ok());
    for usages in [
        &[][..],
        &[KeyAgreement],
        &[DigitalSignature, KeyCertSign],
        &[DigitalSignature, CrlSign],
    ] {
        assert_eq!(with(usages), Err(CertError::Usage), "{usages:?}");
    }
}

/// THREATS T13: an authority for one class does not make members of another.
#[test]
fn an_authority_for_clients_makes_no_servers() {
    let fleet = Fleet::new();
    let (clients, key) = fleet.subordinate(|params| params.extended_key_usages = vec![ClientAuth]);
    let below = |identity| fleet.verify(&[sign(&leaf(identity), &clients, &key), clients.clone()]);
    assert!(below(DEVICE).is_ok());
    assert_eq!(below(SERVER), Err(CertError::Usage));
}
