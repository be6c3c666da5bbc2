//! Agents of a test: their configuration, enrolment and process.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::manager::Manager;
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
    program: PathBuf,
    process: Option<Process>,
    /// After the process, which it outlives by a moment.
    manager: Option<Manager>,
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
    is_service: bool,
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
            is_service: false,
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

    /// Runs it as a service with a supervisor, so that [`Agent::restart`] ends no session.
    #[must_use]
    pub const fn as_service(mut self) -> Self {
        self.is_service = true;
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
        let manager = self
            .is_service
            .then(|| Manager::new(&self.directory.join("notify")));
        let agent = Agent {
            id: self.id,
            place: self.place,
            directory: self.directory,
            variables: self.variables,
            program: programs::path("tunnel-agent"),
            process: None,
            manager,
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
        let mut run = match &self.manager {
            Some(manager) => {
                let mut supervise = manager.command(&self.place, &self.program);
                supervise.arg("supervise");
                self.with_environment(supervise)
            }
            None => self.command("run"),
        };
        self.process = Some(Process::start("tunnel-agent", &mut run, &self.directory));
    }

    /// Restarts a service as its manager does: tells the supervisor to end, and starts the next with what it left. Sessions
    /// go on.
    ///
    /// # Panics
    /// When it is no service, or the supervisor does not end in time.
    pub fn restart(&mut self) {
        assert!(self.manager.is_some(), "only a service can be restarted");
        self.end_process();
        self.start();
    }

    /// As [`Agent::restart`], after the supervisor was killed.
    ///
    /// # Panics
    /// When it is no service.
    pub fn kill_supervisor_and_restart(&mut self) {
        assert!(self.manager.is_some(), "only a service has a supervisor");
        self.process.take().expect("it runs").kill();
        self.start();
    }

    /// Has a service try the program that lies where its own was started from.
    ///
    /// # Panics
    /// When it does not run.
    pub fn upgrade(&self) {
        self.process().signal(Signal::USR2);
    }

    /// Puts another program in the place of the agent's, for the next start.
    pub fn install(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
        for worker in self.workers() {
            self.signal(worker, Signal::KILL);
        }
        self.forget();
    }

    /// Asks it to end, and waits for that; its exit code. What a service has left is closed, as its manager does.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> i32 {
        let code = self.end_process();
        self.forget();
        code
    }

    fn end_process(&mut self) -> i32 {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        process.wait(SOON)
    }

    fn forget(&mut self) {
        if let Some(manager) = &mut self.manager {
            manager.forget();
        }
    }

    /// Returns the workers of a service that are there, oldest first.
    pub fn workers(&self) -> Vec<u32> {
        let config = self.config();
        let mut workers: Vec<_> = process::all()
            .into_iter()
            .filter(|(_, words)| {
                words.last().is_some_and(|word| word == "worker")
                    && words.iter().any(|word| Path::new(word) == config)
            })
            .map(|(pid, _)| pid)
            .collect();
        workers.sort_unstable();
        workers
    }

    /// Sends a signal to one of its processes.
    pub fn signal(&self, pid: u32, signal: Signal) {
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            // One that has ended needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns the manager of a service.
    ///
    /// # Panics
    /// When it is none.
    pub fn manager(&self) -> &Manager {
        self.manager.as_ref().expect("it is a service")
    }

    /// Runs one of its commands with its configuration, as `run("access", &["off"])`.
    pub fn run(&self, name: &str, words: &[&str]) -> Output {
        process::run(self.command(name).args(words), SOON)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self.place.command(&self.program);
        command.arg(name);
        self.with_environment(command)
    }

    fn with_environment(&self, mut command: Command) -> Command {
        command.env("TUNNEL_AGENT_CONFIG", self.config());
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
