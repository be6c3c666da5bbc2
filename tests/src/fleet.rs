//! A whole fleet for one test: a server, devices, operators.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use tempfile::TempDir;

use crate::agent::{Agent, Builder};
use crate::operator::Operator;
use crate::place::Place;
use crate::server::Server;
use crate::sshd::Sshd;

/// A server with its first operator, and the directory of all files of the test.
#[derive(Debug)]
pub struct Fleet {
    /// The first operator, a member of the group `admins`.
    pub admin: Operator,
    /// The server.
    pub server: Server,
    directory: TempDir,
    operators: Place,
    devices: Place,
}

impl Fleet {
    /// Starts a server on loopback.
    ///
    /// # Panics
    /// When that does not work.
    pub fn on_loopback() -> Self {
        Self::start(&Place::Here, Ipv4Addr::LOCALHOST.into(), Place::Here, Place::Here)
    }

    /// Starts a server at an address of a place; operators and devices are elsewhere.
    ///
    /// # Panics
    /// When that does not work.
    pub fn start(server: &Place, ip: IpAddr, operators: Place, devices: Place) -> Self {
        let directory = TempDir::with_prefix("tunnel-e2e-").expect("a temporary directory");
        let server = Server::start(server, ip, directory.path());
        let admin = Operator::login("admin", &operators, directory.path(), server.invite());
        Self { admin, server, directory, operators, devices }
    }

    /// Returns the directory of the test's files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts an sshd beside the devices.
    pub fn sshd(&self, name: &str) -> Sshd {
        Sshd::start(&self.devices, &self.directory.path().join(name))
    }

    /// Begins with a device; [`Fleet::enrol`] makes it real.
    pub fn device(&self, id: &str) -> Builder {
        Builder::new(id, &self.devices, self.directory.path())
    }

    /// Enrols a device, starts its agent and waits for its link.
    #[track_caller]
    pub fn link(&self, device: Builder) -> Agent {
        let mut agent = self.enrol(device);
        agent.start();
        self.admin.wait_for_link(agent.id());
        agent
    }

    /// Enrols a device without starting its agent.
    #[track_caller]
    pub fn enrol(&self, device: Builder) -> Agent {
        let code = self.server.enrol_code(&["--device", device.id()]);
        device.enrol(&code)
    }

    /// Logs an operator of the group `technicians` in, who may use the service `ssh` and no other.
    #[track_caller]
    pub fn technician(&self, name: &str) -> Operator {
        let code = self.server.enrol_code(&["--operator", name, "--group", "technicians"]);
        Operator::login(name, &self.operators, self.directory.path(), &code)
    }

    /// Returns where the devices are.
    pub fn devices_place(&self) -> &Place {
        &self.devices
    }
}
