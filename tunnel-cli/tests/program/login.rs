//! What the program makes of a login that is in its directory: only one that still counts is used.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ring::rand::SystemRandom;
use tunnel_certs::{Authority, CertificateRequest, KeyPair};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::{Identity, UnixTime};

use crate::place::Place;

/// A fleet that logs operators in.
pub(crate) struct Fleet {
    authority: Authority,
    pub(crate) root: String,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let domain = "fleet.test".parse().unwrap();
        let made = Authority::create(&domain, SystemClock.now(), &SystemRandom::new()).unwrap();
        let authority = Authority::load(&made.issuing_pem, &made.issuing_key_pem, &made.root_pem).unwrap();
        Self {
            authority,
            root: made.root_pem,
        }
    }

    /// Writes a login as the program does; nobody listens at its server.
    pub(crate) fn log_in(
        &self,
        place: &Place,
        identity: &str,
        from: UnixTime,
        lifetime: Duration,
    ) -> KeyPair {
        let identity: Identity = identity.parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let request = CertificateRequest::from_pem(&tunnel_certs::request(&key).unwrap()).unwrap();
        let issued = self
            .authority
            .issue(&request, &identity, from, lifetime, [7; 16])
            .unwrap();
        if !place.home().exists() {
            std::fs::create_dir(place.home()).unwrap();
        }
        std::fs::set_permissions(place.home(), std::fs::Permissions::from_mode(0o700)).unwrap();
        write(place, "key.pem", &key.to_pem());
        write(place, "chain.pem", &issued.chain_pem);
        write(place, "root.pem", &self.root);
        write(place, "profile.toml", "server = \"127.0.0.1:1\"\nudp_port = 1\n");
        key
    }
}

fn write(place: &Place, name: &str, text: &str) {
    let path = place.home().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) const ANA: &str = "spiffe://fleet.test/operator/ana";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

#[track_caller]
fn refused(place: &Place, code: &str, exit: i32) {
    let run = place.run(&["--json", "connect", "pump-17", "ssh"]);
    assert_eq!((run.code, run.stdout.as_str()), (exit, ""), "{}", run.stderr);
    assert_eq!(run.error()["code"], code);
}

#[test]
fn a_login_that_counts_is_used() {
    let (fleet, place) = (Fleet::new(), Place::new());
    fleet.log_in(&place, ANA, SystemClock.now(), DAY);
    refused(&place, "E_SERVER_UNREACHABLE", 4);
    // What is known is shown although the server does not answer.
    let run = place.run(&["status"]);
    assert_eq!(run.code, 4);
    assert!(run.stdout.contains(ANA), "{}", run.stdout);
}

#[test]
fn an_expired_login_is_told_without_asking_anybody() {
    let (fleet, place) = (Fleet::new(), Place::new());
    fleet.log_in(&place, ANA, SystemClock.now(), Duration::from_secs(1));
    let deadline = std::time::Instant::now() + Duration::from_secs(150);
    // The authority sets the start back a little and the end never, so the certificate expires by itself.
    while place.run(&["--json", "connect", "pump-17", "ssh"]).error()["code"] == "E_SERVER_UNREACHABLE" {
        assert!(
            std::time::Instant::now() < deadline,
            "a certificate of one second never expires"
        );
    }
    refused(&place, "E_CERT_EXPIRED", 3);
    assert!(place.run(&["status"]).stderr.contains("tunnel login CODE"));
}

#[test]
fn a_key_of_somebody_else_is_refused() {
    let (fleet, place) = (Fleet::new(), Place::new());
    fleet.log_in(&place, ANA, SystemClock.now(), DAY);
    write(&place, "key.pem", &KeyPair::generate().unwrap().to_pem());
    refused(&place, "E_CERT_NAME", 3);
}

#[test]
fn a_login_of_another_fleet_is_refused() {
    let (fleet, other, place) = (Fleet::new(), Fleet::new(), Place::new());
    fleet.log_in(&place, ANA, SystemClock.now(), DAY);
    write(&place, "root.pem", &other.root);
    refused(&place, "E_CERT_UNKNOWN_CA", 3);
}

#[test]
fn a_certificate_of_a_device_is_no_login() {
    let (fleet, place) = (Fleet::new(), Place::new());
    fleet.log_in(
        &place,
        "spiffe://fleet.test/device/pump-17",
        SystemClock.now(),
        DAY,
    );
    refused(&place, "E_CERT_USAGE", 3);
}

#[test]
fn damaged_files_are_told_by_name() {
    let (fleet, place) = (Fleet::new(), Place::new());
    for name in ["key.pem", "chain.pem", "root.pem", "profile.toml"] {
        fleet.log_in(&place, ANA, SystemClock.now(), DAY);
        write(&place, name, "nonsense");
        let run = place.run(&["status"]);
        assert_eq!(run.code, 2, "{name}: {}", run.stderr);
        assert!(run.stderr.contains(name), "{name}: {}", run.stderr);
    }
}

#[test]
fn logging_out_leaves_nothing() {
    let (fleet, place) = (Fleet::new(), Place::new());
    fleet.log_in(&place, ANA, SystemClock.now(), DAY);
    write(&place, "pending-0011223344556677.pem", "x");
    let run = place.run(&["logout"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "logged out\n"));
    assert_eq!(std::fs::read_dir(place.home()).unwrap().count(), 0);
    refused(&place, "E_UNAUTHENTICATED", 3);
}
