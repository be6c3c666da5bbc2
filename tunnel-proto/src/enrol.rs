//! Enrolment codes: one pasted text that holds everything a newcomer needs, so that there is no trust on first use.

use crate::ids::hex;
use crate::keys::Secret;
use crate::word::{self, WordError};

/// What every code starts with; the digit is the version.
pub const PREFIX: &str = "tnl1_";

/// Longest code that is looked at, in bytes of its content.
const MAX_BYTES: usize = 768;

/// Tells why a text is no enrolment code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnrolCodeError {
    /// The text does not start as codes do.
    #[error("an enrolment code starts with `{PREFIX}`")]
    Prefix,
    /// The rest is damaged, most likely cut off.
    #[error("the enrolment code is damaged; copy the whole of it")]
    Damaged,
}

/// An enrolment code, taken apart.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct EnrolCode {
    /// Where the server is: `host:port` of its API; the relay's UDP port is the same number unless the server says
    /// otherwise.
    #[n(0)]
    pub server: String,
    /// SHA-256 of the root certificate, DER.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub root_fingerprint: [u8; 32],
    /// The one-time secret. The server stores only its hash.
    #[n(2)]
    pub secret: Secret,
}

impl EnrolCode {
    /// Writes the code as one word.
    ///
    /// # Security
    /// The text is a secret until it is used.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::new();
        let written = minicbor::encode(self, &mut bytes);
        debug_assert!(written.is_ok(), "a Vec takes every byte");
        word::write(PREFIX, &bytes)
    }

    /// Reads a code; white space around it is no harm, and a typing error is found out.
    ///
    /// # Errors
    /// Tells whether the text is no code at all or a damaged one.
    pub fn from_text(text: &str) -> Result<Self, EnrolCodeError> {
        let content = word::read(PREFIX, text, MAX_BYTES).map_err(|error| match error {
            WordError::Prefix => EnrolCodeError::Prefix,
            WordError::Damaged => EnrolCodeError::Damaged,
        })?;
        minicbor::decode(&content).map_err(|_| EnrolCodeError::Damaged)
    }

    /// Returns what the server stores of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret)
    }

    /// Returns the fingerprint of the root certificate as people compare it.
    pub fn fingerprint_text(&self) -> String {
        hex(&self.root_fingerprint)
    }
}

/// Hashes the secret of a code, for the store.
pub fn secret_hash(secret: &Secret) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.expose());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code() -> EnrolCode {
        EnrolCode {
            server: "relay.example:8443".into(),
            root_fingerprint: [1; 32],
            secret: Secret::new([2; 32]),
        }
    }

    #[test]
    fn a_code_reads_back() {
        let text = code().to_text();
        assert!(text.starts_with("tnl1_"));
        assert_eq!(EnrolCode::from_text(&format!("  {text}\n")), Ok(code()));
    }

    #[test]
    fn a_damaged_code_is_refused() {
        let text = code().to_text();
        assert_eq!(EnrolCode::from_text("hello"), Err(EnrolCodeError::Prefix));
        assert_eq!(
            EnrolCode::from_text(&text[..text.len() - 1]),
            Err(EnrolCodeError::Damaged)
        );
        let typo = text.replacen('A', "B", 1);
        assert_eq!(EnrolCode::from_text(&typo), Err(EnrolCodeError::Damaged));
        assert_eq!(
            EnrolCode::from_text(&format!("tnl1_{}", "A".repeat(5000))),
            Err(EnrolCodeError::Damaged)
        );
    }

    #[test]
    fn a_code_does_not_print_its_secret() {
        assert!(!format!("{:?}", code()).contains("02"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "tnl1_[A-Za-z0-9_-]{0,200}") {
            let _ = EnrolCode::from_text(&text);
        }
    }
}
