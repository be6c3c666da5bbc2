use super::*;

fn record(kind: &str, body: &str) -> AuditRecord {
    AuditRecord {
        seq: 7,
        time_millis: 1_800_000_000_123,
        kind: kind.into(),
        body: body.into(),
        prev: "00".repeat(32),
        hash: "ab".repeat(32),
    }
}

/// What the schema requires of a class, and of the objects in it: `/` goes down, `|` is one of several.
fn required(class: u64) -> &'static [&'static str] {
    match class {
        3002 => &["user/name|user/uid", "service|dst_endpoint"],
        3003 => &["user/name|user/uid", "privileges|groups|group"],
        3004 => &["entity/name|entity/uid"],
        4001 => &["dst_endpoint", "connection_info/direction_id"],
        6002 => &["app/name|app/uid"],
        6003 => &["actor/user", "api/operation", "src_endpoint/ip|src_endpoint/name"],
        other => panic!("{other} is not one of the documented classes"),
    }
}

fn has(event: &Value, path: &str) -> bool {
    path.split('|').any(|path| {
        event
            .pointer(&format!("/{path}"))
            .is_some_and(|value| !value.is_null())
    })
}

/// Kinds with a body each: as the server writes them, and as poor as an older or newer one may.
const RECORDS: &[(&str, &str, u64)] = &[
    (
        "server.started",
        r#"{"node":"n1","version":"1","policy_revision":1}"#,
        3,
    ),
    ("server.stopped", r#"{"node":"n1"}"#, 4),
    (
        "enrol.code_made",
        r#"{"code":"c1","makes":"device","ids":[],"by":"operator/root"}"#,
        1,
    ),
    (
        "enrol.refused",
        r#"{"code":"c1","wanted":null,"reason":"E_ENROL_CSR","source":"192.0.2.1"}"#,
        1,
    ),
    ("enrol.guessed", r#"{"count":9,"last_source":"192.0.2.1"}"#, 1),
    ("key.reused", r#"{"wanted":"pump","source":"192.0.2.1"}"#, 1),
    ("device.enrolled", r#"{"device":"pump","source":"192.0.2.1"}"#, 1),
    (
        "operator.enrolled",
        r#"{"operator":"ana","source":"192.0.2.1"}"#,
        1,
    ),
    (
        "certificate.renewed",
        r#"{"identity":"spiffe://f/device/pump"}"#,
        3,
    ),
    (
        "identity.revoked",
        r#"{"identity":"spiffe://f/device/pump","reason":"lost","by":"operator/root"}"#,
        4,
    ),
    (
        "device.quarantined",
        r#"{"device":"pump","reason":null,"by":"operator/root"}"#,
        3,
    ),
    ("device.released", r#"{"device":"pump","by":"operator/root"}"#, 3),
    (
        "operator.disabled",
        r#"{"operator":"ana","by":"operator/root"}"#,
        3,
    ),
    (
        "operator.enabled",
        r#"{"operator":"ana","by":"operator/root"}"#,
        3,
    ),
    (
        "group.changed",
        r#"{"member":"ana","makes":"operator","group":"g","by":"operator/root"}"#,
        3,
    ),
    ("facts.changed", r#"{"device":"pump","by":"operator/root"}"#, 3),
    ("policy.changed", r#"{"revision":2,"by":"operator/root"}"#, 3),
    ("policy.refused", r#"{"errors":["x"],"by":"operator/root"}"#, 3),
    (
        "approval.requested",
        r#"{"approval":"a1","operator":"ana","devices":["pump"],"services":["ssh"]}"#,
        1,
    ),
    (
        "approval.given",
        r#"{"approval":"a1","operator":"ana","by":"ben"}"#,
        3,
    ),
    (
        "approval.struck",
        r#"{"approval":"a1","operator":"ana","by":"ben","approvers":[]}"#,
        3,
    ),
    (
        "approval.denied",
        r#"{"approval":"a1","operator":"ana","by":"ben"}"#,
        3,
    ),
    (
        "approval.withdrawn",
        r#"{"approval":"a1","operator":"ana","by":"ben"}"#,
        4,
    ),
    (
        "glass.broken",
        r#"{"tunnel":"aa","operator":"ana","device":"pump","services":["ssh"]}"#,
        1,
    ),
    (
        "policy.failed",
        r#"{"operator":"ana","action":"connect","errors":[]}"#,
        99,
    ),
    (
        "access.denied",
        r#"{"operator":"ana","action":"read_audit","source":"192.0.2.1"}"#,
        2,
    ),
    (
        "denials.gathered",
        r#"{"by":"operator/ana","source":"192.0.2.1","count":7}"#,
        99,
    ),
    (
        "tunnel.opened",
        r#"{"tunnel":"aa","operator":"ana","device":"pump","services":["ssh"],"source":"192.0.2.1","expires_at":9}"#,
        1,
    ),
    (
        "tunnel.denied",
        r#"{"operator":"ana","device":"pump","services":["ssh"],"code":"E_POLICY_DENY"}"#,
        1,
    ),
    ("tunnel.attached", r#"{"tunnel":"aa","role":"source"}"#, 99),
    ("tunnel.connected", r#"{"tunnel":"aa"}"#, 1),
    (
        "tunnel.rotated",
        r#"{"tunnel":"aa","leg":"source","by":"operator/ana"}"#,
        99,
    ),
    (
        "tunnel.ended",
        r#"{"tunnel":"aa","operator":"ana","device":"pump","reason":"E_TUNNEL_CLOSED","lived_secs":3}"#,
        2,
    ),
    (
        "tunnel.ended",
        r#"{"tunnel":"aa","operator":"ana","device":"pump","reason":"E_CUT","lived_secs":3}"#,
        3,
    ),
    (
        "session.ended",
        r#"{"tunnel":"aa","service":"ssh","millis":5,"bytes_in":1,"bytes_out":2}"#,
        2,
    ),
    (
        "session.refused",
        r#"{"tunnel":"aa","service":"ssh","reason":"E_LIMIT"}"#,
        5,
    ),
    (
        "cut.ordered",
        r#"{"target":"device/pump","tunnels":2,"by":"operator/root"}"#,
        4,
    ),
    (
        "cut.confirmed",
        r#"{"tunnel":"aa","device":"pump","millis":5,"late":false}"#,
        99,
    ),
    (
        "cut.unconfirmed",
        r#"{"tunnel":"aa","device":"pump","reason":"E_CUT"}"#,
        99,
    ),
    (
        "token.refused",
        r#"{"tunnel":null,"presented_by":"spiffe://f/operator/eve","reason":"E_TOKEN_HOLDER"}"#,
        1,
    ),
    (
        "device.linked",
        r#"{"device":"pump","carrier":"udp","source":"192.0.2.1"}"#,
        1,
    ),
    (
        "device.unlinked",
        r#"{"device":"pump","why":"x","linked_secs":1}"#,
        2,
    ),
    ("audit.dropped", r#"{"first":1,"last":9,"count":9}"#, 4),
    ("evidence.restored", r#"{"failing_secs":61}"#, 99),
    ("invented.later", r#"{}"#, 99),
    ("invented.later", "no JSON", 99),
];

#[test]
fn every_event_has_what_its_class_requires() {
    for (kind, body, activity) in RECORDS {
        let event = event(&record(kind, body));
        let class = event["class_uid"].as_u64().unwrap();
        assert_eq!(event["activity_id"], json!(activity), "{kind}");
        assert_eq!(event["category_uid"], json!(class / 1000), "{kind}");
        assert_eq!(event["type_uid"], json!(class * 100 + activity), "{kind}");
        let base = [
            "time",
            "severity_id",
            "metadata/version",
            "metadata/product/name",
            "metadata/product/vendor_name",
        ];
        for path in base.iter().chain(required(class)) {
            assert!(has(&event, path), "{kind} has no {path}: {event}");
        }
        let fields = object(event)
            .into_iter()
            .filter(|(name, _)| name != "raw_data")
            .collect::<Map<_, _>>();
        let text = Value::Object(fields).to_string();
        assert!(!text.contains("null"), "{kind}: {text}");
    }
}

#[test]
fn the_record_goes_along_as_it_is() {
    let record = record(
        "tunnel.denied",
        r#"{"operator":"ana","reason":"x\u001b[2J\n{\"a\":1}"}"#,
    );
    let event = event(&record);
    let raw = event["raw_data"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<AuditRecord>(raw).unwrap(), record);
    assert_eq!(event["metadata"]["sequence"], json!(7));
    assert!(!event.to_string().contains(['\n', '\u{1b}']));
}

#[test]
fn a_session_tells_who_from_where_to_where_and_how_much() {
    let body = r#"{"tunnel":"aa","service":"ssh","operator":"ana","device":"pump","millis":5000,"bytes_in":10,"bytes_out":20,
        "started_at":100,"opening":{"reason":"repair","source":"192.0.2.9"},
        "paths":[{"leg":"source","carrier":"udp","address":"192.0.2.1:4000"},
                 {"leg":"destination","carrier":"websocket","address":"[2001:db8::1]:5000"},
                 {"leg":"source","carrier":"udp","address":"192.0.2.2:4001"}]}"#;
    let event = event(&record("session.ended", body));
    assert_eq!(
        event["src_endpoint"],
        json!({ "ip": "192.0.2.2", "port": 4001, "name": "ana" })
    );
    assert_eq!(event["dst_endpoint"]["ip"], "2001:db8::1");
    assert_eq!(event["dst_endpoint"]["svc_name"], "ssh");
    assert_eq!(event["traffic"], json!({ "bytes_in": 20, "bytes_out": 10 }));
    assert_eq!(
        (&event["start_time"], &event["duration"]),
        (&json!(100_000), &json!(5000))
    );
    assert_eq!(event["status_detail"], "repair");
}
