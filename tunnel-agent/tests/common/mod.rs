//! What the black-box tests share: a fleet's certificates, and the program itself.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod server;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tunnel_agent::state::{StateDir, facts_text};
use tunnel_certs::{Authority, CertificateRequest, KeyPair, Trust};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::tls::{Credentials, Ends};
use tunnel_net::{ServerAddr, files};
use tunnel_proto::Identity;

/// How long anything may take that a test waits for.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// How old a fleet is: old enough for certificates that are to be renewed.
const AGE: Duration = Duration::from_secs(100 * 86_400);

/// A fleet with its authority.
pub(crate) struct Fleet {
    authority: Authority,
    pub(crate) trust: Arc<Trust>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let random = ring::rand::SystemRandom::new();
        let past = SystemClock.now().before(AGE);
        let new = Authority::create(&"fleet.example".parse().unwrap(), past, &random).unwrap();
        let authority = Authority::load(&new.issuing_pem, &new.issuing_key_pem, &new.root_pem).unwrap();
        Self {
            authority,
            trust: Arc::new(Trust::from_pem(&new.root_pem).unwrap()),
        }
    }

    pub(crate) fn identity(&self, path: &str) -> Identity {
        format!("spiffe://fleet.example/{path}").parse().unwrap()
    }

    /// Issues a chain that is valid for 90 days, of which 70 are over.
    pub(crate) fn old_chain(&self, request: &str, path: &str) -> String {
        let request = CertificateRequest::from_pem(request).unwrap();
        let (day, now) = (Duration::from_secs(86_400), SystemClock.now());
        self.authority
            .issue(
                &request,
                &self.identity(path),
                now.before(70 * day),
                90 * day,
                [8; 16],
            )
            .unwrap()
            .chain_pem
    }

    /// Makes a key and a certificate for `device/pump` and the like, valid for so many days.
    pub(crate) fn member(&self, path: &str, days: u64) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (
            self.chain(&tunnel_certs::request(&key).unwrap(), path, days),
            key.to_pem().to_string(),
        )
    }

    /// Issues a chain for a request.
    pub(crate) fn chain(&self, request: &str, path: &str, days: u64) -> String {
        let request = CertificateRequest::from_pem(request).unwrap();
        let lifetime = Duration::from_secs(days * 86_400);
        let now = SystemClock.now();
        self.authority
            .issue(&request, &self.identity(path), now, lifetime, [7; 16])
            .unwrap()
            .chain_pem
    }

    pub(crate) fn credentials(&self, path: &str) -> Credentials {
        let (chain, key) = self.member(path, 90);
        Credentials::load(&chain, &key).unwrap()
    }

    pub(crate) fn ends(&self) -> Ends {
        Ends::new(Arc::clone(&self.trust), Arc::new(SystemClock))
    }

    /// Writes the state of an enrolled device.
    pub(crate) fn enrol(&self, dir: &Path, id: &str, server: &ServerAddr, days: u64) -> StateDir {
        let path = format!("device/{id}");
        let (chain, key) = self.member(&path, days);
        let state = StateDir::new(dir);
        state.create().unwrap();
        files::write_private(&state.key(), key.as_bytes()).unwrap();
        files::write_private(&state.chain(), chain.as_bytes()).unwrap();
        files::write_private(&state.root(), self.trust.to_pem().as_bytes()).unwrap();
        let facts = facts_text(server, &self.identity(&path));
        files::write_private(&state.facts(), facts.as_bytes()).unwrap();
        state
    }
}

/// Returns a loopback port at which nobody answers.
pub(crate) fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Returns the program with nothing of this machine's settings.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel-agent"));
    for name in [
        "TUNNEL_AGENT_CONFIG",
        "TUNNEL_AGENT_STATE",
        "TUNNEL_AGENT_LOG",
        "TUNNEL_CARRIER",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(words: &[&str]) -> Output {
    finish(program().args(words))
}

/// Runs the program with an input.
pub(crate) fn run_with_input(words: &[&str], input: &str) -> Output {
    let mut command = program();
    let command = command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    output(child.wait_with_output().unwrap())
}

pub(crate) fn finish(command: &mut Command) -> Output {
    output(command.output().unwrap())
}

fn output(output: std::process::Output) -> Output {
    Output {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Writes a configuration that others cannot write.
pub(crate) fn write_config(dir: &Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("agent.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}
