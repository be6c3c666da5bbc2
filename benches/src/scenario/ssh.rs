//! `tunnel ssh DEVICE true` beside plain `ssh` to the same sshd, both at a round trip of 80 ms.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tunnel_e2e::fleet::Fleet;
use tunnel_e2e::operator::ssh_options;
use tunnel_e2e::process::{self, Process};
use tunnel_e2e::programs;
use tunnel_e2e::sshd::{Sshd, user};

use crate::network::Network;
use crate::path::ours::carrier;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

const DEVICE: &str = "bench-ssh";

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures plain ssh and both carriers. The agents are linked before.
///
/// # Errors
/// Fails when a command does.
pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    let (_lab, network) = Network::emulated("");
    let mut row = Row::new("`ssh` to the end of `true` at 80 ms", "ms");
    for column in [Column::Udp, Column::WebSocket] {
        row = row.limit(column, Limit::AtMostTimes(1.5, Column::Direct));
    }
    let direct = Direct::start(settings, &network)?;
    let tunnels = [Column::Udp, Column::WebSocket].map(|column| Tunnelled::start(&network, column));
    for _ in 0..settings.runs {
        row.push(Column::Direct, run_timed(&mut direct.command())?);
        for tunnel in &tunnels {
            row.push(tunnel.column, run_timed(&mut tunnel.command())?);
        }
    }
    Ok(vec![row])
}

fn run_timed(command: &mut Command) -> Result<f64> {
    let output = process::run(command, PATIENCE);
    anyhow::ensure!(output.code == 0, "{command:?} failed: {}", output.said());
    Ok(output.took.as_secs_f64() * 1e3)
}

/// An sshd that can be reached without a tunnel. A splicer on its own host brings connections to it.
struct Direct {
    sshd: Sshd,
    network: Network,
    address: std::net::SocketAddr,
    _splice: Process,
    _files: tempfile::TempDir,
}

impl Direct {
    fn start(settings: &Settings, network: &Network) -> Result<Self> {
        let files = tempfile::TempDir::with_prefix("tunnel-bench-")?;
        let sshd = Sshd::start(&network.open, &files.path().join("sshd"));
        let target = sshd.target();
        let target = target.strip_prefix("tcp:").context("sshd is reached over TCP")?;
        let mut splice = network.open.command(&settings.program);
        splice.args(["baseline", "splice", &format!("{}:0", network.open_ip), target]);
        let mut splice = Process::start("splice", &mut splice, files.path());
        let address = crate::path::listening(&mut splice)?;
        Ok(Self {
            sshd,
            network: network.clone(),
            address,
            _splice: splice,
            _files: files,
        })
    }

    fn command(&self) -> Command {
        let mut ssh = self.network.near.command("ssh");
        ssh.args(ssh_options(&self.sshd))
            .args(["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]);
        ssh.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-p",
            &self.address.port().to_string(),
        ]);
        ssh.args([&format!("{}@{}", user(), self.address.ip()), "true"]);
        ssh
    }
}

/// A fleet with one device, whose programs keep to one carrier.
struct Tunnelled {
    column: Column,
    sshd: Sshd,
    _agent: Process,
    fleet: Fleet,
}

impl Tunnelled {
    fn start(network: &Network, column: Column) -> Self {
        let fleet = Fleet::start(network.plan());
        let sshd = fleet.sshd("sshd");
        let device = fleet.enrol(fleet.device(DEVICE).sshd(&sshd));
        let (name, value) = carrier(column);
        let mut run = network.far.command(programs::path("tunnel-agent"));
        run.arg("run")
            .env("TUNNEL_AGENT_CONFIG", device.config())
            .env(name, value);
        let agent = Process::start("tunnel-agent", &mut run, fleet.directory());
        fleet.admin.wait_for_link(DEVICE);
        Self {
            column,
            sshd,
            _agent: agent,
            fleet,
        }
    }

    fn command(&self) -> Command {
        let mut ssh = self.fleet.admin.ssh_command(DEVICE, &self.sshd, &[], &["true"]);
        let (name, value) = carrier(self.column);
        ssh.env(name, value);
        ssh
    }
}
