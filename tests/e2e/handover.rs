//! The agent hands its tunnels over to its successor: restarts, upgrades, and programs that do not work (THREATS AGT-14,
//! AGT-16, AGT-18, AGT-19).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tunnel_e2e::operator::Interactive;
use tunnel_e2e::process::{Memory, Process};
use tunnel_e2e::programs;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::{NEEDS, Sshd};
use tunnel_e2e::{Agent, Fleet, needs};

/// How long a hand-over may take on a busy machine: a link, and the time in which it proves itself.
const HANDOVER: Duration = Duration::from_secs(40);

/// How long a trial takes at most in this suite, in seconds; the shortest that can be set.
const TRIAL_SECS: &str = "10";

/// How long it takes until a program is given up: two trials, what is between them, and the start of all.
const GIVEN_UP: Duration = Duration::from_secs(90);

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
    let device = fleet.device("pump-17").like_sshd(&echo.target());
    let device = device.service("echo", &echo.target()).as_service();
    let agent = fleet.link(device.variable("TUNNEL_AGENT_TRIAL_SECS", TRIAL_SECS));
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

    /// Waits until a new tunnel can be opened.
    #[track_caller]
    fn wait_to_serve(&self) {
        tunnel_e2e::until_ok("the device to serve", HANDOVER, || {
            let output = self
                .fleet
                .admin
                .tunnel_with(&["connect", "pump-17", "echo"], b"serve");
            if output.text() == "serve" {
                Ok(())
            } else {
                Err(output.said())
            }
        });
    }

    /// Restarts the agent and waits until the worker of before drains beside its successor.
    #[track_caller]
    fn hand_over(&mut self) {
        let before = self.agent.workers();
        self.agent.restart();
        wait_for_workers(&self.agent, 2);
        tunnel_e2e::until("the worker of before to drain", HANDOVER, || {
            said(self.fleet.directory(), "role=Draining").then_some(())
        });
        assert!(before.iter().all(|pid| self.agent.workers().contains(pid)));
    }

    /// Writes a program beside the others.
    fn program(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.fleet.directory().join(name);
        // Under another name first, as a package manager does it: what runs from the old file goes on.
        let draft = path.with_extension("new");
        fs::write(&draft, bytes).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&draft, &path).unwrap();
        path
    }

    /// Makes the supervisor start from a file that can be replaced, and waits until it has been kept as good.
    fn run_from_file(&mut self) -> PathBuf {
        let path = self.program("installed", &good(b"the first"));
        self.agent.install(&path);
        self.agent.restart();
        self.wait_to_be_kept(&path);
        path
    }

    /// Waits until the copy of the last good program is this one.
    #[track_caller]
    fn wait_to_be_kept(&self, program: &Path) {
        let copy = self.agent.state().join("last-good");
        let expected = fs::read(program).unwrap();
        tunnel_e2e::until("the program to be kept", HANDOVER, || {
            fs::read(&copy).is_ok_and(|bytes| bytes == expected).then_some(())
        });
    }

    fn errors(&self, name: &str) -> String {
        let file = self.fleet.directory().join(format!("{name}.stderr"));
        std::fs::read_to_string(file).unwrap_or_default()
    }
}

/// Returns the agent's program as another build would be: it works, and its hash is another.
fn good(more: &[u8]) -> Vec<u8> {
    let mut bytes = fs::read(programs::path("tunnel-agent")).unwrap();
    bytes.extend_from_slice(more);
    bytes
}

/// Returns a build that speaks a protocol that no server understands: it starts, and never links.
fn incompatible() -> Vec<u8> {
    let mut bytes = good(b"incompatible");
    let (theirs, ours) = (b"tunnel-link/1", b"tunnel-link/X");
    let places: Vec<_> = (0..bytes.len() - theirs.len())
        .filter(|&at| bytes[at..].starts_with(theirs))
        .collect();
    assert!(!places.is_empty(), "the name of the protocol is in the program");
    for at in places {
        bytes[at..at + ours.len()].copy_from_slice(ours);
    }
    bytes
}

/// Says whether any process of the agent has said something.
fn said(directory: &Path, words: &str) -> bool {
    let logs = fs::read_dir(directory.join("agent-pump-17")).unwrap().flatten();
    logs.filter(|entry| {
        entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "log")
    })
    .any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(words)))
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

/// THREATS AUD-03: no record, no session, in a worker that drains too. It has no link, and hears from its supervisor alone that
/// the server cannot record; its ends reach the server by way of its successor, each once.
#[test]
fn a_worker_that_drains_begins_no_session_while_the_server_cannot_record() {
    needs!(Need::Root);
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let device = fleet
        .device("pump-17")
        .service("echo", &echo.target())
        .as_service();
    let mut agent = fleet.enrol(device.variable("TUNNEL_AGENT_TRIAL_SECS", TRIAL_SECS));
    fleet.server.stop();
    fleet.server.restart_on_small_disk();
    agent.start();
    fleet.admin.wait_for_link("pump-17");
    let forward = fleet.admin.forward("pump-17", "echo");
    let session = || {
        let stream = TcpStream::connect(forward.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let say = |stream: &mut TcpStream| -> std::io::Result<()> {
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    };
    let mut before = session();
    say(&mut before).unwrap();
    agent.restart();
    wait_for_workers(&agent, 2);
    tunnel_e2e::until("the worker of before to drain", HANDOVER, || {
        said(fleet.directory(), "role=Draining").then_some(())
    });
    say(&mut session()).unwrap();

    let filler = fleet.server.fill_disk();
    // Writing it down is what shows that the disk is full.
    tunnel_e2e::until_ok("sessions to be refused", HANDOVER, || {
        say(&mut session()).err().map(drop).ok_or("a session began")
    });
    say(&mut before).unwrap();
    fs::remove_file(filler).unwrap();
    tunnel_e2e::until_ok("sessions to begin again", HANDOVER, || say(&mut session()));
    say(&mut before).unwrap();
    wait_for_workers(&agent, 2);
    drop((before, forward));

    let refused = "E_AUDIT_UNAVAILABLE";
    // Not as a list, which is bounded: it takes some sessions until the disk is seen to be full.
    let all_recorded = |count: u64| {
        tunnel_e2e::until_ok("all ends to be recorded", HANDOVER, || {
            let trail = fleet.admin.audit();
            let of = |kind: &'static str| trail.iter().filter(move |record| record["kind"] == kind);
            let was_refused =
                of("session.refused").any(|record| record["body"].as_str().unwrap().contains(refused));
            let took_place = of("session.ended").count() as u64;
            match was_refused && took_place == count {
                true => Ok(()),
                false => Err(format!("{took_place} of {count}, refused: {was_refused}")),
            }
        });
    };
    all_recorded(echo.count());
    // One more, after which nothing is told that was told before.
    let last = fleet.admin.tunnel_with(&["connect", "pump-17", "echo"], b"last");
    assert_eq!(last.text(), "last");
    all_recorded(echo.count());
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

/// The worst stall is said, and is no more than a busy machine's.
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
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        agent.restart();
        count(&mut ssh, "at once");
        worst = worst.max(start.elapsed());
        let workers = tunnel_e2e::until("a successor", HANDOVER, || {
            let workers = agent.workers();
            (workers.len() > 1).then_some(workers)
        });
        assert!(workers.contains(&first), "{workers:?}");
        count(&mut ssh, "again");
    }
    let workers = wait_for_workers(&agent, 2);
    assert!(workers.contains(&first), "{workers:?}");
    tunnel_e2e::skip::say(&format!(
        "restart with an answer over ssh: {worst:?} at most, of 20"
    ));
    ssh.close_stdin();
    assert_eq!(ssh.line(), "over\n");
    assert_eq!(ssh.wait(Duration::from_secs(20)), Some(0));
    wait_for_workers(&agent, 1);
}

/// THREATS I6: the worker of before has no link of its own, and is told by the one that has.
#[test]
fn a_cut_reaches_the_worker_of_before() {
    let mut live = live();
    let technician = live.fleet.technician("ana");
    let errors = live.fleet.directory().join("ana.stderr");
    let mut connect = technician.cli(&["--json", "connect", "pump-17", "ssh"]);
    let mut session = Interactive::start(&mut connect, &errors);
    assert_eq!(exchange(&mut session, "one\n"), "one\n");
    live.hand_over();
    assert_eq!(exchange(&mut session, "two\n"), "two\n");
    live.fleet
        .admin
        .tunnel(&["revoke", "spiffe://fleet.test/operator/ana"])
        .ok();
    assert_eq!(session.wait(Duration::from_secs(20)), Some(3));
    let told = fs::read_to_string(&errors).unwrap();
    assert!(told.contains("E_REVOKED"), "{told}");
    wait_for_workers(&live.agent, 1);
    assert!(
        said(live.fleet.directory(), "reason=E_REVOKED"),
        "the device itself ended it for that reason"
    );
}

#[test]
fn a_close_reaches_the_worker_of_before_and_is_confirmed() {
    let mut live = live();
    let mut session = live.connect("one");
    live.hand_over();
    assert_eq!(exchange(&mut session, "two\n"), "two\n");
    let tunnels = live.fleet.admin.tunnels();
    let open = tunnels.iter().find(|tunnel| tunnel["state"] != "ended").unwrap();
    live.fleet
        .admin
        .tunnel(&["close", open["id"].as_str().unwrap()])
        .ok();
    session.wait(Duration::from_secs(20));
    wait_for_workers(&live.agent, 1);
}

#[test]
fn the_owners_switch_ends_the_sessions_of_all_workers() {
    let mut live = live();
    let mut old = live.connect("old");
    live.hand_over();
    live.wait_to_serve();
    let mut new = live.connect("new");
    assert_eq!(exchange(&mut old, "two\n"), "two\n");
    live.agent.run("access", &["off"]).ok();
    for (session, name) in [(&mut old, "old"), (&mut new, "new")] {
        assert_ne!(session.wait(Duration::from_secs(20)), Some(0));
        assert!(
            live.errors(name).contains("E_ACCESS_OFF"),
            "{name}: {}",
            live.errors(name)
        );
    }
    wait_for_workers(&live.agent, 1);
    live.agent.run("access", &["on"]).ok();
    live.wait_to_serve();
}

#[test]
fn killing_the_supervisor_ends_no_session() {
    let mut live = live();
    let before = wait_for_workers(&live.agent, 1);
    let mut session = live.connect("one");
    live.agent.kill_supervisor_and_restart();
    assert_eq!(exchange(&mut session, "two\n"), "two\n");
    let workers = wait_for_workers(&live.agent, 2);
    assert!(workers.contains(&before[0]));
    live.wait_to_serve();
    assert_eq!(exchange(&mut session, "three\n"), "three\n");
}

#[test]
fn a_worker_that_is_killed_takes_its_sessions_along_and_another_one_serves() {
    let live = live();
    let mut session = live.connect("one");
    let worker = wait_for_workers(&live.agent, 1)[0];
    live.agent.signal(worker, Signal::KILL);
    let next = tunnel_e2e::until("another worker", HANDOVER, || {
        live.agent.workers().into_iter().find(|pid| *pid != worker)
    });
    live.wait_to_serve();
    assert_ne!(session.wait(Duration::from_secs(60)), Some(0));
    assert_eq!(wait_for_workers(&live.agent, 1), [next]);
}

/// Without a service manager nobody holds the workers but their supervisor.
#[test]
fn without_a_service_manager_all_ends_with_the_supervisor() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.enrol(fleet.device("pump-17").service("echo", &echo.target()));
    for (signal, code) in [(Signal::TERM, 0), (Signal::KILL, 128 + 9)] {
        let mut supervise = Command::new(programs::path("tunnel-agent"));
        supervise.args(["supervise", "--config"]).arg(agent.config());
        let mut process = Process::start("supervisor", &mut supervise, fleet.directory());
        fleet.admin.wait_for_link("pump-17");
        wait_for_workers(&agent, 1);
        // Neither another supervisor nor an agent alone takes the same state.
        for (name, what) in [("supervise", "supervisor-lock"), ("run", "lock")] {
            let refused = agent.run(name, &[]);
            assert_eq!(refused.code, 2, "{what}: {}", refused.said());
            assert!(
                refused.stderr.contains("an agent runs with it"),
                "{}",
                refused.stderr
            );
        }
        process.signal(signal);
        assert_eq!(process.wait(Duration::from_secs(20)), code);
        wait_for_workers(&agent, 0);
    }
}

#[test]
fn a_restart_into_another_version_ends_no_session() {
    let mut live = live();
    let mut session = live.connect("one");
    let path = live.program("other", &good(b"another build"));
    live.agent.install(&path);
    live.agent.restart();
    assert_eq!(exchange(&mut session, "two\n"), "two\n");
    live.wait_to_be_kept(&path);
    wait_for_workers(&live.agent, 2);
    live.wait_to_serve();
    assert_eq!(exchange(&mut session, "three\n"), "three\n");
}

/// THREATS AGT-16: the supervisor itself is the program that does not run.
#[test]
fn a_restart_into_what_does_not_run_leaves_the_device_as_it_was() {
    let mut live = live();
    let mut session = live.connect("one");
    let before = live.agent.workers();
    for (name, text) in [
        ("fails", "#!/bin/sh\nexit 1\n"),
        ("hangs", "#!/bin/sh\nexec sleep 1000\n"),
    ] {
        let path = live.program(name, text.as_bytes());
        live.agent.install(&path);
        live.agent.restart();
        live.wait_to_serve();
        assert_eq!(exchange(&mut session, "on\n"), "on\n", "{name}");
        assert_eq!(live.agent.workers(), before, "{name}");
    }
    live.agent.install(&programs::path("tunnel-agent"));
    live.agent.restart();
    wait_for_workers(&live.agent, 2);
    live.wait_to_serve();
    assert_eq!(exchange(&mut session, "on\n"), "on\n");
}

/// THREATS AGT-16.
#[test]
fn an_upgrade_in_place_gives_way_to_a_good_program_and_not_to_a_bad_one() {
    let mut live = live();
    let path = live.run_from_file();
    wait_for_workers(&live.agent, 1);
    let mut session = live.connect("one");
    let before = live.agent.workers();

    live.program("installed", b"#!/bin/sh\nexit 1\n");
    live.agent.upgrade();
    tunnel_e2e::until_ok("the program to be given up", GIVEN_UP, || {
        let status = live.agent.manager().status();
        if status.contains("given up") {
            Ok(())
        } else {
            Err(status)
        }
    });
    assert_eq!(exchange(&mut session, "two\n"), "two\n");
    live.wait_to_serve();
    assert_eq!(live.agent.workers(), before, "the one that worked goes on");

    live.program("installed", &good(b"the second"));
    live.agent.upgrade();
    live.wait_to_be_kept(&path);
    assert!(wait_for_workers(&live.agent, 2).contains(&before[0]));
    live.wait_to_serve();
    assert_eq!(exchange(&mut session, "three\n"), "three\n");
}

/// THREATS AGT-16: rollback to the last good one, once.
#[test]
fn a_new_program_that_never_links_is_rolled_back_after_a_reboot_and_not_tried_again() {
    let mut live = live();
    let path = live.run_from_file();
    live.agent.kill();
    live.program("installed", &incompatible());
    live.agent.start();
    tunnel_e2e::until_ok("the program to be given up", GIVEN_UP, || {
        let status = live.agent.manager().status();
        if status.contains("given up") {
            Ok(())
        } else {
            Err(status)
        }
    });
    live.wait_to_serve();

    live.agent.kill();
    live.agent.start();
    live.wait_to_serve();
    let said = live.agent.process().said();
    assert!(
        said.contains("program=LastGood") && !said.contains("program=Own"),
        "{said}"
    );

    live.agent.kill();
    live.program("installed", &good(b"mended"));
    live.agent.start();
    live.wait_to_be_kept(&path);
    live.wait_to_serve();
}

/// THREATS AGT-16: wrong machine. It is the unit's own script that is run here.
#[test]
fn the_unit_starts_the_last_good_program_where_the_new_one_does_not_run() {
    let mut live = live();
    let path = live.run_from_file();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/tunnel-agent-start");
    let start = format!(
        "#!/bin/sh\nexport TUNNEL_AGENT_PROGRAM='{}' STATE_DIRECTORY='{}'\nexec '{}'\n",
        path.display(),
        live.agent.state().display(),
        script.display()
    );
    let start = live.program("start", start.as_bytes());
    live.agent.install(&start);
    for (bytes, passed_over) in [
        (&b"\x7fELF of another machine"[..], true),
        (&good(b"right"), false),
    ] {
        live.agent.kill();
        live.program("installed", bytes);
        live.agent.start();
        live.wait_to_serve();
        let said = live.agent.process().said();
        assert_eq!(
            said.contains("the last one that has worked, is tried"),
            passed_over,
            "{said}"
        );
    }
}

/// THREATS AGT-16: a restart under a live session into a program that never links.
#[test]
fn a_restart_into_a_program_that_never_links_gives_the_link_back() {
    let mut live = live();
    let mut session = live.connect("one");
    let before = live.agent.workers();
    let path = live.program("incompatible", &incompatible());
    live.agent.install(&path);
    live.agent.restart();
    tunnel_e2e::until_ok("the program to be given up", GIVEN_UP, || {
        let status = live.agent.manager().status();
        if status.contains("given up") {
            Ok(())
        } else {
            Err(status)
        }
    });
    assert_eq!(live.agent.workers(), before);
    live.wait_to_serve();
    assert_eq!(exchange(&mut session, "two\n"), "two\n");
}

/// THREATS AGT-18, AGT-19.
#[test]
fn no_process_listens_or_holds_what_is_not_its_own() {
    let mut live = live();
    let _session = live.connect("one");
    live.hand_over();
    let mut processes = live.agent.workers();
    processes.push(live.agent.process().pid());
    for pid in processes {
        let mut packets = 0;
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            let Some(inode) = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'))
            else {
                assert!(
                    !target.contains("last-good") && !target.contains("key"),
                    "{pid}: {target}"
                );
                continue;
            };
            let listens = ["tcp", "tcp6"].iter().any(|table| {
                let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
                let mut rows = text
                    .lines()
                    .skip(1)
                    .map(|line| line.split_whitespace().collect::<Vec<_>>());
                rows.any(|row| row.get(9) == Some(&inode) && row.get(3) == Some(&"0A"))
            });
            assert!(!listens, "{pid} listens");
            let unix = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
            let row = unix
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>());
            let row = row.into_iter().find(|row| row.get(6) == Some(&inode));
            // Type 5 is SOCK_SEQPACKET, a channel; a name would make it one that others can connect to.
            if let Some(row) = row {
                assert!(row.get(7).is_none(), "{pid} has a socket with a name: {row:?}");
                packets += usize::from(row.get(4) == Some(&"0005"));
            }
        }
        let is_supervisor = pid == live.agent.process().pid();
        assert_eq!(packets, if is_supervisor { 2 } else { 1 }, "channels of {pid}");
    }
    assert_eq!(live.agent.manager().stored(), 2, "one for each worker");
}

/// The figures for the notes: what a supervised agent weighs, idle and while it hands over.
#[test]
fn a_supervised_agent_is_small() {
    let mut live = live();
    let weigh = |live: &Live, when: &str| {
        let mut processes = live.agent.workers();
        processes.push(live.agent.process().pid());
        let sizes: Vec<_> = processes.iter().map(|pid| Memory::of(*pid).now / 1024).collect();
        tunnel_e2e::skip::say(&format!("resident {when}: {sizes:?} KiB"));
        sizes.iter().sum::<u64>()
    };
    let idle = weigh(&live, "idle");
    let _session = live.connect("one");
    live.hand_over();
    weigh(&live, "during a hand-over");
    // A build for tests is larger than one that is shipped; the bound keeps a leak or a second runtime out.
    assert!(idle < 64 * 1024, "{idle} KiB");
}
