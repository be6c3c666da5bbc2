//! The fleet lock: what needs the signatures of keys that the owner keeps offline, whomever the control plane obeys.
//!
//! A device whose owner locked a service lets nobody use it for a grant alone. It wants a [`Permit`] too, which k of the n
//! keys of its [`Lock`] have signed. The server carries permits without reading them.

mod permit;

pub use permit::{Access, MAX_WINDOW, NewRoot, Permit, PermitNonce, Statement, Window};

use std::str::FromStr;

use zeroize::Zeroizing;

use crate::code::Code;
use crate::cose::{MAX_SIGNATURES, SigningKey, VerifyingKey};
use crate::grant::Grant;
use crate::keys::Secret;
use crate::names::ServiceName;
use crate::time::UnixTime;
use crate::word::{self, WordError};

/// Most keys of a lock.
pub const MAX_KEYS: usize = MAX_SIGNATURES;

/// What a lock as text starts with; the digit is the version.
const LOCK_PREFIX: &str = "tnllock1_";
/// What a key as text starts with.
const KEY_PREFIX: &str = "tnlkey1_";
/// More bytes than a lock or a key has.
const MAX_BYTES: usize = 1024;

/// The public half of a fleet lock: the owner's keys, and how many of them have to agree.
///
/// # Security
/// It stands in the device's configuration, which nothing from the network can change (THREATS I12). Whoever has fewer
/// than `threshold` of the private keys cannot make a permit (THREATS T12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lock {
    threshold: u8,
    keys: Vec<VerifyingKey>,
}

/// Tells why something is no lock, or no key of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The text does not start as it has to.
    #[error("it does not start with `{0}`")]
    Prefix(&'static str),
    /// The rest is damaged, most likely cut off.
    #[error("it is damaged; copy the whole of it")]
    Damaged,
    /// The numbers do not fit.
    #[error("a lock has 1 to {MAX_KEYS} different keys, and a threshold from 1 to their number")]
    Numbers,
}

/// A lock as it is written.
#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Written {
    #[n(0)]
    threshold: u8,
    #[n(1)]
    keys: Vec<VerifyingKey>,
}

impl Lock {
    /// Makes a lock that `threshold` of the keys open.
    ///
    /// # Errors
    /// Returns [`LockError::Numbers`] if keys are missing, too many, or doubled, or the threshold is none of their numbers.
    pub fn new(threshold: u8, keys: Vec<VerifyingKey>) -> Result<Self, LockError> {
        let doubled = keys
            .iter()
            .enumerate()
            .any(|(at, key)| keys.iter().skip(at + 1).any(|other| other == key));
        if keys.len() > MAX_KEYS || doubled || threshold == 0 || usize::from(threshold) > keys.len() {
            return Err(LockError::Numbers);
        }
        Ok(Self { threshold, keys })
    }

    /// Returns how many keys have to sign.
    pub const fn threshold(&self) -> u8 {
        self.threshold
    }

    /// Returns the keys.
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// Returns which keys have signed a permit.
    pub fn signers(&self, permit: &Permit) -> Vec<VerifyingKey> {
        let signed = |key: &&VerifyingKey| permit.is_signed_by(key);
        self.keys.iter().filter(signed).copied().collect()
    }

    /// Says whether enough keys have signed a permit.
    ///
    /// # Errors
    /// Returns [`Code::LockPermit`] if not.
    pub fn verify(&self, permit: &Permit) -> Result<(), Code> {
        if self.signers(permit).len() >= usize::from(self.threshold) {
            Ok(())
        } else {
            Err(Code::LockPermit)
        }
    }

    /// Says whether a permit opens locked services to who has a grant: signed by enough keys, for this operator with this
    /// key, this device and these services. When it holds is for [`Window::holds`].
    ///
    /// # Errors
    /// Returns the code of the first thing that does not fit.
    pub fn opens(&self, permit: &Permit, grant: &Grant, locked: &[&ServiceName]) -> Result<(), Code> {
        self.verify(permit)?;
        let access = permit.access().ok_or(Code::LockScope)?;
        access.covers(grant, locked)
    }

    /// Says whether a permit lets a device change over to another root.
    ///
    /// # Errors
    /// Returns the code of the first thing that does not fit.
    pub fn opens_root(&self, permit: &Permit, root: &[u8; 32], now: UnixTime) -> Result<(), Code> {
        self.verify(permit)?;
        match permit.statement() {
            Statement::NewRoot(new) if new.root == *root => new.window.holds(now),
            _ => Err(Code::LockScope),
        }
    }

    /// Writes the lock as one word.
    pub fn to_text(&self) -> String {
        let written = Written {
            threshold: self.threshold,
            keys: self.keys.clone(),
        };
        let mut bytes = Vec::new();
        let encoded = minicbor::encode(&written, &mut bytes);
        debug_assert!(encoded.is_ok(), "a Vec takes every byte");
        word::write(LOCK_PREFIX, &bytes)
    }
}

impl FromStr for Lock {
    type Err = LockError;

    fn from_str(text: &str) -> Result<Self, LockError> {
        let bytes = word::read(LOCK_PREFIX, text, MAX_BYTES).map_err(|error| of(error, LOCK_PREFIX))?;
        let written: Written = minicbor::decode(&bytes).map_err(|_| LockError::Damaged)?;
        Self::new(written.threshold, written.keys)
    }
}

/// Writes the seed of a lock's key as one word.
///
/// # Security
/// The text is the key: it belongs into a file that only its holder can read, on no machine that the server reaches.
pub fn key_to_text(seed: &Secret) -> Zeroizing<String> {
    Zeroizing::new(word::write(KEY_PREFIX, seed.expose()))
}

/// Reads a key of a lock.
///
/// # Errors
/// Tells whether the text is no key at all or a damaged one.
pub fn key_from_text(text: &str) -> Result<SigningKey, LockError> {
    let bytes = word::read(KEY_PREFIX, text, MAX_BYTES).map_err(|error| of(error, KEY_PREFIX))?;
    let seed: [u8; 32] = bytes.as_slice().try_into().map_err(|_| LockError::Damaged)?;
    SigningKey::from_seed(&Secret::new(seed)).ok_or(LockError::Damaged)
}

const fn of(error: WordError, prefix: &'static str) -> LockError {
    match error {
        WordError::Prefix => LockError::Prefix(prefix),
        WordError::Damaged => LockError::Damaged,
    }
}

#[cfg(test)]
mod tests;
