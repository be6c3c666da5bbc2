//! Bytes as one word that people can paste: a prefix that says what it is, base64url, and a sum against typing errors.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

/// Bytes of the SHA-256 that follow the content.
const SUM: usize = 4;

/// Tells why a text is no such word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordError {
    /// It starts otherwise.
    Prefix,
    /// The rest is too long, cut off, or mistyped.
    Damaged,
}

/// Writes a word.
pub(crate) fn write(prefix: &str, content: &[u8]) -> String {
    let mut bytes = Zeroizing::new(Vec::with_capacity(content.len() + SUM));
    bytes.extend_from_slice(content);
    bytes.extend_from_slice(&digest(&SHA256, content).as_ref()[..SUM]);
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(&*bytes))
}

/// Reads a word of at most `max` bytes of content; white space around it is no harm.
pub(crate) fn read(prefix: &str, text: &str, max: usize) -> Result<Zeroizing<Vec<u8>>, WordError> {
    let body = text.trim().strip_prefix(prefix).ok_or(WordError::Prefix)?;
    if body.len() > (max + SUM).div_ceil(3) * 4 {
        return Err(WordError::Damaged);
    }
    let decoded = URL_SAFE_NO_PAD.decode(body).map_err(|_| WordError::Damaged)?;
    let mut bytes = Zeroizing::new(decoded);
    let length = bytes.len().checked_sub(SUM).ok_or(WordError::Damaged)?;
    let (content, sum) = bytes.split_at(length);
    if digest(&SHA256, content).as_ref()[..SUM] != *sum {
        return Err(WordError::Damaged);
    }
    bytes.truncate(length);
    Ok(bytes)
}
