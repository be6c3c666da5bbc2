//! The relay's control datagrams: 50 bytes that tie a leg of a circuit to an address.
//!
//! ```text
//! byte 0      kind; its first two bits are 00, which no QUIC packet of ours has (RFC 9000 section 17, fixed bit)
//! byte 1-16   circuit
//! byte 17     role of the leg
//! byte 18-25  counter of the leg, big-endian
//! byte 26-33  value: a challenge, or a code; its meaning hangs on the kind
//! byte 34-49  HMAC-SHA256 over bytes 0-33 under the leg key, first half
//! ```
//!
//! Over UDP a bind may be padded to 1,200 bytes, and then so is its answer: that both arrive shows that the path carries
//! the packets that QUIC cannot do without (RFC 9000 section 14.1), which small datagrams do not show. What the padding
//! is does not matter.
//!
//! An answer is as long as what it answers, so that nobody gets more bytes out of the relay than it sent in (THREATS
//! DAT-08).

use crate::ids::CircuitId;
use crate::keys::{LegKey, same};

/// Size of a control datagram without padding, in bytes.
pub const SIZE: usize = 50;

/// Size of a control datagram with padding, in bytes.
pub const PADDED_SIZE: usize = 1200;

const SIGNED: usize = SIZE - MAC;
const MAC: usize = 16;

/// Which end of a tunnel a leg leads to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Role {
    /// The operator's.
    Source = 0,
    /// The device's.
    Destination = 1,
}

impl Role {
    /// Returns the role of a number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Source),
            1 => Some(Self::Destination),
            _ => None,
        }
    }

    /// Returns the other end.
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// Returns the role as the documents call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// What a control datagram says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Leg to relay: "I am here". The value is the relay's last challenge, or 0.
    Bind = 1,
    /// Relay to leg: the bind with this counter is in force.
    Bound = 2,
    /// Relay to leg: bind again with this value, to show that you hear me at this address.
    Challenge = 3,
    /// Relay to leg: the circuit has ended. The value is the number of a [`crate::Code`].
    Ended = 4,
}

impl Kind {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Bind),
            2 => Some(Self::Bound),
            3 => Some(Self::Challenge),
            4 => Some(Self::Ended),
            _ => None,
        }
    }
}

/// A control datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control {
    /// What it says.
    pub kind: Kind,
    /// The circuit.
    pub circuit: CircuitId,
    /// The leg.
    pub role: Role,
    /// The leg's counter: of this bind, or of the bind that is answered.
    pub counter: u64,
    /// A challenge or a code.
    pub value: u64,
}

/// Server to device, to where its control link was: "I was started anew, and may not know you". Nobody has signed it, since
/// the key that would is lost, and nothing in it has to be believed: who gets it asks over the link, which shows.
pub const RESTARTED: [u8; SIZE] = {
    let mut bytes = [0; SIZE];
    bytes[0] = 5;
    bytes
};

/// Says whether a datagram is a control datagram by its first byte; QUIC packets never are.
pub fn is_control(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xc0 == 0)
}

/// Returns what a control datagram says, without its padding; `None` unless it has one of the two sizes.
pub fn unpadded(datagram: &[u8]) -> Option<&[u8; SIZE]> {
    matches!(datagram.len(), SIZE | PADDED_SIZE).then(|| datagram.first_chunk())?
}

/// Returns a control datagram with its padding.
pub fn padded(datagram: &[u8; SIZE]) -> [u8; PADDED_SIZE] {
    let mut bytes = [0; PADDED_SIZE];
    bytes[..SIZE].copy_from_slice(datagram);
    bytes
}

impl Control {
    /// Writes the datagram.
    pub fn encode(&self, key: &LegKey) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[0] = self.kind as u8;
        bytes[1..17].copy_from_slice(self.circuit.as_bytes());
        bytes[17] = self.role as u8;
        bytes[18..26].copy_from_slice(&self.counter.to_be_bytes());
        bytes[26..34].copy_from_slice(&self.value.to_be_bytes());
        let tag = key.sign(&bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(&tag.as_ref()[..MAC]);
        bytes
    }

    /// Reads a datagram without checking who made it. `None` unless it has exactly the form.
    ///
    /// # Security
    /// What this returns is a claim until [`Control::is_authentic`] says otherwise.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = datagram.try_into().ok()?;
        let mut circuit = [0; 16];
        circuit.copy_from_slice(&bytes[1..17]);
        let mut counter = [0; 8];
        counter.copy_from_slice(&bytes[18..26]);
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[26..34]);
        Some(Self {
            kind: Kind::from_number(bytes[0])?,
            circuit: CircuitId::from_bytes(circuit),
            role: Role::from_number(bytes[17])?,
            counter: u64::from_be_bytes(counter),
            value: u64::from_be_bytes(value),
        })
    }

    /// Says whether the datagram was made with the key, in constant time.
    #[must_use]
    pub fn is_authentic(datagram: &[u8], key: &LegKey) -> bool {
        match datagram.split_at_checked(SIGNED) {
            Some((signed, mac)) => same(&key.sign(signed).as_ref()[..MAC], mac),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;
    use proptest::prelude::*;

    fn key() -> LegKey {
        LegKey::new(Secret::new([1; 32]))
    }

    fn bind() -> Control {
        Control {
            kind: Kind::Bind,
            circuit: CircuitId::from_bytes([2; 16]),
            role: Role::Destination,
            counter: 7,
            value: 9,
        }
    }

    #[test]
    fn a_bind_reads_back_and_is_no_quic_packet() {
        let bytes = bind().encode(&key());
        assert!(is_control(&bytes));
        assert_eq!(Control::decode(&bytes), Some(bind()));
        assert!(Control::is_authentic(&bytes, &key()));
        for first in [0x40u8, 0x7f, 0xc0, 0xff] {
            assert!(!is_control(&[first]));
        }
        assert!(!is_control(&[]));
    }

    #[test]
    fn padding_goes_on_and_off_and_has_one_size() {
        let bytes = bind().encode(&key());
        assert_eq!(unpadded(&padded(&bytes)), Some(&bytes));
        assert_eq!(unpadded(&bytes), Some(&bytes));
        assert!(is_control(&padded(&bytes)));
        for length in [0, SIZE - 1, SIZE + 1, PADDED_SIZE - 1, PADDED_SIZE + 1] {
            let mut bad = padded(&bytes).to_vec();
            bad.resize(length, 0);
            assert_eq!(unpadded(&bad), None, "{length}");
        }
    }

    /// THREATS DAT-01.
    #[test]
    fn every_flipped_bit_and_every_other_length_is_refused() {
        let bytes = bind().encode(&key());
        for bit in 0..SIZE * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!Control::is_authentic(&bad, &key()), "bit {bit}");
        }
        for length in (0..SIZE).chain([SIZE + 1]) {
            let mut bad = bytes.to_vec();
            bad.resize(length, 0);
            assert_eq!(Control::decode(&bad), None);
            assert!(!Control::is_authentic(&bad, &key()));
        }
        assert!(!Control::is_authentic(&bytes, &LegKey::new(Secret::new([2; 32]))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(control) = Control::decode(&bytes) {
                prop_assert_eq!(&control.encode(&key())[..SIGNED], &bytes[..SIGNED]);
                prop_assert!(!Control::is_authentic(&bytes, &key()));
            }
        }
    }
}
