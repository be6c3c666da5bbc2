//! Making a new server: its directory, its authority, its keys, its store, its first policy and its first invite.

use std::io;
use std::time::Duration;

use ring::rand::SystemRandom;
use tunnel_certs::{Authority, AuthorityError, Trust};
use tunnel_net::addr::ServerAddr;
use tunnel_net::files::{FileError, create_private_dir, write_private};
use tunnel_proto::defaults::ENROL_CODE_LIFETIME;
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::keys::Secret;
use tunnel_proto::names::GroupName;
use tunnel_proto::{OperatorName, TrustDomain, UnixTime};

use crate::ca::{Keys, KeysError, make_secret, random_bytes};
use crate::config::{Config, DataDir};
use crate::policy::FIRST_POLICY;
use crate::store::{Makes, NewEnrolCode, Store, StoreError};

/// The group that the first policy lets do everything.
pub const ADMINS: &str = "admins";

/// Who makes what no operator makes: the command line on the server itself.
pub const LOCAL: &str = "server-command";

/// A server that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The invite of the first operator: shown once, stored nowhere.
    pub invite: String,
    /// When the invite ends.
    pub invite_expires_at: UnixTime,
    /// SHA-256 of the root certificate.
    pub root_fingerprint: [u8; 32],
}

/// Tells why a server could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// There is a server already.
    #[error("there is a server in `{0}` already")]
    Exists(String),
    /// The directory holds other things.
    #[error("`{directory}` is not empty: it holds `{found}`")]
    NotEmpty {
        /// The directory.
        directory: String,
        /// What is in it, for one.
        found: String,
    },
    /// The directory cannot be listed.
    #[error("could not look into `{directory}`")]
    List {
        /// The directory.
        directory: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority could not be made.
    #[error("could not make the fleet's authority")]
    Authority(#[from] AuthorityError),
    /// The keys could not be made or used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store could not be made.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a server in a directory that is new or empty. The configuration file is written last: if it is there, all is.
///
/// # Errors
/// Returns what stands in the way. A directory that was begun is not finished later: empty it first.
pub async fn init(data: &DataDir, config: &Config, admin: &OperatorName, now: UnixTime) -> Result<Made, InitError> {
    create_private_dir(data.path())?;
    check_empty(data)?;
    let made = Authority::create(&config.trust_domain, now, &SystemRandom::new())?;
    write_private(&data.root(), made.root_pem.as_bytes())?;
    write_private(&data.root_key(), made.root_key_pem.as_bytes())?;
    write_private(&data.issuing(), made.issuing_pem.as_bytes())?;
    write_private(&data.issuing_key(), made.issuing_key_pem.as_bytes())?;
    for path in [data.grant_key(), data.audit_key(), data.relay_secret()] {
        make_secret(&path)?;
    }
    let keys = Keys::load(data, config)?;
    keys.own_credentials(now)?;
    let store = Store::open(&data.store(), &config.trust_domain).await?;
    store.set_policy(FIRST_POLICY.to_owned(), LOCAL.to_owned(), now).await?;
    let order = CodeOrder {
        makes: Makes::Operators(vec![admin.clone()]),
        group: ADMINS.parse::<GroupName>().ok(),
        uses: 1,
        lifetime: ENROL_CODE_LIFETIME,
        replace: false,
        by: LOCAL.to_owned(),
    };
    let code = make_code(&store, &config.address, &keys.trust, order, now).await?;
    store.close().await;
    write_private(&data.config(), config.to_toml().as_bytes())?;
    Ok(Made { invite: code.text, invite_expires_at: code.expires_at, root_fingerprint: keys.trust.fingerprint() })
}

fn check_empty(data: &DataDir) -> Result<(), InitError> {
    let directory = data.path().display().to_string();
    if data.config().exists() {
        return Err(InitError::Exists(directory));
    }
    let list = |source| InitError::List { directory: directory.clone(), source };
    match std::fs::read_dir(data.path()).map_err(list)?.next() {
        None => Ok(()),
        Some(entry) => {
            let found = entry.map_err(list)?.file_name().to_string_lossy().into_owned();
            Err(InitError::NotEmpty { directory, found })
        }
    }
}

/// What an enrolment code is to be good for.
#[derive(Clone, Debug)]
pub struct CodeOrder {
    /// Whom it makes.
    pub makes: Makes,
    /// The group that newcomers are put into.
    pub group: Option<GroupName>,
    /// How often it can be used.
    pub uses: u32,
    /// How long it lives.
    pub lifetime: Duration,
    /// Whether it may replace an enrolled id's key.
    pub replace: bool,
    /// Who orders it.
    pub by: String,
}

/// An enrolment code that was made.
#[derive(Clone)]
pub struct MadeCode {
    /// The text, `tnl1_…`: a secret until it is used.
    pub text: String,
    /// When it ends.
    pub expires_at: UnixTime,
}

impl std::fmt::Debug for MadeCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeCode").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Makes an enrolment code and stores the hash of its secret.
///
/// # Errors
/// Returns an error if it is not stored; there is then no code.
pub async fn make_code(
    store: &Store,
    address: &ServerAddr,
    trust: &Trust,
    order: CodeOrder,
    now: UnixTime,
) -> Result<MadeCode, InitError> {
    let secret = Secret::new(random_bytes().map_err(|_| KeysError::Random)?);
    let code = EnrolCode { server: address.to_string(), root_fingerprint: trust.fingerprint(), secret };
    let expires_at = now.after(order.lifetime);
    let stored = NewEnrolCode {
        secret_hash: code.secret_hash(),
        makes: order.makes,
        group: order.group,
        uses: order.uses,
        expires_at,
        replace: order.replace,
        by: order.by,
    };
    store.add_enrol_code(stored, now).await?;
    Ok(MadeCode { text: code.to_text(), expires_at })
}

/// Names a fleet after its server's host; a fixed name where the host is an address or no domain name.
pub fn trust_domain_of(address: &ServerAddr) -> Option<TrustDomain> {
    let host = address.host.to_ascii_lowercase();
    let is_ip = host.parse::<std::net::IpAddr>().is_ok();
    let named = if is_ip { None } else { host.parse().ok() };
    named.or_else(|| "fleet.internal".parse().ok())
}
