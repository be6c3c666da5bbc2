//! What the agent's supervisor and its workers say to each other, so that a worker can hand over to its successor.
//!
//! One message is one packet of a local socket, so that whoever reads it next finds whole messages. What states a level
//! ([`State`], [`Order`]) is said again in full at each change: a message that is lost with a supervisor costs nothing.
//! Supervisor and worker may be of different versions; unknown fields and kinds are passed over.

use crate::code::Code;
use crate::ids::TunnelId;
use crate::message::{Attached, EndTunnel, FromAgent};
use crate::time::UnixTime;

/// The version of this protocol, which a worker names in its [`State`].
pub const VERSION: u32 = 1;

/// Largest packet, in bytes: the tunnels of several workers at their most fill a tenth of it.
pub const MAX_PACKET: usize = 16 * 1024;

/// What is said, in either direction.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[non_exhaustive]
pub enum Message {
    /// To a worker: say how you are.
    #[n(0)]
    Ask,
    /// To a worker: what it is to be from here on.
    #[n(1)]
    Order(#[n(0)] Order),
    /// From a worker: how it is.
    #[n(2)]
    State(#[n(0)] State),
    /// From a worker: a line for the service manager's status.
    #[n(3)]
    Status(#[n(0)] String),
    /// To a worker: read the configuration again.
    #[n(4)]
    Reload,
    /// From the active worker to the others: a tunnel is to end.
    #[n(5)]
    EndTunnel(#[n(0)] EndTunnel),
    /// From the active worker to the others: all tunnels are to end.
    #[n(6)]
    EndAll(#[n(0)] Code),
    /// From the active worker to the others: the server's time.
    #[n(7)]
    Time(#[n(0)] UnixTime),
    /// From a draining worker to the active one: tell the server that a tunnel or a session has ended.
    #[n(8)]
    Ended(#[n(0)] FromAgent),
    /// From the active worker to the others: the next key of the leg of a tunnel, which the server rotates.
    #[n(9)]
    Rekey(#[n(0)] Attached),
}

/// What a worker is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Role {
    /// Keeps the control link and takes offers.
    #[n(0)]
    Active,
    /// Goes on as it is, and does not link again for a while: a successor tries to.
    #[n(1)]
    Waiting,
    /// Has no control link, keeps its tunnels until they end, and ends then.
    #[n(2)]
    Draining,
}

/// What a worker is to be.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Order {
    /// Its role.
    #[n(0)]
    pub role: Role,
    /// Tunnels that other workers of this device keep alive; only the active worker is told.
    #[n(1)]
    pub others: Vec<TunnelId>,
    /// Whether the server can record what happens, as it told the active worker; the others are told, and hear nothing
    /// where that one does not know.
    #[n(2)]
    pub recording: Option<bool>,
}

/// How a worker is.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct State {
    /// [`VERSION`].
    #[n(0)]
    pub protocol: u32,
    /// The version of the program.
    #[n(1)]
    pub version: String,
    /// Its role.
    #[n(2)]
    pub role: Role,
    /// Whether the server has welcomed it on a link that is still there.
    #[n(3)]
    pub linked: bool,
    /// The tunnels that it keeps alive.
    #[n(4)]
    pub tunnels: Vec<TunnelId>,
    /// Whether the server can record what happens; `None` from a worker without a link.
    #[n(5)]
    pub recording: Option<bool>,
}

impl Message {
    /// Writes the message as one packet.
    pub fn to_packet(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written = minicbor::encode(self, &mut bytes);
        debug_assert!(written.is_ok(), "a Vec takes every byte");
        bytes
    }

    /// Reads a packet; `None` when it is no message, or one of a newer version.
    pub fn from_packet(bytes: &[u8]) -> Option<Self> {
        crate::frame::decode(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::TunnelEnded;

    fn messages() -> Vec<Message> {
        let tunnel = TunnelId::from_bytes([7; 16]);
        vec![
            Message::Ask,
            Message::Order(Order {
                role: Role::Waiting,
                others: vec![tunnel],
                recording: Some(false),
            }),
            Message::State(State {
                protocol: VERSION,
                version: "0.1.0".into(),
                role: Role::Active,
                linked: true,
                tunnels: vec![tunnel],
                recording: Some(true),
            }),
            Message::Status("linked".into()),
            Message::Reload,
            Message::EndTunnel(EndTunnel {
                tunnel,
                reason: Code::Revoked.into(),
            }),
            Message::EndAll(Code::Revoked),
            Message::Time(UnixTime::from_secs(7)),
            Message::Ended(FromAgent::TunnelEnded(TunnelEnded {
                tunnel,
                reason: Code::TunnelIdle,
                sessions: 3,
            })),
        ]
    }

    #[test]
    fn every_message_reads_back() {
        for message in messages() {
            assert_eq!(
                Message::from_packet(&message.to_packet()).as_ref(),
                Some(&message)
            );
        }
    }

    #[test]
    fn fields_of_a_newer_version_are_passed_over_and_its_kinds_are_none() {
        let mut e = minicbor::Encoder::new(Vec::new());
        let order = e.array(2).and_then(|e| e.u8(1)).and_then(|e| e.array(1));
        let order = order.and_then(|e| e.map(3)).and_then(|e| e.u8(0)?.u8(2));
        // One of before says nothing of recording.
        let order = order.and_then(|e| e.u8(1)?.array(0)?.u8(99)?.str("new"));
        assert!(order.is_ok());
        let read = Message::from_packet(e.writer());
        let (role, others) = (Role::Draining, Vec::new());
        let order = Order {
            role,
            others,
            recording: None,
        };
        assert_eq!(read, Some(Message::Order(order)));
        assert_eq!(
            Message::from_packet(&[0x82, 0x18, 99, 0x80]),
            None,
            "a kind of a newer version"
        );
    }

    #[test]
    fn the_largest_state_fits_a_packet() {
        let tunnels = vec![TunnelId::from_bytes([0xff; 16]); 4 * 64];
        let order = Order {
            role: Role::Active,
            others: tunnels,
            recording: Some(true),
        };
        assert!(Message::Order(order).to_packet().len() < MAX_PACKET);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::from_packet(&bytes);
        }
    }
}
