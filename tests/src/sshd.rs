//! A real OpenSSH server with keys of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::place::Place;
use crate::process::{self, Process};
use crate::skip::{self, Need};
use crate::wait::SOON;

/// What a test with ssh needs.
pub const NEEDS: [Need; 2] = [
    Need::Program("sshd", "openssh-server"),
    Need::Program("ssh", "openssh-client"),
];

/// A running sshd on loopback, which lets the user of the test in.
#[derive(Debug)]
pub struct Sshd {
    directory: PathBuf,
    place: Place,
    port: u16,
    process: Process,
}

impl Sshd {
    /// Starts one with files in `directory`, which is made.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(place: &Place, directory: &Path) -> Self {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .expect("a new directory");
        for name in ["host", "user"] {
            keygen(&directory.join(name));
        }
        fs::copy(directory.join("user.pub"), directory.join("authorized_keys")).expect("a file of ours");
        if skip::is_root() {
            // Where sshd locks its unprivileged half in; its package's start script makes it.
            let _ = fs::create_dir_all("/run/sshd");
        }
        let (port, process) = listen(place, directory);
        Self {
            directory: directory.to_owned(),
            place: place.clone(),
            port,
            process,
        }
    }

    /// Replaces the host key and starts again on the same port.
    ///
    /// # Panics
    /// When that does not work.
    pub fn change_host_key(&mut self) {
        self.process.kill();
        for name in ["host", "host.pub"] {
            fs::remove_file(self.directory.join(name)).expect("the key is there");
        }
        keygen(&self.directory.join("host"));
        self.process = start(&self.place, &self.directory, self.port);
    }

    /// Returns its target in the agent's notation.
    pub fn target(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    /// Returns the file with its public host key.
    pub fn host_key_file(&self) -> PathBuf {
        self.directory.join("host.pub")
    }

    /// Returns the file with the private key of the user that it lets in.
    pub fn user_key(&self) -> PathBuf {
        self.directory.join("user")
    }

    /// Returns the process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns what it has logged.
    pub fn said(&self) -> String {
        self.process.said()
    }
}

/// Returns the name of the user that runs the test.
pub fn user() -> String {
    process::run(Command::new("id").arg("-un"), SOON)
        .ok()
        .trim()
        .to_owned()
}

fn keygen(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path);
    process::run(&mut command, SOON).ok();
}

/// Starts it on a port that is free at the moment, and on another one where somebody was faster.
fn listen(place: &Place, directory: &Path) -> (u16, Process) {
    for _ in 0..5 {
        let listener = place.on(|| TcpListener::bind("127.0.0.1:0").expect("loopback has a free port"));
        let port = listener.local_addr().expect("a listener has an address").port();
        drop(listener);
        let mut process = launch(place, directory, port);
        let said = crate::wait::until("sshd to listen or to fail", SOON, || {
            let said = process.said();
            (said.contains("Server listening") || process.ended().is_some()).then_some(said)
        });
        if !said.contains("Address already in use") {
            process.wait_to_say("Server listening", SOON);
            return (port, process);
        }
    }
    panic!("sshd finds no free port");
}

fn start(place: &Place, directory: &Path, port: u16) -> Process {
    let mut process = launch(place, directory, port);
    process.wait_to_say("Server listening", Duration::from_secs(10));
    process
}

fn launch(place: &Place, directory: &Path, port: u16) -> Process {
    let dir = directory.display();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized_keys\n\
         PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin yes\nAcceptEnv none\nUseDNS no\nMaxStartups 200\nMaxSessions 200\nPrintMotd no\n\
         Subsystem sftp internal-sftp\nLogLevel VERBOSE\n"
    );
    let file = directory.join("sshd_config");
    fs::write(&file, config).expect("a file of ours");
    let sshd = skip::find("sshd").expect("sshd is installed");
    Process::start(
        "sshd",
        place.command(sshd).args(["-D", "-e", "-f"]).arg(&file),
        directory,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fails elsewhere is then not the fault of the server of the tests.
    #[test]
    fn it_lets_the_user_of_the_test_in() {
        crate::needs!(NEEDS[0], NEEDS[1]);
        let directory = tempfile::tempdir().unwrap();
        let sshd = Sshd::start(&Place::Here, &directory.path().join("sshd"));
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-i",
        ]);
        ssh.arg(sshd.user_key())
            .args(["-o", "UserKnownHostsFile=/dev/null", "-p", &sshd.port.to_string()]);
        let output = process::run(ssh.arg(format!("{}@127.0.0.1", user())).arg("exit 9"), SOON);
        assert_eq!(output.code, 9, "{}{}", output.said(), sshd.said());
    }
}
