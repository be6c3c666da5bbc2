//! What a request is about, and how it is put into Cedar's terms.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::LazyLock;
use std::time::Duration;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema,
};
use tunnel_proto::names::GroupName;
use tunnel_proto::{DeviceId, OperatorName, ServiceName, UnixTime};

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

/// Who asks: the identity that the handshake proved, and its groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operator {
    /// The operator.
    pub name: OperatorName,
    /// The groups that it is in.
    pub groups: Vec<GroupName>,
}

/// A device, with what the control plane knows of it apart from what it says of itself (THREATS POL-08).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// The device.
    pub id: DeviceId,
    /// The groups that it is in.
    pub groups: Vec<GroupName>,
    /// When it was enrolled first.
    pub enrolled_at: UnixTime,
    /// When its certificate ends.
    pub certificate_expires_at: UnixTime,
    /// Whether the owner lets anybody in, as it says.
    pub access: bool,
    /// The services that it offers, as it says.
    pub services: Vec<ServiceName>,
    /// The agent's version, as it says.
    pub version: Option<String>,
    /// The operating system, as it says.
    pub platform: Option<String>,
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
        /// All services that the tunnel is asked for.
        services: &'a [ServiceName],
        /// The lifetime that is asked for.
        ttl: Duration,
        /// Why, in the operator's words.
        reason: Option<&'a str>,
    },
    /// Sight of a device.
    View(&'a Device),
    /// Making enrolment codes.
    ManageEnrolment,
    /// Reading, checking and changing the policies.
    ManagePolicy,
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
    /// Returns the action's name, as policies write it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::View(_) => "view",
            Self::ManageEnrolment => "manage-enrolment",
            Self::ManagePolicy => "manage-policy",
            Self::ReadAudit => "read-audit",
            Self::Revoke => "revoke",
            Self::ViewAllTunnels => "view-all-tunnels",
            Self::CloseAnyTunnel => "close-any-tunnel",
            Self::Cut => "cut",
            Self::Quarantine => "quarantine",
            Self::DisableOperator => "disable-operator",
        }
    }
}

/// The circumstances of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Circumstances {
    /// The server's clock.
    pub now: UnixTime,
    /// The address that the operator comes from.
    pub source: IpAddr,
    /// How long ago the operator's certificate began.
    pub certificate_age: Duration,
}

/// Puts a request into Cedar's terms. An error here is a denial: it means that schema and code disagree.
pub(super) fn build(
    request: &Request<'_>,
    schema: &Schema,
) -> Result<(Entities, cedar_policy::Request), String> {
    let operator = uid(&KINDS.operator, request.operator.name.as_str());
    let action = uid(&KINDS.action, request.action.as_str());
    let (mut entities, resource) = resource(&request.action)?;
    entities.push(entity(
        operator.clone(),
        [("name", text(request.operator.name.as_str()))],
        groups(&KINDS.operator_group, &request.operator.groups),
    )?);
    let context = Context::from_pairs(context(request)).map_err(|error| error.to_string())?;
    let asked = cedar_policy::Request::new(operator, action, resource, context, Some(schema))
        .map_err(|error| error.to_string())?;
    let entities = Entities::from_entities(entities, Some(schema)).map_err(|error| error.to_string())?;
    Ok((entities, asked))
}

/// Returns the resource of an action, with the entities that describe it.
fn resource(action: &Action<'_>) -> Result<(Vec<Entity>, EntityUid), String> {
    match action {
        Action::Connect { device, service, .. } => {
            let owner = device_entity(device)?;
            // Neither name can have a `/` in it, so that there is one spelling of each pair.
            let id = uid(&KINDS.service, &format!("{}/{service}", device.id));
            let attributes = [
                ("name", text(service.as_str())),
                ("device", RestrictedExpression::new_entity_uid(owner.uid())),
            ];
            let service = entity(id.clone(), attributes, HashSet::from([owner.uid()]))?;
            Ok((vec![owner, service], id))
        }
        Action::View(device) => {
            let device = device_entity(device)?;
            let id = device.uid();
            Ok((vec![device], id))
        }
        _ => {
            let fleet = uid(&KINDS.fleet, "fleet");
            Ok((vec![Entity::new_no_attrs(fleet.clone(), HashSet::new())], fleet))
        }
    }
}

fn device_entity(device: &Device) -> Result<Entity, String> {
    let asserted = [
        ("enrolled_at", seconds(device.enrolled_at.as_secs())),
        (
            "certificate_expires_at",
            seconds(device.certificate_expires_at.as_secs()),
        ),
    ];
    let reported = [
        Some(("access", RestrictedExpression::new_bool(device.access))),
        Some(("services", service_set(&device.services))),
        device
            .version
            .as_deref()
            .map(|version| ("version", text(version))),
        device
            .platform
            .as_deref()
            .map(|platform| ("platform", text(platform))),
    ];
    let attributes = [
        ("id", text(device.id.as_str())),
        ("asserted", record(asserted)?),
        ("reported", record(reported.into_iter().flatten())?),
    ];
    entity(
        uid(&KINDS.device, device.id.as_str()),
        attributes,
        groups(&KINDS.device_group, &device.groups),
    )
}

fn context(request: &Request<'_>) -> Vec<(String, RestrictedExpression)> {
    let Circumstances {
        now,
        source,
        certificate_age,
    } = request.circumstances;
    let mut pairs = vec![
        ("now", seconds(now.as_secs())),
        // An IPv4 address that came in over an IPv6 socket is an IPv4 address.
        (
            "source",
            RestrictedExpression::new_ip(source.to_canonical().to_string()),
        ),
        ("certificate_age_secs", seconds(certificate_age.as_secs())),
    ];
    if let Action::Connect {
        services,
        ttl,
        reason,
        ..
    } = &request.action
    {
        pairs.push(("ttl_secs", seconds(ttl.as_secs())));
        pairs.push(("services", service_set(services)));
        pairs.extend(reason.map(|reason| ("reason", text(reason))));
    }
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn groups(kind: &EntityTypeName, groups: &[GroupName]) -> HashSet<EntityUid> {
    groups.iter().map(|group| uid(kind, group.as_str())).collect()
}

fn entity<const N: usize>(
    id: EntityUid,
    attributes: [(&str, RestrictedExpression); N],
    parents: HashSet<EntityUid>,
) -> Result<Entity, String> {
    let attributes: HashMap<_, _> = attributes
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Entity::new(id, attributes, parents).map_err(|error| error.to_string())
}

fn record<'a>(
    fields: impl IntoIterator<Item = (&'a str, RestrictedExpression)>,
) -> Result<RestrictedExpression, String> {
    RestrictedExpression::new_record(fields.into_iter().map(|(key, value)| (key.to_owned(), value)))
        .map_err(|error| error.to_string())
}

/// Makes an entity's name. The id is data: nothing in it is ever parsed.
fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

/// The schema's kinds of entities, parsed once: parsing them costs more than a decision.
struct Kinds {
    operator: EntityTypeName,
    operator_group: EntityTypeName,
    device: EntityTypeName,
    device_group: EntityTypeName,
    service: EntityTypeName,
    fleet: EntityTypeName,
    action: EntityTypeName,
}

static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let kind = |name| EntityTypeName::from_str(name).expect("a plain word is the name of a kind");
    Kinds {
        operator: kind("Operator"),
        operator_group: kind("OperatorGroup"),
        device: kind("Device"),
        device_group: kind("DeviceGroup"),
        service: kind("Service"),
        fleet: kind("Fleet"),
        action: kind("Action"),
    }
});

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn seconds(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}

fn service_set(services: &[ServiceName]) -> RestrictedExpression {
    RestrictedExpression::new_set(services.iter().map(|service| text(service.as_str())))
}
