//! The path through OpenSSH: a port forward through a middle host, as people reach devices without a product. The far sshd
//! stands on the open host, because one behind NAT cannot be reached so at all.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path as File;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tunnel_e2e::place::Place;
use tunnel_e2e::process::Process;
use tunnel_e2e::sshd::{Sshd, user};

use super::rathole::free_address;
use super::{Near, Path, Role};
use crate::load::client::Target;
use crate::load::server::Server;
use crate::network::Network;
use crate::report::Column;
use crate::settings::Settings;

/// The sshds on the way, each reached through a splicer on its own host.
#[derive(Debug)]
pub(super) struct Hosts {
    _sshd: [Sshd; 2],
    _splice: [Process; 2],
}

pub(super) fn open(network: &Network, settings: &Settings) -> Result<Path> {
    let files = TempDir::with_prefix("tunnel-bench-")?;
    let far = Server::start(&network.open)?;
    let (middle, middle_splice, middle_addr) =
        host(settings, &network.relay, network.relay_ip, &files, "middle")?;
    let (end, end_splice, end_addr) = host(settings, &network.open, network.open_ip, &files, "far")?;
    let config = files.path().join("ssh_config");
    let stanza = |name: &str, addr: SocketAddr, more: &str, sshd: &Sshd| {
        format!(
            "Host {name}\n  HostName {}\n  Port {}\n  IdentityFile {}\n{more}",
            addr.ip(),
            addr.port(),
            sshd.user_key().display()
        )
    };
    let text = [
        stanza("middle", middle_addr, "", &middle),
        stanza("far", end_addr, "  ProxyJump middle\n", &end),
        format!(
            "Host *\n  User {}\n  BatchMode yes\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  \
             UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  ExitOnForwardFailure yes\n",
            user()
        ),
    ];
    fs::write(&config, text.concat())?;
    let entry = free_address(&network.near, Ipv4Addr::LOCALHOST.into())?;
    let near = Process::start(
        "ssh",
        &mut command(&network.near, &config, entry, far.address()),
        files.path(),
    );
    Ok(Path {
        column: Column::OpenSsh,
        target: Target {
            place: network.near.clone(),
            address: entry,
            received: far.received(),
        },
        processes: vec![(Role::Near, near)],
        fleet: None,
        near: Near::OpenSsh(config, far.address()),
        relay: None,
        _far: far,
        _hosts: Some(Hosts {
            _sshd: [middle, end],
            _splice: [middle_splice, end_splice],
        }),
        files: Some(files),
    })
}

/// Starts the command line of a forward from `entry`.
pub(super) fn command(place: &Place, config: &File, entry: SocketAddr, far: SocketAddr) -> Command {
    let mut ssh = place.command("ssh");
    ssh.arg("-F").arg(config).args(["-N", "-L"]);
    ssh.args([&format!("{entry}:{far}"), "far"]);
    ssh
}

/// Starts an sshd that is reached on an address of its place.
fn host(
    settings: &Settings,
    place: &Place,
    ip: std::net::IpAddr,
    files: &TempDir,
    name: &str,
) -> Result<(Sshd, Process, SocketAddr)> {
    let sshd = Sshd::start(place, &files.path().join(name));
    let target = sshd.target();
    let target = target.strip_prefix("tcp:").context("sshd is reached over TCP")?;
    let mut splice = place.command(&settings.program);
    splice.args(["baseline", "splice", &SocketAddr::new(ip, 0).to_string(), target]);
    let mut splice = Process::start("splice", &mut splice, files.path());
    let address = super::listening(&mut splice)?;
    Ok((sshd, splice, address))
}
