//! Policies that are missing, broken, or changed under those who ask; and trust that is taken away while they do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tunnel_e2e::api::{Answer, Api};
use tunnel_e2e::process::Memory;
use tunnel_e2e::puppet::Puppet;
use tunnel_e2e::service::Service;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Agent, Fleet, Operator, until};

use crate::world::{PATIENCE, api, bodies, scaled, wait_for};

/// What every policy here begins with: its owner does everything, and everybody sees the devices.
pub(crate) const ADMINS: &str = r#"
@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
@id("view") permit (principal, action == Action::"view", resource);
"#;
/// All that technicians may do is to connect.
const CONNECT: &str = r#"
@id("connect") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource);
"#;

/// A fleet with a device that runs its own agent and offers `ssh` and `web`, and a technician.
pub(crate) struct Site {
    pub(crate) fleet: Fleet,
    pub(crate) echo: Service,
    pub(crate) ana: Operator,
    _agent: Agent,
}

impl Site {
    pub(crate) fn new() -> Self {
        let fleet = Fleet::on_loopback();
        let echo = Service::echo(fleet.devices_place());
        let device = fleet.device("pump-17").like_sshd(&echo.target());
        let agent = fleet.link(device.service("web", &echo.target()));
        let ana = fleet.technician("ana");
        Self {
            fleet,
            echo,
            ana,
            _agent: agent,
        }
    }

    /// Puts a policy into force, behind what every policy begins with.
    #[track_caller]
    pub(crate) fn apply(&self, rules: &str) -> Value {
        apply(&self.fleet, &format!("{ADMINS}{rules}"))
    }

    /// Says what a technician gets at a service: `None` for its bytes, or the code of the refusal.
    #[track_caller]
    pub(crate) fn connect(&self, by: &Operator, service: &str) -> Option<String> {
        let output = by.tunnel_with(&["--json", "connect", "pump-17", service], b"hello");
        if output.code == 0 {
            assert_eq!(output.text(), "hello");
            return None;
        }
        Some(tunnel_e2e::operator::Refusal::of(&output).code)
    }
}

/// Writes a policy into a file; its path.
pub(crate) fn file(fleet: &Fleet, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = fleet.directory().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn apply(fleet: &Fleet, text: &str) -> Value {
    let file = file(fleet, "policy.cedar", text);
    fleet.admin.json(&["policy", "apply", &file])
}

/// Puts a policy into force without the CLI, for who has no time.
fn put(api: &Api, text: &str) -> Answer {
    api.request("PUT", "/v1/policy", Some(&json!({ "text": text })))
        .unwrap()
}

pub(crate) fn refused(code: &str) -> Option<String> {
    Some(code.to_owned())
}

/// A connection through a forward, of which a byte has come back.
fn session(forward: &tunnel_e2e::operator::Forward) -> TcpStream {
    let mut stream = TcpStream::connect(forward.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_alive(&mut stream));
    stream
}

fn is_alive(stream: &mut TcpStream) -> bool {
    stream
        .write_all(b"x")
        .and_then(|()| stream.read_exact(&mut [0]))
        .is_ok()
}

fn live(fleet: &Fleet) -> Vec<Value> {
    let live = fleet.admin.json(&["tunnels"]);
    live.as_array().unwrap().clone()
}

#[test]
fn pol_01_what_nothing_permits_is_denied_and_why_is_told_to_auditors_alone() {
    let site = Site::new();
    let admin = &site.fleet.admin;
    let rule = |condition: &str| format!("{} when {{ {condition} }};", CONNECT.trim().trim_end_matches(';'));
    for text in [
        "// nothing".to_owned(),
        CONNECT.replace("technicians", "leads"),
        rule(r#"resource.device.asserted.hasTag("site")"#),
        rule(r#"context has reason && context.reason != """#),
        rule("context has mfa_age_secs"),
    ] {
        site.apply(&text);
        assert_eq!(site.connect(&site.ana, "ssh"), refused("E_POLICY_DENY"), "{text}");
        let own = site.ana.json(&["why", "pump-17", "ssh"]);
        assert_eq!(
            (&own["outcome"], &own["rules"]),
            (&"deny".into(), &Value::Null),
            "{own}"
        );
        assert!(
            !own.to_string().contains("permit (") && !own.to_string().contains("OperatorGroup"),
            "{own}"
        );
        let of_ana = admin.json(&["why", "pump-17", "ssh", "--operator", "ana"]);
        assert_eq!(of_ana["outcome"], "deny");
        assert_eq!(
            of_ana["near"].is_array(),
            text.contains("when"),
            "{text}: {of_ana}"
        );
    }
    // What can only be a mistake never comes into force.
    for wrong in [
        "resource.colour == \"red\"",
        "context.reason == \"x\"",
        "context.now == \"noon\"",
        "null",
    ] {
        let bad = file(&site.fleet, "bad.cedar", format!("{ADMINS}{}", rule(wrong)));
        assert_eq!(
            admin.refusal(&["policy", "apply", &bad]).code,
            "E_BAD_REQUEST",
            "{wrong}"
        );
    }
    assert_eq!(site.echo.count(), 0);
    site.apply(CONNECT);
    assert_eq!(site.connect(&site.ana, "ssh"), None);
}

#[test]
fn pol_03_a_policy_that_changes_between_decision_and_opening_is_met() {
    let fleet = Fleet::on_loopback();
    let mut puppet = Puppet::new(&fleet, "pump-17");
    let (ana, admin) = (fleet.technician("ana"), api(&fleet, &fleet.admin));
    let ana = api(&fleet, &ana);
    let wish = json!({ "device": "pump-17", "services": ["echo"] });
    let mut across = |text: &str| {
        assert_eq!(put(&admin, &format!("{ADMINS}{CONNECT}")).status, 200);
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| ana.request("POST", "/v1/tunnels", Some(&wish)).unwrap());
            // It is decided, and the device holds its answer back.
            let offer = puppet.offered();
            assert_eq!(put(&admin, &format!("{ADMINS}{text}")).status, 200);
            puppet.take(&offer);
            (opening.join().unwrap(), puppet.try_attach(&offer))
        })
    };
    for narrower in ["", &CONNECT.replace("technicians", "leads")] {
        let (answer, attached) = across(narrower);
        let code = answer.body["code"].as_str();
        assert!(
            matches!(code, Some("E_POLICY_CHANGED" | "E_POLICY_DENY")),
            "{}",
            answer.body
        );
        assert!(attached.is_err(), "the device's token is worth nothing");
        assert_eq!(live(&fleet), Vec::<Value>::new());
    }
    let (answer, attached) = across(&format!("{CONNECT}// Another revision that permits it."));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(attached.is_ok());
}

/// The same without anybody who holds it up: from an opening that is through before the change to one that comes after.
#[test]
fn pol_03_an_opening_that_races_a_change_is_met_at_any_moment() {
    let site = Site::new();
    let (ana, admin) = (api(&site.fleet, &site.ana), api(&site.fleet, &site.fleet.admin));
    let (open, closed) = (format!("{ADMINS}{CONNECT}"), ADMINS.to_owned());
    let wish = json!({ "device": "pump-17", "services": ["ssh"] });
    let ask = || ana.request("POST", "/v1/tunnels", Some(&wish)).unwrap();
    let started = Instant::now();
    assert_eq!(put(&admin, &open).status, 200);
    assert_eq!(ask().status, 200);
    // As long as both take one after the other: at the ends of the range, one is over before the other begins.
    let span = started.elapsed() * 2;
    let rounds = u32::try_from(scaled(24)).unwrap();
    let (mut before, mut after) = (0, 0);
    for round in 0..=rounds {
        assert_eq!(put(&admin, &open).status, 200);
        // The moment of each is the input of this test, so it is by the clock.
        let late = span * 2 * round / rounds;
        let (changed, opened) = std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                std::thread::sleep(late.saturating_sub(span));
                ask()
            });
            std::thread::sleep(span.saturating_sub(late));
            (put(&admin, &closed), opening.join().unwrap())
        });
        assert_eq!(changed.status, 200);
        // Both are answered: whatever came first, nothing is alive.
        assert_eq!(live(&site.fleet), Vec::<Value>::new(), "{late:?} of {span:?}");
        match opened.status {
            200 => before += 1,
            _ => {
                let code = opened.body["code"].as_str();
                assert!(
                    matches!(code, Some("E_POLICY_CHANGED" | "E_POLICY_DENY")),
                    "{}",
                    opened.body
                );
                after += 1;
            }
        }
    }
    assert!(
        before > 0 && after > 0,
        "{before} opened before, {after} were refused"
    );
}

#[test]
fn pol_04_who_leaves_a_group_loses_live_sessions_and_nobody_else_does() {
    let site = Site::new();
    let (fleet, bo) = (&site.fleet, site.fleet.technician("bo"));
    site.apply(
        r#"@id("pumps") permit (principal in OperatorGroup::"technicians", action == Action::"connect",
                               resource in DeviceGroup::"pumps") unless { principal.name == "bo" };
           @id("bo") permit (principal == Operator::"bo", action == Action::"connect", resource);"#,
    );
    let group = |words: &[&str]| fleet.admin.json(&[&["group"], words].concat());
    group(&["add", "pumps", "device/pump-17"]);
    let stays = bo.forward("pump-17", "ssh");
    let mut untouched = session(&stays);
    for member in [["pumps", "device/pump-17"], ["technicians", "operator/ana"]] {
        let mut forward = site.ana.forward("pump-17", "ssh");
        let mut held = session(&forward);
        let changed = group(&[&["remove"], &member[..]].concat());
        assert!(changed.to_string().contains("1"), "{changed}");
        assert!(!is_alive(&mut held), "a session went on after {member:?}");
        assert_eq!(
            forward.process_mut().wait(SOON),
            3,
            "{}",
            forward.process().said()
        );
        assert_eq!(site.connect(&site.ana, "ssh"), refused("E_POLICY_DENY"));
        assert!(
            is_alive(&mut untouched),
            "another's session ended with {member:?}"
        );
        group(&[&["add"], &member[..]].concat());
        assert_eq!(site.connect(&site.ana, "ssh"), None);
    }
    let ended = site.ana.tunnels();
    let count = |reason: &str| {
        ended
            .iter()
            .filter(|tunnel| tunnel["end_reason"] == reason)
            .count()
    };
    assert_eq!(count("E_POLICY_CHANGED"), 2, "{ended:?}");
}

/// Asks for a tunnel until there is a definite answer: a server or agent that has no room at the moment gives none.
fn insist(api: &Api, wish: &Value) -> Answer {
    loop {
        match api.request("POST", "/v1/tunnels", Some(wish)) {
            Ok(answer) if answer.body["code"] == "E_BUSY" => {}
            Ok(answer) => return answer,
            Err(_) => {}
        }
    }
}

#[test]
fn pol_05_quarantine_ends_a_hundred_sessions_and_lets_none_of_a_hundred_open() {
    const MANY: usize = 100;
    let site = Site::new();
    let fleet = &site.fleet;
    let mut forwards: Vec<_> = (0..4).map(|_| site.ana.forward("pump-17", "ssh")).collect();
    let mut sessions: Vec<_> = (0..MANY).map(|number| session(&forwards[number % 4])).collect();
    let admin = api(fleet, &fleet.admin);
    let wish = json!({ "device": "pump-17", "services": ["ssh"] });
    let opened = Mutex::new(Vec::new());
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let openings: Vec<_> = (0..MANY)
            .map(|_| {
                scope.spawn(|| {
                    let answer = insist(&admin, &wish);
                    if answer.status == 200 {
                        opened.lock().unwrap().push(answer.body.clone());
                    }
                    answer
                })
            })
            .collect();
        // In the middle of them.
        until("one of a hundred openings to be through", PATIENCE, || {
            (!opened.lock().unwrap().is_empty()).then_some(())
        });
        fleet.admin.tunnel(&["quarantine", "pump-17"]).ok();
        // From here on nothing of the device lives.
        assert_eq!(live(fleet), Vec::<Value>::new());
        openings
            .into_iter()
            .map(|opening| opening.join().unwrap())
            .collect()
    });
    for stream in &mut sessions {
        assert!(!is_alive(stream), "a session is alive");
    }
    for forward in &mut forwards {
        assert_eq!(
            forward.process_mut().wait(SOON),
            3,
            "{}",
            forward.process().said()
        );
    }
    let (through, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!refused.is_empty(), "all were through before the quarantine");
    for answer in refused {
        assert_eq!(answer.body["code"], "E_QUARANTINED", "{}", answer.body);
    }
    for answer in through {
        let path = format!("/v1/tunnels/{}/attach", answer.body["tunnel"].as_str().unwrap());
        let attached = admin.request("POST", &path, Some(&json!({ "token": answer.body["token"] })));
        assert_ne!(attached.unwrap().status, 200, "an opening of before came to life");
    }
    assert_eq!(site.echo.count(), MANY as u64);
    fleet.admin.tunnel(&["release", "pump-17"]).ok();
    fleet.admin.wait_for_link("pump-17");
    assert_eq!(site.connect(&site.ana, "ssh"), None);
}

/// A hundred that are decided and offered, of which the device has accepted none yet.
#[test]
fn pol_05_quarantine_ends_what_is_offered_and_not_yet_accepted() {
    const MANY: usize = 100;
    let fleet = Fleet::on_loopback();
    let mut puppet = Puppet::new(&fleet, "pump-17");
    let admin = api(&fleet, &fleet.admin);
    let wish = json!({ "device": "pump-17", "services": ["echo"] });
    std::thread::scope(|scope| {
        let openings: Vec<_> = (0..MANY).map(|_| scope.spawn(|| insist(&admin, &wish))).collect();
        let offers: Vec<_> = (0..MANY).map(|_| puppet.offered()).collect();
        let suspension = json!({ "identity": "spiffe://fleet.test/device/pump-17" });
        let done = admin
            .request("POST", "/v1/suspensions", Some(&suspension))
            .unwrap();
        assert_eq!(done.status, 200, "{}", done.body);
        assert_eq!(live(&fleet), Vec::<Value>::new());
        for opening in openings {
            let answer = opening.join().unwrap();
            assert_eq!(answer.body["code"], "E_QUARANTINED", "{}", answer.body);
        }
        assert_eq!(offers.len(), MANY);
    });
}

#[test]
fn pol_06_a_broken_or_huge_policy_changes_nothing() {
    let site = Site::new();
    let (fleet, admin) = (&site.fleet, &site.fleet.admin);
    site.apply(CONNECT);
    let shown = || admin.tunnel(&["policy", "show"]).ok();
    let (before, revision) = (shown(), admin.json(&["policy", "list"])[0]["revision"].clone());
    // Cut off inside of each policy in turn, and within the last line of text.
    let ends: Vec<_> = before.match_indices(';').map(|(at, _)| at).collect();
    let truncated = ends.iter().map(|end| (before[..*end].to_owned(), true));
    let member = |group: &str, of: &str| {
        format!(
            "permit (principal in ReportedGroup::\"{of}\", action == Action::\"belong\", resource == ReportedGroup::\"{group}\");\n"
        )
    };
    let broken = [
        (before.replacen("permit", "permt", 1), true),
        (before.replacen(')', "", 1), true),
        // Two groups of which each is in the other.
        (format!("{before}{}{}", member("a", "b"), member("b", "a")), true),
        (format!("{before}\n{before}"), false),
        (
            format!(
                "{before}when {{ {}true{} }};",
                "(".repeat(90_000),
                ")".repeat(90_000)
            ),
            true,
        ),
        (format!("{before}//{}", "x".repeat(256 * 1024)), false),
    ];
    let mut tried = 0;
    for (text, has_line) in truncated.chain(broken) {
        let path = file(fleet, "broken.cedar", &text);
        let output = admin.tunnel(&["--json", "policy", "apply", &path]);
        assert_ne!(output.code, 0, "{}", &text[text.len().saturating_sub(300)..]);
        assert!(!has_line || output.stderr.contains("line "), "{}", output.stderr);
        tried += 1;
    }
    // Each is on record with its line, but for what the CLI does not send.
    let told = wait_for(admin, "policy.refused", tried - 1);
    assert!(
        told.iter()
            .filter(|body| body.to_string().contains("line "))
            .count()
            >= tried - 2
    );

    // A hundred megabytes: the CLI reads no more than a policy can have, and neither does the server.
    let size = 100 << 20;
    let huge = std::fs::File::create(fleet.directory().join("huge.cedar")).unwrap();
    huge.set_len(size).unwrap();
    let path = fleet.directory().join("huge.cedar");
    let refusal = admin.refusal(&["policy", "apply", path.to_str().unwrap()]);
    assert_eq!(
        (refusal.code.as_str(), refusal.exit),
        ("E_TOO_LARGE", 2),
        "{}",
        refusal.text
    );
    let memory = || Memory::of(fleet.server.process().pid());
    let had = memory().now;
    let text = "/".repeat(usize::try_from(size).unwrap());
    let sent = api(fleet, admin).request("PUT", "/v1/policy", Some(&json!({ "text": text })));
    // The server answers before it has read, so that the connection may end with what is still on its way.
    assert!(sent.is_err() || sent.is_ok_and(|answer| answer.body["code"] == "E_TOO_LARGE"));
    let grown = memory().peak.saturating_sub(had);
    assert!(grown < 16 << 20, "the server has grown by {} kB", grown / 1024);

    assert_eq!(
        (shown(), &admin.json(&["policy", "list"])[0]["revision"]),
        (before.clone(), &revision)
    );
    assert_eq!(site.connect(&site.ana, "ssh"), None);
    assert_eq!(site.connect(&site.ana, "web"), None);
    // The same text, whole and once, is good.
    let good = file(fleet, "good.cedar", &before);
    admin.tunnel(&["policy", "apply", &good]).ok();
}

/// Rules whose names tell of which text they are: half of one and half of another would name both, or miss one.
fn numbered(number: u64) -> String {
    let connect = CONNECT.replace("\"connect\")", &format!("\"connect-{number}\")"));
    let forbid = format!(
        "@id(\"not-web-{number}\") forbid (principal in OperatorGroup::\"technicians\", action == Action::\"connect\", \
         resource) when {{ resource.name == \"web\" }};\n"
    );
    let filler: String = (0..50)
        .map(|at| format!("@id(\"filler-{number}-{at}\") permit (principal == Operator::\"nobody-{at}\", action, resource);\n"))
        .collect();
    match number % 2 {
        0 => format!("{ADMINS}{connect}{filler}{forbid}"),
        _ => format!("{ADMINS}{forbid}{filler}{connect}"),
    }
}

/// Asks for what is always permitted and for what never is, until told to stop; how often.
fn ask_on(api: &Api, is_over: &AtomicBool) -> u64 {
    let ask = |service: &str| insist(api, &json!({ "device": "pump-17", "services": [service] }));
    let mut rounds = 0;
    while !is_over.load(Ordering::Relaxed) {
        let answer = ask("ssh");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let path = format!("/v1/tunnels/{}", answer.body["tunnel"].as_str().unwrap());
        assert_eq!(api.request("DELETE", &path, None).unwrap().status, 200);
        let answer = ask("web");
        assert_eq!(answer.body["code"], "E_POLICY_DENY", "{}", answer.body);
        rounds += 1;
    }
    rounds
}

#[test]
fn pol_07_no_decision_is_made_by_half_a_policy_while_it_changes_without_pause() {
    let site = Site::new();
    let fleet = &site.fleet;
    let admin = api(fleet, &fleet.admin);
    let first = put(&admin, &numbered(0)).body["revision"].as_u64().unwrap();
    let others = ["bo", "cy"].map(|name| fleet.technician(name));
    let askers: Vec<_> = others
        .iter()
        .chain([&site.ana])
        .map(|by| api(fleet, by))
        .collect();
    let (is_over, next) = (AtomicBool::new(false), AtomicU64::new(1));
    let numbers = Mutex::new(BTreeMap::from([(first, 0)]));
    let change = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number > scaled(200) {
                return;
            }
            let answer = put(&admin, &numbered(number));
            assert_eq!(answer.status, 200, "{}", answer.body);
            let revision = answer.body["revision"].as_u64().unwrap();
            numbers.lock().unwrap().insert(revision, number);
        }
    };
    let rounds: u64 = std::thread::scope(|scope| {
        let is_over = &is_over;
        let asking: Vec<_> = askers
            .iter()
            .map(|api| scope.spawn(move || ask_on(api, is_over)))
            .collect();
        let changing = [scope.spawn(change), scope.spawn(change)];
        changing.into_iter().for_each(|thread| thread.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        asking.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let numbers = numbers.into_inner().unwrap();
    let mut revisions = BTreeSet::new();
    for (kind, rule) in [("tunnel.opened", "connect"), ("tunnel.denied", "not-web")] {
        let bodies = bodies(&fleet.admin, kind);
        assert!(!bodies.is_empty(), "{kind}");
        for body in bodies {
            let revision = body["policy_revision"].as_u64().unwrap();
            let number = numbers.get(&revision).unwrap_or_else(|| panic!("{body}"));
            assert_eq!(body["policies"], json!([format!("{rule}-{number}")]), "{body}");
            revisions.insert(revision);
        }
    }
    assert!(
        rounds > 10 && revisions.len() > 10,
        "{rounds} rounds in {} revisions",
        revisions.len()
    );
}
