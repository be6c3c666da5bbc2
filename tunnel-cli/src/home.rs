//! The state directory: who this operator is, where the server is, and the host keys of devices.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tunnel_certs::{CertError, KeyPair, Peer, Trust};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::files::{self, FileError};
use tunnel_net::tls::{Credentials, Ends};
use tunnel_net::{ProxyChoice, ServerAddr};
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, OperatorName};

use crate::failure::Failure;

/// Directory of the host keys, one file for each device.
pub const KNOWN_HOSTS: &str = "known_hosts";

/// How the names of keys begin that wait for a certificate.
pub const PENDING: &str = "pending-";

const KEY: &str = "key.pem";
const CHAIN: &str = "chain.pem";
const ROOT: &str = "root.pem";
const PROFILE: &str = "profile.toml";

/// Where the server has proven to be itself.
const ADDRESSES: &str = "addresses";

/// The state directory, checked or not yet there.
#[derive(Clone, Debug)]
pub struct Home {
    dir: PathBuf,
}

/// What a login leaves behind besides key and certificates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The server, as `host:port`.
    pub server: String,
    /// The UDP port of its relay.
    pub udp_port: u16,
    /// The proxy on the way to the server, or `none`; without it, as the environment says.
    #[serde(default)]
    pub proxy: Option<String>,
}

/// A login that works as far as this machine can tell.
#[derive(Debug)]
pub struct Login {
    /// Where the server is.
    pub server: ServerAddr,
    /// The fleet's root.
    pub trust: Arc<Trust>,
    /// What proves who the operator is.
    pub credentials: Credentials,
    /// Who the operator is, as the own certificate says.
    pub peer: Peer,
    /// The operator's name.
    pub operator: OperatorName,
}

impl Login {
    /// Returns what the check of a peer needs.
    pub fn ends(&self) -> Ends {
        Ends::new(self.trust.clone(), Arc::new(SystemClock))
    }
}

/// What a login has brought, to be kept.
#[derive(Debug)]
pub struct NewLogin<'a> {
    /// The private key.
    pub key: &'a KeyPair,
    /// The chain, leaf first, PEM.
    pub chain: &'a str,
    /// The root, PEM.
    pub root: &'a str,
    /// The server.
    pub profile: &'a Profile,
}

impl Home {
    /// Finds the directory: the flag, `TUNNEL_HOME`, `XDG_CONFIG_HOME/tunnel`, `~/.config/tunnel`.
    ///
    /// # Errors
    /// Tells that none of these is set.
    pub fn find(flag: Option<&Path>) -> Result<Self, Failure> {
        let env = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let dir = flag
            .map(Path::to_owned)
            .or_else(|| env("TUNNEL_HOME"))
            .or_else(|| {
                env("XDG_CONFIG_HOME")
                    .filter(|dir| dir.is_absolute())
                    .map(|dir| dir.join("tunnel"))
            })
            .or_else(|| env("HOME").map(|dir| dir.join(".config/tunnel")));
        let dir = dir.ok_or_else(|| {
            Failure::new(Code::BadRequest, "could not find the state directory")
                .why("neither TUNNEL_HOME nor HOME is set")
                .next("set one of them, or use `--home DIR`")
        })?;
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Ok(Self { dir })
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory if it is not there, and checks that nobody else can look into it (THREATS CLI-06).
    ///
    /// # Errors
    /// Tells what is wrong with it, and how to mend it.
    pub fn create(&self) -> Result<(), Failure> {
        files::create_private_dir(&self.dir).map_err(|error| file_failure(&error))
    }

    /// Reads the login and checks it against this machine's clock.
    ///
    /// # Errors
    /// Tells that there is none, that its files are open to others, or that its certificate does not count any more.
    pub fn login(&self) -> Result<Login, Failure> {
        if !self.dir.exists() {
            return Err(not_logged_in());
        }
        self.create()?;
        let profile = self.read(PROFILE)?;
        let profile: Profile = toml::from_str(&profile)
            .map_err(|error| damaged(&self.dir.join(PROFILE)).detail(error.message().to_owned()))?;
        let server: ServerAddr = profile
            .server
            .parse()
            .map_err(|_| damaged(&self.dir.join(PROFILE)))?;
        let server = self.on_the_way(server, profile.proxy.as_deref())?;
        let root = self.read(ROOT)?;
        let trust = Trust::from_pem(&root).map_err(|_| damaged(&self.dir.join(ROOT)))?;
        let chain = self.read(CHAIN)?;
        let chain = tunnel_certs::pem::read_chain(&chain).map_err(|_| damaged(&self.dir.join(CHAIN)))?;
        let key = KeyPair::from_pem(&self.read(KEY)?).map_err(|_| damaged(&self.dir.join(KEY)))?;
        let (peer, operator) = check(&trust, &chain, &key)?;
        let credentials = Credentials::new(chain, key).map_err(|_| damaged(&self.dir.join(KEY)))?;
        let server = server.remembered_in(&self.dir.join(ADDRESSES));
        Ok(Login {
            server: server.with_udp_port(profile.udp_port),
            trust: Arc::new(trust),
            credentials,
            peer,
            operator,
        })
    }

    /// Returns what the profile says of the proxy, for a login that replaces the present one.
    pub fn proxy(&self) -> Option<String> {
        let profile = self.read_optional(PROFILE).ok()??;
        toml::from_str::<Profile>(&profile).ok()?.proxy
    }

    /// Puts the proxy on the way to the server: the profile's, or else that of the environment.
    ///
    /// # Errors
    /// Tells that what names the proxy cannot be used.
    pub fn on_the_way(&self, server: ServerAddr, proxy: Option<&str>) -> Result<ServerAddr, Failure> {
        const WHAT: &str = "could not use the proxy";
        let choice = match proxy {
            Some(text) => text.parse().map_err(|error: tunnel_net::proxy::ProxyTextError| {
                Failure::new(Code::BadRequest, WHAT)
                    .why(error.to_string())
                    .next(format!(
                        "correct `proxy` in `{}`",
                        self.dir.join(PROFILE).display()
                    ))
            })?,
            None => ProxyChoice::Environment,
        };
        choice.on_the_way(server).map_err(|error| {
            Failure::new(Code::BadRequest, WHAT)
                .why(format!("in the variable `{}`, {}", error.variable, error.source))
                .next("set it to a proxy, or unset it")
        })
    }

    /// Keeps a login. The profile comes last: without it there is no login.
    ///
    /// # Errors
    /// Tells which file could not be written.
    pub fn save(&self, new: &NewLogin<'_>) -> Result<(), Failure> {
        self.create()?;
        self.write(KEY, new.key.to_pem().as_bytes())?;
        self.write(CHAIN, new.chain.as_bytes())?;
        self.write(ROOT, new.root.as_bytes())?;
        let Profile {
            server,
            udp_port,
            proxy,
        } = new.profile;
        let mut profile = format!("server = {server:?}\nudp_port = {udp_port}\n");
        if let Some(proxy) = proxy {
            profile.push_str(&format!("proxy = {proxy:?}\n"));
        }
        self.write(PROFILE, profile.as_bytes())
    }

    /// Forgets the login; says whether there was one. What was written about devices goes too.
    ///
    /// # Errors
    /// Tells which file could not be removed.
    pub fn forget(&self) -> Result<bool, Failure> {
        let mut was = false;
        self.remove_pending()?;
        for name in [PROFILE, ADDRESSES, KEY, CHAIN, ROOT] {
            was |= self.remove(name)?;
        }
        let hosts = self.dir.join(KNOWN_HOSTS);
        match std::fs::remove_dir_all(&hosts) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io_failure("removed", &hosts, &error))
            }
            _ => Ok(was),
        }
    }

    /// Removes the keys that wait for a certificate.
    ///
    /// # Errors
    /// Tells which file could not be removed.
    pub fn remove_pending(&self) -> Result<(), Failure> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            if let Some(name) = entry
                .file_name()
                .to_str()
                .filter(|name| name.starts_with(PENDING))
            {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    /// Reads a small file of the directory; `None` if there is none.
    ///
    /// # Errors
    /// Tells that it cannot be read, or that it is open to others.
    pub fn read_optional(&self, name: &str) -> Result<Option<zeroize::Zeroizing<String>>, Failure> {
        match files::read_private_text(&self.dir.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(file_failure(&error)),
        }
    }

    /// Writes a file of the directory, whole or not at all.
    ///
    /// # Errors
    /// Tells what the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        files::write_private(&self.dir.join(name), bytes).map_err(|error| file_failure(&error))
    }

    /// Removes a file of the directory; says whether it was there.
    ///
    /// # Errors
    /// Tells what the system refuses.
    pub fn remove(&self, name: &str) -> Result<bool, Failure> {
        let path = self.dir.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_failure("removed", &path, &error)),
        }
    }

    /// Writes the host keys of a device, unless the file says the same already.
    ///
    /// # Errors
    /// Tells what the system refuses.
    pub fn write_known_hosts(&self, host: &str, text: &str) -> Result<(), Failure> {
        let dir = self.dir.join(KNOWN_HOSTS);
        let path = dir.join(host);
        if files::read_private(&path).is_ok_and(|bytes| *bytes == text.as_bytes()) {
            return Ok(());
        }
        files::create_private_dir(&dir).map_err(|error| file_failure(&error))?;
        files::write_private(&path, text.as_bytes()).map_err(|error| file_failure(&error))
    }

    fn read(&self, name: &str) -> Result<zeroize::Zeroizing<String>, Failure> {
        self.read_optional(name)?.ok_or_else(not_logged_in)
    }
}

/// Checks that a chain is an operator's, of this fleet, valid now, and of this key.
///
/// # Errors
/// Tells which of these fails.
pub fn check(
    trust: &Trust,
    chain: &[CertificateDer<'_>],
    key: &KeyPair,
) -> Result<(Peer, OperatorName), Failure> {
    let what = "could not use the login";
    let peer = trust.verify(chain, SystemClock.now()).map_err(|error| {
        let failure = Failure::new(error.code(), what);
        match error {
            CertError::Expired { .. } => failure
                .why("the login has expired")
                .next("run `tunnel login CODE` with a fresh code"),
            _ => failure,
        }
    })?;
    if peer.key != key.key_hash() {
        return Err(Failure::new(Code::CertName, what)
            .why("key and certificate do not belong together")
            .next("run `tunnel login CODE` with a fresh code"));
    }
    let Subject::Operator(operator) = peer.identity.subject.clone() else {
        return Err(Failure::new(Code::CertUsage, what).why("the certificate is not an operator's"));
    };
    Ok((peer, operator))
}

/// Returns the failure of every command that needs a login where there is none.
fn not_logged_in() -> Failure {
    Failure::new(Code::Unauthenticated, "could not use the login")
        .why("nobody is logged in here")
        .next("ask the fleet's owner for a code and run `tunnel login CODE`")
}

fn damaged(path: &Path) -> Failure {
    Failure::new(Code::BadRequest, "could not use the login")
        .why(format!("`{}` is damaged", path.display()))
        .next("run `tunnel login CODE` with a fresh code")
}

/// Turns what is wrong with a file into a failure.
pub fn file_failure(error: &FileError) -> Failure {
    let failure = Failure::new(Code::BadRequest, "could not use the state directory");
    let text = error.to_string();
    let failure = match text.split_once("; ") {
        Some((why, next)) => failure.why(why).next(next),
        None => failure
            .why(text)
            .next("check the directory, its owner and its free space"),
    };
    match std::error::Error::source(error) {
        Some(source) => failure.detail(source.to_string()),
        None => failure,
    }
}

fn io_failure(action: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::BadRequest, "could not use the state directory")
        .why(format!("`{}` could not be {action}", path.display()))
        .next("check the directory and its owner")
        .detail(error.to_string())
}
