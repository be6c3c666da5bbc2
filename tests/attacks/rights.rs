//! Names and claims that pretend to be others, operators who widen their own rights, and sessions that ask for more than
//! their tunnel is for.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tunnel_e2e::agent::Agent;
use tunnel_e2e::bare::BareLeg;
use tunnel_e2e::puppet::credentials;
use tunnel_e2e::service::Service;
use tunnel_e2e::{Fleet, Operator, until};
use tunnel_net::tls;
use tunnel_proto::frame;
use tunnel_proto::message::{OpenSession, SessionAnswer};

use crate::policies::{Site, file, refused};
use crate::quic::{Bare, TUNNEL_ID, parameters, stream};
use crate::world::{PATIENCE, api, bodies, wait_for};

/// A rule for technicians that asks for something of the device.
fn rule(name: &str, condition: &str) -> String {
    format!(
        "@id(\"{name}\") permit (principal in OperatorGroup::\"technicians\", action == Action::\"connect\", resource{condition}\n"
    )
}

#[test]
fn pol_08_what_a_device_claims_meets_no_rule_about_what_its_owner_says() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let ana = fleet.technician("ana");
    let claims = [
        ("honest", r#"{ site = "south" }"#),
        (
            "claims",
            r#"{ site = "north", owner = "admin", group = "pumps", kind = "pump" }"#,
        ),
        ("wild", r#"{ site = "*", owner = "*", group = "*", kind = "*" }"#),
    ];
    let _agents: Vec<Agent> = claims
        .iter()
        .map(|(id, facts)| {
            let device = fleet.device(id).like_sshd(&echo.target());
            fleet.link(device.setting(&format!("facts = {facts}")))
        })
        .collect();
    for (id, _) in claims {
        until("what the devices claim", PATIENCE, || {
            let facts = fleet.admin.json(&["facts", "list", id]);
            (facts["reported"]["site"].is_string() && facts["asserted"] == json!({})).then_some(())
        });
    }
    let open = |device: &str| {
        let output = ana.tunnel_with(&["connect", device, "ssh"], b"hello");
        output.code == 0
    };
    let tag = |kind: &str, name: &str, value: &str| {
        format!(
            ") when {{ resource.device.{kind}.hasTag(\"{name}\") && resource.device.{kind}.getTag(\"{name}\").value == \"{value}\" }};"
        )
    };
    let belong = r#"permit (principal, action == Action::"belong", resource == ReportedGroup::"pumps")
                    when { principal.reported.hasTag("kind") && principal.reported.getTag("kind").value == "pump" };"#;
    let apply = |rules: &str| {
        let text = format!("{}{rules}", crate::policies::ADMINS);
        let file = file(&fleet, "claims.cedar", text);
        fleet.admin.tunnel(&["policy", "apply", &file]).ok();
    };
    let all = ["honest", "claims", "wild"];
    for asserted in [
        rule("site", &tag("asserted", "site", "north")),
        rule("owner", &tag("asserted", "owner", "admin")),
        format!("{}{belong}", rule("group", " in DeviceGroup::\"pumps\");")),
    ] {
        apply(&asserted);
        assert_eq!(all.map(open), [false; 3], "{asserted}");
    }
    assert_eq!(echo.count(), 0);
    // A rule about claims is met by the one that makes them, and by no pattern and no owner's word.
    fleet
        .admin
        .tunnel(&["facts", "set", "honest", "site=north", "kind=pump"])
        .ok();
    fleet
        .admin
        .tunnel(&["group", "add", "pumps", "device/honest"])
        .ok();
    for reported in [
        rule("site", &tag("reported", "site", "north")),
        format!("{}{belong}", rule("group", " in ReportedGroup::\"pumps\");")),
    ] {
        apply(&reported);
        assert_eq!(all.map(open), [false, true, false], "{reported}");
    }
    // And the owner's word meets the rule that asks for it.
    for asserted in [
        rule("site", &tag("asserted", "site", "north")),
        rule("group", " in DeviceGroup::\"pumps\");"),
    ] {
        apply(&asserted);
        assert_eq!(all.map(open), [true, false, false], "{asserted}");
    }
}

/// Names that are `ana`, `pump-17` or `ssh` to a pattern, a path, a person or a careless comparison, and to nothing else.
fn alike(name: &str) -> Vec<String> {
    let first = name.chars().next().unwrap();
    vec![
        "*".into(),
        "?".repeat(name.len()),
        format!("{}*", &name[..2]),
        name.to_uppercase(),
        format!("{name} "),
        format!(" {name}"),
        format!("{name}/"),
        format!("./{name}"),
        format!("../{name}"),
        format!("{name}\0"),
        format!("{name}\0x"),
        format!("{name}."),
        format!("{name}\u{200b}"),
        // Cyrillic and full width.
        name.replace('a', "\u{430}")
            .replace('p', "\u{440}")
            .replace('s', "\u{455}"),
        name.replacen(
            first,
            &char::from_u32(u32::from(first) + 0xfee0).unwrap().to_string(),
            1,
        ),
        format!("{name}\u{301}"),
        format!("%{:02x}{}", u32::from(first), &name[1..]),
    ]
}

#[test]
fn pol_09_names_match_exactly_and_odd_ones_get_in_nowhere() {
    let site = Site::new();
    let (fleet, admin) = (&site.fleet, api(&site.fleet, &site.fleet.admin));
    // In rules: none of them is met by the one that it looks like.
    let quoted = |name: &str| serde_json::to_string(name).unwrap().replace("\\u0000", "\\0");
    let rules = |operators: &[String], groups: &[String], services: &[String], devices: &[String]| {
        let mut text = String::new();
        for name in operators {
            text += &format!(
                "permit (principal == Operator::{}, action, resource);\n",
                quoted(name)
            );
        }
        for name in groups {
            text += &format!(
                "permit (principal in OperatorGroup::{}, action, resource);\n",
                quoted(name)
            );
        }
        let technician =
            "permit (principal in OperatorGroup::\"technicians\", action == Action::\"connect\", resource)";
        for name in services {
            text += &format!("{technician} when {{ resource.name == {} }};\n", quoted(name));
        }
        for name in devices {
            text += &format!(
                "{technician} when {{ resource.device == Device::{} }};\n",
                quoted(name)
            );
        }
        text
    };
    let odd = rules(
        &alike("ana"),
        &alike("technicians"),
        &alike("ssh"),
        &alike("pump-17"),
    );
    site.apply(&odd);
    assert_eq!(site.connect(&site.ana, "ssh"), refused("E_POLICY_DENY"));
    let exact = |name: &str| vec![name.to_owned()];
    for good in [
        rules(&exact("ana"), &[], &[], &[]),
        rules(&[], &exact("technicians"), &[], &[]),
        rules(&[], &[], &exact("ssh"), &[]),
        rules(&[], &[], &[], &exact("pump-17")),
    ] {
        site.apply(&good);
        assert_eq!(site.connect(&site.ana, "ssh"), None, "{good}");
    }

    // As ids: at no entry does one become the other. What the fleet consists of stays as it was.
    let fleet_now = || {
        let json = |words: &[&str]| fleet.admin.json(words);
        let ids = |rows: &Value, field: &str| -> Vec<Value> {
            rows.as_array()
                .into_iter()
                .flatten()
                .map(|row| row[field].clone())
                .collect()
        };
        let devices = json(&["devices"]);
        (
            ids(&devices, "id"),
            json(&["group", "list"]),
            bodies(&fleet.admin, "enrol.code_made").len(),
        )
    };
    let before = fleet_now();
    let ask = |method: &str, path: &str, body: Value| {
        let body = (!body.is_null()).then_some(&body).cloned();
        let answer = admin.request(method, path, body.as_ref()).unwrap();
        (
            answer.status,
            answer.body["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let encoded = |name: &str| -> String { name.bytes().map(|byte| format!("%{byte:02x}")).collect() };
    for name in alike("pump-17") {
        let wish = json!({ "device": name, "services": ["ssh"] });
        assert_eq!(
            ask("POST", "/v1/tunnels", wish),
            (400, "E_BAD_NAME".into()),
            "{name:?}"
        );
        let wish = json!({ "device": "pump-17", "services": [name] });
        assert_eq!(
            ask("POST", "/v1/tunnels", wish),
            (400, "E_BAD_NAME".into()),
            "{name:?}"
        );
        // An operator can be `pump-17.`, and is then another one than `pump-17`.
        for kind in ["device", "operator"]
            .into_iter()
            .take(if name.ends_with('.') { 1 } else { 2 })
        {
            let code = json!({ "kind": kind, "ids": [name], "group": "x" });
            assert_eq!(
                ask("POST", "/v1/enrol-codes", code),
                (400, "E_BAD_NAME".into()),
                "{name:?}"
            );
        }
        let code = json!({ "kind": "device", "ids": [], "group": name });
        assert_eq!(
            ask("POST", "/v1/enrol-codes", code),
            (400, "E_BAD_NAME".into()),
            "{name:?}"
        );
        for path in [
            format!("/v1/groups/{}/device/pump-17", encoded(&name)),
            format!("/v1/groups/pumps/device/{}", encoded(&name)),
        ] {
            let (status, code) = ask("PUT", &path, Value::Null);
            assert!(status >= 400 && code != "E_INTERNAL", "{name:?}: {status} {code}");
        }
    }
    assert_eq!(fleet_now(), before);
    assert_eq!(ask("PUT", "/v1/groups/pumps/device/pump-17", Value::Null).0, 200);
}

#[test]
fn pol_12_nobody_widens_own_rights_and_one_of_two_editors_wins() {
    let site = Site::new();
    let (fleet, admin) = (&site.fleet, &site.fleet.admin);
    let login = |name: &str, group: &str| {
        let code = fleet.server.enrol_code(&["--operator", name, "--group", group]);
        Operator::login(name, fleet.devices_place(), fleet.directory(), &code)
    };
    let ben = login("ben", "clerks");
    site.apply(
        r#"@id("clerks") permit (principal in OperatorGroup::"clerks",
                                 action in [Action::"manage-groups", Action::"manage-enrolment"], resource);
           @id("ask") permit (principal in OperatorGroup::"technicians",
                              action in [Action::"connect", Action::"approve"], resource);
           @id("two") @requires_approval forbid (principal, action == Action::"connect", resource);"#,
    );
    let groups = || admin.json(&["group", "list"]);
    let before = groups();
    for (by, words) in [
        (&site.ana, &["group", "add", "admins", "operator/ana"][..]),
        (
            &site.ana,
            &["enrol-code", "--operator", "eve", "--group", "admins"],
        ),
        (&ben, &["group", "add", "admins", "operator/ben"]),
        (&ben, &["group", "remove", "clerks", "operator/ben"]),
        (
            &ben,
            &[
                "policy",
                "apply",
                &file(fleet, "own.cedar", "permit (principal, action, resource);"),
            ],
        ),
        // A code is a way into a group, too.
        (
            &ben,
            &[
                "enrol-code",
                "--operator",
                "ben",
                "--group",
                "admins",
                "--replace",
            ],
        ),
    ] {
        let refusal = by.refusal(words);
        assert_eq!(
            (refusal.exit, refusal.code.as_str()),
            (3, "E_POLICY_DENY"),
            "{words:?}"
        );
    }
    // One for whoever comes first is a way as well.
    let any = [
        "enrol-code",
        "--kind",
        "operator",
        "--group",
        "admins",
        "--replace",
    ];
    let code = ben.json(&any)["code"].as_str().unwrap().to_owned();
    let refusal = ben.refusal(&["login", "--name", "ben", &code]);
    assert_eq!((refusal.exit, refusal.code.as_str()), (3, "E_POLICY_DENY"));
    assert_eq!(groups(), before);
    // To others it gives what it is for.
    ben.tunnel(&["group", "add", "night", "operator/ana"]).ok();
    let denied = bodies(admin, "access.denied");
    assert!(denied.len() >= 3, "{denied:?}");

    // Nobody agrees to an own request.
    let asked = site.ana.json(&["request", "pump-17", "ssh", "--reason", "INC-7"]);
    let id = asked["id"].as_str().unwrap();
    assert_eq!(site.ana.refusal(&["approve", id]).code, "E_SELF_APPROVAL");
    assert_eq!(site.connect(&site.ana, "ssh"), refused("E_APPROVAL_REQUIRED"));
    let cleo = fleet.technician("cleo");
    cleo.tunnel(&["approve", id]).ok();
    assert_eq!(site.connect(&site.ana, "ssh"), None);

    // Two have edited the same version: two processes at the same time.
    let shown = admin.tunnel(&["policy", "show"]).ok();
    let version = admin.json(&["policy", "list"])[0]["revision"].to_string();
    let editors: Vec<_> = ["mine", "yours"]
        .into_iter()
        .map(|whose| {
            let text = file(fleet, whose, format!("{shown}// {whose}\n"));
            let mut apply = admin.cli(&["--json", "policy", "apply", &text, "--if-version", &version]);
            apply
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<_> = editors
        .into_iter()
        .map(|editor| editor.wait_with_output().unwrap())
        .collect();
    let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!((won.len(), lost.len()), (1, 1), "{outputs:?}");
    let said = String::from_utf8_lossy(&lost[0].stderr);
    assert!(said.contains("E_POLICY_STALE"), "{said}");
    assert_eq!(
        admin.json(&["policy", "list"])[0]["revision"]
            .as_u64()
            .map(|now| now - 1),
        version.parse().ok()
    );
}

/// The first frame of a session.
fn ask_for(service: &str) -> Vec<u8> {
    frame::encode(&OpenSession {
        service: service.to_owned(),
    })
}

/// What came on a stream so far.
fn came(abuser: &Bare, id: u64) -> Vec<u8> {
    let parts = abuser.streams.iter().filter(|(stream, _)| *stream == id);
    parts.flat_map(|(_, bytes)| bytes.clone()).collect()
}

/// The answer to a session, and what came behind it; nothing as long as it is not whole.
fn answer(abuser: &Bare, id: u64) -> Option<(SessionAnswer, Vec<u8>)> {
    let bytes = came(abuser, id);
    let (head, rest) = bytes.split_first_chunk::<{ frame::HEADER }>()?;
    let (content, rest) = rest.split_at_checked(frame::length(*head).unwrap())?;
    Some((frame::decode(content).unwrap(), rest.to_vec()))
}

#[test]
fn pol_13_a_second_stream_gets_no_other_service_and_no_other_port() {
    let fleet = Fleet::on_loopback();
    let [echo, other] = [(); 2].map(|()| Service::echo(fleet.devices_place()));
    let device = fleet.device("pump-17").service("echo", &echo.target());
    let _agent = fleet.link(device.service("other", &other.target()));
    let leg = BareLeg::to(&fleet, "pump-17", &["echo"]);
    let (ends, own) = credentials(&fleet.admin.home());
    let device = format!("spiffe://{}/device/pump-17", tunnel_e2e::server::TRUST_DOMAIN);
    let config = tls::tunnel_client(&ends, &own, device.parse().unwrap());
    let mut abuser = Bare::connect(leg.socket, config, TUNNEL_ID, &parameters(1 << 20));
    let patience = Duration::from_secs(20);
    let mut sent = ask_for("echo");
    sent.extend(b"hello");
    abuser.send(&stream(0, 0, &sent));
    let said = |abuser: &Bare| answer(abuser, 0).map(|(_, bytes)| bytes).unwrap_or_default();
    assert!(abuser.run(patience, |abuser| said(abuser) == b"hello"));

    let target = other.target();
    let port = target.rsplit(':').next().unwrap();
    let mut wanted = vec![("other".to_owned(), "E_TOKEN_SCOPE")];
    for unknown in [
        &target,
        &format!("127.0.0.1:{port}"),
        &format!("echo:{port}"),
        port,
        "22",
        "65536",
        "ECHO",
        "echo\0other",
        "../other",
        "*",
        "",
    ] {
        wanted.push((unknown.to_owned(), "E_SERVICE_UNKNOWN"));
    }
    for (number, (service, code)) in (1..).zip(&wanted) {
        let mut asked = ask_for(service);
        asked.extend(b"a byte that gets nowhere");
        abuser.send(&stream(4 * number, 0, &asked));
        assert!(
            abuser.run(patience, |abuser| answer(abuser, 4 * number).is_some()),
            "no answer to {service:?}"
        );
        let (answer, behind) = answer(&abuser, 4 * number).unwrap();
        let got = answer.refused.map(|refusal| refusal.code.to_string());
        assert_eq!((got.as_deref(), behind.len()), (Some(*code), 0), "{service:?}");
    }
    assert_eq!((echo.count(), other.count()), (1, 0), "nothing was connected to");
    // Each is on record with who asked and for what; the session that is permitted goes on.
    let records = wait_for(&fleet.admin, "session.refused", wanted.len());
    for (service, code) in &wanted {
        let of_it = |record: &&Value| record["service"] == **service;
        let record = records
            .iter()
            .find(of_it)
            .unwrap_or_else(|| panic!("{service:?} is not in {records:?}"));
        assert_eq!(
            (record["reason"].as_str(), record["operator"].as_str()),
            (Some(*code), Some("admin"))
        );
    }
    abuser.send(&stream(0, sent.len() as u64, b" again"));
    assert!(abuser.run(patience, |abuser| said(abuser) == b"hello again"));
    assert!(abuser.lives());
    // Who asks for it beforehand gets it.
    let both = fleet
        .admin
        .tunnel_with(&["connect", "pump-17", "other"], b"hello");
    assert_eq!(both.ok(), "hello");
}
