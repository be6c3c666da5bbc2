//! What a person at the device says: yes, no, and the end; and the owner's maintenance windows.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use tunnel_e2e::agent::Agent;
use tunnel_e2e::operator::{Interactive, Refusal};
use tunnel_e2e::service::Service;
use tunnel_e2e::wait::{SOON, until};
use tunnel_e2e::{Fleet, Output};

/// The exit code for what is refused.
const DENIED: i32 = 3;
/// The exit code for what did not come in time.
const DEADLINE: i32 = 5;

fn who(agent: &Agent) -> Vec<Value> {
    let text = agent.run("who", &["--json"]).ok();
    serde_json::from_str(&text).unwrap()
}

/// Waits until one tunnel asks, and returns the first digits of its id.
fn asks(agent: &Agent) -> String {
    until("a question on site", SOON, || {
        let asking = who(agent).into_iter().find(|one| one["asks"] == true)?;
        Some(asking["tunnel"].as_str()?[..8].to_owned())
    })
}

fn refused(output: &Output) -> (i32, String) {
    let refusal = Refusal::of(output);
    (refusal.exit, refusal.code)
}

/// THREATS I12: the server permits it, and still a person on site has to say yes.
#[test]
fn a_tunnel_waits_until_somebody_on_site_says_yes() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let device = fleet.device("pump-17").service("diag", &echo.target());
    let agent = fleet.link(device.service_with("plc", &echo.target(), "consent = \"ask\""));
    let admin = &fleet.admin;
    assert_eq!(agent.run("allow", &[]).ok(), "nobody asks\n");

    let words = [
        "--json",
        "connect",
        "pump-17",
        "plc",
        "--reason",
        "INC-7 \u{1b}[2J",
    ];
    let stderr = fleet.directory().join("connect.err");
    let mut session = Interactive::start(&mut admin.cli(&words), &stderr);
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    let id = asks(&agent);
    let shown = agent.run("allow", &[]).ok();
    for part in [&id, "admin asks for plc", "INC-7", "tunnel-agent deny"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    assert_eq!(echo.count(), 0, "not one byte before");
    // What asks nobody goes on meanwhile.
    assert_eq!(admin.tunnel_with(&["connect", "pump-17", "diag"], b"x").ok(), "x");

    assert!(agent.run("allow", &[&id]).ok().contains("allowed"));
    assert_eq!(session.line(), "hello\n");
    assert_eq!(agent.run("allow", &[]).ok(), "nobody asks\n");
    assert_eq!(agent.run("deny", &[&id]).code, DENIED, "it was answered");
    let live = who(&agent);
    assert_eq!(
        (live.len(), &live[0]["operator"]),
        (1, &"admin".into()),
        "{live:?}"
    );

    // And it ends when somebody there wants it to.
    assert!(agent.run("end", &[&id]).ok().contains("ended"));
    assert_eq!(session.wait(SOON), Some(DENIED));
    let said = std::fs::read_to_string(&stderr).unwrap();
    assert!(said.contains("E_ENDED_ON_SITE"), "{said}");
    until("nobody connected", SOON, || who(&agent).is_empty().then_some(()));
    assert_eq!(agent.run("end", &[&id]).code, DENIED);
    assert_eq!(agent.run("end", &[]).ok(), "nobody is connected\n");
}

#[test]
fn no_and_no_answer_open_nothing() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let asking = |id: &str, secs: &str| {
        let device = fleet
            .device(id)
            .setting(&format!("consent_timeout_secs = {secs}"));
        fleet.link(device.service_with("plc", &echo.target(), "consent = \"ask\""))
    };
    let (agent, _silent) = (asking("pump-17", "60"), asking("pump-18", "1"));
    let words = ["--json", "connect", "pump-17", "plc"];
    let denied = std::thread::scope(|scope| {
        let denied = scope.spawn(|| fleet.admin.tunnel_with(&words, b"hello"));
        let id = asks(&agent);
        assert!(agent.run("deny", &[&id]).ok().contains("denied"));
        denied.join().unwrap()
    });
    assert_eq!(
        refused(&denied),
        (DENIED, "E_CONSENT_DENIED".into()),
        "{}",
        denied.said()
    );
    let silent = fleet.admin.refusal(&["connect", "pump-18", "plc"]);
    assert_eq!(
        (silent.exit, silent.code.as_str()),
        (DEADLINE, "E_CONSENT_TIMEOUT")
    );
    assert_eq!(echo.count(), 0);
    let ends: Vec<_> = fleet
        .admin
        .json(&["tunnels", "--all"])
        .as_array()
        .unwrap()
        .clone();
    let ends: Vec<_> = ends
        .iter()
        .map(|tunnel| tunnel["end_reason"].as_str().unwrap())
        .collect();
    assert!(
        ends.contains(&"E_CONSENT_DENIED") && ends.contains(&"E_CONSENT_TIMEOUT"),
        "{ends:?}"
    );
}

/// Names the day that is so many days after today, in UTC; two days off, no midnight makes it today.
fn day(after: u64) -> &'static str {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400 + 3;
    let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    days[((today + after) % 7) as usize]
}

#[test]
fn operators_are_let_in_within_the_owners_windows_only() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let closed = format!("maintenance.windows = [\"{} 00:00-24:00\"]", day(3));
    let open = "maintenance.windows = [\"daily 00:00-24:00\"]";
    let device =
        |id: &str, windows: &str| fleet.link(fleet.device(id).setting(windows).like_sshd(&echo.target()));
    let (agent, _other) = (device("pump-17", open), device("pump-18", &closed));
    let refusal = fleet.admin.refusal(&["connect", "pump-18", "ssh"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_OUTSIDE_WINDOW"),
        "{}",
        refusal.text
    );
    assert_eq!(echo.count(), 0);
    assert_eq!(
        fleet.admin.tunnel_with(&["connect", "pump-17", "ssh"], b"x").ok(),
        "x"
    );

    // A window that closes ends what is open.
    let mut forward = fleet.admin.forward("pump-17", "ssh");
    let text = std::fs::read_to_string(agent.config()).unwrap();
    std::fs::write(agent.config(), text.replace(open, &closed)).unwrap();
    agent.process().signal(Signal::HUP);
    assert_eq!(forward.process_mut().wait(SOON), DENIED);
    assert!(
        forward.process().said().contains("E_OUTSIDE_WINDOW"),
        "{}",
        forward.process().said()
    );
}

#[test]
fn who_is_connected_is_shown_across_restarts_and_not_after_a_crash() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let mut agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()).as_service());
    let mut forward = fleet.admin.forward("pump-17", "ssh");
    let shown = || {
        until("who is connected", SOON, || {
            Some(who(&agent)).filter(|all| all.len() == 1)
        })
    };
    let before = shown();
    agent.restart();
    fleet.admin.wait_for_link("pump-17");
    let after = until("who is connected", SOON, || {
        Some(who(&agent)).filter(|all| all.len() == 1)
    });
    assert_eq!(before[0]["tunnel"], after[0]["tunnel"]);
    // The worker of before still does what is said.
    agent.run("end", &[]).ok();
    assert_eq!(forward.process_mut().wait(SOON), DENIED);

    let _forward = fleet.admin.forward("pump-17", "ssh");
    until("who is connected", SOON, || {
        Some(who(&agent)).filter(|all| all.len() == 1)
    });
    agent.kill();
    until("nobody", Duration::from_secs(20), || {
        who(&agent).is_empty().then_some(())
    });
}
