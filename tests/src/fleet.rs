//! A whole fleet for one test: a server, devices, operators.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tempfile::TempDir;

use crate::agent::{Agent, Builder};
use crate::middle::Middle;
use crate::operator::Operator;
use crate::place::Place;
use crate::server::{Server, Told};
use crate::sshd::Sshd;

/// Held by each fleet: shared by most, alone by those whose test looks at the clock.
static TURN: RwLock<()> = RwLock::new(());

/// Whether other tests may run beside this one.
#[derive(Debug)]
enum Turn {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
    /// A second fleet of one test, in the turn of the first.
    OfAnother,
}

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the server is.
    pub server: Place,
    /// Its address there.
    pub ip: IpAddr,
    /// Where the operators are.
    pub operators: Place,
    /// Where the devices are.
    pub devices: Place,
    /// Whether no other test may run at the same time, because this one looks at the clock.
    pub alone: bool,
}

impl Default for Plan {
    /// Everything on loopback.
    fn default() -> Self {
        Self {
            server: Place::Here,
            ip: Ipv4Addr::LOCALHOST.into(),
            operators: Place::Here,
            devices: Place::Here,
            alone: false,
        }
    }
}

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
    _turn: Turn,
}

impl Fleet {
    /// Starts a server on loopback.
    ///
    /// # Panics
    /// When that does not work.
    pub fn on_loopback() -> Self {
        Self::start(Plan::default())
    }

    /// Starts a server on loopback while no other test runs.
    ///
    /// # Panics
    /// When that does not work.
    pub fn alone_on_loopback() -> Self {
        Self::start(Plan {
            alone: true,
            ..Plan::default()
        })
    }

    /// Starts a server and logs its first operator in.
    ///
    /// # Panics
    /// When that does not work.
    pub fn start(plan: Plan) -> Self {
        Self::start_named(plan, None)
    }

    /// As [`Fleet::start`], with a server that is known by a name in place of its address.
    ///
    /// # Panics
    /// When that does not work.
    pub fn start_named(plan: Plan, name: Option<&str>) -> Self {
        // A test that failed has left nothing behind that another one would trip over.
        let turn = if plan.alone {
            Turn::Alone {
                _guard: TURN.write().unwrap_or_else(PoisonError::into_inner),
            }
        } else {
            Turn::Shared {
                _guard: TURN.read().unwrap_or_else(PoisonError::into_inner),
            }
        };
        Self::build(plan, turn, name.map_or(Told::Itself, Told::Name), None)
    }

    /// Starts a server on loopback that everybody else reaches through a man in the middle alone.
    ///
    /// # Panics
    /// When that does not work.
    pub fn behind(middle: &Middle) -> Self {
        let turn = Turn::Shared {
            _guard: TURN.read().unwrap_or_else(PoisonError::into_inner),
        };
        Self::build(
            Plan::default(),
            turn,
            Told::Address(middle.address()),
            Some(middle),
        )
    }

    /// Starts another fleet for the same test, on loopback.
    ///
    /// # Panics
    /// When that does not work.
    pub fn another(&self) -> Self {
        Self::build(Plan::default(), Turn::OfAnother, Told::Itself, None)
    }

    fn build(plan: Plan, turn: Turn, told: Told<'_>, middle: Option<&Middle>) -> Self {
        let directory = TempDir::with_prefix("tunnel-e2e-").expect("a temporary directory");
        let server = Server::start_as(&plan.server, plan.ip, told, directory.path());
        if let Some(middle) = middle {
            middle.lead_to(server.address());
        }
        let admin = Operator::login("admin", &plan.operators, directory.path(), server.invite());
        Self {
            admin,
            server,
            directory,
            operators: plan.operators,
            devices: plan.devices,
            _turn: turn,
        }
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
        let code = self
            .server
            .enrol_code(&["--operator", name, "--group", "technicians"]);
        Operator::login(name, &self.operators, self.directory.path(), &code)
    }

    /// Returns the state directory of a device's agent.
    pub fn device_state(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("agent-{id}")).join("state")
    }

    /// Returns where the devices are.
    pub fn devices_place(&self) -> &Place {
        &self.devices
    }
}
