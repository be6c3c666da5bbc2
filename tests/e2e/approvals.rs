//! Approvals and their like, with the real programs: asked for, waited for, given, taken back, done without.

use std::time::Duration;

use serde_json::Value;
use tunnel_e2e::operator::Refusal;
use tunnel_e2e::process::Process;
use tunnel_e2e::service::Service;
use tunnel_e2e::wait::{SOON, until};
use tunnel_e2e::{Fleet, Operator};

/// The exit code for what is refused until somebody approves it.
const NEEDS_APPROVAL: i32 = 6;
/// The exit code for what is refused.
const DENIED: i32 = 3;

/// Technicians connect once somebody agrees, leads agree, and ana may do without in an emergency.
const POLICY: &str = r#"
@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
@id("view") permit (principal, action == Action::"view", resource);
@id("asks") @requires_approval
permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource);
@id("approve") permit (principal in OperatorGroup::"leads", action == Action::"approve", resource);
@id("emergency")
permit (principal == Operator::"ana", action == Action::"break-glass", resource);
"#;

struct World {
    fleet: Fleet,
    ana: Operator,
    lea: Operator,
    echo: Service,
    _agent: tunnel_e2e::Agent,
}

impl World {
    fn new() -> Self {
        let fleet = Fleet::on_loopback();
        let echo = Service::echo(fleet.devices_place());
        let agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
        let file = fleet.directory().join("approvals.cedar");
        std::fs::write(&file, POLICY).unwrap();
        fleet
            .admin
            .tunnel(&["policy", "apply", file.to_str().unwrap()])
            .ok();
        let (ana, lea) = (fleet.technician("ana"), lead(&fleet, "lea"));
        Self {
            ana,
            lea,
            echo,
            _agent: agent,
            fleet,
        }
    }

    fn ask(&self, words: &[&str]) -> Value {
        let ask = ["request", "pump-17", "ssh", "--reason", "INC-7"];
        self.ana.json(&[&ask, words].concat())
    }

    fn connect(&self) -> String {
        self.ana
            .tunnel_with(&["connect", "pump-17", "ssh"], b"hello")
            .ok()
    }

    fn refused(&self) -> Refusal {
        self.ana.refusal(&["connect", "pump-17", "ssh"])
    }
}

fn lead(fleet: &Fleet, name: &str) -> Operator {
    let code = fleet.server.enrol_code(&["--operator", name, "--group", "leads"]);
    Operator::login(name, fleet.devices_place(), fleet.directory(), &code)
}

fn short(approval: &Value) -> String {
    approval["id"].as_str().unwrap()[..8].to_owned()
}

/// THREATS POL-12.
#[test]
fn what_is_asked_for_opens_when_a_lead_agrees_and_is_cut_when_that_is_taken_back() {
    let world = World::new();
    let (ana, lea) = (&world.ana, &world.lea);
    let refusal = world.refused();
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (NEEDS_APPROVAL, "E_APPROVAL_REQUIRED"),
        "{}",
        refusal.text
    );
    // Ana waits, and is told as soon as lea has agreed.
    let mut wait = ana.cli(&[
        "--json",
        "request",
        "pump-17",
        "ssh",
        "--reason",
        "INC-7",
        "--wait=5m",
    ]);
    let mut wait = Process::start("request", &mut wait, world.fleet.directory());
    let asked = until("what ana asks for", SOON, || {
        let listed = lea.json(&["approvals"]);
        listed[0]["may_approve"].as_bool()?.then(|| listed[0].clone())
    });
    let id = short(&asked);
    assert_eq!(ana.refusal(&["approve", &id]).code, "E_SELF_APPROVAL");
    let said = lea.tunnel(&["approvals"]).ok();
    assert!(
        said.contains("yours to decide") && said.contains("INC-7"),
        "{said}"
    );
    lea.tunnel(&["approve", &id]).ok();
    assert_eq!(wait.wait(SOON), 0, "{}", wait.said());
    assert_eq!(world.connect(), "hello");

    // A live session ends when it is taken back, and says why.
    let mut forward = ana.forward("pump-17", "ssh");
    let withdrawn = lea.json(&["withdraw", &id, "--reason", "enough"]);
    assert_eq!(withdrawn["tunnels_cut"], 1, "{withdrawn}");
    assert_eq!(forward.process_mut().wait(SOON), DENIED);
    let ended: Vec<_> = ana
        .json(&["tunnels", "--all"])
        .as_array()
        .unwrap()
        .iter()
        .map(|tunnel| tunnel["end_reason"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(ended.contains(&"E_APPROVAL_WITHDRAWN".to_owned()), "{ended:?}");
    assert_eq!(world.refused().exit, NEEDS_APPROVAL);

    // What is denied is told with its reason.
    let denied = world.ask(&[]);
    lea.tunnel(&["deny", &short(&denied), "--reason", "not today"])
        .ok();
    let shown = ana.tunnel(&["approvals", &short(&denied)]).ok();
    assert!(shown.contains("denied by lea: not today"), "{shown}");
    let late = ana.refusal(&["request", "pump-17", "ssh", "--reason", "x", "--wait=1s"]);
    assert_eq!(
        (late.exit, late.code.as_str()),
        (5, "E_DEADLINE"),
        "{}",
        late.text
    );
    assert_eq!(world.echo.count(), 1, "nothing reached the device without");
}

#[test]
fn what_was_agreed_to_outlives_a_server_that_is_killed() {
    let mut world = World::new();
    let given = world.ask(&["--for", "2h"]);
    world.lea.tunnel(&["approve", &short(&given)]).ok();
    let taken_back = world.ask(&[]);
    world.lea.tunnel(&["approve", &short(&taken_back)]).ok();
    world.lea.tunnel(&["withdraw", &short(&taken_back)]).ok();
    world.fleet.server.kill();
    world.fleet.server.restart();
    world.fleet.admin.wait_for_link("pump-17");
    assert_eq!(world.connect(), "hello");
    let shown = world.ana.json(&["approvals", &short(&taken_back)]);
    assert_eq!(shown["state"], "withdrawn", "{shown}");
    let mut forward = world.ana.forward("pump-17", "ssh");
    world.lea.tunnel(&["withdraw", &short(&given)]).ok();
    world.fleet.server.kill();
    world.fleet.server.restart();
    assert_eq!(forward.process_mut().wait(SOON), DENIED);
    world.fleet.admin.wait_for_link("pump-17");
    assert_eq!(world.refused().exit, NEEDS_APPROVAL);
    world.fleet.admin.tunnel(&["audit", "verify"]).ok();
}

#[test]
fn a_broken_glass_needs_nobody_and_is_told_to_everybody_who_watches() {
    let world = World::new();
    let ben = world.fleet.technician("ben");
    let emergency = |operator: &Operator| {
        let words = ["connect", "pump-17", "ssh", "--break-glass", "--reason", "fire"];
        operator.tunnel_with(&words, b"hello")
    };
    assert_eq!(
        world
            .ana
            .tunnel(&["connect", "pump-17", "ssh", "--break-glass"])
            .code,
        2
    );
    let refused = emergency(&ben);
    assert_eq!(refused.code, DENIED, "{}", refused.said());
    let quiet = world.fleet.admin.tunnel(&["status"]).ok();
    assert!(!quiet.contains("ALARM"), "{quiet}");
    assert_eq!(emergency(&world.ana).ok(), "hello");
    let loud = world.fleet.admin.tunnel(&["status"]).ok();
    assert!(loud.contains("ALARM"), "{loud}");
    let tunnel = &world.fleet.admin.json(&["tunnels", "--all"])[0];
    let lives = tunnel["expires_at"].as_u64().unwrap() - tunnel["opened_at"].as_u64().unwrap();
    assert_eq!(tunnel["break_glass"], true, "{tunnel}");
    assert!(
        Duration::from_secs(lives) <= Duration::from_secs(1800),
        "{tunnel}"
    );
    let told = world.fleet.admin.audit();
    let told: Vec<_> = told
        .iter()
        .filter(|record| record["kind"] == "glass.broken")
        .collect();
    assert!(
        told.len() == 1 && told[0].to_string().contains("fire"),
        "{told:?}"
    );
}
