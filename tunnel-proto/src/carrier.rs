//! Carriers: how a leg's datagrams travel, and how several of them share one WebSocket message.

use std::fmt;

/// A way for datagrams.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Carrier {
    /// One datagram in one UDP packet: preferred, since nothing waits for anything else.
    Udp,
    /// Many datagrams in one message of a WebSocket over TLS: passes where only the web does.
    WebSocket,
}

impl Carrier {
    /// Returns the name that logs, the CLI and the API use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::WebSocket => "websocket",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes before each datagram in a message: its length, big-endian.
pub const PREFIX: usize = 2;

/// Where a message is full, in bytes: below the bound of a WebSocket message with room for one datagram of a path's MTU.
pub const FULL: usize = 60_000;

/// Adds one datagram to a message. The caller keeps the message below its bound.
pub fn push(message: &mut Vec<u8>, datagram: &[u8]) {
    let Ok(length) = u16::try_from(datagram.len()) else {
        return;
    };
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(datagram);
}

/// Goes through the datagrams of a message. A message that is cut off gives what is whole, and then ends.
pub fn datagrams(mut message: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = message.split_first_chunk::<PREFIX>()?;
        let (datagram, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        message = rest;
        Some(datagram)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn datagrams_come_back(sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..20)) {
            let mut message = Vec::new();
            for datagram in &sent {
                push(&mut message, datagram);
            }
            prop_assert_eq!(datagrams(&message).collect::<Vec<_>>(), sent);
        }

        #[test]
        fn any_message_ends(message in prop::collection::vec(any::<u8>(), 0..500)) {
            let whole: usize = datagrams(&message).map(|d| d.len() + PREFIX).sum();
            prop_assert!(whole <= message.len());
        }
    }
}
