//! The server of a test: its data directory, its process, and the commands of its owner.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::place::Place;
use crate::process::{self, Output, Process};
use crate::programs;
use crate::wait::SOON;

/// The fleet of all tests.
pub const TRUST_DOMAIN: &str = "fleet.test";

/// What everybody is told of where the server is.
#[derive(Clone, Copy, Debug)]
pub enum Told<'n> {
    /// Where it listens.
    Itself,
    /// Another address.
    Address(SocketAddr),
    /// A name, with the port on which it listens.
    Name(&'n str),
}

impl Told<'_> {
    fn text(self, own: SocketAddr) -> String {
        match self {
            Self::Itself => own.to_string(),
            Self::Address(address) => address.to_string(),
            Self::Name(name) => format!("{name}:{}", own.port()),
        }
    }
}

/// A server with a data directory of its own.
#[derive(Debug)]
pub struct Server {
    place: Place,
    directory: PathBuf,
    address: SocketAddr,
    invite: String,
    process: Option<Process>,
}

impl Server {
    /// Makes the data directory and starts the server on an address of `place`.
    ///
    /// # Panics
    /// When that does not work.
    pub fn start(place: &Place, ip: IpAddr, directory: &Path) -> Self {
        Self::start_as(place, ip, Told::Itself, directory)
    }

    /// As [`Server::start`]; everybody is told another address than the one that it listens on.
    ///
    /// # Panics
    /// As there.
    pub fn start_as(place: &Place, ip: IpAddr, told: Told<'_>, directory: &Path) -> Self {
        let mut server = (0..5)
            .find_map(|attempt| {
                Self::try_start(place, ip, told, &directory.join(format!("server-{attempt}")))
            })
            .expect("some port stays free between two moments");
        server.wait_until_listening();
        server
    }

    /// Another program may take the port between the look for it and its use: that is no failure of the server.
    fn try_start(place: &Place, ip: IpAddr, told: Told<'_>, directory: &Path) -> Option<Self> {
        std::fs::create_dir(directory).expect("a new directory");
        let address = free_address(place, ip);
        let data = directory.join("data");
        let mut init = place.command(programs::path("tunnel-server"));
        init.args([
            "init",
            "--json",
            "--node",
            "relay-1",
            "--trust-domain",
            TRUST_DOMAIN,
            "--data",
        ])
        .arg(&data);
        init.args(["--address", &told.text(address), "--listen", &address.to_string()]);
        let said = process::run(&mut init, SOON).ok();
        let mut server = Self {
            place: place.clone(),
            directory: directory.to_owned(),
            address,
            invite: find_code(&said),
            process: None,
        };
        server.launch();
        let process = server.process.as_mut().expect("it was started");
        let said = crate::wait::until("the server to listen or to fail", SOON, || {
            let said = process.said();
            (said.contains(LISTENING) || process.ended().is_some()).then_some(said)
        });
        (!said.contains("in use")).then_some(server)
    }

    fn launch(&mut self) {
        let mut run = self.place.command(programs::path("tunnel-server"));
        run.args(["run", "--data"]).arg(self.data());
        self.process = Some(Process::start("tunnel-server", &mut run, &self.directory));
    }

    #[track_caller]
    fn wait_until_listening(&mut self) {
        self.process
            .as_mut()
            .expect("it was started")
            .wait_to_say(LISTENING, SOON);
    }

    /// Starts it again, on the same data and the same port.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.launch();
        self.wait_until_listening();
    }

    /// Starts it again with its data on a small disk of its own, which is gone with the process. Needs the rights of root.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart_on_small_disk(&mut self) {
        let mut run = self.place.command("unshare");
        run.args(["--mount", "sh", "-ec", SMALL_DISK]);
        run.arg(programs::path("tunnel-server")).arg(self.data());
        self.process = Some(Process::start("tunnel-server", &mut run, &self.directory));
        self.wait_until_listening();
    }

    /// Fills the small disk up; the file that takes the room.
    ///
    /// # Panics
    /// When it cannot be filled.
    pub fn fill_disk(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.process().pid());
        let filler = Path::new(&root)
            .join(self.data().strip_prefix("/").expect("a whole path"))
            .join("filler");
        let mut file = std::fs::File::create(&filler).expect("a file on the small disk");
        for size in [64 * 1024, 1024, 1] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
        filler
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks it to end, and waits for that; its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> i32 {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        process.wait(SOON)
    }

    /// Returns the process.
    ///
    /// # Panics
    /// When it was ended.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    /// Returns the data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Returns where it listens, over TCP and UDP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the code that makes the first operator, a member of the group `admins`.
    pub fn invite(&self) -> &str {
        &self.invite
    }

    /// Makes an enrolment code, as `enrol_code(&["--device", "pump-17"])`.
    #[track_caller]
    pub fn enrol_code(&self, words: &[&str]) -> String {
        let mut command = self.command("enrol-code");
        find_code(&process::run(command.args(words).arg("--json"), SOON).ok())
    }

    /// Runs one of its commands on its data directory.
    pub fn run(&self, name: &str, words: &[&str]) -> Output {
        process::run(self.command(name).args(words), SOON)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self.place.command(programs::path("tunnel-server"));
        command.args([name, "--data"]).arg(self.data());
        command
    }
}

/// Runs a server with a copy of its data on a disk of 16 MiB that nobody else sees.
const SMALL_DISK: &str = r#"cp -a "$1" "$1.copy"; mount -t tmpfs -o size=16m,mode=700 tmpfs "$1"; cp -a "$1.copy/." "$1"
exec "$0" run --data "$1""#;

/// What the server logs once it can be reached.
const LISTENING: &str = "listening";

/// Finds an address whose port is free for TCP and for UDP.
fn free_address(place: &Place, ip: IpAddr) -> SocketAddr {
    place.on(|| {
        (0..100)
            .find_map(|_| {
                let address = TcpListener::bind((ip, 0)).ok()?.local_addr().ok()?;
                UdpSocket::bind(address).is_ok().then_some(address)
            })
            .expect("a port is free")
    })
}

/// Finds the enrolment code in the JSON of a command.
#[track_caller]
fn find_code(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let code = value.as_object().into_iter().flatten().find_map(|(_, value)| {
        let text = value.as_str()?;
        text.starts_with("tnl1_").then(|| text.to_owned())
    });
    code.unwrap_or_else(|| panic!("there is no code in {text}"))
}
