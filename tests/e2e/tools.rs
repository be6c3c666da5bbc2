//! What stands on top of plain ssh, through the stanza of `tunnel ssh-config`.

use std::fs;
use std::time::Duration;

use tunnel_e2e::bytes::{noise, sha256_of};
use tunnel_e2e::process::{run, run_with};
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::NEEDS;
use tunnel_e2e::{Agent, Fleet, Sshd, needs};

const SIZE: usize = 5 << 20;
const PATIENCE: Duration = Duration::from_secs(90);

/// What is named first ends first, and the directory of all is the fleet's.
struct Set {
    _agent: Agent,
    sshd: Sshd,
    fleet: Fleet,
}

fn set() -> Set {
    let fleet = Fleet::on_loopback();
    let sshd = fleet.sshd("sshd");
    let agent = fleet.link(fleet.device("pump-17").sshd(&sshd));
    fs::write(fleet.directory().join("there"), noise(SIZE, 3)).unwrap();
    Set {
        fleet,
        sshd,
        _agent: agent,
    }
}

impl Set {
    fn file(&self, name: &str) -> String {
        self.fleet.directory().join(name).display().to_string()
    }

    fn assert_equal(&self, one: &str, other: &str) {
        let sum = |name: &str| sha256_of(&self.fleet.directory().join(name));
        assert_eq!(sum(one), sum(other), "{one} and {other} differ");
    }
}

#[test]
fn plain_ssh_and_scp_work() {
    needs!(NEEDS[0], NEEDS[1]);
    let set = set();
    let config = set.fleet.admin.ssh_config(&set.sshd).display().to_string();
    let mut ssh = set.fleet.admin.command("ssh");
    let output = run(
        ssh.args(["-F", &config, "pump-17.tunnel", "echo hello; exit 7"]),
        PATIENCE,
    );
    assert_eq!(
        (output.code, output.text().as_str()),
        (7, "hello\n"),
        "{}",
        output.stderr
    );

    let mut scp = set.fleet.admin.command("scp");
    let target = format!("pump-17.tunnel:{}", set.file("copied"));
    run(scp.args(["-F", &config, &set.file("there"), &target]), PATIENCE).ok();
    set.assert_equal("there", "copied");
}

#[test]
fn sftp_works() {
    needs!(NEEDS[0], NEEDS[1], Need::Program("sftp", "openssh-client"));
    let set = set();
    let config = set.fleet.admin.ssh_config(&set.sshd).display().to_string();
    let mut sftp = set.fleet.admin.command("sftp");
    let batch = format!(
        "put {} {}\nget {} {}\n",
        set.file("there"),
        set.file("stored"),
        set.file("stored"),
        set.file("back")
    );
    run_with(
        sftp.args(["-F", &config, "-b", "-", "pump-17.tunnel"]),
        batch.as_bytes(),
        PATIENCE,
    )
    .ok();
    set.assert_equal("there", "stored");
    set.assert_equal("there", "back");
}

#[test]
fn rsync_works() {
    needs!(NEEDS[0], NEEDS[1], Need::Program("rsync", "rsync"));
    let set = set();
    let config = set.fleet.admin.ssh_config(&set.sshd).display().to_string();
    let shell = format!("ssh -F {config}");
    for (from, to) in [
        (
            set.file("there"),
            format!("pump-17.tunnel:{}", set.file("synced")),
        ),
        (format!("pump-17.tunnel:{}", set.file("synced")), set.file("back")),
    ] {
        let mut rsync = set.fleet.admin.command("rsync");
        run(
            rsync.args(["-a", "--checksum", "-e", &shell, &from, &to]),
            PATIENCE,
        )
        .ok();
    }
    set.assert_equal("there", "synced");
    set.assert_equal("there", "back");
}

#[test]
fn ansible_pings_the_device() {
    needs!(NEEDS[0], NEEDS[1], Need::Program("ansible", "ansible-core"));
    let set = set();
    let config = set.fleet.admin.ssh_config(&set.sshd).display().to_string();
    let mut ansible = set.fleet.admin.command("ansible");
    ansible.args([
        "all",
        "-i",
        "pump-17.tunnel,",
        "-m",
        "ping",
        "--ssh-common-args",
        &format!("-F {config}"),
    ]);
    ansible.args(["-e", "ansible_python_interpreter=auto_silent"]);
    ansible
        .env("ANSIBLE_LOCAL_TEMP", set.file("ansible"))
        .env("ANSIBLE_NOCOLOR", "1")
        // An sshd that is not root's cannot always hand out terminals.
        .env("ANSIBLE_SSH_USETTY", "False");
    let output = run(&mut ansible, PATIENCE);
    assert!(
        output.code == 0 && output.text().contains("\"pong\""),
        "{}",
        output.said()
    );
}
