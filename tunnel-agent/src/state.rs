//! The state directory: the device's key, its certificate, the fleet's root, and what enrolment learnt.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use toml::de::DeTable;
use tunnel_certs::{CertError, KeyPair, Peer, Trust};
use tunnel_net::ServerAddr;
use tunnel_net::clock::{Clock as _, FloorClock};
use tunnel_net::files::{self, FileError};
use tunnel_net::tls::Credentials;
use tunnel_proto::names::Subject;
use tunnel_proto::{Identity, UnixTime};

use crate::defaults;
use crate::failure::Failure;

/// The directory that holds everything an agent keeps.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// What an enrolled agent is.
#[derive(Debug)]
pub struct Enrolled {
    /// Where the server is.
    pub server: ServerAddr,
    /// The fleet.
    pub trust: Arc<Trust>,
    /// The device as its certificate proves it.
    pub own: Peer,
    /// Chain and key, for TLS.
    pub credentials: Credentials,
}

/// Keeps a second agent from using the same state, until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl StateDir {
    /// Names a state directory.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Returns the directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file of the key.
    pub fn key(&self) -> PathBuf {
        self.path.join("key.pem")
    }

    /// Returns the file of a key that has no certificate yet.
    pub fn pending_key(&self) -> PathBuf {
        self.path.join("key-pending.pem")
    }

    /// Returns the file of the certificate chain.
    pub fn chain(&self) -> PathBuf {
        self.path.join("chain.pem")
    }

    /// Returns the file of the fleet's root.
    pub fn root(&self) -> PathBuf {
        self.path.join("root.pem")
    }

    /// Returns the file of what enrolment learnt.
    pub fn facts(&self) -> PathBuf {
        self.path.join("agent-state.toml")
    }

    /// Returns the file of where the server has proven to be itself.
    pub fn addresses(&self) -> PathBuf {
        self.path.join("addresses")
    }

    fn black_box(&self) -> PathBuf {
        self.path.join("black-box")
    }

    /// Reads what was kept of outages; what cannot be read is as nothing.
    pub fn load_black_box(&self) -> Vec<u8> {
        files::read_private(&self.black_box())
            .map(|bytes| bytes.to_vec())
            .unwrap_or_default()
    }

    /// Keeps what was seen in outages over a restart.
    ///
    /// # Errors
    /// Returns what the file system says; the agent goes on without.
    pub fn save_black_box(&self, bytes: &[u8]) -> Result<(), FileError> {
        files::write_private(&self.black_box(), bytes)
    }

    fn floor(&self) -> PathBuf {
        self.path.join("clock")
    }

    /// Makes the directory, or makes sure that nobody else can look into it.
    ///
    /// # Errors
    /// Says what is wrong with it, and the command that mends it.
    pub fn create(&self) -> Result<(), Failure> {
        files::create_private_dir(&self.path).map_err(|error| {
            let next = format!(
                "let `{}` be a directory of the agent's user with mode 700",
                self.path.display()
            );
            file_failure("could not use the state directory", &error, next)
        })
    }

    /// Takes the state for this process.
    ///
    /// # Errors
    /// Tells that another agent runs with it.
    pub fn lock(&self) -> Result<Lock, Failure> {
        self.take("lock", FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the state for this process and others of the same supervisor.
    ///
    /// # Errors
    /// As [`StateDir::lock`].
    pub fn lock_shared(&self) -> Result<Lock, Failure> {
        self.take("lock", FlockOperation::NonBlockingLockShared)
    }

    /// Takes the place of the state's one supervisor.
    ///
    /// # Errors
    /// As [`StateDir::lock`].
    pub fn lock_supervisor(&self) -> Result<Lock, Failure> {
        self.take("supervisor-lock", FlockOperation::NonBlockingLockExclusive)
    }

    fn take(&self, name: &str, operation: FlockOperation) -> Result<Lock, Failure> {
        let path = self.path.join(name);
        let what = format!("could not take the state directory `{}`", self.path.display());
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| {
                Failure::local("E_STATE", what.clone(), error, "let the agent's user write in it")
            })?;
        match flock(&file, operation) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::local(
                "E_STATE_BUSY",
                what,
                "an agent runs with it",
                "stop that one first, as by `systemctl stop tunnel-agent`",
            )),
            Err(error) => Err(Failure::local(
                "E_STATE",
                what,
                io::Error::from(error),
                "use a local file system",
            )),
        }
    }

    /// Says whether there is a certificate.
    pub fn is_enrolled(&self) -> bool {
        self.chain().symlink_metadata().is_ok()
    }

    /// Makes the clock, with its floor from the last run.
    pub fn clock(&self) -> FloorClock {
        let saved = files::read_private_text(&self.floor()).ok();
        FloorClock::new(
            saved
                .and_then(|text| text.trim().parse().ok())
                .map(UnixTime::from_secs),
        )
    }

    /// Keeps the last proven time for the next run.
    ///
    /// # Errors
    /// Returns what the file system says; the agent goes on without.
    pub fn save_clock(&self, proven: UnixTime) -> Result<(), FileError> {
        files::write_private(&self.floor(), format!("{}\n", proven.as_secs()).as_bytes())
    }

    /// Reads and checks everything that enrolment left.
    ///
    /// # Errors
    /// Says which file is missing, loose, damaged or out of date, and what to do.
    pub fn load(&self, clock: &FloorClock) -> Result<Enrolled, Failure> {
        if !self.is_enrolled() {
            return Err(Failure::local(
                "E_NOT_ENROLLED",
                "could not start as a device",
                format!("there is no certificate in `{}`", self.path.display()),
                "run `tunnel-agent enrol CODE` with a code from the fleet's owner",
            ));
        }
        let (server, identity) = parse_facts(&self.text(&self.facts())?)
            .ok_or_else(|| self.damaged(&self.facts(), "it does not name server and identity"))?;
        let key = KeyPair::from_pem(&self.text(&self.key())?).map_err(|e| self.damaged(&self.key(), e))?;
        let trust = Trust::from_pem(&self.text(&self.root())?).map_err(|e| self.damaged(&self.root(), e))?;
        let chain_pem = self.text(&self.chain())?;
        let chain = tunnel_certs::pem::read_chain(&chain_pem).map_err(|e| self.damaged(&self.chain(), e))?;
        let own = verify_own(&trust, &chain, clock).map_err(|error| self.not_valid(&error))?;
        if own.key != key.key_hash() || own.identity != identity || !is_device(&own.identity) {
            return Err(self.damaged(
                &self.chain(),
                "key, certificate and identity do not belong together",
            ));
        }
        let credentials = Credentials::new(chain, key).map_err(|error| self.damaged(&self.chain(), error))?;
        Ok(Enrolled {
            server,
            trust: Arc::new(trust),
            own,
            credentials,
        })
    }

    fn text(&self, path: &Path) -> Result<zeroize::Zeroizing<String>, Failure> {
        files::read_private_text(path).map_err(|error| {
            let next = if error.is_missing() {
                "run `tunnel-agent enrol --replace CODE` with a fresh code"
            } else {
                "mend that file, then start the agent again"
            };
            file_failure("could not read the device's identity", &error, next)
        })
    }

    fn damaged(&self, path: &Path, why: impl std::fmt::Display) -> Failure {
        let what = format!("could not use `{}`", path.display());
        Failure::local(
            "E_STATE",
            what,
            why,
            "run `tunnel-agent enrol --replace CODE` with a fresh code",
        )
    }

    fn not_valid(&self, error: &CertError) -> Failure {
        let what = format!("could not use the certificate `{}`", self.chain().display());
        let failure = Failure::of(error.code(), what).because(error);
        match error {
            CertError::Expired { .. } => failure.next(
                "check this machine's clock; if it is right, run `tunnel-agent enrol --replace CODE` with a fresh code",
            ),
            _ => failure,
        }
    }
}

/// Verifies the device's own chain. That it was issued shows that it is not earlier than its start, whatever the clock
/// says.
pub(crate) fn verify_own(
    trust: &Trust,
    chain: &[tunnel_certs::CertificateDer<'_>],
    clock: &FloorClock,
) -> Result<Peer, CertError> {
    match trust.verify(chain, clock.now()) {
        Err(CertError::NotYet { not_before }) => {
            clock.prove(not_before);
            trust.verify(chain, clock.now())
        }
        other => other,
    }
}

fn is_device(identity: &Identity) -> bool {
    matches!(identity.subject, Subject::Device(_))
}

/// Writes what enrolment learnt.
pub fn facts_text(server: &ServerAddr, identity: &Identity) -> String {
    let udp_port = server.udp_port;
    format!(
        "# Written by `tunnel-agent enrol`.\nserver = \"{server}\"\nudp_port = {udp_port}\nidentity = \"{identity}\"\n"
    )
}

fn parse_facts(text: &str) -> Option<(ServerAddr, Identity)> {
    let table = DeTable::parse(text).ok()?;
    let field = |name: &str| table.get_ref().get(name).map(toml::Spanned::get_ref);
    let server: ServerAddr = field("server")?.as_str()?.parse().ok()?;
    let port = field("udp_port")?.as_integer()?;
    let port = u16::from_str_radix(port.as_str(), port.radix()).ok()?;
    Some((
        server.with_udp_port(port),
        field("identity")?.as_str()?.parse().ok()?,
    ))
}

/// Makes a failure of what is wrong with a file; its message names the mend where there is a simple one.
pub(crate) fn file_failure(what: &str, error: &FileError, next: impl Into<String>) -> Failure {
    let why = match error {
        FileError::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    let failure = Failure::local("E_STATE", what, &why, next);
    match why.rsplit_once("; ") {
        Some((why, mend)) if !matches!(error, FileError::Io { .. }) => failure.because(why).next(mend),
        _ => failure,
    }
}

/// Becomes the user that the state directory belongs to, when started by root: nothing here needs root's rights, and
/// files stay readable to the service (THREATS AGT-07). Must be called before any thread is started.
///
/// # Errors
/// Tells that the kernel does not allow it.
pub fn become_owner(state_dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = state_dir.metadata() else {
        return Ok(());
    };
    if !rustix::process::geteuid().is_root() || meta.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(meta.uid()),
        rustix::fs::Gid::from_raw(meta.gid()),
    );
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .map_err(|error| {
            let what = format!(
                "could not become user {}, to whom the state directory belongs",
                meta.uid()
            );
            Failure::local(
                "E_USER",
                what,
                io::Error::from(error),
                "start the program as that user",
            )
        })
}

/// Says whether the floor has grown enough to be written down again.
pub(crate) fn worth_saving(saved: Option<UnixTime>, now: UnixTime) -> bool {
    saved.is_none_or(|saved| now.since(saved) >= defaults::FLOOR_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(&dir.path().join("state"));
        state.create().unwrap();
        (dir, state)
    }

    #[test]
    fn facts_read_back() {
        let server = "[2001:db8::1]:8443"
            .parse::<ServerAddr>()
            .unwrap()
            .with_udp_port(9);
        let identity: Identity = "spiffe://fleet.example/device/pump".parse().unwrap();
        assert_eq!(
            parse_facts(&facts_text(&server, &identity)),
            Some((server, identity))
        );
        assert_eq!(parse_facts("server = \"a:1\""), None);
        assert_eq!(parse_facts("\0"), None);
    }

    #[test]
    fn one_agent_at_a_time_has_the_state() {
        let (_dir, state) = state();
        let first = state.lock().unwrap();
        assert_eq!(state.lock().unwrap_err().code, "E_STATE_BUSY");
        drop(first);
        assert!(state.lock().is_ok());
    }

    #[test]
    fn the_clock_keeps_its_floor() {
        let (_dir, state) = state();
        let future = tunnel_net::clock::SystemClock
            .now()
            .after(std::time::Duration::from_secs(1_000_000));
        assert!(state.clock().now() < future);
        state.save_clock(future).unwrap();
        assert!(state.clock().now() >= future);
    }

    #[test]
    fn the_floor_is_not_written_each_time() {
        let at = UnixTime::from_secs;
        assert!(worth_saving(None, at(0)));
        assert!(!worth_saving(Some(at(100)), at(3699)));
        assert!(worth_saving(Some(at(100)), at(3700)));
    }

    #[test]
    fn an_empty_state_says_that_it_is_not_enrolled() {
        let (_dir, state) = state();
        let failure = state.load(&state.clock()).unwrap_err();
        assert_eq!(failure.code, "E_NOT_ENROLLED");
        assert!(failure.next.contains("enrol CODE"));
    }

    // AGT-06
    #[test]
    fn loose_files_and_directories_are_refused_with_the_mend() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, state) = state();
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let failure = state.create().unwrap_err();
        assert!(failure.next.contains("chmod 700"), "{failure}");
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        for path in [state.facts(), state.chain(), state.key(), state.root()] {
            files::write_private(
                &path,
                facts_text(&"a:1".parse().unwrap(), &"spiffe://f/device/a".parse().unwrap()).as_bytes(),
            )
            .unwrap();
        }
        std::fs::set_permissions(state.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let failure = state.load(&state.clock()).unwrap_err();
        assert!(
            failure.why.contains("key.pem") && failure.why.contains("644"),
            "{failure}"
        );
        assert!(failure.next.contains("chmod 600"), "{failure}");
    }
}
