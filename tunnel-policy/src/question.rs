//! What a decision is made from: who asks, for what, in which circumstances, and what is known of the device.
//!
//! A [`Question`] holds everything that counts and can be written down, so that a decision of the past can be made again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{ApprovalId, DeviceId, OperatorName, ServiceName, UnixTime};

/// The question whether an operator may have a tunnel, with all that the answer depends on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Who asks.
    pub operator: Operator,
    /// In which circumstances.
    pub circumstances: Circumstances,
    /// Where to.
    pub device: Device,
    /// What for.
    pub terms: Terms,
}

/// Who asks: the identity that the handshake proved, and its groups.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Operator {
    /// The operator.
    pub name: OperatorName,
    /// The groups that it is in.
    pub groups: Vec<GroupName>,
}

/// The circumstances of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Circumstances {
    /// The server's clock.
    pub now: UnixTime,
    /// Whether that clock can be relied on. If it has just jumped, a rule that asks for the time or for an age denies.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub steady: bool,
    /// The address that the operator comes from.
    pub source: IpAddr,
    /// How long ago the operator's certificate began.
    #[serde(with = "secs")]
    pub certificate_age: Duration,
    /// How long ago the operator proved a second factor.
    #[serde(default, with = "secs_if_any", skip_serializing_if = "Option::is_none")]
    pub mfa_age: Option<Duration>,
}

impl Circumstances {
    /// Returns the server's clock if it can be relied on.
    pub(crate) fn clock(&self) -> Option<UnixTime> {
        self.steady.then_some(self.now)
    }
}

/// What a tunnel is asked for with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// The services. Each needs a permission of its own.
    pub services: Vec<ServiceName>,
    /// The lifetime that is asked for.
    #[serde(with = "secs")]
    pub ttl: Duration,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What others have agreed to, if they have. Whether it fits the request was checked before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Whether it is asked for without the approvals that policy asks for.
    #[serde(default, skip_serializing_if = "is_no")]
    pub break_glass: bool,
    /// What the fleet's own authoriser said of the request, if it was asked. It can take a permission away and give none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authoriser: Option<BTreeMap<FactName, FactValue>>,
    /// Whether it is asked for one batch of commands alone, which the device holds it to.
    #[serde(default, skip_serializing_if = "is_no")]
    pub batch: bool,
}

impl Terms {
    /// Returns how many have agreed; who breaks the glass needs nobody.
    pub(crate) fn agreed(&self) -> u32 {
        if self.break_glass {
            return u32::MAX;
        }
        let names = self.approval.iter().flat_map(|approval| &approval.approvers);
        u32::try_from(names.collect::<BTreeSet<_>>().len()).unwrap_or(u32::MAX)
    }
}

/// Most approvals that policies can ask for.
pub const MAX_APPROVALS: u32 = 5;

/// The agreement of others to exactly this request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Approval {
    /// Which it is; absent where one is only supposed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ApprovalId>,
    /// Who agreed.
    pub approvers: Vec<OperatorName>,
    /// Until when.
    pub until: UnixTime,
}

impl Approval {
    /// Supposes that so many have agreed, by names that nobody has in a rule.
    pub(crate) fn supposed(count: u32, now: UnixTime) -> Option<Self> {
        let names = (1..=count).map(|number| format!("some-approver-{number}").parse().ok());
        (count > 0).then(|| Self {
            id: None,
            approvers: names.flatten().collect(),
            until: now.after(Duration::from_secs(3600)),
        })
    }
}

/// A device, with what the control plane knows of it apart from what it says of itself (THREATS POL-08).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Device {
    /// The device.
    pub id: DeviceId,
    /// The groups that its owner has put it into.
    pub groups: Vec<GroupName>,
    /// When it was enrolled first.
    pub enrolled_at: UnixTime,
    /// When its certificate ends.
    pub certificate_expires_at: UnixTime,
    /// The facts that its owner has set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub asserted: BTreeMap<FactName, Fact>,
    /// What it says of itself.
    pub reported: Reported,
}

/// A fact that somebody has set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// The value.
    pub value: FactValue,
    /// When it was set.
    pub at: UnixTime,
}

/// What a device says of itself. It can say anything.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reported {
    /// When it said so.
    pub at: UnixTime,
    /// Whether the owner lets anybody in.
    pub access: bool,
    /// The services that it offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceName>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The facts of its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<FactName, FactValue>,
}

/// How the names of facts begin that are alarms.
const ALARM: &str = "alarm.";

impl Device {
    /// Returns the alarms that stand against the device.
    pub fn alarms(&self) -> impl Iterator<Item = &str> {
        self.asserted
            .keys()
            .filter_map(|name| name.as_str().strip_prefix(ALARM))
    }
}

/// One question to the policies.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub operator: &'a Operator,
    /// What for.
    pub action: Action<'a>,
    /// In which circumstances.
    pub circumstances: &'a Circumstances,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Action<'a> {
    /// Use of one service. A tunnel for several services needs a permission for each.
    Connect {
        /// The device.
        device: &'a Device,
        /// The service that this request is about.
        service: &'a ServiceName,
        /// What the whole tunnel is asked for with.
        terms: &'a Terms,
    },
    /// Use of one service without the approvals that are asked for.
    BreakGlass {
        /// The device.
        device: &'a Device,
        /// The service that this request is about.
        service: &'a ServiceName,
        /// What the whole tunnel is asked for with.
        terms: &'a Terms,
    },
    /// Agreement to the use of one service by somebody else.
    Approve {
        /// The device.
        device: &'a Device,
        /// The service that this request is about.
        service: &'a ServiceName,
        /// What is asked for as a whole; its lifetime is the window.
        terms: &'a Terms,
        /// Who asks for it.
        requester: &'a Operator,
    },
    /// Sight of a device.
    View(&'a Device),
    /// Making enrolment codes.
    ManageEnrolment,
    /// Reading, checking and changing the policies.
    ManagePolicy,
    /// Putting devices and operators into groups, and taking them out.
    ManageGroups,
    /// Reading and setting facts about devices.
    ManageFacts,
    /// Sending notifications that were given up once more, and dropping them.
    ManageNotifications,
    /// Reading the audit chain.
    ReadAudit,
    /// Revoking identities.
    Revoke,
    /// Sight of the tunnels of others.
    ViewAllTunnels,
    /// Ending the tunnels of others.
    CloseAnyTunnel,
    /// Cutting tunnels, by whom and whereto they lead.
    Cut,
    /// Putting devices into quarantine, and releasing them.
    Quarantine,
    /// Disabling operators, and enabling them again.
    DisableOperator,
}

impl Action<'_> {
    /// The names of all actions, as policies write them.
    pub const NAMES: [&'static str; 16] = [
        "connect",
        "break-glass",
        "approve",
        "view",
        "manage-enrolment",
        "manage-policy",
        "manage-groups",
        "manage-facts",
        "manage-notifications",
        "read-audit",
        "revoke",
        "view-all-tunnels",
        "close-any-tunnel",
        "cut",
        "quarantine",
        "disable-operator",
    ];

    /// Returns the action's name, as policies write it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::BreakGlass { .. } => "break-glass",
            Self::Approve { .. } => "approve",
            Self::View(_) => "view",
            Self::ManageEnrolment => "manage-enrolment",
            Self::ManagePolicy => "manage-policy",
            Self::ManageGroups => "manage-groups",
            Self::ManageFacts => "manage-facts",
            Self::ManageNotifications => "manage-notifications",
            Self::ReadAudit => "read-audit",
            Self::Revoke => "revoke",
            Self::ViewAllTunnels => "view-all-tunnels",
            Self::CloseAnyTunnel => "close-any-tunnel",
            Self::Cut => "cut",
            Self::Quarantine => "quarantine",
            Self::DisableOperator => "disable-operator",
        }
    }

    /// Returns the device that the action is about, if it is about one.
    pub(crate) const fn device(&self) -> Option<&Device> {
        match self {
            Self::Connect { device, .. }
            | Self::BreakGlass { device, .. }
            | Self::Approve { device, .. }
            | Self::View(device) => Some(device),
            _ => None,
        }
    }

    /// Returns the service that the action is about, if it is about one, and what it is asked for with.
    pub(crate) const fn service(&self) -> Option<(&ServiceName, &Terms)> {
        match self {
            Self::Connect { service, terms, .. }
            | Self::BreakGlass { service, terms, .. }
            | Self::Approve { service, terms, .. } => Some((service, terms)),
            _ => None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_no(value: &bool) -> bool {
    !*value
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// A span as a number of seconds.
mod secs {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(span.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_secs)
    }
}

/// A span that may be absent, as a number of seconds.
mod secs_if_any {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        span.map(|span| span.as_secs()).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_secs))
    }
}
