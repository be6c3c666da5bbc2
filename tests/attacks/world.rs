//! What the attacks share: a fleet with a device in the hands of the test, and how much is tried.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use tunnel_e2e::api::Api;
use tunnel_e2e::bare::{self, BareLeg};
use tunnel_e2e::puppet::Puppet;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Fleet, Operator, until};
use tunnel_proto::bind::{Control, Kind};

/// Multiplies how many inputs are tried; 1 if absent.
const SCALE: &str = "TUNNEL_ATTACKS_SCALE";

/// How long things may take that take seconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where attackers are.
pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Starts a server, and links a device that does what the test says.
pub(crate) fn world() -> (Fleet, Puppet) {
    let fleet = Fleet::on_loopback();
    let puppet = Puppet::new(&fleet, "pump-17");
    (fleet, puppet)
}

/// Returns how many of something are tried.
pub(crate) fn scaled(count: u64) -> u64 {
    let scale = std::env::var(SCALE)
        .ok()
        .and_then(|text| text.parse::<u64>().ok());
    count * scale.unwrap_or(1).max(1)
}

/// Checks that nothing has come back to a socket for all that it sent: a good bind behind it is answered, and is the first
/// that is. The relay handles what comes from one socket in its order.
#[track_caller]
pub(crate) fn assert_silent(socket: &UdpSocket, leg: &mut BareLeg) {
    let bind = leg.next_bind(0);
    socket.send(&bind).unwrap();
    let answer = bare::receive(socket, SOON).expect("a good bind is answered");
    let control = Control::decode(&answer);
    let control = control.unwrap_or_else(|| panic!("{} bytes came back", answer.len()));
    assert_eq!((control.kind, control.counter), (Kind::Challenge, leg.counter));
    assert!(Control::is_authentic(&answer, &leg.key));
    assert_eq!(bare::drain(socket), Vec::<Vec<u8>>::new());
}

/// The records of a kind, with their bodies read.
pub(crate) fn bodies(operator: &Operator, kind: &str) -> Vec<Value> {
    let all = operator.audit();
    let of_kind = all.iter().filter(|record| record["kind"] == kind);
    of_kind
        .map(|record| serde_json::from_str(record["body"].as_str().unwrap()).unwrap())
        .collect()
}

/// Waits until there are so many records of a kind.
pub(crate) fn wait_for(operator: &Operator, kind: &str, count: usize) -> Vec<Value> {
    until(&format!("{count} records of `{kind}`"), PATIENCE, || {
        let found = bodies(operator, kind);
        (found.len() >= count).then_some(found)
    })
}

/// The API as an operator calls it.
pub(crate) fn api(fleet: &Fleet, operator: &Operator) -> Api {
    Api::of(fleet.server.address(), &operator.home())
}
