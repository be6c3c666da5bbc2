//! What is recorded: typed events. The store chains them by hash; `tunnel_proto::audit` checks the chain.

pub(crate) mod filter;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tunnel_policy::Question;
use tunnel_proto::api::{EndsDropped, LegPath, Limits, Opening, Traffic};
use tunnel_proto::batch::{Batch, BatchHash};
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{
    ApprovalId, Code, DeviceId, Identity, NodeName, OperatorName, ServiceName, TunnelId, UnixTime,
};

/// Longest text of a peer that an event keeps, in bytes: enough for a sentence, too little to fill a disk with.
pub const MAX_TEXT: usize = 512;

/// One thing that happened, with all that a later reader needs to judge it.
///
/// # Security
/// No event holds a secret (THREATS I11). A text of another party is data inside a JSON string and cannot forge a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body")]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the fields carry the names of the design's words, and each variant says what happened"
)]
pub enum Event {
    /// The server started.
    #[serde(rename = "server.started")]
    ServerStarted {
        node: NodeName,
        version: String,
        policy_revision: u64,
    },
    /// The server stopped in good order.
    #[serde(rename = "server.stopped")]
    ServerStopped { node: NodeName },

    /// An enrolment code was made; `code` names it and is no secret.
    #[serde(rename = "enrol.code_made")]
    EnrolCodeMade {
        code: String,
        makes: MemberKind,
        ids: Vec<String>,
        group: Option<GroupName>,
        uses: u32,
        expires_at: UnixTime,
        replace: bool,
        by: String,
    },
    /// An enrolment with a known code was refused.
    #[serde(rename = "enrol.refused")]
    EnrolRefused {
        code: String,
        wanted: Option<String>,
        key: KeyHash,
        reason: Code,
        source: String,
    },
    /// Enrolments with unknown, expired or used codes were refused: how many since the last such record.
    #[serde(rename = "enrol.guessed")]
    EnrolGuessed { count: u64, last_source: String },
    /// Somebody tried to enrol with a key that another identity has, or that was revoked.
    #[serde(rename = "key.reused")]
    KeyReused {
        code: String,
        wanted: String,
        key: KeyHash,
        source: String,
    },
    /// A device was enrolled; `replaced` are the keys that were revoked in its favour.
    #[serde(rename = "device.enrolled")]
    DeviceEnrolled {
        device: DeviceId,
        key: KeyHash,
        group: Option<GroupName>,
        code: String,
        replaced: Vec<KeyHash>,
        expires_at: UnixTime,
        source: String,
    },
    /// An operator was enrolled or logged in; `replaced` are the keys that were revoked in its favour.
    #[serde(rename = "operator.enrolled")]
    OperatorEnrolled {
        operator: OperatorName,
        key: KeyHash,
        group: Option<GroupName>,
        code: String,
        replaced: Vec<KeyHash>,
        expires_at: UnixTime,
        source: String,
    },
    /// A certificate was renewed.
    #[serde(rename = "certificate.renewed")]
    CertificateRenewed {
        #[serde(with = "as_text")]
        identity: Identity,
        key: KeyHash,
        expires_at: UnixTime,
    },
    /// An identity lost all trust, for good.
    #[serde(rename = "identity.revoked")]
    IdentityRevoked {
        #[serde(with = "as_text")]
        identity: Identity,
        reason: Option<String>,
        by: String,
    },
    /// A device was put into quarantine.
    #[serde(rename = "device.quarantined")]
    DeviceQuarantined {
        device: DeviceId,
        reason: Option<String>,
        by: String,
    },
    /// A device was released from quarantine.
    #[serde(rename = "device.released")]
    DeviceReleased {
        device: DeviceId,
        reason: Option<String>,
        by: String,
    },
    /// An operator was disabled.
    #[serde(rename = "operator.disabled")]
    OperatorDisabled {
        operator: OperatorName,
        reason: Option<String>,
        by: String,
    },
    /// An operator was enabled again.
    #[serde(rename = "operator.enabled")]
    OperatorEnabled {
        operator: OperatorName,
        reason: Option<String>,
        by: String,
    },
    /// A device or operator was put into a group or taken out of it.
    #[serde(rename = "group.changed")]
    GroupChanged {
        member: String,
        makes: MemberKind,
        group: GroupName,
        added: bool,
        by: String,
    },

    /// Facts about a device were set or removed.
    #[serde(rename = "facts.changed")]
    FactsChanged {
        device: DeviceId,
        set: BTreeMap<FactName, FactValue>,
        unset: Vec<FactName>,
        by: String,
    },

    /// A policy came into force; `sha256` is over its text.
    #[serde(rename = "policy.changed")]
    PolicyChanged {
        revision: u64,
        sha256: String,
        by: String,
    },
    /// A policy was not accepted.
    #[serde(rename = "policy.refused")]
    PolicyRefused { errors: Vec<String>, by: String },
    /// A policy failed while it was evaluated, which denied the request.
    #[serde(rename = "policy.failed")]
    PolicyFailed {
        operator: OperatorName,
        action: String,
        errors: Vec<String>,
    },
    /// An operator asked for something other than a tunnel and was denied.
    #[serde(rename = "access.denied")]
    AccessDenied {
        operator: OperatorName,
        action: String,
        source: String,
    },

    /// Somebody asks others to agree to tunnels.
    #[serde(rename = "approval.requested")]
    ApprovalRequested {
        approval: ApprovalId,
        operator: OperatorName,
        devices: Vec<DeviceId>,
        services: Vec<ServiceName>,
        reason: String,
        window_secs: u64,
        needed: u32,
        expires_at: UnixTime,
        source: String,
        /// The commands that it is for alone, and their hash.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commands: Option<Batch>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        batch: Option<BatchHash>,
    },
    /// Somebody has agreed; `approved` when that was enough, and it counts until `expires_at`.
    #[serde(rename = "approval.given")]
    ApprovalGiven {
        approval: ApprovalId,
        operator: OperatorName,
        by: OperatorName,
        approvers: Vec<OperatorName>,
        needed: u32,
        approved: bool,
        expires_at: UnixTime,
        source: String,
    },
    /// Somebody who had agreed was disabled: that agreement counts no more, also when they are enabled again. `approvers` are
    /// those who are left.
    #[serde(rename = "approval.struck")]
    ApprovalStruck {
        approval: ApprovalId,
        operator: OperatorName,
        by: OperatorName,
        approvers: Vec<OperatorName>,
    },
    /// Somebody has said no.
    #[serde(rename = "approval.denied")]
    ApprovalDenied {
        approval: ApprovalId,
        operator: OperatorName,
        by: OperatorName,
        reason: Option<String>,
        source: String,
    },
    /// An approval was taken back; what rests on it is cut.
    #[serde(rename = "approval.withdrawn")]
    ApprovalWithdrawn {
        approval: ApprovalId,
        operator: OperatorName,
        by: OperatorName,
        reason: Option<String>,
        source: String,
    },
    /// An alarm: somebody opens a tunnel without the approvals that policy asks for. Its decision is the next record.
    #[serde(rename = "glass.broken")]
    GlassBroken {
        tunnel: TunnelId,
        operator: OperatorName,
        device: DeviceId,
        services: Vec<ServiceName>,
        reason: Option<String>,
        expires_at: UnixTime,
        source: String,
    },
    /// More was refused to somebody than is worth a record each: how often, by what it was, since when.
    #[serde(rename = "denials.gathered")]
    DenialsGathered {
        by: String,
        source: String,
        since: UnixTime,
        count: u64,
        what: BTreeMap<String, u64>,
    },
    /// Records were dropped for their age; `statement` is what the server signed of it, in base64url.
    #[serde(rename = "audit.dropped")]
    AuditDropped {
        first: u64,
        last: u64,
        count: u64,
        hash: String,
        statement: String,
    },
    /// Records can be written again: for how long they could not, how many sessions' waited meanwhile, and how many of
    /// those found no room.
    #[serde(rename = "evidence.restored")]
    EvidenceRestored {
        failing_secs: u64,
        waited: u64,
        lost: u64,
    },

    /// A tunnel was decided.
    #[serde(rename = "tunnel.opened")]
    TunnelOpened {
        tunnel: TunnelId,
        operator: OperatorName,
        holder_key: KeyHash,
        device: DeviceId,
        services: Vec<ServiceName>,
        reason: Option<String>,
        expires_at: UnixTime,
        policy_revision: u64,
        policies: Vec<String>,
        source: String,
        /// Absent in records of before there were any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limits: Option<Limits>,
        /// SHA-256 of the signed grant; absent in older records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grant: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        approvers: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        approval: Option<String>,
        /// The only batch of commands that it is for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        batch: Option<Box<BatchHash>>,
        /// All that the decision was made from; absent in older records, which cannot be replayed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<Box<Question>>,
        /// That the authoriser was asked; its facts stand in the question.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authoriser: Option<Consulted>,
    },
    /// A tunnel was denied, by policy, by the device, or for want of it.
    #[serde(rename = "tunnel.denied")]
    TunnelDenied {
        operator: OperatorName,
        device: String,
        services: Vec<String>,
        reason: Option<String>,
        code: Code,
        policy_revision: u64,
        policies: Vec<String>,
        source: String,
        /// Whether there is such a device; older records do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device_known: Option<bool>,
        /// As in `tunnel.opened`; absent too where the device is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<Box<Question>>,
        /// As in `tunnel.opened`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authoriser: Option<Consulted>,
    },
    /// A token was redeemed: one leg is admitted.
    #[serde(rename = "tunnel.attached")]
    TunnelAttached {
        tunnel: TunnelId,
        role: String,
        /// Absent in older records, as the device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operator: Option<OperatorName>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<DeviceId>,
    },
    /// Both legs of a tunnel are bound.
    #[serde(rename = "tunnel.connected")]
    TunnelConnected {
        tunnel: TunnelId,
        /// Absent in older records, as the device and the paths.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operator: Option<OperatorName>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<DeviceId>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        paths: Vec<LegPath>,
    },
    /// A tunnel has ended.
    #[serde(rename = "tunnel.ended")]
    TunnelEnded {
        tunnel: TunnelId,
        operator: OperatorName,
        device: DeviceId,
        reason: Code,
        by: String,
        lived_secs: u64,
        traffic: Option<Traffic>,
        /// What it rested on; absent in older records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opening: Option<Box<Opening>>,
    },
    /// The key of a leg was rotated.
    #[serde(rename = "tunnel.rotated")]
    TunnelRotated {
        tunnel: TunnelId,
        leg: String,
        by: String,
    },
    /// Somebody cut tunnels by hand: what, and how many were alive.
    #[serde(rename = "cut.ordered")]
    CutOrdered {
        target: String,
        reason: Option<String>,
        tunnels: u64,
        by: String,
    },
    /// A device has confirmed that a tunnel which was cut has ended there; `late` after an alarm.
    #[serde(rename = "cut.confirmed")]
    CutConfirmed {
        tunnel: TunnelId,
        device: DeviceId,
        millis: u64,
        late: bool,
    },
    /// An alarm: a device has not confirmed in time that a tunnel which was cut has ended there.
    #[serde(rename = "cut.unconfirmed")]
    CutUnconfirmed {
        tunnel: TunnelId,
        device: DeviceId,
        reason: Code,
    },
    /// An alarm: a notification was given up. It is kept apart until somebody settles it.
    #[serde(rename = "notification.failed")]
    NotificationFailed {
        target: String,
        seq: u64,
        tries: u32,
        error: String,
    },
    /// A notification that was given up was sent after all, or dropped.
    #[serde(rename = "notification.settled")]
    NotificationSettled {
        target: String,
        seq: u64,
        sent: bool,
        by: String,
    },
    /// A token was refused.
    #[serde(rename = "token.refused")]
    TokenRefused {
        tunnel: Option<TunnelId>,
        role: String,
        presented_by: String,
        reason: Code,
    },
    /// A session has ended.
    #[serde(rename = "session.ended")]
    SessionEnded {
        tunnel: TunnelId,
        service: String,
        millis: u64,
        bytes_in: u64,
        bytes_out: u64,
        /// All that follows is absent in older records.
        #[serde(flatten)]
        of: SessionOf,
    },
    /// A session was refused at the device.
    #[serde(rename = "session.refused")]
    SessionRefused {
        tunnel: TunnelId,
        service: String,
        reason: Code,
        #[serde(flatten)]
        of: SessionOf,
    },

    /// A device's control link came up; `replaced` tells that it took an older link's place.
    #[serde(rename = "device.linked")]
    DeviceLinked {
        device: DeviceId,
        carrier: String,
        source: String,
        version: String,
        replaced: bool,
    },
    /// A device's control link is gone.
    #[serde(rename = "device.unlinked")]
    DeviceUnlinked {
        device: DeviceId,
        why: String,
        linked_secs: u64,
    },
}

/// Whose session it was, and what it rested on, so that its record speaks for itself.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SessionOf {
    /// Who used it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorName>,
    /// On which device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<UnixTime>,
    /// Who ended it: `both`, `operator`, `service` or `tunnel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// Why the tunnel ended, if that ended the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Code>,
    /// Where the legs of the tunnel were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<LegPath>,
    /// What the tunnel rested on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opening: Option<Box<Opening>>,
    /// Its number in the tunnel, as the device counts: there is one record of it, however often it is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Ends of sessions that the device gave up for want of room before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<EndsDropped>,
}

/// One request to the fleet's own authoriser.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Consulted {
    /// The id of the request, as the authoriser has it.
    pub request: String,
    /// How long the answer took.
    pub millis: u64,
    /// What it said, or why that could not be used.
    pub answer: String,
}

/// What an enrolment makes, and what a group holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberKind {
    /// Agents on devices.
    Device,
    /// Persons and scripts.
    Operator,
}

impl MemberKind {
    /// Returns the kind as commands, the API and the store write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for MemberKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Cuts a peer's text to [`MAX_TEXT`] bytes, at a character.
pub fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// An event as the chain holds it: its kind, and its particulars as JSON text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The kind, as `tunnel.opened`.
    pub kind: String,
    /// The particulars: exactly the bytes that are hashed.
    pub body: String,
}

impl Event {
    /// Writes the event.
    pub fn write(&self) -> Written {
        let value = serde_json::to_value(self).unwrap_or_default();
        let kind = value
            .get("kind")
            .and_then(|kind| kind.as_str())
            .unwrap_or("event.unwritable")
            .to_owned();
        let body = value
            .get("body")
            .map_or_else(|| "{}".to_owned(), ToString::to_string);
        Written { kind, body }
    }

    /// Reads an event back; `None` for one that this release does not know.
    pub fn read(kind: &str, body: &str) -> Option<Self> {
        let body: serde_json::Value = serde_json::from_str(body).ok()?;
        serde_json::from_value(serde_json::json!({ "kind": kind, "body": body })).ok()
    }
}

/// Writes a value as its text.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(d: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_back() {
        let event = Event::IdentityRevoked {
            identity: "spiffe://f/device/pump-17".parse().unwrap(),
            reason: Some("lost".into()),
            by: "operator/ana".into(),
        };
        let written = event.write();
        assert_eq!(written.kind, "identity.revoked");
        assert_eq!(Event::read(&written.kind, &written.body), Some(event));
        assert_eq!(Event::read("identity.invented", "{}"), None);
    }

    /// THREATS AUD-04.
    #[test]
    fn a_hostile_text_stays_one_string() {
        let service = "x\",\"reason\":\"E_OK\"}\n{\u{1b}[2J\u{202e}";
        let tunnel = TunnelId::from_bytes([1; 16]);
        let event = Event::SessionRefused {
            tunnel,
            service: service.into(),
            reason: Code::LocalPolicy,
            of: SessionOf::default(),
        };
        let written = event.write();
        assert!(!written.body.contains('\n'));
        assert!(!written.body.contains('\u{1b}'));
        assert_eq!(Event::read(&written.kind, &written.body), Some(event));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(bounded("short"), "short");
        assert_eq!(bounded(&"é".repeat(400)).len(), MAX_TEXT);
        assert_eq!(bounded(&format!("x{}", "é".repeat(400))).len(), MAX_TEXT - 1);
    }
}
