//! The agent hands its tunnels over to its successor: restarts, upgrades, and programs that do not work (THREATS AGT-14,
//! AGT-16, AGT-18, AGT-19).

use std::io::Write;
use std::time::Duration;

use tunnel_e2e::operator::Interactive;
use tunnel_e2e::service::Service;
use tunnel_e2e::sshd::{NEEDS, Sshd};
use tunnel_e2e::{Agent, Fleet, needs};

/// How long a hand-over may take on a busy machine: a link, and the time in which it proves itself.
const HANDOVER: Duration = Duration::from_secs(40);

/// What is named first ends first, and the directory of all is the fleet's.
struct Live {
    agent: Agent,
    echo: Service,
    fleet: Fleet,
}

/// A service whose program is under a supervisor.
fn live() -> Live {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(
        fleet
            .device("pump-17")
            .service("echo", &echo.target())
            .as_service(),
    );
    Live { agent, echo, fleet }
}

impl Live {
    fn connect(&self, name: &str) -> Interactive {
        let errors = self.fleet.directory().join(format!("{name}.stderr"));
        let mut command = self.fleet.admin.cli(&["--json", "connect", "pump-17", "echo"]);
        let mut session = Interactive::start(&mut command, &errors);
        assert_eq!(
            exchange(&mut session, "first\n"),
            "first\n",
            "{}",
            self.errors(name)
        );
        session
    }

    fn errors(&self, name: &str) -> String {
        let file = self.fleet.directory().join(format!("{name}.stderr"));
        std::fs::read_to_string(file).unwrap_or_default()
    }
}

fn exchange(session: &mut Interactive, line: &str) -> String {
    session.stdin().unwrap().write_all(line.as_bytes()).unwrap();
    session.line()
}

/// Waits until exactly `count` workers are there: the successor has come through, and those without tunnels have ended.
#[track_caller]
fn wait_for_workers(agent: &Agent, count: usize) -> Vec<u32> {
    tunnel_e2e::until_ok("the workers", HANDOVER, || {
        let workers = agent.workers();
        if workers.len() == count {
            Ok(workers)
        } else {
            Err(format!("{workers:?}"))
        }
    })
}

#[test]
fn a_restart_ends_no_session() {
    let mut live = live();
    let before = wait_for_workers(&live.agent, 1);
    let mut session = live.connect("one");
    live.agent.restart();
    assert_eq!(
        exchange(&mut session, "second\n"),
        "second\n",
        "{}",
        live.errors("one")
    );
    let during = wait_for_workers(&live.agent, 2);
    assert_eq!(during[0], before[0], "the worker of before has the session");
    tunnel_e2e::until("the successor to serve", HANDOVER, || {
        let output = live
            .fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "echo"], b"third");
        (output.text() == "third").then_some(())
    });
    assert_eq!(
        exchange(&mut session, "fourth\n"),
        "fourth\n",
        "{}",
        live.errors("one")
    );
    session.close_stdin();
    assert_eq!(session.wait(Duration::from_secs(20)), Some(0));
    let after = wait_for_workers(&live.agent, 1);
    assert_eq!(
        after[0], during[1],
        "the worker of before has ended with its session"
    );
    assert_eq!(live.echo.count(), 2);
}

#[test]
fn a_stop_ends_all_at_once() {
    let mut live = live();
    let mut session = live.connect("one");
    live.agent.restart();
    wait_for_workers(&live.agent, 2);
    assert_eq!(exchange(&mut session, "second\n"), "second\n");
    assert_eq!(live.agent.stop(), 0);
    wait_for_workers(&live.agent, 0);
    assert_ne!(session.wait(Duration::from_secs(20)), Some(0));
    assert!(
        live.errors("one").contains("E_TUNNEL_CLOSED"),
        "{}",
        live.errors("one")
    );
}

/// Keeps the harness's ssh beside the counters of this suite.
#[test]
fn a_live_ssh_outlives_twenty_restarts_byte_for_byte() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd: Sshd = fleet.sshd("sshd");
    let mut agent = fleet.link(fleet.device("pump-17").sshd(&sshd).as_service());
    let errors = fleet.directory().join("ssh.stderr");
    let counter = "i=0; while read -r line; do echo \"$i $line\"; i=$((i + 1)); done; echo over";
    let mut ssh = Interactive::start(
        &mut fleet.admin.ssh_command("pump-17", &sshd, &[], &[counter]),
        &errors,
    );
    let mut number = 0;
    let mut count = |ssh: &mut Interactive, word: &str| {
        let answer = exchange(ssh, &format!("{word}\n"));
        assert_eq!(
            answer,
            format!("{number} {word}\n"),
            "{}",
            std::fs::read_to_string(&errors).unwrap()
        );
        number += 1;
    };
    count(&mut ssh, "begin");
    let first = wait_for_workers(&agent, 1)[0];
    for _ in 0..20 {
        agent.restart();
        count(&mut ssh, "at once");
        let workers = tunnel_e2e::until("a successor", HANDOVER, || {
            let workers = agent.workers();
            (workers.len() > 1).then_some(workers)
        });
        assert!(workers.contains(&first), "{workers:?}");
        count(&mut ssh, "again");
    }
    let workers = wait_for_workers(&agent, 2);
    assert!(workers.contains(&first), "{workers:?}");
    ssh.close_stdin();
    assert_eq!(ssh.line(), "over\n");
    assert_eq!(ssh.wait(Duration::from_secs(20)), Some(0));
    wait_for_workers(&agent, 1);
}
