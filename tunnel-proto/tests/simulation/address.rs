//! Addresses as the relay sees them.

use tunnel_proto::circuit::Address;

/// A UDP address, or the virtual address of a WebSocket connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Addr {
    /// Few enough that they are used again by others.
    Udp(u16),
    /// Never used again.
    WebSocket(u64),
    /// Somebody who has no part in anything.
    Stranger(u8),
}

impl Address for Addr {
    fn bytes(&self) -> [u8; 18] {
        let (kind, number) = match self {
            Addr::Udp(number) => (1, u64::from(*number)),
            Addr::WebSocket(number) => (2, *number),
            Addr::Stranger(number) => (3, u64::from(*number)),
        };
        let mut bytes = [0; 18];
        bytes[0] = kind;
        bytes[1..9].copy_from_slice(&number.to_be_bytes());
        bytes
    }
}
