//! THREATS CRT-06: exactly one name, in exactly one spelling.

use rcgen::{CustomExtension, DnType, SanType};
use tunnel_certs::CertError;
use tunnel_proto::Code;

use crate::forge::{Fleet, uri};

const DEVICE: &str = "spiffe://fleet.example/device/pump-17";

fn with_names(names: Vec<SanType>) -> Result<String, CertError> {
    let fleet = Fleet::new();
    let chain = fleet.forge(DEVICE, |params| params.subject_alt_names = names);
    fleet.verify(&chain).map(|peer| peer.identity.to_string())
}

#[test]
fn the_uri_is_the_name() {
    assert_eq!(with_names(vec![uri(DEVICE)]).as_deref(), Ok(DEVICE));
}

#[test]
fn a_common_name_is_no_name() {
    let fleet = Fleet::new();
    let chain = fleet.forge(DEVICE, |params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(DnType::CommonName, DEVICE);
    });
    assert_eq!(fleet.verify(&chain), Err(CertError::Name));
    let beside = fleet.forge(DEVICE, |params| {
        params
            .distinguished_name
            .push(DnType::CommonName, "spiffe://fleet.example/device/pump-18");
    });
    assert_eq!(fleet.verify(&beside).unwrap().identity.to_string(), DEVICE);
}

#[test]
fn a_second_name_is_refused() {
    let second = [
        uri("spiffe://fleet.example/device/pump-18"),
        uri(DEVICE),
        SanType::Rfc822Name("ana@example.org".try_into().unwrap()),
        SanType::DnsName("pump-17.example".try_into().unwrap()),
        SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    for name in second {
        let text = format!("{name:?}");
        let refused = with_names(vec![uri(DEVICE), name.clone()]).unwrap_err();
        // Hosts, addresses and mailboxes are forbidden by the issuing certificate as well.
        assert!(
            matches!(refused, CertError::Name | CertError::Chain),
            "{text}: {refused:?}"
        );
        assert!(with_names(vec![name, uri(DEVICE)]).is_err(), "{text}");
    }
}

#[test]
fn a_name_in_another_spelling_is_refused() {
    for text in [
        "spiffe://fleet.example/device/pump-17\0",
        "spiffe://fleet.example/device/pump-17\0.evil",
        "spiffe://fleet.example/device/*",
        "spiffe://*/device/pump-17",
        "spiffe://fleet.example/device/Pump-17",
        "SPIFFE://fleet.example/device/pump-17",
        "spiffe://Fleet.example/device/pump-17",
        "spiffe://fleet.example./device/pump-17",
        "spiffe://fleet.example/device/pump-17.",
        "spiffe://fleet.example/device/pump-17/",
        "spiffe://fleet.example//device/pump-17",
        "spiffe://fleet.example/device/xn--pmp-17-tdb?",
        "spiffe://fleet.example/device/pump%2d17",
        "spiffe://fleet.example/device/pump-17#a",
        "spiffe://fleet.example:443/device/pump-17",
        "spiffe://fleet.example/admin/pump-17",
        "spiffe://fleet.example/device",
        "spiffe://fleet.example",
        "https://fleet.example/device/pump-17",
        "",
    ] {
        assert_eq!(with_names(vec![uri(text)]), Err(CertError::Name), "{text:?}");
    }
}

/// Bytes that are no ASCII: the encoder does not write them, so the extension is written by hand.
#[test]
fn a_look_alike_is_refused() {
    let fleet = Fleet::new();
    for name in [
        "spiffe://fleet.example/device/pump-17",
        "spiffe://fleet.example/device/p\u{443}mp-17",
    ] {
        let chain = fleet.forge(DEVICE, |params| {
            params.subject_alt_names.clear();
            let length = u8::try_from(name.len()).unwrap();
            let content = [&[0x30, length + 2, 0x86, length], name.as_bytes()].concat();
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
        });
        match fleet.verify(&chain) {
            Ok(peer) => assert_eq!((peer.identity.to_string().as_str(), name), (DEVICE, DEVICE)),
            Err(refused) => {
                assert_ne!(name, DEVICE);
                assert_eq!(refused.code(), Code::CertName);
            }
        }
    }
}

#[test]
fn two_name_extensions_are_refused() {
    let fleet = Fleet::new();
    let chain = fleet.forge(DEVICE, |params| {
        let name = "spiffe://fleet.example/device/pump-18";
        let length = u8::try_from(name.len()).unwrap();
        let content = [&[0x30, length + 2, 0x86, length], name.as_bytes()].concat();
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
    });
    assert_eq!(fleet.verify(&chain).unwrap_err().code(), Code::CertChain);
}

/// The path builders cannot bind an authority to a fleet's URIs, so the name itself is compared.
#[test]
fn a_name_of_another_fleet_is_refused() {
    for text in [
        "spiffe://other.example/device/pump-17",
        "spiffe://a.fleet.example/device/pump-17",
    ] {
        assert_eq!(with_names(vec![uri(text)]), Err(CertError::Name));
    }
}
