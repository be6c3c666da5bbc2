//! The path through rathole, a well-known reverse proxy in Rust. Its relay sees what it carries: TLS protects the leg to the
//! device, and the operator's leg is plain TCP without a program of its own.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path as File, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tunnel_e2e::place::Place;
use tunnel_e2e::process::Process;

use super::{Near, PATIENCE, Path, Role};
use crate::baseline::identity;
use crate::load::client::Target;
use crate::load::server::Server;
use crate::network::Network;
use crate::report::Column;

/// The release that is compared with.
pub const VERSION: &str = "0.5.0";

/// Password of the file that holds its certificate; the format demands one.
const PASSWORD: &str = "bench";

/// What its client logs once the relay knows it.
const LINKED: &str = "Control channel established";

/// Returns the program, which is built into the target directory unless it stands there.
///
/// # Errors
/// Fails when it does not build; the message says why.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own
        .ancestors()
        .find(|path| path.ends_with("target"))
        .context("a program lies in `target`")?;
    let root = target.join("bench").join("rathole");
    let program = root.join("bin").join("rathole");
    if !program.is_file() {
        install(&root)?;
    }
    Ok(program)
}

/// Builds it. Its own lock file names a release of `time` that newer compilers refuse, so it is used only where it works.
fn install(root: &File) -> Result<()> {
    let mut said = String::new();
    for locked in [true, false] {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args([
            "install",
            "rathole",
            "--version",
            VERSION,
            "--no-default-features",
        ]);
        cargo
            .args(["--features", "server,client,tls", "--root"])
            .arg(root);
        if locked {
            cargo.arg("--locked");
        }
        let output = cargo.output().context("could not run cargo")?;
        if output.status.success() {
            return Ok(());
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    let line = said
        .lines()
        .find(|line| line.starts_with("error"))
        .unwrap_or("it says nothing");
    bail!("rathole {VERSION} does not build here: {line}")
}

pub(super) fn open(network: &Network) -> Result<Path> {
    let program = program()?;
    let far = Server::start(&network.far)?;
    let files = Files::create()?;
    let address = free_address(&network.relay, network.relay_ip)?;
    let entry = free_address(&network.relay, network.relay_ip)?;
    let relay = files.server(&program, &network.relay, address, &[entry])?;
    let client = files.client(&program, &network.far, address, 0, far.address())?;
    let again = Relay {
        program,
        place: network.relay.clone(),
        address,
        entry,
    };
    Ok(Path {
        column: Column::Rathole,
        target: Target {
            place: network.near.clone(),
            address: entry,
            received: far.received(),
        },
        processes: vec![(Role::Far, client), (Role::Relay, relay)],
        fleet: None,
        near: Near::Nothing,
        relay: Some(again),
        _far: far,
        _hosts: None,
        files: Some(files.directory),
    })
}

/// How its relay is started again.
#[derive(Debug)]
pub(super) struct Relay {
    program: PathBuf,
    place: Place,
    address: SocketAddr,
    entry: SocketAddr,
}

impl Relay {
    /// Starts it in place of one that has ended.
    pub(super) fn start(&self, files: &File) -> Result<Process> {
        run_server(files, &self.program, &self.place, self.address, &[self.entry])
    }
}

/// A relay with idle clients, each with a service of its own; for its memory.
#[derive(Debug)]
pub struct Idle {
    /// The clients.
    pub clients: Vec<Process>,
    /// The relay.
    pub relay: Process,
    program: PathBuf,
    address: SocketAddr,
    files: Files,
}

impl Idle {
    /// Starts a relay for some clients.
    ///
    /// # Errors
    /// Fails when it does not come up.
    pub fn start(count: usize) -> Result<Self> {
        let program = program()?;
        let files = Files::create()?;
        let network = Network::loopback();
        let address = free_address(&network.relay, network.relay_ip)?;
        let entries = (0..count).map(|_| free_address(&network.relay, network.relay_ip));
        let entries = entries.collect::<Result<Vec<_>>>()?;
        let relay = files.server(&program, &network.relay, address, &entries)?;
        Ok(Self {
            clients: Vec::new(),
            relay,
            program,
            address,
            files,
        })
    }

    /// Connects the clients.
    ///
    /// # Errors
    /// Fails when one does not come up.
    pub fn connect(&mut self, count: usize) -> Result<()> {
        for at in 0..count {
            self.clients.push(self.files.client(
                &self.program,
                &Place::Here,
                self.address,
                at,
                self.address,
            )?);
        }
        Ok(())
    }
}

/// Its files.
#[derive(Debug)]
struct Files {
    directory: TempDir,
}

impl Files {
    fn create() -> Result<Self> {
        let directory = TempDir::with_prefix("tunnel-bench-")?;
        identity::create(directory.path())?;
        let output = Command::new("openssl")
            .args([
                "pkcs12",
                "-export",
                "-inkey",
                "key.pem",
                "-in",
                "cert.pem",
                "-out",
                "identity.pfx",
            ])
            .args(["-passout", &format!("pass:{PASSWORD}")])
            .current_dir(directory.path())
            .output()
            .context("could not run `openssl`, which makes rathole's certificate file")?;
        if !output.status.success() {
            bail!(
                "`openssl` made no certificate file: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(Self { directory })
    }

    fn server(
        &self,
        program: &File,
        place: &Place,
        listen: SocketAddr,
        entries: &[SocketAddr],
    ) -> Result<Process> {
        run_server(self.directory.path(), program, place, listen, entries)
    }

    fn client(
        &self,
        program: &File,
        place: &Place,
        relay: SocketAddr,
        at: usize,
        target: SocketAddr,
    ) -> Result<Process> {
        let root = self.directory.path().join("cert.pem");
        let text = format!(
            "[client]\nremote_addr = \"{relay}\"\ndefault_token = \"bench\"\n[client.transport]\ntype = \"tls\"\n\
             [client.transport.tls]\ntrusted_root = \"{}\"\nhostname = \"bench.internal\"\n\
             [client.services.s{at}]\nlocal_addr = \"{target}\"\n",
            root.display()
        );
        let mut process = run(
            self.directory.path(),
            program,
            place,
            "--client",
            &format!("client-{at}.toml"),
            &text,
        )?;
        process.wait_to_say(LINKED, PATIENCE);
        Ok(process)
    }
}

fn run_server(
    files: &File,
    program: &File,
    place: &Place,
    listen: SocketAddr,
    entries: &[SocketAddr],
) -> Result<Process> {
    let identity = files.join("identity.pfx");
    let mut text = format!(
        "[server]\nbind_addr = \"{listen}\"\ndefault_token = \"bench\"\n[server.transport]\ntype = \"tls\"\n\
         [server.transport.tls]\npkcs12 = \"{}\"\npkcs12_password = \"{PASSWORD}\"\n",
        identity.display()
    );
    for (at, entry) in entries.iter().enumerate() {
        let _ = writeln!(text, "[server.services.s{at}]\nbind_addr = \"{entry}\"");
    }
    let mut process = run(files, program, place, "--server", "server.toml", &text)?;
    process.wait_to_say("Listening", PATIENCE);
    Ok(process)
}

fn run(files: &File, program: &File, place: &Place, role: &str, name: &str, text: &str) -> Result<Process> {
    let file = files.join(name);
    fs::write(&file, text)?;
    let mut command = place.command(program);
    command
        .arg(role)
        .arg(&file)
        .env("RUST_LOG", "info")
        .env("NO_COLOR", "1");
    Ok(Process::start("rathole", &mut command, files))
}

/// Finds an address whose port is free; rathole cannot choose one by itself.
pub(super) fn free_address(place: &Place, ip: IpAddr) -> Result<SocketAddr> {
    Ok(place.on(|| TcpListener::bind((ip, 0)))?.local_addr()?)
}
