//! The path through the programs under test.

use anyhow::Result;
use tunnel_e2e::fleet::Fleet;
use tunnel_e2e::operator::Operator;
use tunnel_e2e::process::Process;
use tunnel_e2e::programs;

use super::{Near, Path, Role, listening};
use crate::load::client::Target;
use crate::load::server::Server;
use crate::network::Network;
use crate::report::Column;

/// The service that leads to the load's far end.
const SERVICE: &str = "bench-echo";

const DEVICE: &str = "bench-device";

/// The variable that keeps a program to one carrier.
pub(crate) const CARRIER: &str = "TUNNEL_CARRIER";

/// Lets the programs choose.
pub(super) const ANY_CARRIER: (&str, &str) = (CARRIER, "auto");

/// Names the variable that keeps a program to one carrier, and the value for a column.
pub(crate) const fn carrier(column: Column) -> (&'static str, &'static str) {
    (
        CARRIER,
        if matches!(column, Column::WebSocket) {
            "websocket"
        } else {
            "udp"
        },
    )
}

pub(super) fn open(column: Column, carrier: (&str, &str), network: &Network) -> Result<Path> {
    let far = Server::start(&network.far)?;
    let fleet = Fleet::start(network.plan());
    let device = fleet.enrol(
        fleet
            .device(DEVICE)
            .service(SERVICE, &format!("tcp:{}", far.address())),
    );
    let (name, value) = carrier;
    let mut run = network.far.command(programs::path("tunnel-agent"));
    run.arg("run")
        .env("TUNNEL_AGENT_CONFIG", device.config())
        .env(name, value);
    let agent = Process::start("tunnel-agent", &mut run, fleet.directory());
    fleet.admin.wait_for_link(DEVICE);
    let mut near = Process::start("tunnel", &mut forward(&fleet.admin, carrier), fleet.directory());
    let address = listening(&mut near)?;
    Ok(Path {
        column,
        target: Target {
            place: network.near.clone(),
            address,
            received: far.received(),
        },
        processes: vec![(Role::Near, near), (Role::Far, agent)],
        fleet: Some(fleet),
        near: Near::Ours(carrier.1.to_owned()),
        relay: None,
        _far: far,
        _hosts: None,
        files: None,
    })
}

pub(super) fn forward(operator: &Operator, (name, value): (&str, &str)) -> std::process::Command {
    let mut command = operator.cli(&["--json", "forward", DEVICE, &format!("127.0.0.1:0:{SERVICE}")]);
    command.env(name, value);
    command
}
