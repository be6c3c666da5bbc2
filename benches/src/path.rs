//! A path under test: where the load enters it, the processes that it is made of, and the load's far end behind it.

pub mod baselines;
mod openssh;
pub(crate) mod ours;
pub mod rathole;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tunnel_e2e::fleet::Fleet;
use tunnel_e2e::process::Process;

use crate::load::client::Target;
use crate::load::server::Server;
use crate::network::Network;
use crate::report::Column;
use crate::settings::Settings;

/// How long a part may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A part of a path, by its role.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// The operator's end.
    Near,
    /// The relay.
    Relay,
    /// The device's end.
    Far,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Relay, Self::Far, Self::Near];

    /// Returns the role in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Near => "near end",
            Self::Relay => "relay",
            Self::Far => "far end",
        }
    }
}

/// A path that works. Its processes end with it.
#[derive(Debug)]
pub struct Path {
    /// What it is.
    pub column: Column,
    /// Where the load enters it.
    pub target: Target,
    processes: Vec<(Role, Process)>,
    fleet: Option<Fleet>,
    near: Near,
    relay: Option<rathole::Relay>,
    _far: Server,
    _hosts: Option<openssh::Hosts>,
    files: Option<TempDir>,
}

/// How another near end is started.
#[derive(Debug)]
enum Near {
    /// There is no program at the near end.
    Nothing,
    /// This crate's binary with some words.
    Baseline(PathBuf, Vec<String>),
    /// The CLI, with its choice of carriers.
    Ours(String),
    /// `ssh` with a configuration, and what it leads to.
    OpenSsh(PathBuf, SocketAddr),
}

impl Path {
    /// Sets a path up.
    ///
    /// # Errors
    /// Fails when one of its parts does not come up.
    pub fn open(column: Column, network: &Network, settings: &Settings) -> Result<Self> {
        let open = match column {
            Column::Direct => baselines::direct(network),
            Column::Splice => baselines::splice(network, settings),
            Column::HopByHop => baselines::hop_by_hop(network, settings),
            Column::Rathole => rathole::open(network),
            Column::OpenSsh => openssh::open(network, settings),
            Column::Udp | Column::WebSocket => ours::open(column, ours::carrier(column), network),
            Column::AllowAll => bail!("it is no path"),
        };
        Self::proven(open, column)
    }

    /// Sets a path up whose programs, if they are ours, choose their carrier.
    ///
    /// # Errors
    /// As [`Path::open`].
    pub fn open_free(column: Column, network: &Network, settings: &Settings) -> Result<Self> {
        match column {
            Column::Udp | Column::WebSocket => {
                Self::proven(ours::open(column, ours::ANY_CARRIER, network), column)
            }
            _ => Self::open(column, network, settings),
        }
    }

    fn proven(open: Result<Self>, column: Column) -> Result<Self> {
        let path = open.with_context(|| format!("could not set up: {}", column.title()))?;
        crate::load::client::first_byte(&path.target)
            .with_context(|| format!("nothing comes back: {}", column.title()))?;
        Ok(path)
    }

    /// Returns the processes with their roles.
    pub fn processes(&self) -> Vec<(Role, u32)> {
        let server = self
            .fleet
            .iter()
            .map(|fleet| (Role::Relay, fleet.server.process().pid()));
        server
            .chain(
                self.processes
                    .iter()
                    .map(|(role, process)| (*role, process.pid())),
            )
            .collect()
    }

    /// Kills the relay and starts it again; when it was dead.
    ///
    /// # Errors
    /// Fails where there is no relay that could be restarted.
    pub fn restart_relay(&mut self) -> Result<Instant> {
        if let Some(fleet) = &mut self.fleet {
            fleet.server.kill();
            let dead = Instant::now();
            fleet.server.restart();
            return Ok(dead);
        }
        let relay = self.processes.iter_mut().find(|(role, _)| *role == Role::Relay);
        let (Some(again), Some((_, process)), Some(files)) = (&self.relay, relay, &self.files) else {
            bail!("{} has no relay to restart", self.column.title());
        };
        process.kill();
        let dead = Instant::now();
        *process = again.start(files.path())?;
        Ok(dead)
    }

    /// Starts another near end; none where the path has none.
    ///
    /// # Errors
    /// Fails when it does not come up.
    pub fn another_near(&self) -> Result<Option<NearEnd>> {
        let mut command = match (&self.near, &self.fleet) {
            (Near::Baseline(program, words), _) => baselines::command(program, &self.target.place, words),
            (Near::Ours(carrier), Some(fleet)) => ours::forward(&fleet.admin, (ours::CARRIER, carrier)),
            (Near::OpenSsh(config, far), _) => {
                let entry = rathole::free_address(&self.target.place, Ipv4Addr::LOCALHOST.into())?;
                let mut ssh = openssh::command(&self.target.place, config, entry, *far);
                return NearEnd::spawn(&mut ssh, &self.target, entry).map(Some);
            }
            (Near::Nothing | Near::Ours(_), _) => return Ok(None),
        };
        NearEnd::start(&mut command, &self.target).map(Some)
    }
}

/// A near end that was started to see how long that takes.
#[derive(Debug)]
pub struct NearEnd {
    /// Where the load enters it.
    pub target: Target,
    child: Child,
    _stdout: Option<BufReader<std::process::ChildStdout>>,
}

impl NearEnd {
    /// Starts one that does not say when it is there.
    fn spawn(command: &mut Command, like: &Target, address: SocketAddr) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self {
            target: Target {
                address,
                ..like.clone()
            },
            child: child.with_context(|| format!("could not start {command:?}"))?,
            _stdout: None,
        })
    }

    fn start(command: &mut Command, like: &Target) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.with_context(|| format!("could not start {command:?}"))?;
        let mut stdout = BufReader::new(child.stdout.take().context("its output is piped")?);
        let mut line = String::new();
        while stdout.read_line(&mut line)? > 0 {
            if let Some(address) = find_address(&line) {
                return Ok(Self {
                    target: Target {
                        address,
                        ..like.clone()
                    },
                    child,
                    _stdout: Some(stdout),
                });
            }
        }
        let _ = child.wait();
        bail!("{command:?} ended without saying where it listens: {line}")
    }
}

impl Drop for NearEnd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a process to say where it listens.
pub(crate) fn listening(process: &mut Process) -> Result<SocketAddr> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(address) = find_address(&process.said()) {
            return Ok(address);
        }
        if process.ended().is_some() || std::time::Instant::now() > deadline {
            bail!(
                "a process did not say where it listens; it said: {}",
                process.said()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Finds the first socket address of IPv4 in what a program said.
fn find_address(said: &str) -> Option<SocketAddr> {
    said.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c)))
        .find_map(|word| word.trim_matches(['.', ':']).parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_words_and_in_json() {
        let expected = Some("127.0.0.1:4711".parse().unwrap());
        assert_eq!(find_address("ready on 127.0.0.1:4711\n"), expected);
        assert_eq!(
            find_address(r#"{"address":"127.0.0.1:4711","id":"1:2"}"#),
            expected
        );
        assert_eq!(find_address("12:30:01 ready"), None);
    }
}
