//! OpenSSH's own programs through `tunnel ssh`, `tunnel scp` and `tunnel connect`.

use std::fs;
use std::time::Duration;

use tunnel_e2e::bytes::{noise, sha256_of};
use tunnel_e2e::operator::ssh_options;
use tunnel_e2e::process::{run, run_with};
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::{NEEDS, user};
use tunnel_e2e::{Fleet, needs};

/// The size that `make demo` shows too.
const MIB_64: usize = 64 << 20;

#[test]
fn a_command_runs_and_its_exit_code_is_passed_on() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));

    let output = fleet
        .admin
        .ssh("pump-17", &sshd, &[], &["echo hello; echo words >&2; exit 42"]);
    assert_eq!(
        (output.code, output.text().as_str()),
        (42, "hello\n"),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains("words"), "{}", output.stderr);
    // The device's host key came over its own authenticated link: nothing to ask, and nothing accepted blindly.
    assert!(!output.stderr.contains("authenticity"), "{}", output.stderr);
    assert!(!output.stderr.contains("Permanently added"), "{}", output.stderr);
    assert!(!fleet.admin.directory().join(".ssh/known_hosts").exists());
}

#[test]
fn standard_input_reaches_the_remote_command_and_its_end_too() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));

    let input = noise(3 << 20, 1);
    let mut command = fleet.admin.ssh_command("pump-17", &sshd, &[], &["sha256sum"]);
    let output = run_with(&mut command, &input, Duration::from_secs(60));
    assert!(
        output.text().starts_with(&tunnel_e2e::bytes::sha256(&input)),
        "{}",
        output.said()
    );
}

#[test]
fn a_shell_has_a_terminal() {
    // An sshd that is not root's cannot always hand out terminals.
    needs!(NEEDS[0], NEEDS[1], Need::Root);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    let mut command = fleet.admin.ssh_command("pump-17", &sshd, &["-tt"], &[]);
    let output = run_with(
        &mut command,
        b"tty; echo $((6 * 7)); exit 3\n",
        Duration::from_secs(30),
    );
    assert_eq!(output.code, 3, "{}", output.said());
    let text = output.text();
    assert!(text.contains("/dev/pts/") && text.contains("42"), "{text}");
}

#[test]
fn a_tunnel_ends_with_its_ssh() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));

    fleet.admin.ssh("pump-17", &sshd, &[], &["true"]).ok();
    tunnel_e2e::until("the end of the tunnel", Duration::from_secs(10), || {
        fleet
            .admin
            .tunnels()
            .iter()
            .all(|tunnel| tunnel["state"] == "ended")
            .then_some(())
    });
}

#[test]
fn scp_carries_64_mib_both_ways() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    let file = |name: &str| fleet.directory().join(name);
    fs::write(file("there"), noise(MIB_64, 2)).unwrap();

    let remote = format!("{}@pump-17:{}", user(), file("on-device").display());
    let copy = |from: &str, to: &str| {
        let mut scp = fleet.admin.cli(&["scp"]);
        run(
            scp.args(ssh_options(&sshd)).args([from, to]),
            Duration::from_secs(120),
        )
        .ok();
    };
    copy(file("there").to_str().unwrap(), &remote);
    assert_eq!(sha256_of(&file("on-device")), sha256_of(&file("there")));
    copy(&remote, file("back").to_str().unwrap());
    assert_eq!(sha256_of(&file("back")), sha256_of(&file("there")));
}

#[test]
fn eight_sessions_of_one_operator_run_at_once() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").sshd(&sshd));

    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|number| {
                let (fleet, sshd) = (&fleet, &sshd);
                let command = format!("echo {number}; exit {number}");
                scope.spawn(move || fleet.admin.ssh("pump-17", sshd, &[], &[&command]))
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            let output = run.join().unwrap();
            assert_eq!(output.text(), format!("{number}\n"), "{}", output.stderr);
            assert_eq!(output.code, i32::try_from(number).unwrap());
        }
    });
}

/// THREATS CLI-04.
#[test]
fn another_host_key_than_the_reported_one_is_refused() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let mut sshd = fleet.sshd("sshd");
    let reported = fleet.directory().join("reported.pub");
    fs::copy(sshd.host_key_file(), &reported).unwrap();
    let _agent = fleet.link(
        fleet
            .device("pump-17")
            .service("ssh", &sshd.target())
            .host_key(&reported),
    );
    fleet.admin.ssh("pump-17", &sshd, &[], &["true"]).ok();

    sshd.change_host_key();
    let ran = fleet.directory().join("ran");
    let command = format!("touch {}", ran.display());
    let output = fleet.admin.ssh("pump-17", &sshd, &[], &[&command]);
    assert_eq!(output.code, 255, "{}", output.said());
    assert!(
        output.stderr.to_lowercase().contains("host key"),
        "{}",
        output.stderr
    );
    assert!(!ran.exists());

    // The user cannot be talked into it either.
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "ProxyCommand=true",
    ] {
        let output = fleet.admin.ssh("pump-17", &sshd, &["-o", option], &[&command]);
        assert_ne!(output.code, 0, "{option}: {}", output.said());
        assert!(!ran.exists(), "{option}");
    }
}

/// THREATS CLI-04.
#[test]
fn a_device_that_reports_no_host_key_is_not_trusted_on_first_use() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.link(fleet.device("pump-17").service("ssh", &sshd.target()));

    let output = fleet.admin.ssh("pump-17", &sshd, &[], &["true"]);
    assert_ne!(output.code, 0, "{}", output.said());
    assert!(
        output.stderr.to_lowercase().contains("host key"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_device_that_is_not_there_is_said_to_be_offline() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let _agent = fleet.enrol(fleet.device("pump-17").sshd(&sshd));

    let refusal = fleet.admin.refusal(&["connect", "pump-17", "ssh"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (4, "E_DEVICE_OFFLINE"),
        "{}",
        refusal.text
    );
    let output = fleet.admin.ssh("pump-17", &sshd, &[], &["true"]);
    assert_eq!(output.code, 255);
    assert!(output.stderr.contains("E_DEVICE_OFFLINE"), "{}", output.stderr);
}

#[test]
fn an_agent_that_comes_back_is_linked_again_by_itself() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let mut agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    agent.kill();
    agent.start();
    tunnel_e2e::until(
        "the ssh of a device that came back",
        Duration::from_secs(40),
        || (fleet.admin.ssh("pump-17", &sshd, &[], &["true"]).code == 0).then_some(()),
    );
}
