//! What this end shows of itself.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tunnel_certs::{CertError, KeyError, KeyPair, Trust, pem};
use tunnel_proto::keys::KeyHash;

use super::provider;

/// Tells why a chain and a key are not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// The chain cannot be read.
    #[error("the certificate chain is not usable")]
    Chain(#[source] CertError),
    /// The key cannot be read.
    #[error("the private key is not usable")]
    Key(#[source] KeyError),
    /// They are not a pair.
    #[error("the private key is not the one of the certificate")]
    Mismatch(#[source] rustls::Error),
}

/// A chain, leaf first, and the key of its leaf.
#[derive(Clone, Debug)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    // It signs, and shows nothing of itself, not even when printed.
    certified: Arc<CertifiedKey>,
    key: Arc<KeyPair>,
}

impl Credentials {
    /// Reads a chain and its key from PEM, and checks that they are a pair.
    ///
    /// # Errors
    /// Tells which of them is not usable.
    pub fn load(chain_pem: &str, key_pem: &str) -> Result<Self, CredentialsError> {
        let chain = pem::read_chain(chain_pem).map_err(CredentialsError::Chain)?;
        let key = KeyPair::from_pem(key_pem).map_err(CredentialsError::Key)?;
        Self::new(chain, key)
    }

    /// Takes a chain and its key, and checks that they are a pair.
    ///
    /// # Errors
    /// Fails where they are not.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, CredentialsError> {
        let certified = CertifiedKey::from_der(chain.clone(), key.der(), &provider())
            .map_err(CredentialsError::Mismatch)?;
        Ok(Self {
            chain,
            certified: Arc::new(certified),
            key: Arc::new(key),
        })
    }

    /// Returns the chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Returns the hash of the key.
    pub fn key_hash(&self) -> KeyHash {
        self.key.key_hash()
    }

    /// Returns the key, to sign a request for the next certificate.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Returns a copy of the key.
    pub fn clone_key(&self) -> PrivateKeyDer<'static> {
        self.key.der()
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// Returns the same without the root, which a member of the fleet has already: the handshake gets smaller.
    pub(super) fn without_root(&self, trust: &Trust) -> Self {
        let chain: Vec<_> = self
            .chain
            .iter()
            .filter(|&certificate| certificate != trust.root())
            .cloned()
            .collect();
        let certified = CertifiedKey::new(chain.clone(), Arc::clone(&self.certified.key));
        Self {
            chain,
            certified: Arc::new(certified),
            key: Arc::clone(&self.key),
        }
    }
}
