//! Agents of a test: their configuration, enrolment and process.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::place::Place;
use crate::process::{self, Output, Process};
use crate::programs;
use crate::sshd::Sshd;
use crate::wait::SOON;

/// A device's agent with a state directory of its own.
#[derive(Debug)]
pub struct Agent {
    id: String,
    place: Place,
    directory: PathBuf,
    variables: Vec<(String, String)>,
    process: Option<Process>,
}

/// The public half of a key that nobody has.
const SOME_HOST_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPjsineK6zGS1KYO4pRZRy/pGCDl8H8K2tGCakZKJsSm test\n";

/// An agent before its enrolment.
#[derive(Debug)]
pub struct Builder {
    id: String,
    place: Place,
    directory: PathBuf,
    top: String,
    services: String,
    host_key: Option<PathBuf>,
    variables: Vec<(String, String)>,
}

impl Builder {
    /// Starts with a device that offers nothing.
    pub fn new(id: &str, place: &Place, directory: &Path) -> Self {
        Self {
            id: id.to_owned(),
            place: place.clone(),
            directory: directory.join(format!("agent-{id}")),
            top: String::new(),
            services: String::new(),
            host_key: None,
            variables: Vec::new(),
        }
    }

    /// Returns the device id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds a service.
    #[must_use]
    pub fn service(self, name: &str, target: &str) -> Self {
        self.service_with(name, target, "")
    }

    /// Adds a service with more settings of its own, as lines of TOML.
    #[must_use]
    pub fn service_with(mut self, name: &str, target: &str, more: &str) -> Self {
        let _ = writeln!(self.services, "[services.{name}]\ntarget = \"{target}\"\n{more}");
        self
    }

    /// Adds the service `ssh`, and the host key of its server.
    #[must_use]
    pub fn sshd(self, sshd: &Sshd) -> Self {
        self.service("ssh", &sshd.target())
            .host_key(&sshd.host_key_file())
    }

    /// Adds a service `ssh` that is no sshd, and a host key, without which nobody would use it.
    #[must_use]
    pub fn like_sshd(self, target: &str) -> Self {
        let file = self.directory.with_extension("pub");
        std::fs::write(&file, SOME_HOST_KEY).expect("a file of ours");
        self.service("ssh", target).host_key(&file)
    }

    /// Reports the host key of a file.
    #[must_use]
    pub fn host_key(mut self, file: &Path) -> Self {
        self.host_key = Some(file.to_owned());
        self
    }

    /// Sets a variable of the agent's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds lines at the top of the configuration.
    #[must_use]
    pub fn setting(mut self, line: &str) -> Self {
        self.top.push_str(line);
        self.top.push('\n');
        self
    }

    /// Writes the configuration and enrols the device.
    ///
    /// # Panics
    /// When that does not work.
    pub fn enrol(self, code: &str) -> Agent {
        std::fs::create_dir(&self.directory).expect("a new directory");
        let state = self.directory.join("state");
        let keys = self
            .host_key
            .iter()
            .map(|path| format!("\"{}\"", path.display()))
            .collect::<String>();
        let text = format!(
            "state_dir = \"{}\"\n{}\n{}\n[ssh]\nhost_key_files = [{keys}]\n",
            state.display(),
            self.top,
            self.services
        );
        std::fs::write(self.directory.join("agent.toml"), text).expect("a file of ours");
        let agent = Agent {
            id: self.id,
            place: self.place,
            directory: self.directory,
            variables: self.variables,
            process: None,
        };
        let mut enrol = agent.place.command(programs::path("tunnel-agent"));
        enrol
            .args(["enrol", code, "--id", &agent.id, "--state"])
            .arg(&state)
            .envs(agent.variables.iter().map(|(name, value)| (name, value)));
        process::run(&mut enrol, SOON).ok();
        agent
    }
}

impl Agent {
    /// Starts the process.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&mut self) {
        let mut run = self.command("run");
        self.process = Some(Process::start("tunnel-agent", &mut run, &self.directory));
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks it to end, and waits for that; its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> i32 {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        process.wait(SOON)
    }

    /// Runs one of its commands with its configuration, as `run("access", &["off"])`.
    pub fn run(&self, name: &str, words: &[&str]) -> Output {
        process::run(self.command(name).args(words), SOON)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self.place.command(programs::path("tunnel-agent"));
        command.arg(name).env("TUNNEL_AGENT_CONFIG", self.config());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Returns the device id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    /// Returns the state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Returns the process.
    ///
    /// # Panics
    /// When it was not started, or was ended.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }
}
