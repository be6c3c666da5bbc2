//! Paths through the baselines of this crate, and the one without any tunnel.

use std::net::SocketAddr;
use std::path::Path as File;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use tunnel_e2e::place::Place;
use tunnel_e2e::process::Process;

use super::{Near, Path, Role, listening};
use crate::baseline::identity;
use crate::load::client::Target;
use crate::load::server::Server;
use crate::network::Network;
use crate::report::Column;
use crate::settings::Settings;

/// Where a part listens that is reached on its own host only.
const LOOPBACK: &str = "127.0.0.1:0";

pub(super) fn direct(network: &Network) -> Result<Path> {
    let far = Server::start_at(&network.open, network.open_ip)?;
    Ok(Path {
        column: Column::Direct,
        target: Target {
            place: network.near.clone(),
            address: far.address(),
            received: far.received(),
        },
        processes: Vec::new(),
        fleet: None,
        near: Near::Nothing,
        relay: None,
        _far: far,
        _hosts: None,
        files: None,
    })
}

/// Starts a part of a baseline; where it listens.
fn part(
    settings: &Settings,
    place: &Place,
    files: &TempDir,
    words: &[String],
) -> Result<(Process, SocketAddr)> {
    let mut command = command(&settings.program, place, words);
    let mut process = Process::start(&words[0], &mut command, files.path());
    let address = listening(&mut process)?;
    Ok((process, address))
}

pub(super) fn command(program: &File, place: &Place, words: &[String]) -> Command {
    let mut command = place.command(program);
    command.arg("baseline").args(words);
    command
}

fn words<const N: usize>(words: [&dyn std::fmt::Display; N]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// Three splicers in a row. The far one stands on the open host where a NAT would keep connections out.
pub(super) fn splice(network: &Network, settings: &Settings) -> Result<Path> {
    let files = TempDir::with_prefix("tunnel-bench-")?;
    let far = Server::start(&network.open)?;
    let anywhere = SocketAddr::new(network.open_ip, 0);
    let (far_end, address) = part(
        settings,
        &network.open,
        &files,
        &words([&"splice", &anywhere, &far.address()]),
    )?;
    let anywhere = SocketAddr::new(network.relay_ip, 0);
    let (relay, address) = part(
        settings,
        &network.relay,
        &files,
        &words([&"splice", &anywhere, &address]),
    )?;
    let near_words = words([&"splice", &LOOPBACK, &address]);
    let (near_end, address) = part(settings, &network.near, &files, &near_words)?;
    Ok(Path {
        column: Column::Splice,
        target: Target {
            place: network.near.clone(),
            address,
            received: far.received(),
        },
        processes: vec![(Role::Near, near_end), (Role::Far, far_end), (Role::Relay, relay)],
        fleet: None,
        near: Near::Baseline(settings.program.clone(), near_words),
        relay: None,
        _far: far,
        _hosts: None,
        files: Some(files),
    })
}

pub(super) fn hop_by_hop(network: &Network, settings: &Settings) -> Result<Path> {
    let files = TempDir::with_prefix("tunnel-bench-")?;
    identity::create(files.path())?;
    let dir = files.path().display();
    let far = Server::start(&network.far)?;
    let anywhere = SocketAddr::new(network.relay_ip, 0);
    let (relay, address) = part(
        settings,
        &network.relay,
        &files,
        &words([&"quic-relay", &dir, &anywhere]),
    )?;
    let far_words = words([&"quic-far", &dir, &address, &far.address()]);
    let (far_end, _) = part(settings, &network.far, &files, &far_words)?;
    let near_words = words([&"quic-near", &dir, &address, &LOOPBACK]);
    let (near_end, address) = part(settings, &network.near, &files, &near_words)?;
    Ok(Path {
        column: Column::HopByHop,
        target: Target {
            place: network.near.clone(),
            address,
            received: far.received(),
        },
        processes: vec![(Role::Near, near_end), (Role::Far, far_end), (Role::Relay, relay)],
        fleet: None,
        near: Near::Baseline(settings.program.clone(), near_words),
        relay: None,
        _far: far,
        _hosts: None,
        files: Some(files),
    })
}

/// A relay of hop-by-hop QUIC with idle device ends; for its memory.
#[derive(Debug)]
pub struct IdleHops {
    /// The device ends.
    pub far: Vec<Process>,
    /// The relay.
    pub relay: Process,
    address: SocketAddr,
    files: TempDir,
}

impl IdleHops {
    /// Starts the relay alone.
    ///
    /// # Errors
    /// Fails when it does not come up.
    pub fn start(settings: &Settings) -> Result<Self> {
        let files = TempDir::with_prefix("tunnel-bench-")?;
        identity::create(files.path())?;
        let relay = words([&"quic-relay", &files.path().display(), &LOOPBACK]);
        let (relay, address) = part(settings, &Place::Here, &files, &relay)?;
        Ok(Self {
            far: Vec::new(),
            relay,
            address,
            files,
        })
    }

    /// Connects some device ends.
    ///
    /// # Errors
    /// Fails when one does not come up.
    pub fn connect(&mut self, settings: &Settings, count: usize) -> Result<()> {
        for _ in 0..count {
            let far = words([
                &"quic-far",
                &self.files.path().display(),
                &self.address,
                &self.address,
            ]);
            self.far.push(part(settings, &Place::Here, &self.files, &far)?.0);
        }
        Ok(())
    }
}
