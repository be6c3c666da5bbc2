//! A control plane in the wrong hands, before devices whose owner keeps services locked (THREATS T12, AGT-04): the server is
//! the true one with the true keys, its policy permits everything, and its own keys sign whatever the test likes.

use std::path::PathBuf;
use std::time::Duration;

use tunnel_e2e::agent::Agent;
use tunnel_e2e::puppet::credentials;
use tunnel_e2e::service::Service;
use tunnel_e2e::{Fleet, Operator};
use tunnel_net::clock::{Clock, SystemClock};
use tunnel_proto::cose::SigningKey;
use tunnel_proto::lock::{Access, NewRoot, Permit, Statement, Window, key_from_text};

use crate::tokens::signing_key;

/// A fleet with two devices whose services `plc` and `scada` are locked by two of three keys.
struct World {
    fleet: Fleet,
    echo: Service,
    mallory: Operator,
    _agents: Vec<Agent>,
}

impl World {
    fn new() -> Self {
        let fleet = Fleet::on_loopback();
        let echo = Service::echo(fleet.devices_place());
        let lock = make_lock(&fleet);
        let device = |id| {
            let device = fleet.device(id).setting(&format!("lock = \"{lock}\""));
            let device = device.service_with("plc", &echo.target(), "locked = true");
            let device = device.service_with("scada", &echo.target(), "locked = true");
            fleet.link(device.service("echo", &echo.target()))
        };
        let agents = vec![device("pump-17"), device("pump-18")];
        let code = fleet
            .server
            .enrol_code(&["--operator", "mallory", "--group", "admins"]);
        let mallory = Operator::login("mallory", fleet.devices_place(), fleet.directory(), &code);
        Self {
            fleet,
            echo,
            mallory,
            _agents: agents,
        }
    }

    /// What the owner could sign so that the administrator may use `plc` on `pump-17` for the next hour.
    fn access(&self) -> Access {
        let (ends, own) = credentials(&self.fleet.admin.home());
        let now = SystemClock.now();
        let peer = ends.trust.verify(own.chain(), now).unwrap();
        Access {
            trust_domain: ends.trust.trust_domain().clone(),
            operator: "admin".parse().unwrap(),
            holder_key: peer.key,
            device: "pump-17".parse().unwrap(),
            services: vec!["plc".parse().unwrap()],
            window: hour(),
            nonce: [7; 16],
        }
    }

    /// Writes a permit into a file.
    fn signed(&self, access: Access, keys: &[SigningKey]) -> String {
        write(&self.fleet, Statement::Access(access), keys)
    }

    /// Tries to get through to a service; the code of the refusal, if there is one.
    fn connect(&self, by: &Operator, device: &str, service: &str, permit: Option<&str>) -> Option<String> {
        let mut words = vec!["--json", "connect", device, service];
        words.extend(permit.iter().flat_map(|file| ["--permit", file]));
        let output = by.tunnel_with(&words, b"hello");
        if output.code == 0 {
            assert_eq!(output.text(), "hello");
            return None;
        }
        let error: serde_json::Value = serde_json::from_str(output.stderr.lines().last().unwrap()).unwrap();
        Some(error["error"]["code"].as_str().unwrap().to_owned())
    }

    /// As the administrator at `plc` on `pump-17`.
    fn try_with(&self, permit: &str) -> Option<String> {
        self.connect(&self.fleet.admin, "pump-17", "plc", Some(permit))
    }
}

fn directory(fleet: &Fleet) -> PathBuf {
    fleet.directory().join("owner")
}

/// Makes the owner's keys and returns the lock.
fn make_lock(fleet: &Fleet) -> String {
    let directory = directory(fleet);
    std::fs::create_dir(&directory).unwrap();
    let out = directory.to_str().unwrap();
    let made = fleet
        .admin
        .json(&["lock", "init", "--keys", "3", "--threshold", "2", "--out", out]);
    made["lock"].as_str().unwrap().to_owned()
}

/// A key of the owner.
fn owner(fleet: &Fleet, number: u8) -> SigningKey {
    let file = directory(fleet).join(format!("lock-{number}.key"));
    key_from_text(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The hour that begins now.
fn hour() -> Window {
    let from = SystemClock.now();
    Window {
        from,
        until: from.after(Duration::from_secs(3600)),
    }
}

fn write(fleet: &Fleet, statement: Statement, keys: &[SigningKey]) -> String {
    let mut permit = Permit::request(statement);
    for key in keys {
        assert!(permit.sign(key));
    }
    let file = directory(fleet).join("permit");
    std::fs::write(&file, permit.to_text()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn tok_18_a_true_grant_opens_nothing_that_the_owner_locked() {
    let world = World::new();
    let (fleet, code) = (&world.fleet, |code: &str| Some(code.to_owned()));
    let plain = world.connect(&fleet.admin, "pump-17", "plc", None);
    assert_eq!(plain, code("E_LOCK_REQUIRED"));
    let theirs = || [signing_key(fleet, "grant-key"), signing_key(fleet, "audit-key")];
    let [grant_key, audit_key] = theirs();
    for keys in [
        vec![],
        vec![owner(fleet, 1)],
        vec![grant_key, audit_key],
        theirs().into_iter().chain([owner(fleet, 2)]).collect(),
    ] {
        let permit = world.signed(world.access(), &keys);
        assert_eq!(
            world.try_with(&permit),
            code("E_LOCK_PERMIT"),
            "{} keys",
            keys.len()
        );
    }
    assert_eq!(world.echo.count(), 0, "no byte came through");
    let audit = serde_json::to_string(&fleet.admin.audit()).unwrap();
    assert!(audit.contains("E_LOCK_REQUIRED") && audit.contains("E_LOCK_PERMIT"));

    let permit = world.signed(world.access(), &[owner(fleet, 1), owner(fleet, 3)]);
    assert_eq!(world.try_with(&permit), None);
    assert_eq!(world.connect(&fleet.admin, "pump-17", "echo", None), None);
}

#[test]
fn tok_19_a_permit_is_for_its_operator_device_services_and_time_alone() {
    let world = World::new();
    let (fleet, code) = (&world.fleet, |code: &str| Some(code.to_owned()));
    let keys = [owner(fleet, 1), owner(fleet, 2)];
    let good = world.signed(world.access(), &keys);
    let admin = &fleet.admin;
    let scope = code("E_LOCK_SCOPE");
    assert_eq!(
        world.connect(&world.mallory, "pump-17", "plc", Some(&good)),
        scope
    );
    assert_eq!(world.connect(admin, "pump-18", "plc", Some(&good)), scope);
    assert_eq!(world.connect(admin, "pump-17", "scada", Some(&good)), scope);

    // The control plane certifies another key in the name that the permit has.
    let mut stolen = world.access();
    stolen.operator = "mallory".parse().unwrap();
    let stolen = world.signed(stolen, &keys);
    assert_eq!(
        world.connect(&world.mallory, "pump-17", "plc", Some(&stolen)),
        scope
    );

    let (day, window) = (Duration::from_secs(24 * 3600), hour());
    let windows = [
        (window.from.before(day), window.from),
        (window.from.after(day), window.until.after(day)),
    ];
    for (from, until) in windows {
        let access = Access {
            window: Window { from, until },
            ..world.access()
        };
        let permit = world.signed(access, &keys);
        assert_eq!(world.try_with(&permit), code("E_LOCK_TIME"));
    }
    let root = Statement::NewRoot(NewRoot {
        root: [1; 32],
        window,
        nonce: [1; 16],
    });
    assert_eq!(world.try_with(&write(fleet, root, &keys)), scope);
    assert_eq!(world.echo.count(), 0, "no byte came through");
    assert_eq!(world.try_with(&world.signed(world.access(), &keys)), None);
}

#[test]
fn tok_21_no_code_brings_a_locked_device_under_another_root() {
    let fleet = Fleet::on_loopback();
    let lock = make_lock(&fleet);
    let agent = fleet.enrol(fleet.device("pump-17").setting(&format!("lock = \"{lock}\"")));
    let root = || std::fs::read(agent.state().join("root.pem")).unwrap();
    let config = std::fs::read(agent.config()).unwrap();
    let (before, other) = (root(), fleet.another());
    let code = other.server.enrol_code(&["--device", "pump-17"]);
    let enrol = |permit: Option<&str>| {
        let mut words = vec!["--json", code.as_str(), "--replace"];
        words.extend(permit.iter().flat_map(|file| ["--permit", file]));
        agent.run("enrol", &words)
    };
    let (ends, _) = credentials(&other.admin.home());
    let signed = |keys: &[SigningKey]| {
        let new = NewRoot {
            root: ends.trust.fingerprint(),
            window: hour(),
            nonce: [1; 16],
        };
        write(&fleet, Statement::NewRoot(new), keys)
    };
    let refused = enrol(None);
    assert!(
        refused.code == 3 && refused.stderr.contains("E_LOCK_REQUIRED"),
        "{}",
        refused.said()
    );
    let refused = enrol(Some(&signed(&[
        owner(&fleet, 1),
        signing_key(&other, "grant-key"),
    ])));
    assert!(
        refused.code == 3 && refused.stderr.contains("E_LOCK_PERMIT"),
        "{}",
        refused.said()
    );
    assert_eq!(root(), before);

    enrol(Some(&signed(&[owner(&fleet, 1), owner(&fleet, 2)]))).ok();
    assert_ne!(root(), before);
    assert_eq!(
        std::fs::read(agent.config()).unwrap(),
        config,
        "nothing writes there"
    );
}
