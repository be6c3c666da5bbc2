//! Where the parts of a path are: all on loopback, or on the hosts of an emulated network.

use std::net::{IpAddr, Ipv4Addr};

use tunnel_e2e::fleet::Plan;
use tunnel_e2e::lab::Lab;
use tunnel_e2e::place::Place;

/// Places of the parts of a path.
#[derive(Clone, Debug)]
pub struct Network {
    /// The operator's place.
    pub near: Place,
    /// The relay's place.
    pub relay: Place,
    /// The relay's address.
    pub relay_ip: IpAddr,
    /// The device's place.
    pub far: Place,
    /// A place as far from the operator as the device, that can be reached without a tunnel.
    pub open: Place,
    /// Its address.
    pub open_ip: IpAddr,
}

/// The address of the relay in emulated networks.
const RELAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

/// The address of the open host in emulated networks.
const OPEN: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));

impl Network {
    /// Puts all parts on loopback.
    pub fn loopback() -> Self {
        let ip = Ipv4Addr::LOCALHOST.into();
        let here = Place::Here;
        Self {
            near: here.clone(),
            relay: here.clone(),
            relay_ip: ip,
            far: here.clone(),
            open: here,
            open_ip: ip,
        }
    }

    /// Builds an emulated network: the operator and the device are 40 ms from the relay and 80 ms from each other, the device
    /// behind NAT. `link` holds more properties of the device's link, as `rate = "10mbit"`.
    ///
    /// # Panics
    /// When the machine does not let it.
    pub fn emulated(link: &str) -> (Lab, Self) {
        Self::built(link, "")
    }

    /// As [`Network::emulated`], with more properties of the device's NAT, as `udp_timeout = "30s"`.
    ///
    /// # Panics
    /// When the machine does not let it.
    pub fn behind(nat: &str) -> (Lab, Self) {
        Self::built("", nat)
    }

    fn built(link: &str, nat: &str) -> (Lab, Self) {
        let lab = Lab::up(&format!(
            "seed = 1\ncongestion = \"cubic\"\n\
             [host.relay]\naddress = \"{RELAY}\"\n\
             [host.technician]\nlink = {{ delay = \"20ms\" }}\n\
             [nat.mobile]\n{nat}\nlink = {{ delay = \"20ms\", {link} }}\n\
             [host.device]\nbehind = \"mobile\"\n\
             [host.open]\naddress = \"{OPEN}\"\nlink = {{ delay = \"20ms\", {link} }}\n"
        ));
        let network = Self {
            near: lab.host("technician"),
            relay: lab.host("relay"),
            relay_ip: RELAY,
            far: lab.host("device"),
            open: lab.host("open"),
            open_ip: OPEN,
        };
        (lab, network)
    }

    /// Returns where the parts of a fleet are.
    pub fn plan(&self) -> Plan {
        Plan {
            server: self.relay.clone(),
            ip: self.relay_ip,
            operators: self.near.clone(),
            devices: self.far.clone(),
            ..Plan::default()
        }
    }
}
