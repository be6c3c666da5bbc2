//! What a change makes the server look at again, among many live tunnels.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tunnel_certs::{CertificateRequest, KeyPair, pem};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::api::OpenTunnel;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::{CircuitId, Code, Identity, OperatorName, TunnelId};

use super::reconsider::Touched;
use super::table::{Facts, Phase};
use crate::api::caller::Caller;
use crate::config::{Config, DataDir};
use crate::control::Control;
use crate::control::decide::InForce;
use crate::control::steadiness::Steadiness;
use crate::init;
use crate::run::Server;
use crate::store::tests::enrol_device;

const DEVICES: usize = 50;
const OPERATORS: usize = 20;

async fn server(directory: &tempfile::TempDir) -> Server {
    server_that(directory, false).await
}

/// Starts a server that is strict about its records, or not.
pub(crate) async fn server_that(directory: &tempfile::TempDir, audit_strict: bool) -> Server {
    let (config, data) = (config(audit_strict), data(directory));
    init::init(&data, &config, &"root".parse().unwrap(), SystemClock.now())
        .await
        .unwrap();
    Server::start(&data, config).await.unwrap()
}

/// Starts a server again on what one has left.
pub(crate) async fn start_again(directory: &tempfile::TempDir) -> Server {
    Server::start(&data(directory), config(false)).await.unwrap()
}

fn data(directory: &tempfile::TempDir) -> DataDir {
    DataDir::new(directory.path().join("data"))
}

fn config(audit_strict: bool) -> Config {
    Config {
        node: "n1".parse().unwrap(),
        trust_domain: "fleet.test".parse().unwrap(),
        address: "127.0.0.1:8443".parse().unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics: None,
        returns_per_sec: crate::config::RETURNS_PER_SEC,
        audit_keep_days: None,
        audit_strict,
        authoriser: None,
        notify: Vec::new(),
    }
}

fn facts(control: &Control, number: usize, operator: &str, device: &str) -> Facts {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    Facts {
        id: TunnelId::from_bytes(id),
        circuit: CircuitId::from_bytes(id),
        operator: operator.parse().unwrap(),
        holder_key: KeyHash::of_spki(b"operator"),
        certified_at: control.now(),
        device: device.parse().unwrap(),
        device_key: KeyHash::of_spki(b"device"),
        services: vec!["ssh".parse().unwrap()],
        reason: None,
        approval: None,
        break_glass: false,
        batch: None,
        authoriser: None,
        limits: tunnel_policy::Limits::default(),
        source: Ipv4Addr::LOCALHOST.into(),
        opened_at: control.now(),
        expires_at: control.now().after(Duration::from_secs(3600)),
        deadline: Instant::now() + Duration::from_secs(3600),
    }
}

/// Puts one tunnel of each operator to each device into the table.
fn fill(control: &Control) {
    for number in 0..DEVICES * OPERATORS {
        let operator = format!("operator-{}", number % OPERATORS);
        put(
            control,
            number,
            &operator,
            &format!("device-{}", number / OPERATORS),
        );
    }
}

/// Puts a tunnel into the table.
/// Puts a live tunnel into the table.
pub(crate) fn put(control: &Control, number: usize, operator: &str, device: &str) {
    let facts = facts(control, number, operator, device);
    let inserted = control.tunnels.table().insert(facts, Phase::Open, Instant::now());
    inserted.unwrap();
}

/// Each cause looks at the tunnels that it can concern, and at no others. Nobody here is enrolled, so whatever is looked
/// at is cut, and what is left was not looked at.
#[tokio::test]
async fn a_change_weighs_what_it_can_touch_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory).await;
    let control = server.control();
    fill(control);
    let all = DEVICES * OPERATORS;
    let weighed = || control.tunnels.weighed.load(Ordering::Relaxed);
    let live = || control.tunnels.table().live().len();

    let device = Touched::Devices(["device-3".parse().unwrap()].into());
    assert_eq!(control.reconsider(&device, "test").await, Ok(OPERATORS as u64));
    assert_eq!((weighed(), live()), (OPERATORS as u64, all - OPERATORS));

    // The device's are gone already, and are not looked at again.
    let operators = Touched::Operators(
        ["operator-1", "operator-2"]
            .map(|name| name.parse().unwrap())
            .into(),
    );
    let theirs = 2 * (DEVICES - 1);
    assert_eq!(control.reconsider(&operators, "test").await, Ok(theirs as u64));
    assert_eq!(weighed(), (OPERATORS + theirs) as u64);

    let nobody = Touched::Operators(["operator-99".parse().unwrap()].into());
    assert_eq!(control.reconsider(&nobody, "test").await, Ok(0));
    assert_eq!(weighed(), (OPERATORS + theirs) as u64);
    let rest = all - OPERATORS - theirs;
    assert_eq!(control.reconsider(&Touched::All, "test").await, Ok(rest as u64));
    assert_eq!((weighed(), live()), (all as u64, 0));
}

#[tokio::test]
async fn a_tunnel_ends_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory).await;
    let control = server.control();
    fill(control);
    let id = TunnelId::from_bytes([0; 16]);
    assert_eq!(control.end_tunnel(id, Code::Cut, "test").await, Ok(true));
    assert_eq!(control.end_tunnel(id, Code::Cut, "test").await, Ok(false));
}

/// THREATS SRV-09, TOK-11: a jump of the clock ends nothing that the time before it allowed, until the new time has settled;
/// what no time allows ends at once all the same.
#[tokio::test]
async fn srv_09_a_jump_of_the_clock_ends_no_live_tunnel_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory).await;
    let control = server.control();
    let (now, half_an_hour) = (control.now(), Duration::from_secs(1800));
    enrol_device(&control.store, "pump", now).await;
    let force = |revision: u64, conditions: &str| {
        let text = format!(
            "permit (principal, action == Action::\"view\", resource);
             permit (principal, action == Action::\"connect\", resource) when {{ {conditions} }};"
        );
        control.policy.send_replace(std::sync::Arc::new(InForce {
            engine: tunnel_policy::Engine::new(&text).unwrap(),
            revision,
            text,
        }));
    };
    let set = |wall| {
        let clock = Steadiness::new(wall, Instant::now());
        *control.steadiness.lock().unwrap() = clock;
    };
    let weigh = async || control.reconsider(&Touched::All, "test").await.unwrap();
    put(control, 0, "ana", "pump");
    put(control, 1, "ben", "pump");
    let not_ben = "principal != Operator::\"ben\"";
    for (revision, (before, rule)) in [
        (
            now.before(2 * half_an_hour),
            format!("context.now < {}", now.before(half_an_hour)),
        ),
        (
            now.after(2 * half_an_hour),
            format!("context.now > {}", now.after(half_an_hour)),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // The clock showed another hour a moment ago.
        set(before);
        force(100 + revision as u64, &rule);
        assert_eq!(weigh().await, 0, "{rule}");
    }
    force(200, &format!("context.now > 0 && {not_ben}"));
    assert_eq!(weigh().await, 1);
    // It has shown this one for long enough.
    force(300, &format!("context.now > {}", now.after(half_an_hour)));
    set(now);
    assert_eq!(weigh().await, 1);
}

/// Who may not open anything ends nobody else's tunnel, be it a ghost's.
#[tokio::test]
async fn a_request_that_is_refused_makes_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory).await;
    let control = server.control();
    let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    let mut full = 0;
    loop {
        let facts = facts(control, full, "ana", "pump");
        if control
            .tunnels
            .table()
            .insert(facts, Phase::Open, long_ago)
            .is_err()
        {
            break;
        }
        full += 1;
    }
    let live = || control.tunnels.table().live().len();
    assert_eq!(live(), full);
    let request = OpenTunnel {
        device: "pump".into(),
        services: vec!["ssh".into()],
        ttl_secs: None,
        reason: None,
        permit: None,
        break_glass: false,
        batch: None,
    };
    let refused = control.open_tunnel(&caller(control, "mallory"), request).await;
    assert_eq!(refused.unwrap_err().code, Code::NotFound);
    assert_eq!(live(), full, "nobody gave way");
    // And who is permitted finds a ghost that does.
    let (ana, pump) = ("ana".parse().unwrap(), "pump".parse().unwrap());
    assert!(control.make_room(&ana, &pump, None).await);
    assert_eq!(live(), full - 1);
}

pub(crate) fn caller(control: &Control, name: &str) -> Caller {
    let name: OperatorName = name.parse().unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateRequest::from_pem(&tunnel_certs::request(&key).unwrap()).unwrap();
    let identity = Identity::operator(&control.identity.trust_domain, &name);
    let issued = control.keys.issuer().issue(&request, &identity, control.now());
    let chain = pem::read_chain(&issued.unwrap().chain_pem).unwrap();
    let peer = control.trust.verify(&chain, control.now()).unwrap();
    Caller {
        name,
        key: peer.key,
        certified_at: peer.not_before,
        source: (Ipv4Addr::LOCALHOST, 1).into(),
        peer: Arc::new(peer),
    }
}
