//! Legs in networks that change and that are narrow, in namespaces of their own.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod links;
mod moves;
mod mtu;
#[path = "../support/mod.rs"]
mod support;

use support::fleet::{Connected, Fleet};
use support::lab::{Host, Lab};
use support::relay::Relay;
use tunnel_net::link::Try;
use tunnel_proto::bind::Role;

/// A relay, an operator's laptop and a device, each on a host of its own.
struct World {
    lab: Lab,
    ends: Connected,
    relay: Relay,
    _hosts: [Host; 3],
}

impl World {
    /// Builds the network, and lets `prepare` change it before the ends connect.
    async fn start(plan: &str, carriers: Try, prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut lab = Lab::up(plan);
        prepare(&mut lab);
        let hosts = ["relay", "laptop", "device"].map(|host| lab.host(host));
        let fleet = Fleet::new();
        let (at, tls) = (lab.address("relay"), fleet.api_server());
        let relay = hosts[0].run(async move { Relay::start(at, tls).await }).await;
        let leg = async |host: &Host, role| {
            let (addr, tls) = (relay.addr.clone(), fleet.api_client());
            host.run(async move { Relay::leg(&addr, role, tls, carriers) })
                .await
        };
        let source = leg(&hosts[1], Role::Source).await;
        let destination = leg(&hosts[2], Role::Destination).await;
        let ends = fleet.connect(source, destination).await;
        Self {
            lab,
            ends,
            relay,
            _hosts: hosts,
        }
    }
}

/// Three hosts of one version of IP; laptop and device are each this far from the relay, one way.
fn plan(v6: bool, delay_ms: u32) -> String {
    let [relay, laptop, device] = match v6 {
        false => ["198.51.100.1", "203.0.113.10", "203.0.113.20"],
        true => ["2001:db8:1::1", "2001:db8:2::10", "2001:db8:2::20"],
    };
    format!(
        "[host.relay]\naddress = \"{relay}\"\n\
         [host.laptop]\naddress = \"{laptop}\"\nlink = {{ delay = \"{delay_ms}ms\" }}\n\
         [host.device]\naddress = \"{device}\"\nlink = {{ delay = \"{delay_ms}ms\" }}\n"
    )
}
