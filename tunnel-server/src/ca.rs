//! The server's keys: those of the fleet's authority, its own, and what it issues with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tunnel_certs::{
    Authority, AuthorityError, CertificateRequest, KeyError, KeyPair, RequestError, Trust, renew_at,
};
use tunnel_net::files::{FileError, read_private_text, write_private};
use tunnel_net::tls::{Credentials, CredentialsError};
use tunnel_proto::cose::SigningKey;
use tunnel_proto::defaults::{DEVICE_CERT_LIFETIME, OPERATOR_CERT_LIFETIME};
use tunnel_proto::ids::{hex, unhex};
use tunnel_proto::keys::Secret;
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, Identity, Refusal, UnixTime};

use crate::config::{Config, DataDir};
use crate::failure::chain;
use crate::store::Certificate;

/// Life of the server's own certificate. The server issues it itself, and anew after two thirds.
pub const SERVER_CERT_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Everything secret that a running server has.
#[derive(Debug)]
pub struct Keys {
    /// The fleet's root.
    pub trust: Arc<Trust>,
    /// The root certificate, PEM, for newcomers.
    pub root_pem: String,
    /// Signs grants and tokens.
    pub grant_key: SigningKey,
    /// Signs checkpoints of the audit chain.
    pub audit_key: SigningKey,
    /// What leg keys are derived from.
    pub relay_secret: Secret,
    issuer: Issuer,
    data: DataDir,
    identity: Identity,
}

/// Tells which of the server's keys is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("`{}` does not hold 64 hexadecimal digits; restore it from a backup", .0.display())]
    Secret(PathBuf),
    /// The authority's files are not usable.
    #[error(
        "the fleet's authority is not usable; restore `root.pem`, `issuing.pem` and `issuing-key.pem` from a backup"
    )]
    Authority(#[source] AuthorityError),
    /// The server's own certificate and key are not usable.
    #[error("the server's own certificate is not usable; remove `server.pem`, and it is issued anew")]
    Own(#[source] CredentialsError),
    /// The server's own key is not usable.
    #[error(
        "the server's own key is not usable; remove `server-key.pem` and `server.pem`, and they are made anew"
    )]
    OwnKey(#[source] KeyError),
    /// The server cannot ask itself for a certificate.
    #[error("the server could not issue its own certificate")]
    OwnRequest(#[source] RequestError),
    /// The authority belongs to another fleet than the configuration says.
    #[error("the authority is of the trust domain `{found}`, and `server.toml` says `{wanted}`")]
    OtherFleet {
        /// What the root says.
        found: String,
        /// What the configuration says.
        wanted: String,
    },
    /// There are no random bytes.
    #[error("the operating system gives no random bytes")]
    Random,
}

impl Keys {
    /// Reads the keys of a data directory.
    ///
    /// # Errors
    /// Returns which of them is not usable, and how to mend it.
    pub fn load(data: &DataDir, config: &Config) -> Result<Self, KeysError> {
        let root_pem = read_private_text(&data.root())?.to_string();
        let issuing_pem = read_private_text(&data.issuing())?;
        let issuing_key = read_private_text(&data.issuing_key())?;
        let authority =
            Authority::load(&issuing_pem, &issuing_key, &root_pem).map_err(KeysError::Authority)?;
        let trust = Arc::new(authority.trust().clone());
        if *trust.trust_domain() != config.trust_domain {
            let (found, wanted) = (trust.trust_domain().to_string(), config.trust_domain.to_string());
            return Err(KeysError::OtherFleet { found, wanted });
        }
        Ok(Self {
            root_pem,
            grant_key: read_signing_key(data.grant_key())?,
            audit_key: read_signing_key(data.audit_key())?,
            relay_secret: read_secret(data.relay_secret())?,
            identity: Identity::server(trust.trust_domain(), &config.node),
            issuer: Issuer {
                authority: Arc::new(authority),
            },
            trust,
            data: data.clone(),
        })
    }

    /// Returns what issues certificates to newcomers.
    pub fn issuer(&self) -> Issuer {
        self.issuer.clone()
    }

    /// Returns the server's own identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the server's own certificate and key, and when to ask for them again: a certificate that is missing, of
    /// another name, or past two thirds of its life is issued anew and written down.
    ///
    /// # Errors
    /// Returns which file is not usable.
    pub fn own_credentials(&self, now: UnixTime) -> Result<(Credentials, UnixTime), KeysError> {
        let key = self.own_key()?;
        match self.stored_credentials(&key, now)? {
            Some(found) => Ok(found),
            None => self.issue_own(&key, now),
        }
    }

    /// Says, without a change to any file, whether the server's own certificate will do for now, or when it will not.
    ///
    /// # Errors
    /// Returns which file is not usable.
    pub fn own_certificate_due(&self, now: UnixTime) -> Result<Option<UnixTime>, KeysError> {
        let key = read_private_text(&self.data.server_key())?;
        let key = KeyPair::from_pem(&key).map_err(KeysError::OwnKey)?;
        Ok(self.stored_credentials(&key, now)?.map(|(_, due)| due))
    }

    fn stored_credentials(
        &self,
        key: &KeyPair,
        now: UnixTime,
    ) -> Result<Option<(Credentials, UnixTime)>, KeysError> {
        let chain_pem = match read_private_text(&self.data.server()) {
            Ok(chain_pem) => chain_pem,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Ok(credentials) = Credentials::load(&chain_pem, &key.to_pem()) else {
            return Ok(None);
        };
        let Ok(peer) = self.trust.verify(credentials.chain(), now) else {
            return Ok(None);
        };
        let due = renew_at(peer.not_before, peer.not_after);
        Ok((peer.identity == self.identity && now < due).then_some((credentials, due)))
    }

    fn own_key(&self) -> Result<KeyPair, KeysError> {
        match read_private_text(&self.data.server_key()) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(KeysError::OwnKey),
            Err(error) if error.is_missing() => {
                let key = KeyPair::generate().map_err(KeysError::OwnKey)?;
                write_private(&self.data.server_key(), key.to_pem().as_bytes())?;
                Ok(key)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn issue_own(&self, key: &KeyPair, now: UnixTime) -> Result<(Credentials, UnixTime), KeysError> {
        let request = tunnel_certs::request(key).map_err(KeysError::OwnKey)?;
        let request = CertificateRequest::from_pem(&request).map_err(KeysError::OwnRequest)?;
        let serial = random_bytes().map_err(|_| KeysError::Random)?;
        let issued = self
            .issuer
            .authority
            .issue(&request, &self.identity, now, SERVER_CERT_LIFETIME, serial)
            .map_err(KeysError::Authority)?;
        write_private(&self.data.server(), issued.chain_pem.as_bytes())?;
        let credentials = Credentials::load(&issued.chain_pem, &key.to_pem()).map_err(KeysError::Own)?;
        Ok((credentials, renew_at(issued.not_before, issued.not_after)))
    }
}

/// Issues certificates: the name and the life are of the server's choice, only the key is the newcomer's.
#[derive(Clone, Debug)]
pub struct Issuer {
    authority: Arc<Authority>,
}

impl Issuer {
    /// Issues a certificate for a request that was checked.
    ///
    /// # Errors
    /// Returns [`Code::Internal`] where the authority cannot issue; the cause goes to the log.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        identity: &Identity,
        now: UnixTime,
    ) -> Result<Certificate, Refusal> {
        let lifetime = match identity.subject {
            Subject::Device(_) => DEVICE_CERT_LIFETIME,
            Subject::Operator(_) => OPERATOR_CERT_LIFETIME,
            Subject::Server(_) => SERVER_CERT_LIFETIME,
        };
        let serial = random_bytes().map_err(|_| Refusal::from(Code::Internal))?;
        let issued = self
            .authority
            .issue(request, identity, now, lifetime, serial)
            .map_err(|error| {
                tracing::error!(error = %chain(&error), %identity, "could not issue a certificate");
                Refusal::from(Code::Internal)
            })?;
        Ok(Certificate {
            chain_pem: issued.chain_pem,
            serial: issued.serial.as_bytes().to_vec(),
            key: issued.key,
            not_after: issued.not_after,
        })
    }
}

/// Returns random bytes that nobody can guess.
///
/// # Errors
/// Fails where the operating system gives none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], ring::error::Unspecified> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes)?;
    Ok(bytes)
}

/// Makes a secret and writes it into a file of its own.
pub(crate) fn make_secret(path: &std::path::Path) -> Result<Secret, KeysError> {
    let secret = Secret::new(random_bytes().map_err(|_| KeysError::Random)?);
    let text = zeroize::Zeroizing::new(hex(secret.expose()) + "\n");
    write_private(path, text.as_bytes())?;
    Ok(secret)
}

fn read_secret(path: PathBuf) -> Result<Secret, KeysError> {
    let text = read_private_text(&path)?;
    unhex(text.trim_end())
        .map(Secret::new)
        .ok_or(KeysError::Secret(path))
}

fn read_signing_key(path: PathBuf) -> Result<SigningKey, KeysError> {
    let seed = read_secret(path.clone())?;
    SigningKey::from_seed(&seed).ok_or(KeysError::Secret(path))
}
