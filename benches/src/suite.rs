//! Scenarios by name, and the run of several of them.

use anyhow::Result;
use clap::ValueEnum;
use tunnel_e2e::skip::{Need, must_skip};
use tunnel_e2e::sshd;

use crate::crowd::Crowd;
use crate::machine::Origin;
use crate::network::Network;
use crate::path::{Path, rathole};
use crate::report::{Column, Report};
use crate::scenario::{bulk, cut, day, echo, idle, loss, open, setup, ssh, stall, typing};
use crate::settings::Settings;

/// A scenario, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Name {
    /// Every scenario.
    All,
    /// Time to the first byte.
    Setup,
    /// `tunnel ssh` beside plain `ssh` at 80 ms.
    Ssh,
    /// Round trips of 64 bytes.
    Echo,
    /// Throughput, CPU and memory of transfers.
    Bulk,
    /// Keystrokes beside a transfer.
    Typing,
    /// One stream over a radio that loses packets.
    Loss,
    /// How long a session stands still after a fault.
    Stall,
    /// Memory and size of what is idle.
    Idle,
    /// Bytes of an idle device's day.
    Day,
    /// Tunnels opened in a second.
    Open,
    /// From an event's commit to the last byte of the sessions that it ends.
    Cut,
}

/// Runs scenarios beside the peers in some columns; `progress` is told what begins.
///
/// # Errors
/// Fails when a path does not come up or breaks. A peer that does not build is only noted.
pub fn run(
    settings: &Settings,
    names: &[Name],
    columns: &[Column],
    progress: &dyn Fn(&str),
) -> Result<Report> {
    let wanted = |name: Name| names.contains(&name) || names.contains(&Name::All);
    let mut report = Report {
        origin: Origin::here(),
        rows: Vec::new(),
        notes: Vec::new(),
    };
    let mut columns = columns.to_vec();
    columns.retain(|column| *column != Column::AllowAll);
    let beside_peers = [
        Name::Setup,
        Name::Echo,
        Name::Bulk,
        Name::Typing,
        Name::Loss,
        Name::Stall,
        Name::Idle,
    ];
    if columns.contains(&Column::Rathole) && beside_peers.into_iter().any(wanted) {
        progress("building rathole, unless it stands already");
        if let Err(error) = rathole::program() {
            report.notes.push(format!("rathole is missing: {error:#}."));
            columns.retain(|column| *column != Column::Rathole);
        }
    }
    let open = |network: &Network, but: &[Column]| {
        columns
            .iter()
            .filter(|column| !but.contains(column))
            .map(|column| Path::open(*column, network, settings))
            .collect::<Result<Vec<_>>>()
    };
    if wanted(Name::Ssh) && may_emulate("ssh at 80 ms", &mut report.notes) {
        progress("ssh at 80 ms");
        report.rows.extend(ssh::run(settings)?);
    }
    if [Name::Setup, Name::Echo, Name::Bulk, Name::Typing]
        .into_iter()
        .any(wanted)
    {
        progress("setting the paths up on loopback");
        let paths = open(&Network::loopback(), &[Column::OpenSsh])?;
        if wanted(Name::Setup) {
            progress("time to the first byte");
            report.rows.extend(setup::run(settings, &paths)?);
        }
        if wanted(Name::Echo) {
            progress("echo");
            report.rows.extend(echo::run(settings, &paths)?);
        }
        if wanted(Name::Bulk) {
            progress("bulk transfers");
            report.rows.extend(bulk::run(settings, &paths)?);
        }
        if wanted(Name::Typing) {
            progress("keystrokes beside a transfer, loopback");
            report
                .rows
                .extend(typing::run(settings, typing::Setting::Loopback, &paths)?);
        }
    }
    if wanted(Name::Typing) && may_emulate("keystrokes at 10 Mbit/s", &mut report.notes) {
        let (lab, network) = Network::emulated("rate = \"10mbit\"");
        let paths = open(&network, &[Column::OpenSsh, Column::HopByHop, Column::Splice])?;
        for queue in [100, 500, 2000] {
            progress(&format!(
                "keystrokes beside a transfer, 10 Mbit/s, queue of {queue} ms"
            ));
            for link in ["mobile", "open"] {
                lab.set(link, &format!("queue={queue}ms"));
            }
            let setting = typing::Setting::SlowLink(queue);
            report.rows.extend(typing::run(settings, setting, &paths)?);
        }
    }
    if wanted(Name::Loss) && may_emulate("a radio that loses packets", &mut report.notes) {
        progress("one stream over a radio that loses packets");
        let (_lab, network) = Network::emulated(loss::LINK);
        let paths = open(&network, &[Column::HopByHop, Column::Splice, Column::Rathole])?;
        report.rows.extend(loss::run(settings, &paths)?);
    }
    if wanted(Name::Stall) && may_emulate("stalls after faults", &mut report.notes) {
        report.rows.extend(stall::run(settings, &columns, progress)?);
    }
    if wanted(Name::Idle) {
        progress("idle devices");
        report
            .rows
            .extend(idle::run(settings, columns.contains(&Column::Rathole))?);
    }
    if wanted(Name::Open) || wanted(Name::Cut) {
        let mut crowd = Crowd::gather(settings.crowd, progress)?;
        if wanted(Name::Open) {
            progress("tunnels opened in a second");
            report.rows.extend(open::run(settings, &mut crowd)?);
        }
        if wanted(Name::Cut) {
            progress("cuts");
            report.rows.extend(cut::run(settings, &mut crowd)?);
        }
    }
    if wanted(Name::Day) && may_emulate("a day of an idle device", &mut report.notes) {
        progress("bytes of an idle device's day");
        report.rows.extend(day::run(settings)?);
    }
    Ok(report)
}

/// Tells whether networks can be emulated here, and notes it if not.
fn may_emulate(what: &str, notes: &mut Vec<String>) -> bool {
    let [sshd, client] = sshd::NEEDS;
    let missing = must_skip(what, &[Need::Namespaces, sshd, client]);
    if missing {
        notes.push(format!(
            "{what} is missing: it needs root, network namespaces, nftables and OpenSSH."
        ));
    }
    !missing
}
