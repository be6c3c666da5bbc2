//! Secret keys and hashes of public ones.

use std::fmt;

use ring::hkdf;
use ring::hmac;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::bind::Role;
use crate::ids::{CircuitId, hex, unhex};

/// 32 secret bytes: wiped when dropped, never printed, and read only by name.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes in.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hands the bytes out, to be sent to whom they belong or put into a file of mode 0600.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Compares in constant time.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for Secret {}

impl<C> minicbor::Encode<C> for Secret {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Secret {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.bytes()?
            .try_into()
            .map(Self)
            .map_err(|_| minicbor::decode::Error::message("a key has 32 bytes"))
    }
}

/// Says whether two byte strings are the same, in a time that depends on their lengths alone (THREATS SRV-20).
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

/// SHA-256 of a public key as its certificate holds it (SubjectPublicKeyInfo, DER).
///
/// A grant or token with this hash in its `cnf` claim is worthless without the private key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes a SubjectPublicKeyInfo.
    pub fn of_spki(der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// Takes a hash that was stored.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::str::FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, KeyHashError> {
        unhex(text).map(Self).ok_or(KeyHashError)
    }
}

/// Tells that a text is no key hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key hash is 64 hexadecimal digits, in lower case")]
pub struct KeyHashError;

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({})", hex(&self.0[..4]))
    }
}

#[cfg(feature = "api")]
impl serde::Serialize for KeyHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(feature = "api")]
impl<'de> serde::Deserialize<'de> for KeyHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The key of one leg of one circuit: it authenticates bind messages, in both directions.
///
/// # Security
/// Whoever has it can point the leg to an address of its choice, and still reads and changes nothing: what travels is
/// end-to-end encrypted. It is derived, so that a restarted relay, or another one of the same fleet, has it again.
#[derive(Clone)]
pub struct LegKey {
    bytes: Secret,
    key: hmac::Key,
}

impl LegKey {
    /// Takes a key that the relay handed out.
    pub fn new(bytes: Secret) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, bytes.expose()),
            bytes,
        }
    }

    /// Derives the first key of a leg from the relay's secret (HKDF, RFC 5869).
    pub fn derive(relay_secret: &Secret, circuit: CircuitId, role: Role) -> Self {
        Self::derive_rotated(relay_secret, circuit, role, 0)
    }

    /// Derives the key that a leg has after its key was rotated so many times.
    pub fn derive_rotated(relay_secret: &Secret, circuit: CircuitId, role: Role, rotations: u32) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tunnel leg key v1");
        let bytes = rotations.to_be_bytes();
        let rotated: &[u8] = if rotations == 0 { &[] } else { &bytes };
        let info: [&[u8]; 3] = [circuit.as_bytes(), &[role as u8], rotated];
        let mut bytes = [0; 32];
        let filled = salt
            .extract(relay_secret.expose())
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut bytes));
        debug_assert!(filled.is_ok(), "32 bytes are one block of HKDF-SHA256");
        Self::new(Secret::new(bytes))
    }

    /// Returns the bytes, for the leg that it belongs to.
    pub const fn secret(&self) -> &Secret {
        &self.bytes
    }

    pub(crate) fn sign(&self, data: &[u8]) -> hmac::Tag {
        hmac::sign(&self.key, data)
    }
}

impl fmt::Debug for LegKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LegKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leg_key_is_of_its_circuit_and_role() {
        let relay = Secret::new([1; 32]);
        let circuit = CircuitId::from_bytes([2; 16]);
        let key = LegKey::derive(&relay, circuit, Role::Source);
        assert_eq!(
            key.secret(),
            LegKey::derive(&relay, circuit, Role::Source).secret()
        );
        assert_ne!(
            key.secret(),
            LegKey::derive(&relay, circuit, Role::Destination).secret()
        );
        assert_ne!(
            key.secret(),
            LegKey::derive(&relay, CircuitId::from_bytes([3; 16]), Role::Source).secret()
        );
        assert_ne!(
            key.secret(),
            LegKey::derive(&Secret::new([9; 32]), circuit, Role::Source).secret()
        );
        let rotated = |times| LegKey::derive_rotated(&relay, circuit, Role::Source, times);
        assert_eq!(key.secret(), rotated(0).secret());
        assert_ne!(key.secret(), rotated(1).secret());
        assert_ne!(rotated(1).secret(), rotated(2).secret());
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!(
            "{:?}{:?}",
            Secret::new([0x5a; 32]),
            LegKey::new(Secret::new([0x5a; 32]))
        );
        assert_eq!(text, "Secret(..)LegKey(..)");
    }
}
