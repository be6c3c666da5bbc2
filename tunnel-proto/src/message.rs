//! Messages of the control link and of session streams: CBOR maps with integer keys.
//!
//! Fields and kinds that a reader does not know are passed over, so that a device of years ago is still understood.
//! `docs/protocol.cddl` is the specification.

use std::collections::BTreeMap;

use crate::code::{Code, Refusal};
use crate::cose::VerifyingKey;
use crate::grant::LinkNonce;
use crate::ids::{CircuitId, TunnelId};
use crate::keys::Secret;
use crate::names::{NodeName, ServiceName};
use crate::outage::Outage;
use crate::time::UnixTime;

/// What an agent tells the server.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[non_exhaustive]
pub enum FromAgent {
    /// First message on a control link.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Answer to an offer.
    #[n(1)]
    OfferAnswer(#[n(0)] OfferAnswer),
    /// Redeems the destination token of a tunnel.
    #[n(2)]
    Attach(#[n(0)] Attach),
    /// A tunnel has ended at the device: confirms a cut, or tells that the device itself ended it.
    #[n(3)]
    TunnelEnded(#[n(0)] TunnelEnded),
    /// Keepalive; the server answers each with [`FromServer::Pong`].
    #[n(4)]
    Ping(#[n(0)] Ping),
    /// Asks for a fresh certificate for the same key or a new one: a PKCS#10 request, DER.
    #[n(5)]
    Renew(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// What the device says of itself has changed; replaces what [`Hello`] said.
    #[n(6)]
    Report(#[n(0)] Report),
    /// A session in a tunnel has ended, or was refused. One that has a number is told on each link until the server
    /// answers with [`FromServer::SessionsKept`].
    #[n(7)]
    SessionEnded(#[n(0)] SessionEnded),
    /// First message of a connection that only measures the way, by a device or an operator: it is no link, and leaves
    /// one that is up alone. Later ones ask for the measures so far; [`FromAgent::Ping`] is answered as on a link.
    #[n(8)]
    Probe(#[n(0)] Probe),
    /// Times without a link that are over. They are told on each link until the server answers with
    /// [`FromServer::OutagesKept`].
    #[n(9)]
    Outages(#[n(0)] Vec<Outage>),
}

/// What the server tells an agent.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[non_exhaustive]
pub enum FromServer {
    /// Answer to [`Hello`]: the agent is linked.
    #[n(0)]
    Welcome(#[n(0)] Welcome),
    /// A tunnel that was decided; the agent accepts or refuses it.
    #[n(1)]
    Offer(#[n(0)] Offer),
    /// Answer to [`Attach`].
    #[n(2)]
    Attached(#[n(0)] Attached),
    /// Refusal of [`Attach`].
    #[n(3)]
    AttachRefused(#[n(0)] EndTunnel),
    /// Ends a tunnel, whatever goes on in it. The agent confirms with [`FromAgent::TunnelEnded`].
    #[n(4)]
    EndTunnel(#[n(0)] EndTunnel),
    /// Answer to [`FromAgent::Ping`].
    #[n(5)]
    Pong(#[n(0)] Pong),
    /// Answer to [`FromAgent::Renew`]: the new chain, leaf first, each DER.
    #[n(6)]
    Renewed(#[n(0)] Renewed),
    /// Refusal of [`FromAgent::Renew`].
    #[n(7)]
    RenewRefused(#[n(0)] Refusal),
    /// The server ends the link in good order; the agent comes back after the given time.
    #[n(8)]
    Goodbye(#[n(0)] Goodbye),
    /// Answer to [`FromAgent::Probe`].
    #[n(9)]
    Probed(#[n(0)] Probed),
    /// Answer to [`FromAgent::Outages`]: the ids of those that are kept for good.
    #[n(10)]
    OutagesKept(#[n(0)] Vec<u64>),
    /// The key of a live tunnel's leg counts no more for binds: the agent redeems the token, by [`FromAgent::Attach`], and
    /// binds anew with the key of the answer. Sessions go on.
    #[n(11)]
    Rotate(#[n(0)] Rotate),
    /// Second answer to the [`FromAgent::Ping`] of this number, after the time that it asked for.
    #[n(12)]
    Echo(#[n(0)] u64),
    /// Whether sessions may begin: they may not while the server cannot record what happens. Those that are there go on.
    #[n(13)]
    Recording(#[n(0)] bool),
    /// Answer to [`FromAgent::SessionEnded`]: those that need not be told again. Their records are on the disk, or they were
    /// counted among many.
    #[n(14)]
    SessionsKept(#[n(0)] Vec<SessionKey>),
}

/// First message on a control link.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Hello {
    /// Version of the agent, as `0.1.0`.
    #[n(0)]
    pub version: String,
    /// Fresh for each link; grants name it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub nonce: LinkNonce,
    /// The agent's clock.
    #[n(2)]
    pub clock: UnixTime,
    /// What the device says of itself.
    #[n(3)]
    pub report: Report,
    /// Tunnels that are alive at the device from before this link.
    #[n(4)]
    pub tunnels: Vec<TunnelId>,
}

/// What a device says of itself. The server never takes it for more than a claim.
#[derive(Clone, PartialEq, Eq, Debug, Default, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Report {
    /// The services that the agent offers.
    #[n(0)]
    pub services: Vec<ServiceName>,
    /// Host keys of the device's SSH server, each as `<type> <base64>`.
    #[n(1)]
    pub ssh_host_keys: Vec<String>,
    /// Whether the owner lets anybody in.
    #[n(2)]
    pub access: bool,
    /// The operating system, as `linux/x86_64`.
    #[n(3)]
    pub platform: String,
    /// Facts that the device's configuration states, each with its value.
    #[cbor(n(4), default)]
    pub facts: BTreeMap<String, String>,
    /// Those of the services that run commands: only they can be bound to a batch, and agents of before have none.
    #[cbor(n(5), default)]
    pub runs: Vec<ServiceName>,
}

/// Answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The server that the agent is linked to.
    #[n(0)]
    pub node: NodeName,
    /// The server's clock. The link is authenticated, so the agent may lean on it.
    #[n(1)]
    pub clock: UnixTime,
    /// The key that grants are signed with.
    #[n(2)]
    pub grant_key: VerifyingKey,
    /// Which of the agent's tunnels the server no longer knows; the agent ends them.
    #[n(3)]
    pub ended: Vec<TunnelId>,
    /// Whether the server says which ends of sessions it has for good; one of before does not, and would take what it is
    /// told twice for two.
    #[cbor(n(4), default)]
    pub keeps_sessions: bool,
}

/// A tunnel that was decided.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Offer {
    /// The signed [`crate::grant::Grant`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub grant: Vec<u8>,
    /// The signed [`crate::token::AccessToken`] of the destination leg.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub token: Vec<u8>,
    /// The tunnel, so that a grant which cannot be read can still be refused by name.
    #[n(2)]
    pub tunnel: TunnelId,
    /// The signed [`crate::lock::Permit`] that the operator has shown; the server has not read it.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub permit: Option<Vec<u8>>,
}

/// Answer to [`Offer`].
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct OfferAnswer {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// Why the device does not take it; `None` when it does.
    #[n(1)]
    pub refused: Option<Refusal>,
}

/// Redeems a destination token.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Attach {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// The token, as it came in the offer.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub token: Vec<u8>,
}

/// A leg is admitted.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Attached {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// The circuit on the relay.
    #[n(1)]
    pub circuit: CircuitId,
    /// The key of the leg.
    #[n(2)]
    pub leg_key: Secret,
    /// UDP port of the relay; its host is the server's.
    #[n(3)]
    pub udp_port: u16,
    /// TCP port of the WebSocket carrier; its host is the server's.
    #[n(4)]
    pub websocket_port: u16,
}

/// A fresh token for the destination leg of a live tunnel.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Rotate {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// The signed [`crate::token::AccessToken`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub token: Vec<u8>,
}

/// Ends a tunnel, or refuses to attach it.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct EndTunnel {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// Why.
    #[n(1)]
    pub reason: Refusal,
}

/// Tells that a tunnel has ended at the device.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct TunnelEnded {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// Why.
    #[n(1)]
    pub reason: Code,
    /// Sessions that it carried.
    #[n(2)]
    pub sessions: u64,
}

/// Tells that a session has ended at the device, or was refused there.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SessionEnded {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// The service that was asked for. Not a [`ServiceName`]: what was refused may be none.
    #[n(1)]
    pub service: String,
    /// Why it was refused; `None` when it took place.
    #[n(2)]
    pub refused: Option<Code>,
    /// Milliseconds from its start to its end.
    #[n(3)]
    pub millis: u64,
    /// Bytes from the operator to the service.
    #[n(4)]
    pub bytes_in: u64,
    /// Bytes from the service to the operator.
    #[n(5)]
    pub bytes_out: u64,
    /// When it started and what ended it; agents of before do not say.
    #[n(6)]
    pub end: Option<SessionEnd>,
    /// Its number, which no other of the tunnel has, whenever it is told; agents of before do not say.
    #[n(7)]
    pub number: Option<u64>,
    /// What the device could not keep before this.
    #[n(8)]
    pub dropped: Option<EndsDropped>,
}

impl SessionEnded {
    /// Returns what tells it from all others; `None` for one of an agent of before.
    pub fn key(&self) -> Option<SessionKey> {
        let (tunnel, number) = (self.tunnel, self.number?);
        Some(SessionKey { tunnel, number })
    }
}

/// What tells a session from all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SessionKey {
    /// The tunnel.
    #[n(0)]
    pub tunnel: TunnelId,
    /// The session's number in it.
    #[n(1)]
    pub number: u64,
}

/// How many ends of sessions a device gave up for want of room, before the server had said that it has them. Those that it
/// had told are among them, since they may have been lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct EndsDropped {
    /// Of sessions that took place.
    #[n(0)]
    pub sessions: u64,
    /// Of sessions that were refused.
    #[n(1)]
    pub refusals: u64,
}

/// When a session started, and what ended it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SessionEnd {
    /// When it started, by the server's clock as the device knows it.
    #[n(0)]
    pub started_at: UnixTime,
    /// Who ended it.
    #[n(1)]
    pub by: EndedBy,
    /// Why the tunnel ended, if that ended the session.
    #[n(2)]
    pub cause: Option<Code>,
}

/// Who ended a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EndedBy {
    /// A newer release than this knows.
    Unknown = 0,
    /// Both sides: each said all that it had to say.
    Both = 1,
    /// The operator broke it off.
    Operator = 2,
    /// The service broke it off.
    Service = 3,
    /// The end of the tunnel.
    Tunnel = 4,
}

impl EndedBy {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Both => "both",
            Self::Operator => "operator",
            Self::Service => "service",
            Self::Tunnel => "tunnel",
        }
    }
}

impl<C> minicbor::Encode<C> for EndedBy {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u8(*self as u8)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for EndedBy {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Ok(match d.u64()? {
            1 => Self::Both,
            2 => Self::Operator,
            3 => Self::Service,
            4 => Self::Tunnel,
            _ => Self::Unknown,
        })
    }
}

/// Keepalive of the control link.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Ping {
    /// Counts up from 0 on each link.
    #[n(0)]
    pub seq: u64,
    /// The [`Pong::proof`] of the last answer; proves that it arrived.
    #[n(1)]
    pub proof: u64,
    /// After how many seconds the next one comes at the latest.
    #[n(2)]
    pub next_secs: u32,
    /// Round trip of the last keepalive as the agent measured it, in milliseconds.
    #[n(3)]
    pub rtt_millis: Option<u32>,
    /// What the link has cost so far, both ways, with the headers of IP and of what carries it, in bytes; not in each ping.
    #[n(4)]
    pub cost_bytes: Option<u64>,
    /// After how many milliseconds the server is to answer a second time, by [`FromServer::Echo`]: whether that comes
    /// through tells whether a NAT bears such a silence.
    #[n(5)]
    pub echo_after_millis: Option<u32>,
}

/// Answer to [`Ping`].
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Pong {
    /// The number of the ping.
    #[n(0)]
    pub seq: u64,
    /// Random; the next ping echoes it.
    #[n(1)]
    pub proof: u64,
    /// The address and port from which the server hears the agent, as text; absent if they are those of the answer before.
    /// If they change while the agent's own have not, a NAT has forgotten the binding.
    #[n(2)]
    pub seen_as: Option<String>,
    /// The server's clock.
    #[n(3)]
    pub clock: UnixTime,
}

/// Asks what the server has measured of a connection.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Probe {
    /// Version of the program that asks.
    #[n(0)]
    pub version: String,
}

/// What the server sees and has measured of a connection that only measures.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Probed {
    /// The server.
    #[n(0)]
    pub node: NodeName,
    /// Its version.
    #[n(1)]
    pub version: String,
    /// Its clock, in milliseconds since 1970.
    #[n(2)]
    pub clock_millis: u64,
    /// The address and port from which it hears the one who asks, as text.
    #[n(3)]
    pub seen_as: String,
    /// Packets that it has sent on this connection.
    #[n(4)]
    pub sent: u64,
    /// How many of them were lost.
    #[n(5)]
    pub lost: u64,
    /// To a device: its control link, if one is up.
    #[n(6)]
    pub link: Option<ProbedLink>,
}

/// What the server knows of the control link of the device that asks.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct ProbedLink {
    /// `udp` or `websocket`.
    #[n(0)]
    pub carrier: String,
    /// Milliseconds since the last proven round trip.
    #[n(1)]
    pub proven_millis_ago: u64,
    /// Within how many seconds the link proves itself again: what its keepalive has learnt of the NAT on the way.
    #[n(2)]
    pub proof_within_secs: u64,
}

/// A fresh certificate.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Renewed {
    /// The chain, leaf first, each DER.
    #[n(0)]
    pub chain: Vec<minicbor::bytes::ByteVec>,
}

/// Orderly end of a link by the server.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Goodbye {
    /// Why.
    #[n(0)]
    pub reason: Refusal,
    /// Earliest time to come back, in milliseconds from now.
    #[n(1)]
    pub after_millis: u64,
}

/// First frame of a session stream, from the operator.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct OpenSession {
    /// The service, as text: the agent parses it and refuses what is no name.
    #[n(0)]
    pub service: String,
}

/// Answer to [`OpenSession`]; bytes of the service follow it on the stream. To a service that runs commands, the operator
/// has sent a [`crate::batch::Batch`] before, and each [`crate::batch::Ran`] follows.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SessionAnswer {
    /// Why there is no session; `None` when there is one.
    #[n(0)]
    pub refused: Option<Refusal>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use proptest::prelude::*;

    #[test]
    fn a_message_reads_back() {
        let message = FromAgent::Hello(Hello {
            version: "0.1.0".into(),
            nonce: [3; 16],
            clock: UnixTime::from_secs(7),
            report: Report {
                services: vec!["ssh".parse().unwrap()],
                access: true,
                ..Report::default()
            },
            tunnels: vec![TunnelId::from_bytes([1; 16])],
        });
        let bytes = frame::encode(&message);
        let length = frame::length(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, bytes.len() - 4);
        assert_eq!(frame::decode::<FromAgent>(&bytes[4..]).unwrap(), message);
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let mut e = minicbor::Encoder::new(Vec::new());
        e.map(2)
            .unwrap()
            .u8(0)
            .unwrap()
            .str("ssh")
            .unwrap()
            .u8(99)
            .unwrap()
            .array(1)
            .unwrap()
            .bool(true)
            .unwrap();
        assert_eq!(
            frame::decode::<OpenSession>(e.writer()).unwrap(),
            OpenSession {
                service: "ssh".into()
            }
        );
    }

    /// Both ways between releases: what the other does not know is passed over, and what it does not say is as before.
    #[test]
    fn a_session_of_before_has_no_number_and_a_server_of_before_keeps_none() {
        let tunnel = TunnelId::from_bytes([1; 16]);
        let ended = SessionEnded {
            tunnel,
            service: "ssh".into(),
            refused: None,
            millis: 1,
            bytes_in: 2,
            bytes_out: 3,
            end: None,
            number: None,
            dropped: None,
        };
        let of_before = minicbor::to_vec(&ended).unwrap();
        assert_eq!(
            of_before[0], 0xa5,
            "nothing is said that one of before does not say"
        );
        let read: SessionEnded = minicbor::decode(&of_before).unwrap();
        assert_eq!((read.key(), read.dropped), (None, None));
        let numbered = SessionEnded {
            number: Some(7),
            ..ended
        };
        let read: SessionEnded = minicbor::decode(&minicbor::to_vec(&numbered).unwrap()).unwrap();
        assert_eq!(read.key(), Some(SessionKey { tunnel, number: 7 }));

        let welcome = Welcome {
            node: "node-1".parse().unwrap(),
            clock: UnixTime::from_secs(7),
            grant_key: VerifyingKey::from_bytes([0; 32]),
            ended: Vec::new(),
            keeps_sessions: true,
        };
        let mut bytes = minicbor::to_vec(&welcome).unwrap();
        assert_eq!(
            (bytes[0], bytes.split_off(bytes.len() - 2)),
            (0xa5, vec![4, 0xf5])
        );
        bytes[0] = 0xa4;
        assert!(!minicbor::decode::<Welcome>(&bytes).unwrap().keeps_sessions);
    }

    #[test]
    fn a_frame_above_the_bound_is_refused() {
        assert!(frame::length(60_000u32.to_be_bytes()).is_ok());
        assert!(matches!(
            frame::length(60_001u32.to_be_bytes()),
            Err(frame::FrameError::TooLong(60_001))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = frame::decode::<FromAgent>(&bytes);
            let _ = frame::decode::<FromServer>(&bytes);
            let _ = frame::decode::<OpenSession>(&bytes);
            let _ = frame::decode::<SessionAnswer>(&bytes);
        }
    }
}
