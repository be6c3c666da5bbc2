//! Trust that ends while it is in use.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tunnel_e2e::operator::Interactive;
use tunnel_e2e::server::TRUST_DOMAIN;
use tunnel_e2e::service::Service;
use tunnel_e2e::sshd::NEEDS;
use tunnel_e2e::{Agent, Fleet, Operator, needs};
use tunnel_server::store::{Member, Store, StoreError};

/// The exit code for what policy or trust refuses.
const DENIED: i32 = 3;

/// The exit code for what cannot be reached.
const UNREACHABLE: i32 = 4;

/// How long a cut may take here, where two cores run everything; the figure itself is for the benches.
const CUT: Duration = Duration::from_secs(2);

/// What is named first ends first, and the directory of all is the fleet's.
struct Live {
    agent: Agent,
    technician: Operator,
    echo: Service,
    fleet: Fleet,
}

fn live() -> Live {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
    let technician = fleet.technician("ana");
    Live {
        fleet,
        agent,
        technician,
        echo,
    }
}

impl Live {
    /// Opens a session and proves that it works.
    fn connect(&self) -> Interactive {
        let errors = self.fleet.directory().join("connect.stderr");
        let mut session = Interactive::start(
            &mut self.technician.cli(&["--json", "connect", "pump-17", "ssh"]),
            &errors,
        );
        assert_eq!(exchange(&mut session, "one\n"), "one\n", "{}", self.errors());
        session
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.fleet.directory().join("connect.stderr")).unwrap_or_default()
    }

    /// Waits for the end of a session that was cut, and looks at what its operator is told.
    #[track_caller]
    fn assert_cut(&self, mut session: Interactive, code: &str) {
        let start = Instant::now();
        assert_eq!(
            session.wait(Duration::from_secs(20)),
            Some(DENIED),
            "{}",
            self.errors()
        );
        assert!(self.errors().contains(code), "{code}: {}", self.errors());
        assert!(start.elapsed() < CUT, "the end took {:?}", start.elapsed());
    }
}

fn exchange(session: &mut Interactive, line: &str) -> String {
    session.stdin().unwrap().write_all(line.as_bytes()).unwrap();
    session.line()
}

/// THREATS I6.
#[test]
fn revoking_the_operator_cuts_its_sessions_and_lets_it_in_no_more() {
    let live = live();
    let session = live.connect();
    live.fleet
        .admin
        .tunnel(&[
            "revoke",
            "spiffe://fleet.test/operator/ana",
            "--reason",
            "laptop stolen",
        ])
        .ok();
    live.assert_cut(session, "E_REVOKED");
    let refusal = live.technician.refusal(&["connect", "pump-17", "ssh"]);
    assert_eq!(refusal.exit, DENIED, "{}", refusal.text);
    assert_eq!(live.echo.count(), 1);
}

/// THREATS I6.
#[test]
fn revoking_the_device_cuts_its_sessions_and_it_is_linked_no_more() {
    let mut live = live();
    let session = live.connect();
    live.fleet
        .admin
        .tunnel(&["revoke", "spiffe://fleet.test/device/pump-17"])
        .ok();
    live.assert_cut(session, "E_REVOKED");
    live.agent.kill();
    live.agent.start();
    let refused = tunnel_e2e::until(
        "the agent to say that it is refused",
        Duration::from_secs(20),
        || {
            let said = live.agent.process().said();
            (said.contains("E_REVOKED") || said.contains("revoked")).then_some(said)
        },
    );
    assert!(
        live.fleet
            .admin
            .device("pump-17")
            .is_none_or(|device| device["link"].is_null()),
        "{refused}"
    );
}

#[test]
fn revoking_cuts_a_live_ssh_and_says_why() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    let technician = fleet.technician("ana");
    let errors = fleet.directory().join("ssh.stderr");
    let mut ssh = Interactive::start(
        &mut technician.ssh_command("pump-17", &sshd, &[], &["cat"]),
        &errors,
    );
    assert_eq!(exchange(&mut ssh, "one\n"), "one\n");

    fleet
        .admin
        .tunnel(&["revoke", "spiffe://fleet.test/operator/ana"])
        .ok();
    assert_eq!(ssh.wait(Duration::from_secs(20)), Some(255));
    let said = std::fs::read_to_string(errors).unwrap();
    assert!(said.contains("E_REVOKED"), "{said}");
}

#[test]
fn the_owners_switch_cuts_and_refuses_until_it_is_on_again() {
    let live = live();
    let session = live.connect();
    live.agent.run("access", &["off"]).ok();
    live.assert_cut(session, "E_ACCESS_OFF");

    let refusal = live.technician.refusal(&["connect", "pump-17", "ssh"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_ACCESS_OFF"),
        "{}",
        refusal.text
    );
    tunnel_e2e::until(
        "the server to know that access is off",
        Duration::from_secs(20),
        || (live.fleet.admin.device("pump-17")?["access"] == false).then_some(()),
    );

    live.agent.run("access", &["on"]).ok();
    tunnel_e2e::until(
        "access after the switch was set on",
        Duration::from_secs(20),
        || {
            let output = live
                .technician
                .tunnel_with(&["connect", "pump-17", "ssh"], b"hello");
            (output.code == 0).then_some(())
        },
    );
}

#[test]
fn closing_a_tunnel_ends_its_session() {
    let live = live();
    let mut session = live.connect();
    let tunnels = live.technician.tunnels();
    let id = tunnels.iter().find(|tunnel| tunnel["state"] == "open").unwrap()["id"]
        .as_str()
        .unwrap();
    live.technician.tunnel(&["close", id]).ok();
    let code = session.wait(Duration::from_secs(20));
    assert_eq!(code, Some(1), "{}", live.errors());
    assert!(live.errors().contains("E_TUNNEL_CLOSED"), "{}", live.errors());
}

/// THREATS POL: trust is not remembered.
#[test]
fn a_policy_that_no_longer_allows_it_cuts_a_live_session_and_leaves_the_others() {
    let live = live();
    let session = live.connect();
    let errors = live.fleet.directory().join("admin.stderr");
    let mut other = Interactive::start(&mut live.fleet.admin.cli(&["connect", "pump-17", "ssh"]), &errors);
    assert_eq!(exchange(&mut other, "two\n"), "two\n");

    let policy = live.fleet.admin.tunnel(&["policy", "show"]).ok();
    let file = live.fleet.directory().join("policy.cedar");
    let forbid = "\nforbid(principal in OperatorGroup::\"technicians\", action, resource);\n";
    std::fs::write(&file, policy + forbid).unwrap();
    live.fleet
        .admin
        .tunnel(&["policy", "apply", file.to_str().unwrap()])
        .ok();
    live.assert_cut(session, "E_POLICY_CHANGED");
    assert_eq!(exchange(&mut other, "three\n"), "three\n");
}

#[test]
fn a_tunnel_ends_at_its_time() {
    let live = live();
    let errors = live.fleet.directory().join("short.stderr");
    let mut cli = live
        .technician
        .cli(&["--json", "connect", "--ttl", "3s", "pump-17", "ssh"]);
    let mut session = Interactive::start(&mut cli, &errors);
    assert_eq!(
        exchange(&mut session, "one\n"),
        "one\n",
        "{}",
        std::fs::read_to_string(&errors).unwrap()
    );
    assert_eq!(session.wait(Duration::from_secs(20)), Some(DENIED));
    let said = std::fs::read_to_string(&errors).unwrap();
    assert!(said.contains("E_TUNNEL_EXPIRED"), "{said}");
}

/// THREATS SRV-10: a device whose owner wants it watched ends its tunnels when the server is gone, and others do not.
#[test]
fn a_watched_device_ends_its_tunnels_when_the_server_is_silent() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let watched = fleet.device("pump-17").like_sshd(&echo.target());
    let watched = fleet.link(watched.setting("max_server_silence_secs = 5"));
    let other = fleet.link(fleet.device("pump-18").like_sshd(&echo.target()));
    let technician = fleet.technician("ana");
    let connect = |device: &str| {
        let errors = fleet.directory().join(device);
        let mut cli = technician.cli(&["--json", "connect", device, "ssh"]);
        let mut session = Interactive::start(&mut cli, &errors);
        assert_eq!(exchange(&mut session, "one\n"), "one\n", "{device}");
        session
    };
    let (mut ends, mut goes_on) = (connect("pump-17"), connect("pump-18"));
    let server = fleet.server.process();
    server.signal(Signal::STOP);
    tunnel_e2e::until("the device to end its tunnel", Duration::from_secs(30), || {
        watched.process().said().contains("E_SERVER_LOST").then_some(())
    });
    server.signal(Signal::CONT);
    let said = || std::fs::read_to_string(fleet.directory().join("pump-17")).unwrap_or_default();
    assert_eq!(
        ends.wait(Duration::from_secs(30)),
        Some(UNREACHABLE),
        "{}",
        said()
    );
    assert!(said().contains("E_SERVER_LOST"), "{}", said());
    assert_eq!(exchange(&mut goes_on, "two\n"), "two\n");
    assert!(!other.process().said().contains("E_SERVER_LOST"));
    // The server has heard it too, and the device takes tunnels again.
    tunnel_e2e::until("the record", Duration::from_secs(30), || {
        let records = fleet.admin.audit();
        let why = |record: &serde_json::Value| record.to_string().contains("E_SERVER_LOST");
        records.iter().any(why).then_some(())
    });
    tunnel_e2e::until("the device to be linked", Duration::from_secs(60), || {
        let output = technician.tunnel_with(&["connect", "pump-17", "ssh"], b"hello");
        (output.stdout == b"hello").then_some(())
    });
}

/// The grant's end comes at the operator's end too when neither server nor device can say so.
#[test]
fn an_operator_ends_at_the_tunnels_time_when_nobody_else_is_there() {
    let live = live();
    let errors = live.fleet.directory().join("short.stderr");
    let mut cli = live
        .technician
        .cli(&["--json", "connect", "--ttl", "5s", "pump-17", "ssh"]);
    let mut session = Interactive::start(&mut cli, &errors);
    assert_eq!(exchange(&mut session, "one\n"), "one\n");
    let (server, agent) = (live.fleet.server.process(), live.agent.process());
    server.signal(Signal::STOP);
    agent.signal(Signal::STOP);
    let end = session.wait(Duration::from_secs(30));
    agent.signal(Signal::CONT);
    server.signal(Signal::CONT);
    let said = std::fs::read_to_string(&errors).unwrap();
    assert_eq!(end, Some(DENIED), "{said}");
    assert!(said.contains("E_TUNNEL_EXPIRED"), "{said}");
}

/// THREATS T8, I6.
#[test]
fn a_quarantine_cuts_until_the_device_is_released() {
    let live = live();
    let session = live.connect();
    let said = live
        .fleet
        .admin
        .tunnel(&["quarantine", "pump-17", "--reason", "found open"])
        .ok();
    assert_eq!(said, "quarantined device/pump-17, 1 tunnels cut\n");
    live.assert_cut(session, "E_QUARANTINED");
    let refusal = live.technician.refusal(&["connect", "pump-17", "ssh"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_QUARANTINED"),
        "{}",
        refusal.text
    );
    assert!(
        live.fleet
            .admin
            .tunnel(&["devices"])
            .ok()
            .contains("in quarantine")
    );
    live.fleet.admin.tunnel(&["release", "pump-17"]).ok();
    let output = live
        .technician
        .tunnel_with(&["connect", "pump-17", "ssh"], b"hello");
    assert_eq!(output.ok(), "hello");
}

/// THREATS I6.
#[test]
fn a_disabled_operator_is_cut_and_served_no_more_until_it_is_enabled() {
    let live = live();
    let session = live.connect();
    live.fleet.admin.tunnel(&["disable", "ana"]).ok();
    live.assert_cut(session, "E_OPERATOR_DISABLED");
    let refusal = live.technician.refusal(&["devices"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_OPERATOR_DISABLED"),
        "{}",
        refusal.text
    );
    live.fleet.admin.tunnel(&["enable", "ana"]).ok();
    live.technician.tunnel(&["devices"]).ok();
}

#[test]
fn a_cut_by_hand_is_confirmed_by_the_device_and_measured() {
    let live = live();
    let session = live.connect();
    let refusal = live.technician.refusal(&["cut", "--device", "pump-17"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_POLICY_DENY"),
        "{}",
        refusal.text
    );
    let report = live.fleet.admin.json(&["cut", "--operator", "ana"]);
    let cuts = report["cuts"].as_array().unwrap();
    assert_eq!(cuts.len(), 1, "{report}");
    assert_eq!(cuts[0]["device"], "pump-17");
    assert!(cuts[0]["confirmed_micros"].is_u64(), "{report}");
    live.assert_cut(session, "E_CUT");
    assert_eq!(
        live.fleet.admin.tunnel(&["cut", "--operator", "ana"]).ok(),
        "no tunnel was alive\n"
    );
}

/// THREATS I6: the decision is on the disk, the server is killed before it can act on it, and what is cut stays cut.
#[test]
fn what_was_decided_is_cut_also_when_the_server_is_killed_before_it_acts() {
    let mut live = live();
    let mut session = live.connect();
    // The server stands still at the moment of the commit, and never goes on from there. Where it was just writing
    // something else, it first ends that.
    let database = live.fleet.server.data().join("store.db");
    tunnel_e2e::until_ok("the commit", Duration::from_secs(60), || {
        live.fleet.server.process().signal(Signal::STOP);
        let done = commit_quarantine(&database, "pump-17");
        if done.is_err() {
            live.fleet.server.process().signal(Signal::CONT);
        }
        done
    });
    live.fleet.server.kill();
    live.fleet.server.restart();
    assert_eq!(
        session.wait(Duration::from_secs(30)),
        Some(DENIED),
        "{}",
        live.errors()
    );
    assert!(live.errors().contains("E_QUARANTINED"), "{}", live.errors());
    tunnel_e2e::until("the device to confirm", Duration::from_secs(30), || {
        let records = live.fleet.admin.audit();
        records
            .iter()
            .any(|record| record["kind"] == "cut.confirmed")
            .then_some(())
    });
    live.fleet.admin.tunnel(&["release", "pump-17"]).ok();
    let live_now = live.fleet.admin.json(&["tunnels"]);
    assert_eq!(live_now.as_array().map(Vec::len), Some(0), "{live_now}");
}

/// Does what the server's own commit does, in another process.
fn commit_quarantine(database: &std::path::Path, device: &str) -> Result<(), StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Store::open(database, &TRUST_DOMAIN.parse().unwrap()).await?;
        let now = tunnel_net::clock::Clock::now(&tunnel_net::clock::SystemClock);
        let device = Member::Device(device.parse().unwrap());
        let done = store.suspend(&device, None, "operator/admin", now).await;
        store.close().await;
        assert_eq!(done?, Some(true));
        Ok(())
    })
}

/// A server that is killed, or stopped in good order, gives a tunnel none of the bytes back that it has used.
#[test]
fn a_byte_limit_outlives_the_server() {
    /// Of these, some 60 pass until the limit is reached: each goes there and back.
    const CHUNK: usize = 32 * 1024;
    let mut live = live();
    let policy = live.fleet.admin.tunnel(&["policy", "show"]).ok();
    let limited = policy.replacen(
        "@id(\"technicians-ssh\")",
        "@id(\"technicians-ssh\") @max_bytes(\"4MiB\")",
        1,
    );
    assert_ne!(limited, policy);
    let file = live.fleet.directory().join("policy.cedar");
    std::fs::write(&file, limited).unwrap();
    live.fleet
        .admin
        .tunnel(&["policy", "apply", file.to_str().unwrap()])
        .ok();
    let mut session = live.connect();
    let chunk = format!("{}\n", "x".repeat(CHUNK));
    for kill in [true, false] {
        for _ in 0..16 {
            assert!(exchange(&mut session, &chunk) == chunk, "{}", live.errors());
        }
        if kill {
            live.fleet.server.kill();
        } else {
            live.fleet.server.stop();
        }
        live.fleet.server.restart();
        assert_eq!(exchange(&mut session, "two\n"), "two\n", "{}", live.errors());
    }
    // If the count had begun anew, all of these would pass.
    for _ in 0..40 {
        let sent = session.stdin().unwrap().write_all(chunk.as_bytes());
        if sent.is_err() || session.line() != chunk {
            break;
        }
    }
    assert_eq!(
        session.wait(Duration::from_secs(60)),
        Some(DENIED),
        "{}",
        live.errors()
    );
    assert!(live.errors().contains("E_BYTE_LIMIT"), "{}", live.errors());
}

/// The keys of both legs are replaced again and again under a session that goes on, byte by byte.
#[test]
fn a_session_outlives_the_rotation_of_its_keys() {
    let live = live();
    let mut session = live.connect();
    let tunnels = live.technician.tunnels();
    let id = tunnels.iter().find(|tunnel| tunnel["state"] == "open").unwrap()["id"]
        .as_str()
        .unwrap();
    for (round, legs) in [vec![], vec!["--source"], vec!["--destination"], vec![]]
        .into_iter()
        .enumerate()
    {
        let words = [&["rotate", id][..], &legs].concat();
        let rotated = live.technician.json(&words);
        let told = rotated["legs"].as_array().unwrap();
        assert_eq!(told.len(), if legs.is_empty() { 2 } else { 1 }, "{rotated}");
        for leg in told {
            assert!(leg["bound_micros"].is_u64(), "{rotated}: {}", live.errors());
        }
        let line = format!("round {round}\n");
        assert_eq!(exchange(&mut session, &line), line, "{}", live.errors());
    }
    live.fleet.admin.tunnel(&["cut", "--device", "pump-17"]).ok();
    live.assert_cut(session, "E_CUT");
}
