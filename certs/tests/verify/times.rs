//! THREATS CRT-01.

use std::time::Duration;

use tunnel_certs::CertError;
use tunnel_certs::authority::BACKDATE;
use tunnel_proto::Code;

use crate::forge::{Fleet, LIFE, NOW, date, leaf, sign};

const DEVICE: &str = "spiffe://fleet.example/device/pump-17";
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_certificate_is_good_from_its_first_to_its_last_second() {
    let fleet = Fleet::new();
    let chain = fleet.issue(DEVICE);
    let (first, last) = (NOW.before(BACKDATE), NOW.after(LIFE));
    for time in [first, NOW, last] {
        let peer = fleet.trust.verify(&chain, time).unwrap();
        assert_eq!((peer.not_before, peer.not_after), (first, last));
    }
    let early = fleet.trust.verify(&chain, first.before(SECOND)).unwrap_err();
    assert_eq!(early, CertError::NotYet { not_before: first });
    assert_eq!(early.code(), Code::CertNotYet);
    let late = fleet.trust.verify(&chain, last.after(SECOND)).unwrap_err();
    assert_eq!(late, CertError::Expired { not_after: last });
    assert_eq!(late.code(), Code::CertExpired);
}

#[test]
fn an_expired_authority_ends_what_it_issued() {
    let fleet = Fleet::new();
    let not_after = NOW.after(SECOND);
    let (issuing, key) = fleet.subordinate(|params| params.not_after = date(not_after));
    let chain = [sign(&leaf(DEVICE), &issuing, &key), issuing];
    assert!(fleet.trust.verify(&chain, not_after).is_ok());
    let refused = fleet.trust.verify(&chain, not_after.after(SECOND));
    assert_eq!(refused, Err(CertError::Expired { not_after }));
}

#[test]
fn a_life_that_ends_before_it_begins_is_refused() {
    let fleet = Fleet::new();
    let chain = fleet.forge(DEVICE, |params| params.not_after = params.not_before - SECOND);
    assert_eq!(fleet.verify(&chain).unwrap_err().code(), Code::CertChain);
}
