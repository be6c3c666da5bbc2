//! Frames of control messages on a stream: four bytes of length, big-endian, then one CBOR item.

use crate::defaults::MAX_MESSAGE;

/// Tells why a frame is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is above the bound.
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// The content is not the expected message.
    #[error("a message could not be read")]
    Content(#[from] minicbor::decode::Error),
}

/// Bytes of the length field.
pub const HEADER: usize = 4;

/// Writes one message with its length before it.
///
/// A message longer than [`MAX_MESSAGE`] is a defect of the caller; the other side refuses it.
pub fn encode<M: minicbor::Encode<()>>(message: &M) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let written = minicbor::encode(message, &mut bytes);
    debug_assert!(written.is_ok(), "a Vec takes every byte");
    let length = u32::try_from(bytes.len() - HEADER).unwrap_or(u32::MAX);
    bytes[..HEADER].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads the length field.
///
/// # Errors
/// Refuses a length above [`MAX_MESSAGE`].
pub fn length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_MESSAGE {
        Err(FrameError::TooLong(length))
    } else {
        Ok(length)
    }
}

/// Reads the message of a frame.
///
/// # Errors
/// Refuses what is not one whole message; unknown fields are passed over.
pub fn decode<'b, M: minicbor::Decode<'b, ()>>(content: &'b [u8]) -> Result<M, FrameError> {
    let mut d = minicbor::Decoder::new(content);
    let message = d.decode()?;
    if d.position() != content.len() {
        return Err(minicbor::decode::Error::message("bytes after the message").into());
    }
    Ok(message)
}
