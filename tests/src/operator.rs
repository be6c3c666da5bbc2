//! Operators of a test: the `tunnel` program with a state directory of its own, and what runs on top of it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::place::Place;
use crate::process::{self, Output, Process};
use crate::programs;
use crate::sshd::{Sshd, user};
use crate::wait::{SOON, until};

/// Names the carrier that the programs use: `udp`, `websocket` or `auto`.
pub const CARRIER: &str = "TUNNEL_CARRIER";

/// Set when the CLI is to tell all that it does, for who hunts a fault.
const VERBOSE: &str = "TUNNEL_E2E_VERBOSE";

/// Somebody who is logged in.
#[derive(Debug)]
pub struct Operator {
    place: Place,
    home: PathBuf,
}

impl Operator {
    /// Logs in with a code.
    ///
    /// # Panics
    /// When that does not work.
    pub fn login(name: &str, place: &Place, directory: &Path, code: &str) -> Self {
        let home = directory.join(format!("operator-{name}"));
        std::fs::create_dir(&home).expect("a new directory");
        let operator = Self {
            place: place.clone(),
            home,
        };
        operator.tunnel(&["login", "--name", name, code]).ok();
        operator
    }

    /// Returns the state directory of the CLI.
    pub fn home(&self) -> PathBuf {
        self.home.join("tunnel")
    }

    /// Starts the command line of any program as this operator: with the CLI in its path and a home without settings.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.place.command(program);
        let tunnel = programs::path("tunnel");
        let bin = tunnel.parent().expect("a program lies in a directory");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path).expect("paths without colons"));
        command.env("HOME", &self.home).env("TUNNEL_HOME", self.home());
        command.env_remove("SSH_AUTH_SOCK").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Starts the command line of the CLI.
    pub fn cli(&self, words: &[&str]) -> Command {
        let mut command = self.command("tunnel");
        if std::env::var_os(VERBOSE).is_some() {
            command.arg("--verbose");
        }
        command.args(words);
        command
    }

    /// Runs the CLI to its end.
    #[track_caller]
    pub fn tunnel(&self, words: &[&str]) -> Output {
        process::run(&mut self.cli(words), SOON)
    }

    /// Runs the CLI to its end, with bytes on its standard input.
    #[track_caller]
    pub fn tunnel_with(&self, words: &[&str], input: &[u8]) -> Output {
        process::run_with(&mut self.cli(words), input, SOON)
    }

    /// Runs the CLI with `--json`; what it answers.
    ///
    /// # Panics
    /// When it fails, or answers something else than JSON.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let text = self.tunnel(&[&["--json"], words].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error} in {text}"))
    }

    /// Runs a command that must fail, with `--json`; how it failed.
    ///
    /// # Panics
    /// When it does not fail, or does not say why in JSON.
    #[track_caller]
    pub fn refusal(&self, words: &[&str]) -> Refusal {
        Refusal::of(&self.tunnel(&[&["--json"], words].concat()))
    }

    /// Runs `tunnel ssh` with the key that a server lets in, and options of ssh before a command.
    #[track_caller]
    pub fn ssh(&self, device: &str, sshd: &Sshd, options: &[&str], command: &[&str]) -> Output {
        process::run(&mut self.ssh_command(device, sshd, options, command), SOON)
    }

    /// Starts the command line of `tunnel ssh`.
    pub fn ssh_command(&self, device: &str, sshd: &Sshd, options: &[&str], command: &[&str]) -> Command {
        let mut ssh = self.cli(&["ssh", &format!("{}@{device}", user())]);
        ssh.args(ssh_options(sshd)).args(options).arg("--").args(command);
        ssh
    }

    /// Writes a configuration file for plain `ssh`, with the stanza of `tunnel ssh-config`.
    ///
    /// # Panics
    /// When there is no such stanza.
    pub fn ssh_config(&self, sshd: &Sshd) -> PathBuf {
        let mut text = self.tunnel(&["ssh-config"]).ok();
        let key = sshd.user_key();
        text += &format!(
            "\nHost *.tunnel\n  User {}\n  IdentityFile {}\n",
            user(),
            key.display()
        );
        text += "  IdentitiesOnly yes\n  BatchMode yes\n";
        let file = self.home.join("ssh_config");
        std::fs::write(&file, text).expect("a file of ours");
        file
    }

    /// Waits until the server knows a proven link of a device.
    ///
    /// # Panics
    /// When there is none in time.
    #[track_caller]
    pub fn wait_for_link(&self, device: &str) {
        let what = format!("the link of {device}");
        until(&what, SOON, || {
            self.device(device).filter(|device| !device["link"].is_null())
        });
    }

    /// Returns a device as the CLI lists it.
    pub fn device(&self, id: &str) -> Option<Value> {
        let answer = self.json(&["devices"]);
        rows(&answer, "devices")
            .iter()
            .find(|device| device["id"] == id)
            .cloned()
    }

    /// Returns the tunnels that the CLI lists, the ended ones too.
    pub fn tunnels(&self) -> Vec<Value> {
        rows(&self.json(&["tunnels", "--all"]), "tunnels")
    }

    /// Returns the whole audit trail, as the CLI shows it.
    ///
    /// # Panics
    /// When it is not made of lines of JSON.
    pub fn audit(&self) -> Vec<Value> {
        let text = self.tunnel(&["--json", "audit", "--after", "0"]).ok();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    /// Starts `tunnel forward` of one service, on a port that the kernel chooses.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn forward(&self, device: &str, service: &str) -> Forward {
        self.forward_all(device, &[service])
    }

    /// Starts `tunnel forward` of several services through one tunnel.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn forward_all(&self, device: &str, services: &[&str]) -> Forward {
        self.forward_over("auto", device, services)
    }

    /// Starts `tunnel forward` over a carrier of choice.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn forward_over(&self, carrier: &str, device: &str, services: &[&str]) -> Forward {
        self.forward_with(&[(CARRIER, carrier)], device, services)
    }

    /// Starts `tunnel forward` with variables in its environment.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn forward_with(&self, variables: &[(&str, &str)], device: &str, services: &[&str]) -> Forward {
        let mut command = self.cli(&["--json", "forward", device]);
        command.args(services).envs(variables.iter().copied());
        Forward::new(Process::start("forward", &mut command, &self.home), services)
    }

    /// Returns where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the directory of this operator's files.
    pub fn directory(&self) -> &Path {
        &self.home
    }
}

/// How a command failed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The exit code.
    pub exit: i32,
    /// The stable code, as `E_POLICY_DENY`.
    pub code: String,
    /// All that it said.
    pub text: String,
    /// How long it took.
    pub took: Duration,
}

impl Refusal {
    /// Reads the failure of a command that ran with `--json`.
    ///
    /// # Panics
    /// When it did not fail, or did not say why in JSON.
    #[track_caller]
    pub fn of(output: &Output) -> Self {
        assert!(output.code != 0, "it did not fail: {}", output.said());
        let error = output
            .stderr
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str::<Value>(line).ok());
        let error = error.unwrap_or_else(|| panic!("no JSON tells why it failed: {}", output.stderr));
        let code = error["error"]["code"].as_str().unwrap_or_default().to_owned();
        Self {
            exit: output.code,
            code,
            text: output.stderr.clone(),
            took: output.took,
        }
    }
}

/// A running `tunnel forward`.
#[derive(Debug)]
pub struct Forward {
    process: Process,
    addresses: Vec<SocketAddr>,
}

impl Forward {
    #[track_caller]
    fn new(mut process: Process, services: &[&str]) -> Self {
        let addresses = until("`tunnel forward` to say where it listens", SOON, || {
            let said = process.said();
            assert!(process.ended().is_none(), "`tunnel forward` ended:\n{said}");
            let lines: Vec<Value> = said
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            let address = |service: &&str| {
                let line = lines.iter().find(|line| line["service"] == **service)?;
                line["listen"].as_str()?.parse().ok()
            };
            services.iter().map(address).collect()
        });
        Self { process, addresses }
    }

    /// Returns where it listens for the first service.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Returns where it listens for a service, by its place in the list.
    pub fn address_of(&self, number: usize) -> SocketAddr {
        self.addresses[number]
    }

    /// Returns the process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns the process, to wait for its end.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Returns the options that keep ssh to the key of the test, and away from the settings of this machine.
pub fn ssh_options(sshd: &Sshd) -> Vec<String> {
    let key = sshd.user_key();
    [
        "-F",
        "none",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-i",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([key.display().to_string()])
    .collect()
}

/// Returns the rows of an answer: the array itself, or the one in its field.
fn rows(answer: &Value, field: &str) -> Vec<Value> {
    answer
        .as_array()
        .or_else(|| answer[field].as_array())
        .cloned()
        .unwrap_or_default()
}

/// A program of an operator whose both ends the test holds.
#[derive(Debug)]
pub struct Interactive {
    child: std::process::Child,
    stdout: Option<BufReader<std::process::ChildStdout>>,
}

impl Interactive {
    /// Starts a program with its standard input and output in the hands of the test.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command, stderr: &Path) -> Self {
        let stderr = std::fs::File::create(stderr).expect("a file of ours");
        let pipe = std::process::Stdio::piped;
        let mut child = command
            .stdin(pipe())
            .stdout(pipe())
            .stderr(stderr)
            .spawn()
            .expect("it starts");
        let stdout = BufReader::with_capacity(1 << 16, child.stdout.take().expect("it is piped"));
        Self {
            child,
            stdout: Some(stdout),
        }
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its standard input, or nothing once it was closed.
    pub fn stdin(&mut self) -> Option<&mut std::process::ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Takes its standard input, for another thread.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Returns its standard output.
    ///
    /// # Panics
    /// When it was taken.
    pub fn stdout(&mut self) -> &mut BufReader<std::process::ChildStdout> {
        self.stdout.as_mut().expect("it was not taken")
    }

    /// Takes its standard output, for another thread.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn take_stdout(&mut self) -> BufReader<std::process::ChildStdout> {
        self.stdout.take().expect("it was not taken")
    }

    /// Reads one line.
    ///
    /// # Panics
    /// When its output is not text.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout().read_line(&mut line).expect("text");
        line
    }

    /// Waits for its end; its exit code, or nothing for a signal.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> Option<i32> {
        let child = &mut self.child;
        until("the end of a program", deadline, || {
            child.try_wait().expect("a child can be waited for")
        })
        .code()
    }
}

impl Interactive {
    /// Waits for its end; its exit code, or nothing for a signal and for one that goes on.
    pub fn wait_until(&mut self, deadline: Duration) -> Option<i32> {
        let start = std::time::Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) if start.elapsed() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Interactive {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
