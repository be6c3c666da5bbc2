//! COSE_Sign1 with Ed25519 (RFC 9052 section 4.2), in one fixed layout; beside it COSE_Sign, for what several sign.
//!
//! The verifier builds the protected header that it expects and compares bytes. It never reads an algorithm, a key id
//! or a type from the message, so none of them can be used to mislead it (THREATS TOK-08).

mod signed;

pub use signed::{MAX_SIGNATURES, Signed};

use minicbor::data::{Tag, Type};
use minicbor::{Decoder, Encoder};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// Longest message that is looked at, in bytes (THREATS TOK-16).
pub const MAX_BYTES: usize = 4096;

/// CBOR tag of COSE_Sign1.
const TAG_SIGN1: u64 = 18;
/// Header parameters: algorithm, key id (RFC 9052 section 3.1), type (RFC 9596).
const HEADER_ALG: u64 = 1;
const HEADER_KID: u64 = 4;
const HEADER_TYP: u64 = 16;
/// EdDSA (RFC 9053 section 2.2).
const ALG_EDDSA: i64 = -8;

/// Tells why a signed message is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CoseError {
    /// The bytes are not a COSE_Sign1 message of our layout.
    #[error("not a signed message of the expected form")]
    Malformed,
    /// The header names another algorithm, key or type than the expected one.
    #[error("the message is of another type, or signed with another key or algorithm")]
    Header,
    /// The signature does not fit.
    #[error("the signature is wrong")]
    Signature,
}

/// What a signed message is for. A message of one purpose never passes for one of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A grant.
    Grant,
    /// An access token.
    AccessToken,
    /// A checkpoint of the audit chain.
    AuditCheckpoint,
    /// A statement of which records of the audit chain were dropped.
    AuditDropped,
    /// A permit for services that a device's owner has locked.
    Permit,
    /// Another root for devices with a lock.
    NewRoot,
}

impl Purpose {
    const fn typ(self) -> &'static str {
        match self {
            Self::Grant => "tunnel-grant+cwt",
            Self::AccessToken => "tunnel-token+cwt",
            Self::AuditCheckpoint => "tunnel-checkpoint+cwt",
            Self::AuditDropped => "tunnel-dropped+cwt",
            Self::Permit => "tunnel-permit+cwt",
            Self::NewRoot => "tunnel-root+cwt",
        }
    }
}

/// A key that signs, of Ed25519.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Makes a key from a secret seed of 32 random bytes.
    pub fn from_seed(seed: &crate::keys::Secret) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed.expose())
            .ok()
            .map(|pair| Self { pair })
    }

    /// Returns the key that verifies.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey(bytes)
    }

    /// Signs `payload` for one purpose.
    pub fn sign(&self, purpose: Purpose, payload: &[u8]) -> Vec<u8> {
        let protected = protected_header(purpose, &self.verifying_key());
        let signature = self.pair.sign(&to_be_signed(&protected, payload));
        let mut e = Encoder::new(Vec::with_capacity(payload.len() + 160));
        encoded(e.tag(Tag::new(TAG_SIGN1)).and_then(|e| e.array(4)));
        encoded(e.bytes(&protected).and_then(|e| e.map(0)));
        encoded(e.bytes(payload).and_then(|e| e.bytes(signature.as_ref())));
        e.into_writer()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// The public half of a [`SigningKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct VerifyingKey(#[cbor(with = "minicbor::bytes")] [u8; 32]);

impl VerifyingKey {
    /// Takes the 32 bytes of a public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns by what messages name the key: the first bytes of its SHA-256.
    pub fn id(&self) -> [u8; 8] {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let mut id = [0; 8];
        id.copy_from_slice(&digest.as_ref()[..8]);
        id
    }

    /// Checks a message of one purpose and returns its payload.
    ///
    /// # Errors
    /// Returns what does not fit, without a hint at which byte.
    pub fn verify<'m>(&self, purpose: Purpose, message: &'m [u8]) -> Result<&'m [u8], CoseError> {
        if message.len() > MAX_BYTES {
            return Err(CoseError::Malformed);
        }
        let (protected, payload, signature) = parts(message).ok_or(CoseError::Malformed)?;
        if protected != protected_header(purpose, self) {
            return Err(CoseError::Header);
        }
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(&to_be_signed(protected, payload), signature)
            .map_err(|_| CoseError::Signature)?;
        Ok(payload)
    }
}

/// Takes a message apart; `None` unless it is exactly tag, four elements, and the end.
fn parts(message: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut d = Decoder::new(message);
    if d.tag().ok()? != Tag::new(TAG_SIGN1) || d.array().ok()? != Some(4) {
        return None;
    }
    let protected = d.bytes().ok()?;
    if d.datatype().ok()? != Type::Map || d.map().ok()? != Some(0) {
        return None;
    }
    let payload = d.bytes().ok()?;
    let signature = d.bytes().ok()?;
    (d.position() == message.len()).then_some((protected, payload, signature))
}

fn protected_header(purpose: Purpose, key: &VerifyingKey) -> Vec<u8> {
    let mut e = Encoder::new(Vec::with_capacity(48));
    encoded(
        e.map(3)
            .and_then(|e| e.u64(HEADER_ALG))
            .and_then(|e| e.i64(ALG_EDDSA)),
    );
    encoded(e.u64(HEADER_KID).and_then(|e| e.bytes(&key.id())));
    encoded(e.u64(HEADER_TYP).and_then(|e| e.str(purpose.typ())));
    e.into_writer()
}

/// Builds the Sig_structure of RFC 9052 section 4.4.
fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::with_capacity(protected.len() + payload.len() + 32));
    encoded(
        e.array(4)
            .and_then(|e| e.str("Signature1"))
            .and_then(|e| e.bytes(protected)),
    );
    encoded(e.bytes(b"").and_then(|e| e.bytes(payload)));
    e.into_writer()
}

/// Writing to a `Vec` cannot fail.
fn encoded<T>(result: Result<T, minicbor::encode::Error<std::convert::Infallible>>) {
    debug_assert!(result.is_ok(), "a Vec takes every byte");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&Secret::new([seed; 32])).unwrap()
    }

    #[test]
    fn a_signed_payload_comes_back() {
        let key = key(1);
        let message = key.sign(Purpose::Grant, b"payload");
        assert_eq!(
            key.verifying_key().verify(Purpose::Grant, &message),
            Ok(&b"payload"[..])
        );
    }

    /// THREATS TOK-08, TOK-09.
    #[test]
    fn another_key_or_purpose_is_refused() {
        let message = key(1).sign(Purpose::Grant, b"payload");
        assert_eq!(
            key(2).verifying_key().verify(Purpose::Grant, &message),
            Err(CoseError::Header)
        );
        for purpose in [Purpose::AccessToken, Purpose::AuditCheckpoint, Purpose::Permit] {
            assert_eq!(
                key(1).verifying_key().verify(purpose, &message),
                Err(CoseError::Header)
            );
        }
    }

    /// THREATS TOK-07.
    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let key = key(1);
        let message = key.sign(Purpose::AccessToken, b"payload");
        for bit in 0..message.len() * 8 {
            let mut bad = message.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                key.verifying_key().verify(Purpose::AccessToken, &bad).is_err(),
                "bit {bit}"
            );
        }
        for end in 0..message.len() {
            assert!(
                key.verifying_key()
                    .verify(Purpose::AccessToken, &message[..end])
                    .is_err(),
                "cut at {end}"
            );
        }
        let longer = [&message[..], b"\0"].concat();
        assert_eq!(
            key.verifying_key().verify(Purpose::AccessToken, &longer),
            Err(CoseError::Malformed)
        );
    }

    /// THREATS TOK-16.
    #[test]
    fn hostile_shapes_are_refused_at_once() {
        let key = key(1).verifying_key();
        let nested = vec![0x81; MAX_BYTES];
        let huge_length = [0xd2, 0x84, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for bad in [&nested[..], &huge_length, &vec![0; 1 << 20], b""] {
            assert_eq!(key.verify(Purpose::Grant, bad), Err(CoseError::Malformed));
        }
    }
}
