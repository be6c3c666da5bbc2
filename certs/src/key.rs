//! Keys: P-256, because TPMs and PKCS#11 tokens have it, and in one encoding only.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tunnel_proto::keys::KeyHash;
use zeroize::Zeroizing;

use crate::pem;

/// What comes before the point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480 section 2).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Length of an uncompressed point.
const POINT: usize = 65;

/// Tells why a key is not accepted. It never says what the key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system's random source failed.
    #[error("the system has no random bytes")]
    Random,
    /// The text is no PEM block `PRIVATE KEY`.
    #[error("the text has no `PRIVATE KEY` block")]
    Pem,
    /// The key is not of the accepted kind.
    #[error("the key is not a P-256 key in PKCS#8 with its public half")]
    Kind,
}

/// A private key with its public half.
pub struct KeyPair {
    pkcs8: Zeroizing<Vec<u8>>,
    key: EcdsaKeyPair,
    public: PublicKey,
}

impl KeyPair {
    /// Makes a new key from the system's random source.
    ///
    /// # Errors
    /// Fails where the system has no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError::Random)?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// Reads the first `PRIVATE KEY` block of a text.
    ///
    /// # Errors
    /// Tells whether there is no such block, or a key of another kind in it.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::Pem)?;
        let pkcs8 = Zeroizing::new(der.secret_pkcs8_der().to_vec());
        drop(Zeroizing::new(der));
        Self::from_pkcs8(pkcs8)
    }

    fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &SystemRandom::new())
            .map_err(|_| KeyError::Kind)?;
        let point = key.public_key().as_ref().try_into().map_err(|_| KeyError::Kind)?;
        Ok(Self {
            pkcs8,
            key,
            public: PublicKey { point },
        })
    }

    /// Writes the key as PEM, for a file of mode 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::write("PRIVATE KEY", &self.pkcs8))
    }

    /// Returns a copy of the key for a TLS configuration.
    pub fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }

    /// Returns the public half.
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Returns the hash of the public half, by which grants and tokens know their holder.
    pub fn key_hash(&self) -> KeyHash {
        self.public.key_hash()
    }

    /// Signs with ECDSA and SHA-256; the signature is in DER.
    ///
    /// # Errors
    /// Fails where the system has no random bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self
            .key
            .sign(&SystemRandom::new(), message)
            .map_err(|_| KeyError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({:?})", self.key_hash())
    }
}

/// A public key: an uncompressed point of P-256.
///
/// # Security
/// There is one encoding of each key, so a key has one hash, and nobody dodges a block-list by writing the same key in
/// another way (THREATS CRT-14).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    point: [u8; POINT],
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo; `None` for a key of another kind or in another encoding.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let point: [u8; POINT] = der.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?;
        (point[0] == 4).then_some(Self { point })
    }

    /// Returns the SubjectPublicKeyInfo in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.point].concat()
    }

    /// Returns the uncompressed point.
    pub const fn point(&self) -> &[u8] {
        &self.point
    }

    /// Returns the hash of the key.
    pub fn key_hash(&self) -> KeyHash {
        KeyHash::of_spki(&self.to_spki())
    }

    /// Says whether `signature` (DER) over `message` was made by this key.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.key_hash())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_from_its_pem() {
        let key = KeyPair::generate().unwrap();
        let again = KeyPair::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.key_hash(), key.key_hash());
        assert!(key.public().verifies(b"x", &again.sign(b"x").unwrap()));
        assert!(!key.public().verifies(b"y", &again.sign(b"x").unwrap()));
    }

    #[test]
    fn a_public_key_has_one_encoding() {
        let key = *KeyPair::generate().unwrap().public();
        let der = key.to_spki();
        assert_eq!(PublicKey::from_spki(&der), Some(key));
        let mut compressed = der[..59].to_vec();
        compressed[26] = 2;
        assert_eq!(PublicKey::from_spki(&compressed), None);
        for length in 0..der.len() {
            assert_eq!(PublicKey::from_spki(&der[..length]), None);
        }
    }

    #[test]
    fn other_keys_are_refused() {
        assert_eq!(KeyPair::from_pem("hello").unwrap_err(), KeyError::Pem);
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(
            KeyPair::from_pem(&ed25519.serialize_pem()).unwrap_err(),
            KeyError::Kind
        );
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(
            KeyPair::from_pem(&p384.serialize_pem()).unwrap_err(),
            KeyError::Kind
        );
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("KeyPair({:?})", key.key_hash()));
    }
}
