//! What goes into the store and what comes out of it.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use tunnel_policy::{Approval, Question};
use tunnel_proto::api::{Limits, Opening, Traffic};
use tunnel_proto::batch::BatchHash;
use tunnel_proto::ids::hex;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::message::SessionKey;
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{
    CircuitId, Code, DeviceId, Identity, OperatorName, Refusal, ServiceName, TunnelId, UnixTime,
};

use crate::audit::{Consulted, MemberKind, SessionOf};

/// A one-time code that somebody made. Its secret is not here: the store keeps the hash.
#[derive(Clone, Debug)]
pub struct NewEnrolCode {
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// Whom it makes.
    pub makes: Makes,
    /// The group that newcomers are put into.
    pub group: Option<GroupName>,
    /// How often it can be used.
    pub uses: u32,
    /// When it ends.
    pub expires_at: UnixTime,
    /// Whether it may replace an enrolled id's key, which is then revoked.
    pub replace: bool,
    /// Who made it.
    pub by: String,
}

/// Whom an enrolment code makes. An empty list leaves the choice of the id to the newcomer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Makes {
    /// Devices with these ids.
    Devices(Vec<DeviceId>),
    /// Operators with these names.
    Operators(Vec<OperatorName>),
}

impl Makes {
    /// Returns the kind.
    pub const fn kind(&self) -> MemberKind {
        match self {
            Self::Devices(_) => MemberKind::Device,
            Self::Operators(_) => MemberKind::Operator,
        }
    }

    /// Returns the ids as text.
    pub fn ids(&self) -> Vec<String> {
        match self {
            Self::Devices(ids) => ids.iter().map(ToString::to_string).collect(),
            Self::Operators(names) => names.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A newcomer's request, whose certificate request was checked and whose key was proved.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// SHA-256 of the secret that was shown.
    pub secret_hash: [u8; 32],
    /// The id that is asked for, if the newcomer names one.
    pub wanted: Option<String>,
    /// The newcomer's key.
    pub key: KeyHash,
    /// The address that it comes from.
    pub source: String,
}

/// A certificate that was issued, as the store keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The chain, leaf first, PEM.
    pub chain_pem: String,
    /// The leaf's serial number.
    pub serial: Vec<u8>,
    /// The key that it names.
    pub key: KeyHash,
    /// When it ends.
    pub not_after: UnixTime,
}

/// Issues a certificate inside the transaction that consumes the code, so that neither is without the other.
pub type Issue = Box<dyn FnOnce(&Identity) -> Result<Certificate, Refusal> + Send>;

/// A newcomer that is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Who it is.
    pub identity: Identity,
    /// Its certificate.
    pub certificate: Certificate,
    /// The keys that lost their trust in favour of this one: their links and tunnels are to be cut.
    pub replaced: Vec<KeyHash>,
}

/// A device that is enrolled and not revoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceRecord {
    /// The device.
    pub id: DeviceId,
    /// The groups that it is in, sorted.
    pub groups: Vec<GroupName>,
    /// The key of its newest certificate.
    pub key: KeyHash,
    /// When it was enrolled first.
    pub enrolled_at: UnixTime,
    /// When its newest certificate ends.
    pub cert_expires_at: UnixTime,
    /// When it was linked last.
    pub last_seen: Option<UnixTime>,
    /// The agent's version, as it reported last.
    pub version: Option<String>,
    /// The operating system, as it reported last.
    pub platform: Option<String>,
    /// The services, as it reported last.
    pub services: Vec<ServiceName>,
    /// Host keys of its SSH server, as it reported last.
    pub ssh_host_keys: Vec<String>,
    /// Whether the owner lets anybody in, as it reported last.
    pub access: bool,
    /// The facts that owners have set.
    pub asserted_facts: BTreeMap<FactName, Assertion>,
    /// The facts of its configuration, as it reported last.
    pub reported_facts: BTreeMap<FactName, FactValue>,
    /// When it reported last.
    pub reported_at: Option<UnixTime>,
    /// How often what decisions are made from has changed.
    pub changes: u64,
}

/// A fact that somebody has set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assertion {
    /// The value.
    pub value: FactValue,
    /// When it was set.
    pub at: UnixTime,
    /// Who set it.
    pub by: String,
}

/// What policies may know of a device.
impl From<&DeviceRecord> for tunnel_policy::Device {
    fn from(record: &DeviceRecord) -> Self {
        Self {
            id: record.id.clone(),
            groups: record.groups.clone(),
            enrolled_at: record.enrolled_at,
            certificate_expires_at: record.cert_expires_at,
            asserted: record.asserted_facts.iter().map(fact).collect(),
            reported: tunnel_policy::Reported {
                at: record.reported_at.or(record.last_seen).unwrap_or_default(),
                access: record.access,
                services: record.services.clone(),
                version: record.version.clone(),
                platform: record.platform.clone(),
                facts: record.reported_facts.clone(),
            },
        }
    }
}

fn fact((name, fact): (&FactName, &Assertion)) -> (FactName, tunnel_policy::Fact) {
    let (value, at) = (fact.value.clone(), fact.at);
    (name.clone(), tunnel_policy::Fact { value, at })
}

/// An operator that is enrolled and not revoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OperatorRecord {
    /// The operator.
    pub name: OperatorName,
    /// The groups that it is in, sorted.
    pub groups: Vec<GroupName>,
    /// The key of its newest certificate.
    pub key: KeyHash,
    /// When its newest certificate ends.
    pub cert_expires_at: UnixTime,
    /// How often what decisions are made from has changed.
    pub changes: u64,
}

/// What policies may know of an operator.
impl From<&OperatorRecord> for tunnel_policy::Operator {
    fn from(record: &OperatorRecord) -> Self {
        Self {
            name: record.name.clone(),
            groups: record.groups.clone(),
        }
    }
}

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Member {
    /// A device.
    Device(DeviceId),
    /// An operator.
    Operator(OperatorName),
}

impl Member {
    /// Returns the kind.
    pub const fn kind(&self) -> MemberKind {
        match self {
            Self::Device(_) => MemberKind::Device,
            Self::Operator(_) => MemberKind::Operator,
        }
    }

    /// Returns the name as text.
    pub fn name(&self) -> &str {
        match self {
            Self::Device(id) => id.as_str(),
            Self::Operator(name) => name.as_str(),
        }
    }
}

/// Everything that has lost its trust.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RevokedSet {
    /// Identities: no certificate of theirs counts, whatever its key.
    pub identities: HashSet<Identity>,
    /// Keys: no certificate with one of them counts, whatever it names.
    pub keys: HashSet<KeyHash>,
}

impl RevokedSet {
    /// Says whether a certificate of `identity` with `key` has lost its trust.
    pub fn holds(&self, identity: &Identity, key: &KeyHash) -> bool {
        self.identities.contains(identity) || self.keys.contains(key)
    }
}

/// Trust that was taken away for a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suspension {
    /// Why.
    pub reason: Option<String>,
    /// By whom.
    pub by: String,
    /// When.
    pub at: UnixTime,
}

/// A tunnel that was decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTunnel {
    /// The tunnel.
    pub id: TunnelId,
    /// Its circuit on the relay.
    pub circuit: CircuitId,
    /// Who asked.
    pub operator: OperatorName,
    /// The key that the operator proved.
    pub holder_key: KeyHash,
    /// Where it leads.
    pub device: DeviceId,
    /// The key that the device proved on its control link.
    pub device_key: KeyHash,
    /// What it may be used for.
    pub services: Vec<ServiceName>,
    /// Why it was asked for.
    pub reason: Option<String>,
    /// When it ends at the latest.
    pub expires_at: UnixTime,
    /// The policy revision that decided.
    pub policy_revision: u64,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// The address that the operator comes from.
    pub source: String,
    /// From when on the operator's certificate was valid.
    pub certified_at: UnixTime,
    /// What others have agreed to, if that was needed.
    pub approval: Option<Approval>,
    /// Whether it is opened without the approvals that policy asks for.
    pub break_glass: bool,
    /// What the fleet's own authoriser said, if it was asked.
    pub authoriser: Option<BTreeMap<FactName, FactValue>>,
    /// What it may use.
    pub limits: Limits,
    /// The only batch of commands that it is for.
    pub batch: Option<BatchHash>,
}

/// What a decision was made from: with the record of the decision it can be made again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Basis {
    /// The question, unless the device is not known.
    pub question: Option<Box<Question>>,
    /// The operator's changes when it was read.
    pub operator_changes: u64,
    /// The device's changes when it was read.
    pub device_changes: u64,
    /// SHA-256 of the grant that it leads to.
    pub grant: Option<[u8; 32]>,
    /// That the fleet's own authoriser was asked.
    pub authoriser: Option<Consulted>,
}

/// Why a tunnel that policy permitted was not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotOpened {
    /// Another policy revision came into force meanwhile: decide anew (THREATS POL-03).
    PolicyStale {
        /// The revision in force.
        current: u64,
    },
    /// What is known of the operator or the device has changed meanwhile, or the approval does not stand any more: decide
    /// anew (THREATS POL-04).
    FactsStale,
    /// The operator, the device or one of their keys was revoked meanwhile.
    Revoked,
    /// The operator was disabled or the device put into quarantine meanwhile, as the code tells.
    Suspended(Code),
}

/// A tunnel that was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// Who asked.
    pub operator: OperatorName,
    /// The device that was named: text, since there may be none of that name.
    pub device: String,
    /// The services that were named.
    pub services: Vec<String>,
    /// Why it was asked for.
    pub reason: Option<String>,
    /// Why it was refused.
    pub code: Code,
    /// The policy revision that decided.
    pub policy_revision: u64,
    /// The policies that decided; none if none fitted.
    pub policies: Vec<String>,
    /// The address that the operator comes from.
    pub source: String,
    /// What it was decided from, unless the device is not known.
    pub question: Option<Box<Question>>,
    /// That the fleet's own authoriser was asked.
    pub authoriser: Option<Consulted>,
}

/// What came of redeeming a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Redeemed {
    /// This was the first time: the leg may be admitted.
    First,
    /// The token was used before.
    Again,
    /// The tunnel has ended, or is not known.
    Gone,
}

impl Redeemed {
    /// Returns why the leg may not be admitted, if so.
    ///
    /// # Errors
    /// Returns [`Code::TokenReplay`] or [`Code::TunnelClosed`].
    pub const fn admitted(self) -> Result<(), Code> {
        match self {
            Self::First => Ok(()),
            Self::Again => Err(Code::TokenReplay),
            Self::Gone => Err(Code::TunnelClosed),
        }
    }
}

/// How far a tunnel has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TunnelState {
    /// Decided; not both legs are bound yet.
    Opening,
    /// Both legs were bound.
    Open,
    /// Over.
    Ended,
}

impl TunnelState {
    /// Returns the state as the API and the store write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Ended => "ended",
        }
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        [Self::Opening, Self::Open, Self::Ended]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A tunnel, as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelRecord {
    /// What was decided.
    pub decided: NewTunnel,
    /// How far it has come.
    pub state: TunnelState,
    /// When it was decided.
    pub opened_at: UnixTime,
    /// How it ended, once it has.
    pub ended: Option<Ended>,
    /// How often the keys of its legs were rotated: source, destination.
    pub rotations: [u32; 2],
    /// How much of its byte limit counts as spent, if that was kept.
    pub spent_bytes: Option<u64>,
    /// SHA-256 of the signed grant; tunnels of older releases have none.
    pub grant: Option<[u8; 32]>,
}

/// What a record says that a tunnel rests on.
impl From<&TunnelRecord> for Opening {
    fn from(record: &TunnelRecord) -> Self {
        let decided = &record.decided;
        Self {
            holder_key: decided.holder_key.to_string(),
            services: decided.services.iter().map(ToString::to_string).collect(),
            grant: record.grant.map(|grant| hex(&grant)),
            policy_revision: decided.policy_revision,
            policies: decided.policies.clone(),
            reason: decided.reason.clone(),
            approvers: approvers(decided.approval.as_ref()),
            approval: approval_id(decided.approval.as_ref()),
            break_glass: decided.break_glass,
            batch: decided.batch,
            source: decided.source.clone(),
            opened_at: record.opened_at.as_secs(),
            expires_at: decided.expires_at.as_secs(),
        }
    }
}

/// Returns which approval it is, as records and answers name it.
pub(crate) fn approval_id(approval: Option<&Approval>) -> Option<String> {
    Some(approval?.id?.to_string())
}

/// Returns who has approved, as records and answers name them.
pub(crate) fn approvers(approval: Option<&Approval>) -> Vec<String> {
    let approvers = approval.into_iter().flat_map(|approval| &approval.approvers);
    approvers.map(ToString::to_string).collect()
}

/// How a tunnel ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// When.
    pub at: UnixTime,
    /// Why.
    pub reason: Code,
    /// Who ended it.
    pub by: String,
    /// What the relay forwarded, if it still knew.
    pub traffic: Option<Traffic>,
}

/// A cut that no device has confirmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnconfirmedCut {
    /// The tunnel.
    pub tunnel: TunnelId,
    /// Where it led.
    pub device: DeviceId,
    /// Why it was cut.
    pub why: Code,
    /// When.
    pub cut_at: UnixTime,
    /// When the tunnel's grant ends.
    pub expires_at: UnixTime,
    /// Whether that has raised an alarm.
    pub alarmed: bool,
}

/// A session that took place in a tunnel or was refused, as the agent reported it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// The tunnel.
    pub tunnel: TunnelId,
    /// The service that was asked for, as text.
    pub service: String,
    /// Why it was refused, if it was.
    pub refused: Option<Code>,
    /// Milliseconds from its start to its end.
    pub millis: u64,
    /// Bytes from the operator to the service.
    pub bytes_in: u64,
    /// Bytes from the service to the operator.
    pub bytes_out: u64,
    /// Whose it was.
    pub of: SessionOf,
}

impl SessionRecord {
    /// Returns what tells it from all others; `None` for one of an agent of before.
    pub fn key(&self) -> Option<SessionKey> {
        let (tunnel, number) = (self.tunnel, self.of.number?);
        Some(SessionKey { tunnel, number })
    }

    /// Returns about how much room it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let opening = self.of.opening.as_ref().map_or(0, |opening| {
            let lists = opening
                .services
                .iter()
                .chain(&opening.policies)
                .chain(&opening.approvers);
            lists.map(String::len).sum::<usize>() + opening.reason.as_ref().map_or(0, String::len)
        });
        // Beside what may be long there is about as much as a record's names, times and hashes.
        1024 + self.service.len() + opening
    }
}

/// A policy that is or was in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyRecord {
    /// Counts up from 1.
    pub revision: u64,
    /// The text, in Cedar.
    pub text: String,
    /// Who put it into force.
    pub by: String,
    /// When.
    pub at: UnixTime,
}

/// What came of setting facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FactsSet {
    /// They are as they should be; `true` if they were not before.
    Done(bool),
    /// There is no such device.
    Unknown,
    /// There would be more of them than a device may have.
    TooMany,
}
