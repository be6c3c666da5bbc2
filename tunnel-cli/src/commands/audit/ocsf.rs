//! Audit records as events of the Open Cybersecurity Schema Framework, as `docs/audit.md` tells. Pure.
//!
//! The record itself goes along in `raw_data`: so the events can be verified as the records can, and a field that was
//! changed in either is found.

use serde_json::{Map, Value, json};
use tunnel_proto::api::AuditRecord;

/// The release of the schema that the events follow.
const SCHEMA: &str = "1.3.0";

/// Counts up with each change of this mapping, so that events of another one are not taken for changed ones.
pub(super) const MAPPING: &str = "1";

/// A class of the schema: its name and number. The category is in the thousands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Class(&'static str, u64);

const AUTHENTICATION: Class = Class("Authentication", 3002);
const AUTHORIZE_SESSION: Class = Class("Authorize Session", 3003);
const ENTITY_MANAGEMENT: Class = Class("Entity Management", 3004);
const NETWORK_ACTIVITY: Class = Class("Network Activity", 4001);
const APPLICATION_LIFECYCLE: Class = Class("Application Lifecycle", 6002);
const API_ACTIVITY: Class = Class("API Activity", 6003);

/// An activity of a class; those that the schema does not name have the number 99.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Activity(&'static str, u64);

const CREATE: Activity = Activity("Create", 1);
const READ: Activity = Activity("Read", 2);
const UPDATE: Activity = Activity("Update", 3);
const DELETE: Activity = Activity("Delete", 4);
const OPEN: Activity = Activity("Open", 1);
const CLOSE: Activity = Activity("Close", 2);
const RESET: Activity = Activity("Reset", 3);
const REFUSE: Activity = Activity("Refuse", 5);
const LOGON: Activity = Activity("Logon", 1);
const LOGOFF: Activity = Activity("Logoff", 2);
const ASSIGN: Activity = Activity("Assign Privileges", 1);
const START: Activity = Activity("Start", 3);
const STOP: Activity = Activity("Stop", 4);

const fn other(name: &'static str) -> Activity {
    Activity(name, 99)
}

/// How much somebody should look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Severity {
    Informational = 1,
    Low = 2,
    Medium = 3,
    High = 4,
}

use Severity::{High, Informational, Low, Medium};

/// What a kind of record becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rule {
    class: Class,
    activity: Activity,
    severity: Severity,
    succeeded: bool,
}

const fn did(class: Class, activity: Activity) -> Rule {
    Rule {
        class,
        activity,
        severity: Informational,
        succeeded: true,
    }
}

const fn failed(class: Class, activity: Activity, severity: Severity) -> Rule {
    Rule {
        class,
        activity,
        severity,
        succeeded: false,
    }
}

/// Returns the rule of a kind. One that is not known is activity at the API: nothing is left out of an export.
fn rule(kind: &str, body: &Value) -> Rule {
    match kind {
        "server.started" => did(APPLICATION_LIFECYCLE, START),
        "server.stopped" => did(APPLICATION_LIFECYCLE, STOP),
        "operator.enrolled" | "device.linked" => did(AUTHENTICATION, LOGON),
        "device.unlinked" => did(AUTHENTICATION, LOGOFF),
        "enrol.refused" => failed(AUTHENTICATION, LOGON, Low),
        "enrol.guessed" => failed(AUTHENTICATION, LOGON, Medium),
        "token.refused" => failed(AUTHENTICATION, LOGON, Medium),
        "key.reused" => failed(AUTHENTICATION, LOGON, High),
        "tunnel.opened" => did(AUTHORIZE_SESSION, ASSIGN),
        "tunnel.denied" => failed(AUTHORIZE_SESSION, ASSIGN, Low),
        "enrol.code_made" | "device.enrolled" => did(ENTITY_MANAGEMENT, CREATE),
        "identity.revoked" | "audit.dropped" => did(ENTITY_MANAGEMENT, DELETE),
        "certificate.renewed" | "group.changed" | "facts.changed" | "policy.changed" => {
            did(ENTITY_MANAGEMENT, UPDATE)
        }
        "device.quarantined" | "device.released" | "operator.disabled" | "operator.enabled" => {
            did(ENTITY_MANAGEMENT, UPDATE)
        }
        "approval.requested" => did(ENTITY_MANAGEMENT, CREATE),
        "approval.given" | "approval.struck" => did(ENTITY_MANAGEMENT, UPDATE),
        "approval.denied" => failed(ENTITY_MANAGEMENT, UPDATE, Low),
        "approval.withdrawn" => did(ENTITY_MANAGEMENT, DELETE),
        "glass.broken" => Rule {
            severity: High,
            ..did(AUTHORIZE_SESSION, ASSIGN)
        },
        "policy.refused" => failed(ENTITY_MANAGEMENT, UPDATE, Low),
        "tunnel.attached" => did(NETWORK_ACTIVITY, other("Attach")),
        "tunnel.connected" => did(NETWORK_ACTIVITY, OPEN),
        "tunnel.rotated" => did(NETWORK_ACTIVITY, other("Rotate keys")),
        "tunnel.ended" => did(NETWORK_ACTIVITY, if was_cut(body) { RESET } else { CLOSE }),
        "session.ended" => did(NETWORK_ACTIVITY, CLOSE),
        "session.refused" => failed(NETWORK_ACTIVITY, REFUSE, Low),
        "cut.confirmed" => did(NETWORK_ACTIVITY, other("Confirm cut")),
        "cut.unconfirmed" => failed(NETWORK_ACTIVITY, other("Confirm cut"), High),
        "cut.ordered" => did(API_ACTIVITY, DELETE),
        "access.denied" => failed(API_ACTIVITY, denied_activity(body), Low),
        "denials.gathered" => failed(API_ACTIVITY, other("Denials"), Medium),
        "policy.failed" => failed(API_ACTIVITY, other("Decide"), High),
        "notification.failed" => failed(API_ACTIVITY, other("Notify"), Medium),
        "evidence.restored" => failed(API_ACTIVITY, other("Record"), High),
        _ => did(API_ACTIVITY, other("Other")),
    }
}

fn was_cut(body: &Value) -> bool {
    tunnel_proto::Code::from_text(text(body, "reason").unwrap_or_default()).is_cut()
}

fn denied_activity(body: &Value) -> Activity {
    let action = text(body, "action").unwrap_or_default();
    match action.starts_with("read") || action.starts_with("view") {
        true => READ,
        false => UPDATE,
    }
}

/// Returns the event of a record.
pub(super) fn event(record: &AuditRecord) -> Value {
    let body: Value = serde_json::from_str(&record.body).unwrap_or_default();
    let rule = rule(&record.kind, &body);
    let Class(class_name, class) = rule.class;
    let Activity(activity_name, activity) = rule.activity;
    let mut event = object(json!({
        "class_uid": class,
        "class_name": class_name,
        "category_uid": class / 1000,
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": class * 100 + activity,
        "severity_id": rule.severity as u64,
        "status_id": if rule.succeeded { 1 } else { 2 },
        "time": record.time_millis,
        "message": record.kind,
        "metadata": {
            "version": SCHEMA,
            "product": { "name": "tunnel-server", "vendor_name": "tunnel" },
            "log_name": "audit",
            "log_version": MAPPING,
            "event_code": record.kind,
            "sequence": record.seq,
            "uid": record.hash,
        },
        "raw_data": serde_json::to_string(record).unwrap_or_default(),
    }));
    for (field, code) in [("status_code", "code"), ("status_code", "reason")] {
        if let Some(code) = text(&body, code).filter(|code| code.starts_with("E_")) {
            event.insert(field.to_owned(), json!(code));
        }
    }
    event.extend(object(match rule.class {
        AUTHENTICATION => authentication(&body),
        AUTHORIZE_SESSION => authorize_session(&body),
        ENTITY_MANAGEMENT => entity_management(&record.kind, &body),
        NETWORK_ACTIVITY => network_activity(&body),
        APPLICATION_LIFECYCLE => json!({ "app": { "name": "tunnel-server", "version": body["version"],
            "vendor_name": "tunnel" } }),
        _ => api_activity(&record.kind, &body),
    }));
    Value::Object(without_nulls(event))
}

fn authentication(body: &Value) -> Value {
    let who = ["operator", "device", "presented_by", "wanted"];
    let who = who.iter().find_map(|field| Some((*field, text(body, field)?)));
    let user = match who {
        Some(("operator", name)) => user(name, false),
        Some(("device", name)) => user(name, true),
        Some((_, identity)) => user_of(identity),
        None => user("unknown", false),
    };
    json!({
        "user": user,
        "service": { "name": "tunnel-server" },
        "src_endpoint": endpoint(source(body), None),
        "is_remote": true,
    })
}

fn authorize_session(body: &Value) -> Value {
    json!({
        "user": user(text(body, "operator").unwrap_or("unknown"), false),
        "session": { "uid": body["tunnel"], "expiration_time": millis(&body["expires_at"]), "is_remote": true },
        "privileges": body["services"],
        "src_endpoint": endpoint(source(body), text(body, "operator")),
        "dst_endpoint": endpoint(None, text(body, "device")),
        "status_detail": body["reason"],
    })
}

fn entity_management(kind: &str, body: &Value) -> Value {
    let named = |name: Option<&str>, sort: &str| json!({ "name": name.unwrap_or("unknown"), "type": sort });
    let entity = match kind {
        "enrol.code_made" => named(text(body, "code"), "enrolment code"),
        _ if kind.starts_with("approval.") => named(text(body, "approval"), "approval"),
        "audit.dropped" => named(Some("audit records"), "audit trail"),
        "policy.changed" | "policy.refused" => json!({ "name": "policy", "type": "policy",
            "version": body["revision"].as_u64().map(|revision| revision.to_string()) }),
        "group.changed" => named(text(body, "member"), text(body, "makes").unwrap_or("member")),
        _ => match (
            text(body, "device"),
            text(body, "operator"),
            text(body, "identity"),
        ) {
            (Some(device), ..) => named(Some(device), "device"),
            (_, Some(operator), _) => named(Some(operator), "operator"),
            (_, _, identity) => named(identity, "identity"),
        },
    };
    json!({
        "entity": entity,
        "comment": body["reason"],
        "actor": { "user": text(body, "by").map(user_of) },
        "src_endpoint": source(body).map(|source| endpoint(Some(source), None)),
    })
}

fn network_activity(body: &Value) -> Value {
    let opening = &body["opening"];
    let from = path(body, "source")
        .or_else(|| source(opening))
        .or_else(|| source(body));
    let to = path(body, "destination");
    let traffic = match &body["traffic"] {
        Value::Object(_) => &body["traffic"],
        _ => body,
    };
    let started = body.get("started_at").or_else(|| opening.get("opened_at"));
    let mut dst = object(endpoint(to, text(body, "device")));
    dst.insert("svc_name".to_owned(), body["service"].clone());
    dst.insert("uid".to_owned(), body["tunnel"].clone());
    json!({
        "src_endpoint": endpoint(from, text(body, "operator")),
        "dst_endpoint": dst,
        "connection_info": { "uid": body["tunnel"], "direction_id": 0 },
        // The schema counts from the side of the one who asks: what comes in to it is what the service sends.
        "traffic": {
            "bytes_in": traffic["bytes_out"],
            "bytes_out": traffic["bytes_in"],
            "packets_in": traffic["datagrams_out"],
            "packets_out": traffic["datagrams_in"],
        },
        "duration": body.get("millis").cloned().or_else(|| millis(&body["lived_secs"])),
        "start_time": started.and_then(millis),
        "actor": { "user": text(body, "operator").map(|name| user(name, false)) },
        "status_detail": opening["reason"],
    })
}

fn api_activity(kind: &str, body: &Value) -> Value {
    let by = text(body, "by")
        .or_else(|| text(body, "operator"))
        .unwrap_or("unknown");
    let actor = match text(body, "by") {
        Some(by) => user_of(by),
        None => user(by, false),
    };
    json!({
        "actor": { "user": actor },
        "api": { "operation": text(body, "action").unwrap_or(kind), "service": { "name": "tunnel-server" } },
        "src_endpoint": endpoint(source(body), Some(by)),
        "dst_endpoint": text(body, "device").map(|device| endpoint(None, Some(device))),
        "resources": text(body, "target").map(|target| json!([{ "name": target }])),
        "status_detail": body["reason"],
    })
}

/// Describes somebody by the name; what is no person is a system.
fn user(name: &str, is_system: bool) -> Value {
    json!({ "name": name, "type_id": if is_system { 3 } else { 1 } })
}

/// Describes somebody by an identity, as `operator/ana` or a SPIFFE id that ends so.
fn user_of(identity: &str) -> Value {
    let mut parts = identity.rsplit('/');
    let (name, kind) = (parts.next().unwrap_or(identity), parts.next());
    let is_person = kind.map_or(name != "server", |kind| kind == "operator");
    let mut user = object(user(name, !is_person));
    user.insert("uid".to_owned(), json!(identity));
    Value::Object(user)
}

/// Describes an end of a connection by its address and its name, at least one of which there is.
fn endpoint(address: Option<&str>, name: Option<&str>) -> Value {
    let socket = address.and_then(|text| text.parse::<std::net::SocketAddr>().ok());
    let (ip, port) = match socket {
        Some(socket) => (Some(socket.ip().to_string()), Some(socket.port())),
        None => (address.map(str::to_owned), None),
    };
    let name = name.or(if ip.is_none() { Some("unknown") } else { None });
    json!({ "ip": ip, "port": port, "name": name })
}

/// Returns where somebody came from.
fn source(body: &Value) -> Option<&str> {
    text(body, "source").or_else(|| text(body, "last_source"))
}

/// Returns where a leg was last.
fn path<'b>(body: &'b Value, leg: &str) -> Option<&'b str> {
    let paths = body["paths"].as_array()?;
    let path = paths.iter().rev().find(|path| text(path, "leg") == Some(leg))?;
    text(path, "address")
}

fn text<'b>(body: &'b Value, field: &str) -> Option<&'b str> {
    body.get(field)?.as_str()
}

/// Turns seconds into the milliseconds of the schema.
fn millis(secs: &Value) -> Option<Value> {
    Some(json!(secs.as_u64()?.saturating_mul(1000)))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Leaves out what is not known, and objects in which nothing is.
fn without_nulls(map: Map<String, Value>) -> Map<String, Value> {
    let kept = map.into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::Object(inner) => {
            let inner = without_nulls(inner);
            (!inner.is_empty()).then_some((name, Value::Object(inner)))
        }
        value => Some((name, value)),
    });
    kept.collect()
}

#[cfg(test)]
#[path = "ocsf/tests.rs"]
mod tests;
