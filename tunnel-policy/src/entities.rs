//! Requests in Cedar's terms.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr as _;
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema,
};
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{ServiceName, UnixTime};

use crate::question::{Action, Approval, Circumstances, Device, Operator, Request, Terms};

/// The name of the action whose policies say which devices belong to a reported group.
pub(crate) const BELONG: &str = "belong";

/// Puts a request into Cedar's terms; `groups` are the reported groups that its device belongs to. An error here is a
/// denial: it means that schema and code disagree.
pub(crate) fn build(
    request: &Request<'_>,
    groups: &[String],
    schema: &Schema,
) -> Result<(Entities, cedar_policy::Request), String> {
    let operator = uid(&KINDS.operator, request.operator.name.as_str());
    let action = uid(&KINDS.action, request.action.as_str());
    let clock = request.circumstances.clock();
    let (mut entities, resource) = resource(&request.action, groups, clock)?;
    entities.push(operator_entity(request.operator)?);
    if let Action::Connect { terms, .. } | Action::BreakGlass { terms, .. } = &request.action
        && let Some(facts) = &terms.authoriser
    {
        entities.push(authoriser_entity(facts)?);
    }
    if let Action::Approve { requester, .. } = &request.action {
        entities.push(operator_entity(requester)?);
    }
    let context = Context::from_pairs(context(request)?).map_err(|error| error.to_string())?;
    // Without a clock that can be relied on, the time and all ages are absent, which the schema would not let pass: then
    // only the policies that ask for them fail.
    let checked = clock.map(|_| schema);
    let asked = cedar_policy::Request::new(operator, action, resource, context, checked)
        .map_err(|error| error.to_string())?;
    let entities = Entities::from_entities(entities, checked).map_err(|error| error.to_string())?;
    Ok((entities, asked))
}

/// Describes a device that is in no reported group yet.
pub(crate) fn of_device(
    device: &Device,
    clock: Option<UnixTime>,
    schema: &Schema,
) -> Result<Entities, String> {
    let entities = device_entities(device, &[], clock)?;
    Entities::from_entities(entities, clock.map(|_| schema)).map_err(|error| error.to_string())
}

/// Asks in Cedar's terms whether a device belongs to a reported group.
pub(crate) fn belongs(device: &Device, group: &str) -> Result<cedar_policy::Request, String> {
    cedar_policy::Request::new(
        uid(&KINDS.device, device.id.as_str()),
        uid(&KINDS.action, BELONG),
        uid(&KINDS.reported_group, group),
        Context::empty(),
        None,
    )
    .map_err(|error| error.to_string())
}

fn operator_entity(operator: &Operator) -> Result<Entity, String> {
    entity(
        uid(&KINDS.operator, operator.name.as_str()),
        vec![("name", text(operator.name.as_str()))],
        parents(&KINDS.operator_group, &operator.groups).collect(),
    )
}

/// Returns the resource of an action, with the entities that describe it.
fn resource(
    action: &Action<'_>,
    groups: &[String],
    clock: Option<UnixTime>,
) -> Result<(Vec<Entity>, EntityUid), String> {
    let Some(device) = action.device() else {
        let fleet = uid(&KINDS.fleet, "fleet");
        return Ok((vec![Entity::new_no_attrs(fleet.clone(), HashSet::new())], fleet));
    };
    let mut entities = device_entities(device, groups, clock)?;
    let owner = uid(&KINDS.device, device.id.as_str());
    let Some((service, _)) = action.service() else {
        return Ok((entities, owner));
    };
    // Neither name can have a `/` in it, so that there is one spelling of each pair.
    let id = uid(&KINDS.service, &format!("{}/{service}", device.id));
    let attributes = vec![
        ("name", text(service.as_str())),
        ("device", RestrictedExpression::new_entity_uid(owner.clone())),
    ];
    entities.push(entity(id.clone(), attributes, HashSet::from([owner]))?);
    Ok((entities, id))
}

/// Returns a device with what is known and what is claimed of it, each an entity of its own kind.
fn device_entities(
    device: &Device,
    groups: &[String],
    clock: Option<UnixTime>,
) -> Result<Vec<Entity>, String> {
    let (asserted, reported) = (
        uid(&KINDS.asserted, device.id.as_str()),
        uid(&KINDS.reported, device.id.as_str()),
    );
    let reference = |id: &EntityUid| RestrictedExpression::new_entity_uid(id.clone());
    let in_reported = groups.iter().map(|group| uid(&KINDS.reported_group, group));
    let own = entity(
        uid(&KINDS.device, device.id.as_str()),
        vec![
            ("id", text(device.id.as_str())),
            ("asserted", reference(&asserted)),
            ("reported", reference(&reported)),
        ],
        parents(&KINDS.device_group, &device.groups)
            .chain(in_reported)
            .collect(),
    )?;
    Ok(vec![
        own,
        asserted_entity(asserted, device, clock)?,
        reported_entity(reported, device, clock)?,
    ])
}

fn asserted_entity(id: EntityUid, device: &Device, clock: Option<UnixTime>) -> Result<Entity, String> {
    let attributes = vec![
        ("enrolled_at", seconds(device.enrolled_at.as_secs())),
        (
            "certificate_expires_at",
            seconds(device.certificate_expires_at.as_secs()),
        ),
        ("alarms", RestrictedExpression::new_set(device.alarms().map(text))),
    ];
    let facts = device.asserted.iter();
    let tags = facts.map(|(name, fact)| fact_tag(name, &fact.value, fact.at, clock));
    tagged(id, attributes, tags.collect::<Result<_, _>>()?)
}

fn reported_entity(id: EntityUid, device: &Device, clock: Option<UnixTime>) -> Result<Entity, String> {
    let reported = &device.reported;
    let attributes = [
        Some(("access", RestrictedExpression::new_bool(reported.access))),
        Some(("services", service_set(&reported.services))),
        age(reported.at, clock),
        reported
            .version
            .as_deref()
            .map(|version| ("version", text(version))),
        reported
            .platform
            .as_deref()
            .map(|platform| ("platform", text(platform))),
    ];
    let facts = reported.facts.iter();
    let tags = facts.map(|(name, value)| fact_tag(name, value, reported.at, clock));
    tagged(
        id,
        attributes.into_iter().flatten().collect(),
        tags.collect::<Result<_, _>>()?,
    )
}

fn fact_tag(
    name: &FactName,
    value: &FactValue,
    at: UnixTime,
    clock: Option<UnixTime>,
) -> Result<(String, RestrictedExpression), String> {
    let fields = [
        Some(("value", text(value.as_str()))),
        age(at, clock),
        number(value),
    ];
    Ok((name.to_string(), record(fields.into_iter().flatten())?))
}

/// Returns what the authoriser said. It is of this one request, so there is one of it and it has no age.
fn authoriser_entity(facts: &BTreeMap<FactName, FactValue>) -> Result<Entity, String> {
    let tag = |(name, value): (&FactName, &FactValue)| {
        let fields = [Some(("value", text(value.as_str()))), number(value)];
        Ok((name.to_string(), record(fields.into_iter().flatten())?))
    };
    tagged(
        said(),
        Vec::new(),
        facts.iter().map(tag).collect::<Result<_, String>>()?,
    )
}

fn said() -> EntityUid {
    uid(&KINDS.said, "authoriser")
}

/// Returns a value as the number that it is, if it is one.
fn number(value: &FactValue) -> Option<(&'static str, RestrictedExpression)> {
    // One spelling of each number: `007` and `+7` are texts.
    let number = value.as_str().parse::<i64>().ok();
    let number = number.filter(|number| number.to_string() == value.as_str());
    number.map(|number| ("number", RestrictedExpression::new_long(number)))
}

/// Returns how old a statement is. Without a clock that can be relied on nobody knows: any number would pass some rule.
fn age(at: UnixTime, clock: Option<UnixTime>) -> Option<(&'static str, RestrictedExpression)> {
    clock.map(|now| ("age_secs", seconds(now.since(at).as_secs())))
}

fn context(request: &Request<'_>) -> Result<Vec<(String, RestrictedExpression)>, String> {
    let Circumstances {
        source,
        certificate_age,
        mfa_age,
        ..
    } = request.circumstances;
    let mut pairs = vec![
        // An IPv4 address that came in over an IPv6 socket is an IPv4 address.
        (
            "source",
            RestrictedExpression::new_ip(source.to_canonical().to_string()),
        ),
    ];
    if let Some(now) = request.circumstances.clock() {
        pairs.push(("now", seconds(now.as_secs())));
        pairs.push(("utc", utc(now)?));
        pairs.push(("certificate_age_secs", seconds(certificate_age.as_secs())));
        pairs.extend(mfa_age.map(|age| ("mfa_age_secs", seconds(age.as_secs()))));
    }
    match &request.action {
        Action::Connect { terms, .. } | Action::BreakGlass { terms, .. } => {
            let Terms {
                services,
                ttl,
                reason,
                approval,
                break_glass,
                authoriser,
                batch,
            } = terms;
            pairs.push(("ttl_secs", seconds(ttl.as_secs())));
            pairs.push(("services", service_set(services)));
            pairs.push(("break_glass", RestrictedExpression::new_bool(*break_glass)));
            pairs.push(("batch", RestrictedExpression::new_bool(*batch)));
            pairs.extend(reason.as_deref().map(|reason| ("reason", text(reason))));
            if let Some(approval) = approval {
                pairs.push(("approval", approval_record(approval)?));
            }
            if authoriser.is_some() {
                pairs.push(("authoriser", RestrictedExpression::new_entity_uid(said())));
            }
        }
        Action::Approve { terms, requester, .. } => {
            let requester = uid(&KINDS.operator, requester.name.as_str());
            pairs.push(("requester", RestrictedExpression::new_entity_uid(requester)));
            pairs.push(("window_secs", seconds(terms.ttl.as_secs())));
            pairs.push(("services", service_set(&terms.services)));
            pairs.push(("batch", RestrictedExpression::new_bool(terms.batch)));
            pairs.push(("reason", text(terms.reason.as_deref().unwrap_or_default())));
        }
        _ => {}
    }
    Ok(pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect())
}

fn approval_record(approval: &Approval) -> Result<RestrictedExpression, String> {
    let approvers = approval.approvers.iter().map(|name| text(name.as_str()));
    let names: HashSet<_> = approval.approvers.iter().collect();
    record([
        ("approvers", RestrictedExpression::new_set(approvers)),
        ("count", seconds(names.len() as u64)),
        ("until", seconds(approval.until.as_secs())),
    ])
}

/// Returns the time of day and the day of the week. Every day of UNIX time has 86,400 seconds, and 1970 began on a
/// Thursday.
fn utc(now: UnixTime) -> Result<RestrictedExpression, String> {
    let (day, second) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    record([
        ("hour", seconds(second / 3600)),
        ("minute_of_day", seconds(second / 60)),
        ("weekday", seconds((day + 3) % 7 + 1)),
    ])
}

fn parents(kind: &EntityTypeName, groups: &[GroupName]) -> impl Iterator<Item = EntityUid> {
    groups.iter().map(|group| uid(kind, group.as_str()))
}

fn entity(
    id: EntityUid,
    attributes: Vec<(&str, RestrictedExpression)>,
    parents: HashSet<EntityUid>,
) -> Result<Entity, String> {
    let attributes: HashMap<_, _> = attributes
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Entity::new(id, attributes, parents).map_err(|error| error.to_string())
}

fn tagged(
    id: EntityUid,
    attributes: Vec<(&str, RestrictedExpression)>,
    tags: Vec<(String, RestrictedExpression)>,
) -> Result<Entity, String> {
    let attributes = attributes.into_iter().map(|(key, value)| (key.to_owned(), value));
    Entity::new_with_tags(id, attributes, [], tags).map_err(|error| error.to_string())
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
    reported_group: EntityTypeName,
    asserted: EntityTypeName,
    reported: EntityTypeName,
    said: EntityTypeName,
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
        reported_group: kind("ReportedGroup"),
        asserted: kind("Asserted"),
        reported: kind("Reported"),
        said: kind("Said"),
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
