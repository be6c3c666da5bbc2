//! Certificates that are not good enough, shown to the real server over real sockets (THREATS CRT).

use std::time::Duration;

use tunnel_certs::{Authority, CertificateRequest, KeyPair};
use tunnel_e2e::api::{Answer, Api};
use tunnel_e2e::service::Service;
use tunnel_e2e::{Fleet, Operator};
use tunnel_proto::{Identity, UnixTime};

/// The exit code for what is refused for want of trust.
const DENIED: i32 = 3;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> UnixTime {
    use tunnel_net::clock::{Clock, SystemClock};
    SystemClock.now()
}

/// The fleet's own authority, as nobody but the server has it.
fn authority(fleet: &Fleet) -> Authority {
    let read = |name: &str| std::fs::read_to_string(fleet.server.data().join(name)).unwrap();
    Authority::load(&read("issuing.pem"), &read("issuing-key.pem"), &read("root.pem")).unwrap()
}

fn root(fleet: &Fleet) -> String {
    std::fs::read_to_string(fleet.server.data().join("root.pem")).unwrap()
}

/// Issues a certificate to a new key; chain and key.
fn issue(authority: &Authority, identity: &str, at: UnixTime, lifetime: Duration) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let request = CertificateRequest::from_pem(&tunnel_certs::request(&key).unwrap()).unwrap();
    let identity: Identity = identity.parse().unwrap();
    let serial = *b"a serial number.";
    let issued = authority
        .issue(&request, &identity, at, lifetime, serial)
        .unwrap();
    (issued.chain_pem, key.to_pem().to_string())
}

/// Asks for the status with a certificate: an answer, or what the connection failed with.
fn status(fleet: &Fleet, credentials: Option<(&str, &str)>) -> std::io::Result<Answer> {
    Api::with(fleet.server.address(), &root(fleet), credentials).request("GET", "/v1/status", None)
}

/// Refused in the handshake, or after it with a code; the handshake's alert has no difference between too early and too
/// late.
#[track_caller]
fn assert_refused(result: std::io::Result<Answer>, codes: &[&str]) {
    let code = match result {
        Ok(answer) => {
            assert_eq!(answer.status / 100, 4, "{answer:?}");
            answer.body["code"].as_str().unwrap_or_default().to_owned()
        }
        Err(error) => match tunnel_net::tls::io_refusal(&error) {
            Some(code) => code.to_string(),
            None => panic!("no alert tells why: {error}"),
        },
    };
    assert!(codes.contains(&code.as_str()), "{code}");
}

const ADMIN: &str = "spiffe://fleet.test/operator/admin";

#[test]
fn a_good_certificate_passes_and_none_does_not() {
    let fleet = Fleet::on_loopback();
    let answer = Api::of(fleet.server.address(), &fleet.admin.home())
        .request("GET", "/v1/status", None)
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let identity = answer.body["identity"].as_str().unwrap();
    assert!(
        identity.starts_with("spiffe://fleet.test/operator/"),
        "{identity}"
    );
    assert_refused(status(&fleet, None), &["E_UNAUTHENTICATED"]);
}

/// THREATS CRT-01.
#[test]
fn an_expired_certificate_and_one_of_tomorrow_are_refused() {
    let fleet = Fleet::on_loopback();
    let authority = authority(&fleet);
    // The authority itself is valid since five minutes before its making.
    let expired = issue(
        &authority,
        ADMIN,
        now().before(Duration::from_secs(240)),
        Duration::from_secs(60),
    );
    assert_refused(
        status(&fleet, Some((&expired.0, &expired.1))),
        &["E_CERT_EXPIRED"],
    );
    let early = issue(&authority, ADMIN, now().after(Duration::from_secs(3600)), DAY);
    assert_refused(
        status(&fleet, Some((&early.0, &early.1))),
        &["E_CERT_NOT_YET", "E_CERT_EXPIRED"],
    );
}

/// THREATS CRT-03.
#[test]
fn a_certificate_of_another_fleet_is_refused() {
    let fleet = Fleet::on_loopback();
    let other = fleet.another();
    let read = |name: &str| std::fs::read_to_string(other.admin.home().join(name)).unwrap();
    let result = status(&fleet, Some((&read("chain.pem"), &read("key.pem"))));
    assert_refused(result, &["E_CERT_UNKNOWN_CA", "E_CERT_CHAIN"]);
}

/// THREATS CRT-04.
#[test]
fn a_certificate_of_the_wrong_role_is_refused() {
    let fleet = Fleet::on_loopback();
    let authority = authority(&fleet);
    for identity in [
        "spiffe://fleet.test/device/pump-17",
        "spiffe://fleet.test/server/relay-1",
    ] {
        let (chain, key) = issue(&authority, identity, now(), DAY);
        assert_refused(status(&fleet, Some((&chain, &key))), &["E_CERT_USAGE"]);
    }
}

/// THREATS CRT-05 and I4: who speaks is who proved the leaf's key.
#[test]
fn a_victims_certificate_behind_the_own_one_gives_no_identity() {
    let fleet = Fleet::on_loopback();
    let eve = fleet
        .server
        .enrol_code(&["--operator", "eve", "--group", "strangers"]);
    let eve = Operator::login("eve", fleet.devices_place(), fleet.directory(), &eve);
    let read = |operator: &Operator, name: &str| std::fs::read_to_string(operator.home().join(name)).unwrap();
    let own = tunnel_certs::pem::read_chain(&read(&eve, "chain.pem")).unwrap();
    let victim = tunnel_certs::pem::read_chain(&read(&fleet.admin, "chain.pem")).unwrap();
    let key = read(&eve, "key.pem");
    for chain in [
        vec![own[0].clone(), victim[0].clone(), own[1].clone()],
        vec![own[0].clone(), own[1].clone(), victim[0].clone()],
    ] {
        let chain = tunnel_certs::pem::write_chain(&chain);
        match status(&fleet, Some((&chain, &key))) {
            Ok(answer) if answer.status == 200 => {
                assert_eq!(answer.body["identity"], "spiffe://fleet.test/operator/eve");
            }
            refused => assert_refused(refused, &["E_CERT_CHAIN", "E_CERT_UNKNOWN_CA", "E_CERT_USAGE"]),
        }
    }
}

/// THREATS CRT-04: an operator's certificate makes no control link.
#[test]
fn an_operator_cannot_pose_as_a_device() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let mut agent = fleet.enrol(fleet.device("pump-17").service("echo", &echo.target()));
    for name in ["chain.pem", "key.pem"] {
        std::fs::copy(fleet.admin.home().join(name), agent.state().join(name)).unwrap();
    }
    agent.start();
    // The agent itself may see what is wrong, or the server does; linked it is never.
    let said = tunnel_e2e::until("the agent to be refused", Duration::from_secs(20), || {
        let said = agent.process().said();
        ["E_CERT", "error", "refused", "usage"]
            .iter()
            .any(|word| said.contains(word))
            .then_some(said)
    });
    assert!(
        fleet
            .admin
            .device("pump-17")
            .is_none_or(|device| device["link"].is_null()),
        "{said}"
    );
}

/// THREATS CLI-13, DAT-28: the CLI talks to its own fleet's server only.
#[test]
fn a_server_of_another_fleet_is_not_talked_to() {
    let fleet = Fleet::on_loopback();
    let mut other = fleet.another();
    let profile = fleet.admin.home().join("profile.toml");
    let text = std::fs::read_to_string(&profile).unwrap();
    let address = |fleet: &Fleet| fleet.server.address().to_string();
    assert!(text.contains(&address(&fleet)), "{text}");
    std::fs::write(&profile, text.replace(&address(&fleet), &address(&other))).unwrap();
    let refusal = fleet.admin.refusal(&["status"]);
    assert_eq!(refusal.exit, DENIED, "{}", refusal.text);
    assert!(refusal.code.starts_with("E_CERT_"), "{}", refusal.text);
    other.server.stop();
}

/// THREATS CRT-09, DAT-20: those who never finish their handshake do not keep the others out.
#[test]
fn stalled_handshakes_keep_nobody_out() {
    let fleet = Fleet::on_loopback();
    let stalled: Vec<_> = (0..40)
        .map(|_| std::net::TcpStream::connect(fleet.server.address()).unwrap())
        .collect();
    fleet.admin.tunnel(&["status"]).ok();
    // The server gives them up by itself.
    for stream in &stalled {
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let ended = std::io::Read::read(&mut &*stream, &mut [0; 64]);
        assert!(
            !matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "{ended:?}"
        );
    }
}
