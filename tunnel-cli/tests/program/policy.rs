//! Policies on a machine without a login and without a server.

use std::path::PathBuf;

use crate::place::{Place, Run};

const POLICY: &str = r#"
@id("view") permit (principal, action == Action::"view", resource);
@id("ssh") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
when { resource.name == "ssh" };
"#;

const CASES: &str = r#"
policy = "fleet.cedar"

[[case]]
name = "technicians reach ssh"
operator = "ana"
groups = ["technicians"]
device = "pump-17"
service = "ssh"
expect = "allow"
policies = ["ssh"]

[[case]]
name = "guests do not"
operator = "eve"
device = "pump-17"
service = "ssh"
expect = "deny"
"#;

fn write(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn test(place: &Place, cases: &str, more: &[&str]) -> Run {
    let file = write(place, "cases.toml", cases);
    place.run(&[&["policy", "test", file.to_str().unwrap()], more].concat())
}

#[test]
fn a_policy_is_tested_without_a_server() {
    let place = Place::new();
    write(&place, "fleet.cedar", POLICY);
    let good = test(&place, CASES, &[]);
    assert_eq!(
        (good.code, good.stdout.as_str()),
        (0, "2 passed, 0 failed\n"),
        "{}",
        good.stderr
    );

    // Expectation and outcome stand below each other.
    let wrong = CASES
        .replace("\"deny\"", "\"allow\"")
        .replace("[\"ssh\"]", "[\"all\"]");
    let bad = test(&place, &wrong, &[]);
    assert_eq!(bad.code, 1);
    for line in [
        "FAILED technicians reach ssh\n  - allow by all\n  + allow by ssh\n",
        "FAILED guests do not\n  - allow\n  + deny\n",
    ] {
        assert!(bad.stdout.contains(line), "{}", bad.stdout);
    }
    assert!(bad.stdout.ends_with("0 passed, 2 failed\n"), "{}", bad.stdout);
    let bad = test(&place, &wrong, &["--json"]);
    assert_eq!((bad.code, &bad.error()["code"]), (1, &"E_POLICY_TEST".into()));
    let told: serde_json::Value = serde_json::from_str(&bad.stdout).unwrap();
    assert_eq!(
        (&told["failed"], &told["cases"][1]["got"]),
        (&2.into(), &"deny".into())
    );

    let other = write(&place, "other.cedar", "permit (principal, action, resource);");
    let open = test(&place, CASES, &["--policy", other.to_str().unwrap()]);
    assert_eq!(open.code, 1, "{}", open.stdout);
}

/// THREATS POL-06.
#[test]
fn what_cannot_be_tested_is_refused_with_its_place() {
    let place = Place::new();
    let missing = test(&place, CASES, &["--json"]);
    assert_eq!(
        (missing.code, &missing.error()["code"]),
        (2, &"E_BAD_REQUEST".into())
    );
    write(
        &place,
        "fleet.cedar",
        &POLICY.replace("resource.name", "\nresource.nmae"),
    );
    let policy = test(&place, CASES, &["--json"]);
    assert_eq!(policy.code, 2);
    assert!(
        policy.error()["detail"].as_str().unwrap().contains("line 5"),
        "{}",
        policy.stderr
    );
    write(&place, "fleet.cedar", POLICY);
    for (from, to, why) in [
        ("expect =", "expct =", "expct"),
        ("\"ana\"", "\"-ana\"", "operator name"),
        ("[[case]]", "[[cases]]", "cases"),
        ("policy = \"fleet.cedar\"", "", "--policy"),
    ] {
        let bad = test(&place, &CASES.replace(from, to), &["--json"]);
        assert_eq!(bad.code, 2, "{to}: {}", bad.stdout);
        assert!(bad.stderr.contains(why), "{to}: {}", bad.stderr);
    }
    assert_eq!(test(&place, "policy = \"fleet.cedar\"", &[]).code, 2);
}
