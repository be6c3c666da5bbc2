//! The emulated networks of the suites: a server, a technician, and a device behind NAT or not.

use std::net::IpAddr;

use tunnel_e2e::dns::{Dns, Zone};
use tunnel_e2e::{Fleet, Lab, Plan};

/// A network with a fleet in it. The fleet goes before its network does.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) lab: Lab,
}

/// The server's host name and its link's.
pub(crate) const SERVER: &str = "server";
/// The technician's host name and its link's.
pub(crate) const TECHNICIAN: &str = "technician";
/// The NAT in front of the device, and the name of its link.
pub(crate) const SITE: &str = "site";
/// The device's host name.
pub(crate) const DEVICE: &str = "device";

/// The server's name, where it has one.
pub(crate) const NAME: &str = "relay.test";

/// A device behind NAT, on links of no length.
pub(crate) const NAT: &str = r#"
    [host.server]
    address = "198.51.100.1"
    [host.technician]
    address = "203.0.113.10"
    [nat.site]
    address = "203.0.113.20"
    [host.device]
    behind = "site"
"#;

/// Nothing but IPv6.
pub(crate) const IPV6: &str = r#"
    link = { delay = "5ms" }
    [host.server]
    address = "2001:db8::1"
    [host.technician]
    address = "2001:db8::10"
    [host.device]
    address = "2001:db8::20"
"#;

impl World {
    /// Builds a network and starts a fleet in it.
    pub(crate) fn new(network: &str) -> Self {
        Self::build(network, false)
    }

    /// As [`World::new`], while no other test runs.
    pub(crate) fn alone(network: &str) -> Self {
        Self::build(network, true)
    }

    /// As [`World::new`], with a server that is known by [`NAME`], which a DNS server on each host knows.
    pub(crate) fn named(network: &str, zone: &Zone) -> (Self, Vec<Dns>) {
        let lab = Lab::up(network);
        lab.ask_own_dns();
        let hosts = [SERVER, TECHNICIAN, DEVICE];
        let dns = hosts.map(|host| Dns::start(&lab.host(host), zone));
        (Self::within(lab, network, Some(NAME), false), dns.into())
    }

    fn build(network: &str, alone: bool) -> Self {
        Self::within(Lab::up(network), network, None, alone)
    }

    /// Starts a fleet in a network that is there.
    pub(crate) fn within(lab: Lab, network: &str, name: Option<&str>, alone: bool) -> Self {
        let v6 = network.contains("2001:db8::1\"");
        let ip: IpAddr = if v6 { "2001:db8::1" } else { "198.51.100.1" }.parse().unwrap();
        let plan = Plan {
            server: lab.host(SERVER),
            ip,
            operators: lab.host(TECHNICIAN),
            devices: lab.host(DEVICE),
            alone,
        };
        Self {
            fleet: Fleet::start_named(plan, name),
            lab,
        }
    }
}
