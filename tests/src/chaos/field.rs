//! The emulated network with the fleet in it, and how faults are done to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::chaos::fault::{Fault, Kind, Site};
use crate::chaos::service::{self, Findings};
use crate::process::run;
use crate::service::Service;
use crate::{Agent, Fleet, Lab, Operator, Plan, Server, Sshd};

/// The device of all sessions.
pub const DEVICE: &str = "pump-17";

/// The service that checks what it gets.
pub const CHECKED: &str = "checked";

/// Links of 5 ms each, so that packets can overtake each other: 20 ms from end to end.
const NETWORK: &str = r#"
    link = { delay = "5ms" }
    [host.server]
    address = "198.51.100.1"
    [host.technician]
    address = "203.0.113.10"
    [nat.site]
    address = "203.0.113.20"
    [host.device]
    behind = "site"
"#;

/// How long a command may take that changes an address.
const SOON: Duration = Duration::from_secs(20);

/// A fleet in a network of its own. Fields are dropped in this order: the fleet goes before its network does.
#[derive(Debug)]
pub struct Field {
    /// The agent of the device.
    pub agent: Agent,
    /// The fleet.
    pub fleet: Fleet,
    /// The device's sshd.
    pub sshd: Sshd,
    /// What the checking service has found.
    pub findings: Findings,
    _service: Service,
    lab: Lab,
}

impl Field {
    /// Builds the network and starts the fleet in it.
    ///
    /// # Panics
    /// When that does not work.
    pub fn build(seed: u64) -> Self {
        let lab = Lab::up(&format!("seed = {}\n{NETWORK}", seed >> 1));
        let fleet = Fleet::start(Plan {
            server: lab.host("server"),
            ip: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
            operators: lab.host("technician"),
            devices: lab.host("device"),
            alone: false,
        });
        let findings = Findings::default();
        let service = service::start(fleet.devices_place(), &findings);
        let sshd = fleet.sshd("sshd");
        let device = fleet.device(DEVICE).sshd(&sshd).as_service();
        let agent = fleet.link(device.service(CHECKED, &service.target()));
        Self {
            agent,
            fleet,
            sshd,
            findings,
            _service: service,
            lab,
        }
    }

    /// Splits it into what faults are done to and what sessions are opened with.
    pub fn split(&mut self) -> (Target<'_>, Opener<'_>) {
        let target = Target {
            lab: &self.lab,
            server: &mut self.fleet.server,
            agent: &mut self.agent,
            active: BTreeSet::new(),
        };
        let opener = Opener {
            operator: &self.fleet.admin,
            sshd: &self.sshd,
            findings: &self.findings,
        };
        (target, opener)
    }
}

/// What sessions are opened with.
#[derive(Clone, Copy, Debug)]
pub struct Opener<'a> {
    /// Who opens them.
    pub operator: &'a Operator,
    /// The device's sshd.
    pub sshd: &'a Sshd,
    /// What the checking service has found.
    pub findings: &'a Findings,
}

/// What faults are done to.
#[derive(Debug)]
pub struct Target<'a> {
    lab: &'a Lab,
    server: &'a mut Server,
    agent: &'a mut Agent,
    active: BTreeSet<Fault>,
}

impl Target<'_> {
    /// Begins a fault; it returns once it is there.
    pub fn begin(&mut self, fault: Fault) {
        match fault.kind {
            Kind::Kill => self.server.kill(),
            Kind::Restart => drop(self.server.stop()),
            Kind::AgentRestart => self.agent.restart(),
            Kind::AgentCrash => self.agent.kill_supervisor_and_restart(),
            Kind::Move if fault.site == Site::Technician => self.lab.rebind("technician"),
            Kind::Move => self.move_device(),
            Kind::Rebind => self.lab.rebind("site"),
            Kind::MoveBoth => {
                self.lab.rebind("technician");
                self.move_device();
            }
            _ => {
                self.active.insert(fault);
                self.set_link(fault.site);
            }
        }
    }

    /// Ends a fault; it returns once all is as before.
    pub fn end(&mut self, fault: Fault) {
        match fault.kind {
            Kind::Kill | Kind::Restart => self.server.restart(),
            _ if fault.kind.is_instant() => {}
            _ => {
                self.active.remove(&fault);
                self.set_link(fault.site);
            }
        }
    }

    /// Gives the device another address behind its NAT, as another network does.
    fn move_device(&self) {
        let script = r#"
            old=$(ip -4 -o address show dev eth0 | sed 's/.*192.168.1.\([0-9]*\)\/.*/\1/')
            ip address flush dev eth0 &&
            ip address add 192.168.1.$((old % 200 + 20))/24 dev eth0 &&
            ip route replace default via 192.168.1.1"#;
        run(self.lab.host("device").command("sh").args(["-c", script]), SOON).ok();
    }

    /// Makes a link what all of its faults together make of it.
    fn set_link(&mut self, site: Site) {
        let link = match site {
            Site::Server => "server",
            Site::Technician => "technician",
            Site::Device => "site",
        };
        let has = |kind| {
            self.active
                .iter()
                .any(|fault| fault.kind == kind && fault.site == site)
        };
        let blocked = match (has(Kind::BanUdp), has(Kind::BanWebSocket)) {
            (true, true) => "udp,tcp",
            (true, false) => "udp",
            (false, true) => "tcp",
            (false, false) => "none",
        };
        let (mtu, told) = match (has(Kind::Mtu1000), has(Kind::Mtu1280)) {
            (true, _) => (1000, false),
            (false, true) => (1280, true),
            (false, false) => (1500, true),
        };
        let (rate, queue) = if has(Kind::Bufferbloat) {
            ("2mbit", "2s")
        } else {
            ("none", "50ms")
        };
        let loss = if has(Kind::Loss) { 10 } else { 0 };
        let out = if has(Kind::LossOut) { 30 } else { loss };
        let reorder = if has(Kind::Reorder) { 20 } else { 0 };
        let cut = has(Kind::Cut);
        self.lab.set_all(
            link,
            &[
                &format!("block={blocked}"),
                &format!("mtu={mtu}"),
                &format!("pmtud={told}"),
                &format!("rate={rate}"),
                &format!("queue={queue}"),
                &format!("loss={loss}%"),
                &format!("reorder={reorder}%"),
                &format!("cut={cut}"),
            ],
        );
        if out != loss {
            self.lab.set(&format!("{link}.up"), &format!("loss={out}%"));
        }
    }
}
