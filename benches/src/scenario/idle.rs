//! What an idle device costs: memory on the relay, memory of the agent, and the size of its program.

use anyhow::Result;
use serde_json::Value;
use tunnel_e2e::fleet::Fleet;
use tunnel_e2e::process::Process;
use tunnel_e2e::wait::{SOON, until};
use tunnel_e2e::{place::Place, programs};

use super::{MB, float};
use crate::path::baselines::IdleHops;
use crate::path::rathole;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;
use crate::usage;

/// How long processes may still tidy up what their start needed.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(2);

/// The figures of one kind of fleet.
struct Found {
    column: Column,
    /// KB of the relay for each device.
    relay: f64,
    /// MB of each device's program.
    devices: Vec<f64>,
    /// MB of the program's file, where it is a program for devices.
    size: Option<f64>,
}

/// Measures our agents and those of the peers. Peers that do not run here are left out.
///
/// # Errors
/// Fails when an agent does not come up.
pub fn run(settings: &Settings, rathole: bool) -> Result<Vec<Row>> {
    let mut relay = Row::new(
        format!("memory of the relay for each of {} idle devices", settings.agents),
        "KB",
    );
    let mut device =
        Row::new("memory of an idle device's program", "MB").limit(Column::Udp, Limit::AtMost(10.0));
    let mut size =
        Row::new("size of a device's program, stripped", "MB").limit(Column::Udp, Limit::AtMost(6.0));
    let mut all = vec![ours(settings)?, hops(settings)?];
    if rathole {
        all.push(rathole_clients(settings)?);
    }
    for found in all {
        relay.push(found.column, found.relay);
        found
            .devices
            .iter()
            .for_each(|memory| device.push(found.column, *memory));
        found
            .size
            .into_iter()
            .for_each(|megabytes| size.push(found.column, megabytes));
    }
    Ok(vec![relay, device, size])
}

fn ours(settings: &Settings) -> Result<Found> {
    let fleet = Fleet::on_loopback();
    let devices: Vec<_> = (0..settings.agents)
        .map(|at| {
            fleet.enrol(
                fleet
                    .device(&format!("idle-{at}"))
                    .service("ssh", "tcp:127.0.0.1:22"),
            )
        })
        .collect();
    let server = fleet.server.process().pid();
    let growth = Growth::begin(server)?;
    let agents: Vec<_> = devices
        .iter()
        .map(|device| {
            let mut run = Place::Here.command(programs::path("tunnel-agent"));
            run.arg("run")
                .env("TUNNEL_AGENT_CONFIG", device.config())
                .env("TUNNEL_CARRIER", "udp");
            Process::start("tunnel-agent", &mut run, fleet.directory())
        })
        .collect();
    until("all agents to be linked", SOON, || {
        (linked(&fleet) == agents.len()).then_some(())
    });
    let size = float(usage::file_bytes(&programs::path("tunnel-agent"))?) / MB;
    found(Column::Udp, &growth, &agents, Some(size))
}

fn linked(fleet: &Fleet) -> usize {
    let answer = fleet.admin.json(&["devices"]);
    let rows = answer.as_array().or_else(|| answer["devices"].as_array());
    rows.into_iter()
        .flatten()
        .filter(|device| device["link"] != Value::Null)
        .count()
}

fn hops(settings: &Settings) -> Result<Found> {
    let mut idle = IdleHops::start(settings)?;
    let growth = Growth::begin(idle.relay.pid())?;
    idle.connect(settings, settings.agents)?;
    found(Column::HopByHop, &growth, &idle.far, None)
}

fn rathole_clients(settings: &Settings) -> Result<Found> {
    let mut idle = rathole::Idle::start(settings.agents)?;
    let growth = Growth::begin(idle.relay.pid())?;
    idle.connect(settings.agents)?;
    let size = float(usage::file_bytes(&rathole::program()?)?) / MB;
    found(Column::Rathole, &growth, &idle.clients, Some(size))
}

fn found(column: Column, growth: &Growth, devices: &[Process], size: Option<f64>) -> Result<Found> {
    std::thread::sleep(SETTLE);
    let relay = growth.kilobytes()? / float(devices.len() as u64);
    let devices = devices
        .iter()
        .map(|device| Ok(float(usage::resident_bytes(device.pid())?) / MB));
    Ok(Found {
        column,
        relay,
        devices: devices.collect::<Result<_>>()?,
        size,
    })
}

/// How much more memory a process has than before.
struct Growth {
    pid: u32,
    before: u64,
}

impl Growth {
    fn begin(pid: u32) -> Result<Self> {
        std::thread::sleep(SETTLE);
        Ok(Self {
            pid,
            before: usage::resident_bytes(pid)?,
        })
    }

    fn kilobytes(&self) -> Result<f64> {
        Ok((float(usage::resident_bytes(self.pid)?) - float(self.before)) / 1e3)
    }
}
