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
use crate::store::{Makes, NewEnrolCode, Store, StoreError};
use tunnel_policy::FIRST_POLICY;

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
pub async fn init(
    data: &DataDir,
    config: &Config,
    admin: &OperatorName,
    now: UnixTime,
) -> Result<Made, InitError> {
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
    store
        .set_policy(FIRST_POLICY.to_owned(), None, LOCAL.to_owned(), now)
        .await?
        .map_err(|_| StoreError::Busy)?;
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
    Ok(Made {
        invite: code.text,
        invite_expires_at: code.expires_at,
        root_fingerprint: keys.trust.fingerprint(),
    })
}

fn check_empty(data: &DataDir) -> Result<(), InitError> {
    let directory = data.path().display().to_string();
    if data.config().exists() {
        return Err(InitError::Exists(directory));
    }
    let list = |source| InitError::List {
        directory: directory.clone(),
        source,
    };
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
        f.debug_struct("MadeCode")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
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
    let code = EnrolCode {
        server: address.to_string(),
        root_fingerprint: trust.fingerprint(),
        secret,
    };
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
    Ok(MadeCode {
        text: code.to_text(),
        expires_at,
    })
}

/// Names a fleet after its server's host; a fixed name where the host is an address or no domain name.
pub fn trust_domain_of(address: &ServerAddr) -> Option<TrustDomain> {
    let host = address.host.to_ascii_lowercase();
    let is_ip = host.parse::<std::net::IpAddr>().is_ok();
    let named = if is_ip { None } else { host.parse().ok() };
    named.or_else(|| "fleet.internal".parse().ok())
}

#[cfg(test)]
mod tests {
    use tunnel_certs::{CertificateRequest, KeyPair, pem};

    use super::*;
    use crate::ca::SERVER_CERT_LIFETIME;
    use crate::store::Enrolment;
    use tunnel_policy::Engine;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn config() -> Config {
        Config {
            node: "n1".parse().unwrap(),
            trust_domain: "fleet.example".parse().unwrap(),
            address: "relay.example:8443".parse().unwrap(),
            listen: crate::config::all_addresses(8443),
            metrics: None,
            returns_per_sec: crate::config::RETURNS_PER_SEC,
            audit_keep_days: None,
            audit_strict: false,
            authoriser: None,
            notify: Vec::new(),
        }
    }

    async fn made() -> (tempfile::TempDir, DataDir, Made) {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path().join("data"));
        let made = init(&data, &config(), &"ana".parse().unwrap(), NOW)
            .await
            .unwrap();
        (directory, data, made)
    }

    #[tokio::test]
    async fn the_invite_makes_the_first_operator_an_admin() {
        let (_directory, data, made) = made().await;
        let config = Config::load(&data).unwrap();
        let keys = Keys::load(&data, &config).unwrap();
        let code = EnrolCode::from_text(&made.invite).unwrap();
        assert_eq!(code.root_fingerprint, keys.trust.fingerprint());

        let key = KeyPair::generate().unwrap();
        let request = CertificateRequest::from_pem(&tunnel_certs::request(&key).unwrap()).unwrap();
        let enrolment = Enrolment {
            secret_hash: code.secret_hash(),
            wanted: None,
            key: request.key_hash(),
            source: "192.0.2.1".into(),
        };
        let store = Store::open(&data.store(), &config.trust_domain).await.unwrap();
        let issuer = keys.issuer();
        let issue = Box::new(move |identity: &_| issuer.issue(&request, identity, NOW));
        let enrolled = store.enrol(enrolment, NOW, issue).await.unwrap().unwrap();

        let chain = pem::read_chain(&enrolled.certificate.chain_pem).unwrap();
        let peer = keys.trust.verify(&chain, NOW).unwrap();
        assert_eq!(peer.identity.to_string(), "spiffe://fleet.example/operator/ana");
        assert_eq!(peer.not_after, enrolled.certificate.not_after);
        let ana = store.operator(&"ana".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(ana.groups, [ADMINS.parse().unwrap()]);
        let policy = store.policy().await.unwrap().unwrap();
        assert_eq!((policy.revision, policy.text.as_str()), (1, FIRST_POLICY));
        assert_eq!(Engine::new(&policy.text).unwrap().len(), 4);
    }

    #[tokio::test]
    async fn the_servers_certificate_is_issued_anew_in_time() {
        let (_directory, data, _) = made().await;
        let keys = Keys::load(&data, &config()).unwrap();
        let (first, due) = keys.own_credentials(NOW).unwrap();
        let peer = keys.trust.verify(first.chain(), NOW).unwrap();
        assert_eq!(peer.identity.to_string(), "spiffe://fleet.example/server/n1");
        assert_eq!(keys.own_credentials(NOW).unwrap().0.chain(), first.chain());
        assert_eq!(keys.own_certificate_due(NOW).unwrap(), Some(due));
        assert!(due > NOW && due < NOW.after(SERVER_CERT_LIFETIME));

        let (second, later) = keys.own_credentials(due).unwrap();
        assert_ne!(second.chain()[0], first.chain()[0]);
        assert!(later > due);
        assert_eq!(keys.own_credentials(due).unwrap().0.chain(), second.chain());

        let renamed = Config {
            node: "n2".parse().unwrap(),
            ..config()
        };
        let (third, _) = Keys::load(&data, &renamed).unwrap().own_credentials(due).unwrap();
        let peer = keys.trust.verify(third.chain(), due).unwrap();
        assert_eq!(peer.identity.to_string(), "spiffe://fleet.example/server/n2");
    }

    #[tokio::test]
    async fn a_server_whose_own_certificate_is_lost_gets_another() {
        let (_directory, data, _) = made().await;
        std::fs::remove_file(data.server()).unwrap();
        std::fs::remove_file(data.server_key()).unwrap();
        let keys = Keys::load(&data, &config()).unwrap();
        assert!(keys.own_certificate_due(NOW).is_err());
        keys.own_credentials(NOW).unwrap();
        assert!(keys.own_certificate_due(NOW).unwrap().is_some());
    }

    #[tokio::test]
    async fn keys_of_another_fleet_are_refused() {
        let (_directory, data, _) = made().await;
        let other = Config {
            trust_domain: "other.example".parse().unwrap(),
            ..config()
        };
        assert!(matches!(
            Keys::load(&data, &other),
            Err(KeysError::OtherFleet { .. })
        ));
        assert!(Keys::load(&data, &config()).is_ok());
    }

    /// A crash at any point before the last file leaves a directory that is refused, never one that half works.
    #[tokio::test]
    async fn an_init_that_did_not_finish_is_neither_used_nor_finished() {
        let (_directory, data, _) = made().await;
        std::fs::remove_file(data.config()).unwrap();
        assert!(Config::load(&data).is_err());
        let again = init(&data, &config(), &"ana".parse().unwrap(), NOW).await;
        assert!(matches!(again, Err(InitError::NotEmpty { .. })));
    }

    #[test]
    fn a_fleet_is_named_after_its_host() {
        for (address, name) in [
            ("relay.example:1", "relay.example"),
            ("Relay.Example:1", "relay.example"),
            ("192.0.2.1:1", "fleet.internal"),
            ("[2001:db8::1]:1", "fleet.internal"),
            ("my_host:1", "fleet.internal"),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(trust_domain_of(&address).unwrap().as_str(), name, "{address}");
        }
    }
}
