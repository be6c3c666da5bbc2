//! COSE_Sign (RFC 9052 section 4.1): one statement with the signatures of several keys, in one fixed layout.

use minicbor::data::{Tag, Type};
use minicbor::{Decoder, Encoder};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::{ALG_EDDSA, CoseError, HEADER_ALG, HEADER_KID, HEADER_TYP, MAX_BYTES, Purpose, SigningKey};
use super::{VerifyingKey, encoded};

/// Most signatures of one statement.
pub const MAX_SIGNATURES: usize = 16;

/// CBOR tag of COSE_Sign.
const TAG_SIGN: u64 = 98;

/// A statement, and who has signed it so far. Nothing is verified by reading it: see [`Signed::is_signed_by`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    purpose: Purpose,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Signature {
    /// Says whose it is, and by which algorithm: compared with what is expected, and never read.
    protected: Vec<u8>,
    bytes: Vec<u8>,
}

impl Signed {
    /// Makes a statement that nobody has signed.
    pub const fn new(purpose: Purpose, payload: Vec<u8>) -> Self {
        Self {
            purpose,
            payload,
            signatures: Vec::new(),
        }
    }

    /// Returns what is stated.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Returns how many signatures there are, good ones or not.
    pub const fn signatures(&self) -> usize {
        self.signatures.len()
    }

    /// Signs with one more key. Says whether there was room: a key that has signed before does not sign twice.
    #[must_use]
    pub fn sign(&mut self, key: &SigningKey) -> bool {
        let protected = signer_header(&key.verifying_key());
        self.signatures.retain(|one| one.protected != protected);
        if self.signatures.len() >= MAX_SIGNATURES {
            return false;
        }
        let bytes = key.pair.sign(&self.to_be_signed(&protected));
        let bytes = bytes.as_ref().to_vec();
        self.signatures.push(Signature { protected, bytes });
        true
    }

    /// Says whether a key has signed exactly this, for this purpose.
    #[must_use]
    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let protected = signer_header(key);
        let Some(signature) = self.signatures.iter().find(|one| one.protected == protected) else {
            return false;
        };
        UnparsedPublicKey::new(&ED25519, &key.0)
            .verify(&self.to_be_signed(&protected), &signature.bytes)
            .is_ok()
    }

    /// Writes the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(
            self.payload.len() + 100 * self.signatures.len() + 60,
        ));
        encoded(e.tag(Tag::new(TAG_SIGN)).and_then(|e| e.array(4)));
        encoded(e.bytes(&body_header(self.purpose)).and_then(|e| e.map(0)));
        encoded(e.bytes(&self.payload));
        encoded(e.array(self.signatures.len() as u64));
        for Signature { protected, bytes } in &self.signatures {
            encoded(e.array(3).and_then(|e| e.bytes(protected)));
            encoded(e.map(0).and_then(|e| e.bytes(bytes)));
        }
        e.into_writer()
    }

    /// Reads a message of one purpose.
    ///
    /// # Errors
    /// Returns [`CoseError::Malformed`] for what is not of our layout, and [`CoseError::Header`] for another purpose.
    pub fn decode(purpose: Purpose, message: &[u8]) -> Result<Self, CoseError> {
        if message.len() > MAX_BYTES {
            return Err(CoseError::Malformed);
        }
        let (protected, payload, signatures) = parts(message).ok_or(CoseError::Malformed)?;
        if protected != body_header(purpose) {
            return Err(CoseError::Header);
        }
        Ok(Self {
            purpose,
            payload: payload.to_vec(),
            signatures,
        })
    }

    /// Builds the Sig_structure of RFC 9052 section 4.4.
    fn to_be_signed(&self, signer: &[u8]) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(self.payload.len() + 100));
        encoded(e.array(5).and_then(|e| e.str("Signature")));
        encoded(e.bytes(&body_header(self.purpose)).and_then(|e| e.bytes(signer)));
        encoded(e.bytes(b"").and_then(|e| e.bytes(&self.payload)));
        e.into_writer()
    }
}

/// Takes a message apart; `None` unless it is exactly tag, four elements, and the end, and no key stands there twice.
fn parts(message: &[u8]) -> Option<(&[u8], &[u8], Vec<Signature>)> {
    let mut d = Decoder::new(message);
    if d.tag().ok()? != Tag::new(TAG_SIGN) || d.array().ok()? != Some(4) {
        return None;
    }
    let protected = d.bytes().ok()?;
    empty_map(&mut d)?;
    let payload = d.bytes().ok()?;
    let count = d.array().ok()??;
    if count > MAX_SIGNATURES as u64 {
        return None;
    }
    let mut signatures: Vec<Signature> = Vec::new();
    for _ in 0..count {
        if d.array().ok()? != Some(3) {
            return None;
        }
        let protected = d.bytes().ok()?.to_vec();
        empty_map(&mut d)?;
        let bytes = d.bytes().ok()?.to_vec();
        if signatures.iter().any(|one| one.protected == protected) {
            return None;
        }
        signatures.push(Signature { protected, bytes });
    }
    (d.position() == message.len()).then_some((protected, payload, signatures))
}

/// Nothing that is not signed is read.
fn empty_map(d: &mut Decoder<'_>) -> Option<()> {
    (d.datatype().ok()? == Type::Map && d.map().ok()? == Some(0)).then_some(())
}

fn body_header(purpose: Purpose) -> Vec<u8> {
    let mut e = Encoder::new(Vec::with_capacity(32));
    encoded(
        e.map(1)
            .and_then(|e| e.u64(HEADER_TYP))
            .and_then(|e| e.str(purpose.typ())),
    );
    e.into_writer()
}

fn signer_header(key: &VerifyingKey) -> Vec<u8> {
    let mut e = Encoder::new(Vec::with_capacity(16));
    encoded(
        e.map(2)
            .and_then(|e| e.u64(HEADER_ALG))
            .and_then(|e| e.i64(ALG_EDDSA)),
    );
    encoded(e.u64(HEADER_KID).and_then(|e| e.bytes(&key.id())));
    e.into_writer()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&Secret::new([seed; 32])).unwrap()
    }

    fn signed(seeds: &[u8]) -> Signed {
        let mut signed = Signed::new(Purpose::Permit, b"payload".to_vec());
        for &seed in seeds {
            assert!(signed.sign(&key(seed)));
        }
        signed
    }

    #[test]
    fn who_has_signed_is_known_again() {
        let signed = signed(&[1, 2, 1]);
        assert_eq!(signed.signatures(), 2, "nobody signs twice");
        let read = Signed::decode(Purpose::Permit, &signed.encode()).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.payload(), b"payload");
        for (seed, has) in [(1, true), (2, true), (3, false)] {
            assert_eq!(read.is_signed_by(&key(seed).verifying_key()), has, "{seed}");
        }
    }

    #[test]
    fn another_purpose_or_payload_is_not_what_was_signed() {
        let good = signed(&[1]);
        let message = good.encode();
        for purpose in [Purpose::NewRoot, Purpose::Grant] {
            assert_eq!(Signed::decode(purpose, &message), Err(CoseError::Header));
        }
        // Of Sign1 and of Sign neither passes for the other.
        assert_eq!(
            key(1).verifying_key().verify(Purpose::Permit, &message),
            Err(CoseError::Malformed)
        );
        let alone = key(1).sign(Purpose::Permit, b"payload");
        assert_eq!(Signed::decode(Purpose::Permit, &alone), Err(CoseError::Malformed));
        let moved = Signed {
            purpose: Purpose::NewRoot,
            ..good.clone()
        };
        assert!(!moved.is_signed_by(&key(1).verifying_key()));
        let other = Signed {
            payload: b"Payload".to_vec(),
            ..good
        };
        assert!(!other.is_signed_by(&key(1).verifying_key()));
    }

    /// THREATS TOK-07.
    #[test]
    fn of_a_flipped_bit_and_a_cut_nothing_is_left() {
        let message = signed(&[1]).encode();
        let key = key(1).verifying_key();
        let good = |message: &[u8]| {
            Signed::decode(Purpose::Permit, message).is_ok_and(|signed| signed.is_signed_by(&key))
        };
        assert!(good(&message));
        for bit in 0..message.len() * 8 {
            let mut bad = message.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!good(&bad), "bit {bit}");
        }
        for end in 0..message.len() {
            assert!(!good(&message[..end]), "cut at {end}");
        }
        assert!(!good(&[&message[..], b"\0"].concat()));
    }

    /// THREATS TOK-16.
    #[test]
    fn a_statement_has_a_bound() {
        let mut many = signed(&(1..=16).collect::<Vec<_>>());
        assert!(many.encode().len() < MAX_BYTES);
        assert!(!many.sign(&key(17)));
        assert!(many.sign(&key(3)), "who is in can sign anew");
        let first = many.signatures[0].clone();
        many.signatures[1] = first;
        assert_eq!(
            Signed::decode(Purpose::Permit, &many.encode()),
            Err(CoseError::Malformed),
            "a key stands there twice"
        );
        for bad in [&[0x81; MAX_BYTES][..], &[0; MAX_BYTES + 1], b""] {
            assert_eq!(Signed::decode(Purpose::Permit, bad), Err(CoseError::Malformed));
        }
    }
}
