//! THREATS CRT-13, CRT-14: damaged bytes are refused, and none of them stops the program.

use proptest::prelude::*;
use tunnel_certs::{CertificateDer, Trust, pem};

use crate::forge::{Der, Fleet, NOW};

const DEVICE: &str = "spiffe://fleet.example/device/pump-17";

#[test]
fn every_truncation_is_refused() {
    let fleet = Fleet::new();
    let chain = fleet.issue(DEVICE);
    assert!(fleet.verify(&chain).is_ok());
    for at in 0..2 {
        for length in 0..chain[at].len() {
            let mut cut = chain.clone();
            cut[at] = CertificateDer::from(chain[at][..length].to_vec());
            assert!(fleet.verify(&cut).is_err(), "certificate {at}, {length} bytes");
        }
    }
    for length in 0..fleet.root.len() {
        assert!(Trust::from_der(&CertificateDer::from(fleet.root[..length].to_vec())).is_err());
    }
}

#[test]
fn every_changed_bit_is_refused() {
    let fleet = Fleet::new();
    let chain = fleet.issue(DEVICE);
    for at in 0..2 {
        for bit in 0..chain[at].len() * 8 {
            let mut bytes = chain[at].to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut bad = chain.clone();
            bad[at] = CertificateDer::from(bytes);
            assert!(fleet.verify(&bad).is_err(), "certificate {at}, bit {bit}");
        }
    }
}

#[test]
fn bytes_after_the_certificate_are_refused() {
    let fleet = Fleet::new();
    let mut chain = fleet.issue(DEVICE);
    chain[0] = CertificateDer::from([&chain[0][..], &[0]].concat());
    assert!(fleet.verify(&chain).is_err());
    assert!(Trust::from_der(&CertificateDer::from([&fleet.root[..], &[0]].concat())).is_err());
}

/// CRT-14: `(r, n - s)` is as good a signature as `(r, s)`, so a hash of the certificate would name only one of the two.
/// Key and serial number, by which peers are revoked, are the same.
#[test]
fn a_signature_in_another_form_changes_neither_key_nor_serial() {
    let fleet = Fleet::new();
    let chain = fleet.issue(DEVICE);
    let mut other = chain.clone();
    other[0] = with_other_signature(&chain[0]);
    assert_ne!(chain[0], other[0]);
    let (first, second) = (fleet.verify(&chain).unwrap(), fleet.verify(&other).unwrap());
    assert_eq!(
        (first.key, first.serial, &first.identity),
        (second.key, second.serial, &second.identity)
    );
}

/// The order of P-256 (FIPS 186-5).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// Replaces the signature `(r, s)` at the end of a certificate by `(r, n - s)`.
fn with_other_signature(certificate: &Der) -> Der {
    // SEQUENCE { tbs SEQUENCE, algorithm (12 bytes), BIT STRING { SEQUENCE { INTEGER r, INTEGER s } } }, long lengths.
    let tbs_length = 4 + usize::from(u16::from_be_bytes([certificate[6], certificate[7]]));
    let signed = &certificate[4..4 + tbs_length + 12];
    let numbers = &certificate[4 + signed.len() + 5..];
    let (r, rest) = numbers.split_at(2 + usize::from(numbers[1]));
    let s = integer(&subtract(&ORDER, &rest[2..]));
    let numbers = [r, &s].concat();
    let short = |length: usize| u8::try_from(length).unwrap();
    let bits = [
        &[0x03, short(numbers.len() + 3), 0, 0x30, short(numbers.len())],
        numbers.as_slice(),
    ]
    .concat();
    let length = u16::try_from(signed.len() + bits.len()).unwrap().to_be_bytes();
    CertificateDer::from([&[0x30, 0x82], length.as_slice(), signed, &bits].concat())
}

/// `a - b`, both unsigned, most significant byte first.
fn subtract(a: &[u8; 32], b: &[u8]) -> [u8; 32] {
    let mut difference = [0; 32];
    let mut borrow = 0;
    for (at, digit) in difference.iter_mut().rev().enumerate() {
        let subtrahend = if at < b.len() {
            i16::from(b[b.len() - 1 - at])
        } else {
            0
        };
        let value = i16::from(a[31 - at]) - subtrahend - borrow;
        borrow = i16::from(value < 0);
        *digit = u8::try_from(value.rem_euclid(256)).unwrap();
    }
    difference
}

/// Encodes a positive DER integer.
fn integer(number: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = number.iter().copied().skip_while(|&digit| digit == 0).collect();
    let sign: &[u8] = if digits[0] & 0x80 != 0 { &[0] } else { &[] };
    let content = [sign, &digits].concat();
    [&[0x02, u8::try_from(content.len()).unwrap()], content.as_slice()].concat()
}

proptest! {
    #[test]
    fn any_bytes_are_refused(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6)) {
        let fleet = Fleet::new();
        let chain: Vec<Der> = parts.into_iter().map(CertificateDer::from).collect();
        prop_assert!(fleet.trust.verify(&chain, NOW).is_err());
    }

    #[test]
    fn any_text_is_refused(text in ".{0,300}") {
        prop_assert!(pem::read_chain(&text).is_err());
    }

    /// Lengths that lie, tags that are others: bytes changed anywhere in a real certificate.
    #[test]
    fn changed_bytes_are_refused(at in 0..500_usize, byte in any::<u8>()) {
        let fleet = Fleet::new();
        let mut chain = fleet.issue(DEVICE);
        let mut bytes = chain[0].to_vec();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        chain[0] = CertificateDer::from(bytes);
        prop_assert!(fleet.verify(&chain).is_err());
    }
}
