//! What is refused, and what the one who is refused learns.

use tunnel_e2e::Fleet;
use tunnel_e2e::service::Service;

/// The exit code for what policy refuses.
const DENIED: i32 = 3;

#[test]
fn a_service_that_policy_does_not_allow_is_refused_with_its_reason() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(
        fleet
            .device("pump-17")
            .like_sshd(&echo.target())
            .service("admin", &echo.target()),
    );
    let technician = fleet.technician("ana");

    // The one that is allowed passes.
    assert_eq!(
        technician
            .tunnel_with(&["connect", "pump-17", "ssh"], b"hello")
            .ok(),
        "hello"
    );

    let refusal = technician.refusal(&["connect", "pump-17", "admin"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_POLICY_DENY"),
        "{}",
        refusal.text
    );
    let text = technician.tunnel(&["connect", "pump-17", "admin"]);
    for part in ["error: ", "why: ", "next: "] {
        assert!(text.stderr.contains(part), "{}", text.stderr);
    }
    assert_eq!(echo.count(), 1);

    // The first operator is an admin and may.
    assert_eq!(
        fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "admin"], b"hello")
            .ok(),
        "hello"
    );
    let denied: Vec<_> = fleet
        .admin
        .audit()
        .into_iter()
        .filter(|record| record["kind"] == "tunnel.denied")
        .collect();
    assert_eq!(denied.len(), 2, "{denied:?}");
    assert!(denied[0].to_string().contains("ana"), "{denied:?}");
}

#[test]
fn what_one_may_not_see_looks_like_what_is_not_there() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
    let code = fleet
        .server
        .enrol_code(&["--operator", "eve", "--group", "strangers"]);
    let eve = tunnel_e2e::Operator::login("eve", fleet.devices_place(), fleet.directory(), &code);

    assert!(eve.device("pump-17").is_none());
    let hidden = eve.refusal(&["connect", "pump-17", "ssh"]);
    let missing = eve.refusal(&["connect", "pump-99", "ssh"]);
    assert_eq!(
        (hidden.exit, &hidden.code),
        (missing.exit, &missing.code),
        "{hidden:?} {missing:?}"
    );
    assert_eq!(hidden.text.replace("pump-17", "pump-99"), missing.text);
}

#[test]
fn rights_of_admins_are_not_those_of_technicians() {
    let fleet = Fleet::on_loopback();
    let technician = fleet.technician("ana");
    let file = fleet.directory().join("policy.cedar");
    std::fs::write(&file, "permit(principal, action, resource);").unwrap();
    let file = file.to_str().unwrap();
    for words in [
        &["audit"][..],
        &["policy", "apply", file],
        &["revoke", "spiffe://fleet.test/operator/admin"],
        &["enrol-code", "--device", "pump-1"],
    ] {
        let refusal = technician.refusal(words);
        assert_eq!(refusal.exit, DENIED, "{words:?}: {}", refusal.text);
    }
}

#[test]
fn a_bad_policy_is_found_before_it_is_accepted() {
    let fleet = Fleet::on_loopback();
    let write = |name: &str, text: &str| {
        let path = fleet.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let revision = || {
        fleet.admin.json(&["status"])["answer"]["policy_revision"]
            .as_u64()
            .unwrap()
    };
    let before = revision();
    for (name, text) in [
        ("syntax.cedar", "permit(principal, action"),
        (
            "schema.cedar",
            "permit(principal, action == Action::\"conect\", resource);",
        ),
        (
            "type.cedar",
            "permit(principal, action, resource) when { context.nonsense > 1 };",
        ),
    ] {
        let file = write(name, text);
        for verb in ["check", "apply"] {
            let output = fleet.admin.tunnel(&["policy", verb, &file]);
            assert_ne!(output.code, 0, "{verb} {name}: {}", output.said());
        }
    }
    assert_eq!(revision(), before);

    let shown = fleet.admin.tunnel(&["policy", "show"]).ok();
    let good = write("good.cedar", &format!("{shown}\n// One more line.\n"));
    fleet.admin.tunnel(&["policy", "check", &good]).ok();
    fleet.admin.tunnel(&["policy", "apply", &good]).ok();
    assert!(revision() > before);
}

/// THREATS AGT-01 and I12: the device has the last word.
#[test]
fn the_devices_own_policy_can_only_narrow() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let device = fleet.device("pump-17").service("open", &echo.target());
    let device = device.service_with("closed", &echo.target(), "allow_operators = [\"ana\"]");
    let _agent = fleet.link(device);

    assert_eq!(
        fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "open"], b"hello")
            .ok(),
        "hello"
    );
    let refusal = fleet.admin.refusal(&["connect", "pump-17", "closed"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (DENIED, "E_LOCAL_POLICY"),
        "{}",
        refusal.text
    );
    let refusal = fleet.admin.refusal(&["connect", "pump-17", "unheard-of"]);
    assert_eq!(refusal.code, "E_SERVICE_UNKNOWN", "{}", refusal.text);
    assert_eq!(echo.count(), 1);
}

/// THREATS ENR-01, ENR-02, ENR-07.
#[test]
fn a_code_works_once_and_only_for_its_id() {
    let fleet = Fleet::on_loopback();
    let code = fleet.server.enrol_code(&["--device", "pump-17"]);
    let enrol = |id: &str, name: &str| {
        let state = fleet.directory().join(name);
        let mut command = fleet
            .devices_place()
            .command(tunnel_e2e::programs::path("tunnel-agent"));
        command.args(["enrol", &code, "--id", id, "--state"]).arg(state);
        tunnel_e2e::process::run(&mut command, tunnel_e2e::wait::SOON)
    };
    let other = enrol("pump-18", "other");
    assert_eq!(other.code, DENIED, "{}", other.said());
    enrol("pump-17", "first").ok();
    let again = enrol("pump-17", "second");
    assert_eq!(again.code, DENIED, "{}", again.said());
    assert!(!fleet.directory().join("second/chain.pem").exists());
}

fn put(fleet: &Fleet, name: &str, text: &str) -> String {
    let path = fleet.directory().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A candidate is weighed against what happened, compared, put into force after the version that it was made from, and
/// taken back (THREATS POL-12).
#[test]
fn a_policy_goes_from_a_candidate_into_force_and_back() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
    let technician = fleet.technician("ana");
    let admin = &fleet.admin;
    admin.tunnel(&["group", "add", "pumps", "device/pump-17"]).ok();
    for _ in 0..2 {
        let answer = technician.tunnel_with(&["connect", "pump-17", "ssh"], b"hello");
        assert_eq!(answer.ok(), "hello");
    }
    technician.refusal(&["connect", "pump-17", "web"]);

    let shown = admin.tunnel(&["policy", "show"]).ok();
    let before = admin.json(&["policy", "list"])[0]["revision"].as_u64().unwrap();
    let candidate = put(
        &fleet,
        "candidate.cedar",
        &shown.replace("== \"ssh\"", "== \"web\""),
    );
    let found = admin.json(&["policy", "replay", &candidate]);
    let line = |what: &str| {
        let line = &found[what][0];
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        format!(
            "{} {} {} {}",
            text("operator"),
            text("devices"),
            text("service"),
            line["count"]
        )
    };
    assert_eq!(line("lost"), "ana pumps ssh 2", "{found}");
    assert_eq!(line("gained"), "ana pumps web 1", "{found}");
    assert_eq!(
        (&found["decisions"], &found["unknown"]),
        (&3.into(), &0.into()),
        "{found}"
    );
    let said = admin.tunnel(&["policy", "replay", &candidate]).ok();
    assert!(said.contains("loses") && said.contains("allow -> deny"), "{said}");

    let diff = admin.json(&["policy", "diff", &candidate]);
    let changed: Vec<_> = diff["changed"].as_object().unwrap().keys().collect();
    assert_eq!(changed, ["technicians-ssh"], "{diff}");
    let version = before.to_string();
    admin
        .tunnel(&["policy", "apply", &candidate, "--if-version", &version])
        .ok();
    let stale = admin.refusal(&["policy", "apply", &candidate, "--if-version", &version]);
    assert_eq!(
        (stale.exit, stale.code.as_str()),
        (1, "E_POLICY_STALE"),
        "{}",
        stale.text
    );
    assert_eq!(
        technician.refusal(&["connect", "pump-17", "ssh"]).code,
        "E_POLICY_DENY"
    );
    admin.tunnel(&["policy", "rollback"]).ok();
    assert_eq!(admin.tunnel(&["policy", "show"]).ok(), shown);
    assert_eq!(admin.tunnel(&["policy", "show", &version]).ok(), shown);
    assert_eq!(admin.json(&["policy", "list"])[0]["revision"], before + 2);
    let answer = technician.tunnel_with(&["connect", "pump-17", "ssh"], b"hello");
    assert_eq!(answer.ok(), "hello");
}

/// THREATS POL-01, POL-08: with a real agent that states facts, and limits that both ends keep.
#[test]
fn facts_limits_and_reasons_are_told_to_whom_they_concern() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let device = fleet.device("pump-17").like_sshd(&echo.target());
    let _agent = fleet.link(device.setting("facts = { site = \"north\" }"));
    let (technician, admin) = (fleet.technician("ana"), &fleet.admin);
    let shown = admin.tunnel(&["policy", "show"]).ok();
    let rules = shown.replace(
        "when { resource.name == \"ssh\" }",
        "when { resource.name == \"ssh\" && context has reason && resource.device.asserted.hasTag(\"site\") && \
         resource.device.asserted.getTag(\"site\").value == \"north\" }",
    );
    let rules = rules.replace(
        "@id(\"technicians-ssh\")",
        "@id(\"technicians-ssh\") @max_bytes(\"64KiB\") @max_lifetime(\"5m\")",
    );
    let file = put(&fleet, "facts.cedar", &rules);
    admin.tunnel(&["policy", "apply", &file]).ok();

    // The claim alone opens nothing.
    let facts = tunnel_e2e::until("the claim of the device", tunnel_e2e::wait::SOON, || {
        let facts = admin.json(&["facts", "list", "pump-17"]);
        (facts["reported"]["site"] == "north").then_some(facts)
    });
    assert!(facts["asserted"].as_object().unwrap().is_empty(), "{facts}");
    let connect = ["connect", "pump-17", "ssh", "--reason", "INC-7"];
    assert_eq!(technician.refusal(&connect).code, "E_POLICY_DENY");
    admin.tunnel(&["facts", "set", "pump-17", "site=north"]).ok();
    assert_eq!(technician.tunnel_with(&connect, b"hello").ok(), "hello");

    let why = technician.json(&["why", "pump-17", "ssh"]);
    assert_eq!(
        (&why["outcome"], &why["missing"][0]),
        (&"deny".into(), &"a reason".into()),
        "{why}"
    );
    let told = admin
        .tunnel(&["why", "pump-17", "ssh", "--operator", "ana", "--reason", "INC-7"])
        .ok();
    for part in ["allowed", "technicians-ssh", "lifetime 5m", "is north", "permit"] {
        assert!(told.contains(part), "{part}: {told}");
    }

    // The relay counts, and ends what is more than policy allows.
    let large = vec![b'x'; 1 << 20];
    let output = technician.tunnel_with(&connect, &large);
    assert_eq!(output.code, DENIED, "{}", output.said());
    assert!(output.stderr.contains("E_BYTE_LIMIT"), "{}", output.stderr);
}
