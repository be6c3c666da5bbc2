//! Decisions, errors and checks. The random comparison with a plain evaluator is in [`reference`].

mod authoriser;
mod docs;
mod facts;
mod limits;
mod reference;

use std::collections::BTreeMap;
use std::time::Duration;

use tunnel_proto::{ServiceName, UnixTime};

use super::*;

pub(crate) fn operator(name: &str, groups: &[&str]) -> Operator {
    Operator {
        name: name.parse().unwrap(),
        groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
    }
}

pub(crate) fn device(id: &str, groups: &[&str]) -> Device {
    Device {
        id: id.parse().unwrap(),
        groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
        enrolled_at: UnixTime::from_secs(1_700_000_000),
        certificate_expires_at: UnixTime::from_secs(1_900_000_000),
        asserted: BTreeMap::new(),
        reported: Reported {
            at: NOW.before(Duration::from_secs(60)),
            access: true,
            services: services(&["ssh", "diag"]),
            version: Some("0.1.0".into()),
            platform: None,
            facts: BTreeMap::new(),
        },
    }
}

pub(crate) fn asserting(mut device: Device, facts: &[(&str, &str)]) -> Device {
    for (name, value) in facts {
        let fact = Fact {
            value: value.parse().unwrap(),
            at: NOW.before(Duration::from_secs(3600)),
        };
        device.asserted.insert(name.parse().unwrap(), fact);
    }
    device
}

fn reporting(mut device: Device, facts: &[(&str, &str)]) -> Device {
    for (name, value) in facts {
        device
            .reported
            .facts
            .insert(name.parse().unwrap(), value.parse().unwrap());
    }
    device
}

fn services(names: &[&str]) -> Vec<ServiceName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// A Friday, at 8 o'clock.
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn circumstances() -> Circumstances {
    Circumstances {
        now: NOW,
        steady: true,
        source: "10.1.2.3".parse().unwrap(),
        certificate_age: Duration::from_secs(600),
        mfa_age: None,
    }
}

pub(crate) fn question(
    operator: &Operator,
    device: &Device,
    names: &[&str],
    reason: Option<&str>,
) -> Question {
    Question {
        operator: operator.clone(),
        circumstances: circumstances(),
        device: device.clone(),
        terms: Terms {
            services: services(names),
            ttl: Duration::from_secs(3600),
            reason: reason.map(str::to_owned),
            approval: None,
            break_glass: false,
            batch: false,
            authoriser: None,
        },
    }
}

fn approved(mut question: Question) -> Question {
    question.terms.approval = Some(Approval {
        id: None,
        approvers: vec!["ben".parse().unwrap()],
        until: NOW.after(Duration::from_secs(600)),
    });
    question
}

/// Asks for the first service of a question.
fn ask(policy: &str, question: &Question) -> Decision {
    Engine::new(policy).unwrap().decide(&Request {
        operator: &question.operator,
        action: Action::Connect {
            device: &question.device,
            service: &question.terms.services[0],
            terms: &question.terms,
        },
        circumstances: &question.circumstances,
    })
}

fn connect(
    policy: &str,
    operator: &Operator,
    device: &Device,
    service: &str,
    reason: Option<&str>,
) -> Decision {
    ask(policy, &question(operator, device, &[service], reason))
}

fn decide(policy: &str, operator: &Operator, action: Action<'_>) -> Decision {
    Engine::new(policy).unwrap().decide(&Request {
        operator,
        action,
        circumstances: &circumstances(),
    })
}

/// Permits what is asked, so that a test can show what takes it away again.
const ALL: &str = r#"@id("all") permit (principal, action, resource);"#;

/// THREATS POL-01.
#[test]
fn what_no_policy_permits_is_denied() {
    let (ana, pump) = (operator("ana", &["technicians"]), device("pump-17", &["pumps"]));
    let other = r#"permit (principal == Operator::"eve", action, resource);"#;
    for policy in ["", "// nothing", other] {
        let decision = connect(policy, &ana, &pump, "ssh", None);
        assert_eq!(decision.outcome, Outcome::Deny, "{policy}");
        assert!(
            decision.policies.is_empty() && decision.errors.is_empty(),
            "{policy}"
        );
    }
    assert!(connect(ALL, &ana, &pump, "ssh", None).is_allowed());
    let nothing = Engine::deny_all();
    let asked = Request {
        operator: &ana,
        action: Action::View(&pump),
        circumstances: &circumstances(),
    };
    assert!(!nothing.decide(&asked).is_allowed());
    assert!(nothing.is_empty());
}

/// THREATS POL-02.
#[test]
fn a_forbid_wins_in_any_order_and_is_named() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let forbid = r#"@id("no-diag") forbid (principal, action == Action::"connect", resource) when { resource.name == "diag" };"#;
    for policy in [format!("{ALL}\n{forbid}"), format!("{forbid}\n{ALL}")] {
        let denied = connect(&policy, &ana, &pump, "diag", None);
        assert_eq!(
            (denied.is_allowed(), denied.policies),
            (false, vec!["no-diag".to_owned()])
        );
        let allowed = connect(&policy, &ana, &pump, "ssh", None);
        assert_eq!(
            (allowed.is_allowed(), allowed.policies),
            (true, vec!["all".to_owned()])
        );
    }
}

/// THREATS I3: had the failing policy been a `forbid` that fits, passing it over would have permitted.
#[test]
fn a_policy_that_fails_denies() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    for effect in ["forbid", "permit"] {
        let failing = format!(
            r#"{effect} (principal, action == Action::"connect", resource)
               when {{ context.now + 9223372036854775807 > 0 }};"#
        );
        let decision = connect(&format!("{ALL}\n{failing}"), &ana, &pump, "ssh", None);
        assert!(!decision.is_allowed());
        assert_eq!(decision.errors.len(), 1, "{decision:?}");
    }
    // It is not evaluated where it does not fit, and then does no harm.
    let elsewhere = format!(
        r#"{ALL} forbid (principal == Operator::"eve", action == Action::"connect", resource)
           when {{ context.now + 9223372036854775807 > 0 }};"#
    );
    assert!(connect(&elsewhere, &ana, &pump, "ssh", None).is_allowed());
}

#[test]
fn groups_count_for_operators_devices_and_their_services() {
    let policy = r#"permit (principal in OperatorGroup::"technicians", action == Action::"connect",
                            resource in DeviceGroup::"pumps");"#;
    let (ana, eve) = (
        operator("ana", &["technicians", "night"]),
        operator("eve", &["guests"]),
    );
    let (pump, mill) = (device("pump-17", &["pumps"]), device("mill-1", &["mills"]));
    assert!(connect(policy, &ana, &pump, "ssh", None).is_allowed());
    assert!(!connect(policy, &eve, &pump, "ssh", None).is_allowed());
    assert!(!connect(policy, &ana, &mill, "ssh", None).is_allowed());
    // An operator or device that is called like a group is not in it.
    assert!(!connect(policy, &operator("technicians", &[]), &pump, "ssh", None).is_allowed());
    assert!(!connect(policy, &ana, &device("pumps", &[]), "ssh", None).is_allowed());
}

#[test]
fn circumstances_can_be_asked_for() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let ask = |condition: &str, reason| {
        let policy =
            format!(r#"permit (principal, action == Action::"connect", resource) when {{ {condition} }};"#);
        connect(&policy, &ana, &pump, "ssh", reason).is_allowed()
    };
    assert!(ask(
        r#"context has reason && context.reason like "INC-*""#,
        Some("INC-7: no water")
    ));
    assert!(!ask(
        r#"context has reason && context.reason like "INC-*""#,
        Some("because")
    ));
    assert!(!ask(r#"context has reason && context.reason like "INC-*""#, None));
    assert!(ask(r#"context.source.isInRange(ip("10.0.0.0/8"))"#, None));
    assert!(!ask(r#"context.source.isInRange(ip("192.168.0.0/16"))"#, None));
    assert!(ask(
        "context.ttl_secs <= 3600 && context.certificate_age_secs < 601",
        None
    ));
    assert!(!ask("context.ttl_secs < 3600", None));
    assert!(ask(r#"context.services.contains("ssh")"#, None));
    assert!(ask("context.now > 1799999999 && context.now < 1800000001", None));
    assert!(ask(r#"resource.device.id == "pump-17""#, None));
    assert!(ask(r#"resource == Service::"pump-17/ssh""#, None));
    assert!(ask(
        r#"resource.device.reported has version && resource.device.reported.version == "0.1.0""#,
        None
    ));
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address() {
    let ana = operator("ana", &[]);
    let policy = r#"permit (principal, action == Action::"read-audit", resource)
                    when { context.source.isInRange(ip("10.0.0.0/8")) };"#;
    let mapped = Circumstances {
        source: "::ffff:10.1.2.3".parse().unwrap(),
        ..circumstances()
    };
    let request = Request {
        operator: &ana,
        action: Action::ReadAudit,
        circumstances: &mapped,
    };
    assert!(Engine::new(policy).unwrap().decide(&request).is_allowed());
}

#[test]
fn every_action_can_be_permitted_by_its_name_alone() {
    let (ana, ben, pump) = (operator("ana", &[]), operator("ben", &[]), device("pump-17", &[]));
    let terms = question(&ana, &pump, &["ssh"], None).terms;
    let actions = [
        Action::Connect {
            device: &pump,
            service: &terms.services[0],
            terms: &terms,
        },
        Action::BreakGlass {
            device: &pump,
            service: &terms.services[0],
            terms: &terms,
        },
        Action::Approve {
            device: &pump,
            service: &terms.services[0],
            terms: &terms,
            requester: &ben,
        },
        Action::View(&pump),
        Action::ManageEnrolment,
        Action::ManagePolicy,
        Action::ManageGroups,
        Action::ManageFacts,
        Action::ManageNotifications,
        Action::ReadAudit,
        Action::Revoke,
        Action::ViewAllTunnels,
        Action::CloseAnyTunnel,
        Action::Cut,
        Action::Quarantine,
        Action::DisableOperator,
    ];
    assert_eq!(actions.each_ref().map(Action::as_str), Action::NAMES);
    for permitted in &actions {
        let policy = format!(
            r#"permit (principal, action == Action::"{}", resource);"#,
            permitted.as_str()
        );
        for asked in &actions {
            let decision = decide(&policy, &ana, asked.clone());
            assert!(decision.errors.is_empty(), "{}: {decision:?}", asked.as_str());
            assert_eq!(
                decision.is_allowed(),
                asked.as_str() == permitted.as_str(),
                "{} {}",
                permitted.as_str(),
                asked.as_str()
            );
        }
    }
}

#[test]
fn the_first_policy_is_good_and_means_what_it_says() {
    let checked = check(FIRST_POLICY);
    assert_eq!(
        (checked.errors, checked.warnings, checked.policies),
        (Vec::new(), Vec::new(), 4)
    );
    let (pump, diag) = (device("pump-17", &[]), "diag");
    let (admin, tech, guest) = (
        operator("root", &["admins"]),
        operator("ana", &["technicians"]),
        operator("eve", &[]),
    );
    let may = |who, service| connect(FIRST_POLICY, who, &pump, service, None).is_allowed();
    assert_eq!((may(&admin, "ssh"), may(&admin, diag)), (true, true));
    assert_eq!((may(&tech, "ssh"), may(&tech, diag)), (true, false));
    assert_eq!((may(&guest, "ssh"), may(&guest, diag)), (false, false));
    let sees = |who| decide(FIRST_POLICY, who, Action::View(&pump)).is_allowed();
    assert_eq!((sees(&admin), sees(&tech), sees(&guest)), (true, true, false));
    let revokes = |who| decide(FIRST_POLICY, who, Action::Revoke).is_allowed();
    assert_eq!(
        (revokes(&admin), revokes(&tech), revokes(&guest)),
        (true, false, false)
    );
    let alarmed = asserting(pump.clone(), &[("alarm.clone", "seen")]);
    let may_alarmed = |service| connect(FIRST_POLICY, &admin, &alarmed, service, None).is_allowed();
    assert_eq!((may_alarmed("ssh"), may_alarmed(diag)), (false, true));
    let named = connect(FIRST_POLICY, &tech, &pump, "ssh", None).policies;
    assert_eq!(named, ["technicians-ssh"]);
}

/// THREATS POL-06.
#[test]
fn every_problem_is_told_with_its_line() {
    let told = |text: &str| {
        check(text)
            .errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let syntax = told("permit (principal, action, resource);\n\npermit (principal, action resource);\n");
    assert!(syntax[0].starts_with("line 3: "), "{syntax:?}");
    let truncated = told("permit (principal, action, resource)\nwhen { context.now > ");
    assert!(truncated[0].starts_with("line 2: "), "{truncated:?}");
    let attribute = told(
        "permit (principal, action == Action::\"connect\", resource)\nwhen {\n  resource.colour == \"red\"\n};",
    );
    assert!(attribute[0].starts_with("line 3: "), "{attribute:?}");
    let clash = told(
        "permit (principal, action == Action::\"connect\", resource)\nwhen { context.now == \"noon\" };",
    );
    assert!(clash[0].starts_with("line 2: "), "{clash:?}");
    let optional = told(
        "permit (principal, action == Action::\"connect\", resource)\nwhen { context.reason == \"x\" };",
    );
    assert!(optional[0].starts_with("line 2: "), "{optional:?}");
    let entity = told("permit (principal in Robots::\"all\", action, resource);");
    assert!(entity[0].starts_with("line 1: "), "{entity:?}");
    let template = told("permit (principal == ?principal, action, resource);");
    assert!(
        template.iter().any(|error| error.contains("templates")),
        "{template:?}"
    );
    let twice = told(&format!("{ALL} {ALL}"));
    assert_eq!(twice, ["2 policies have the name `all`"]);
    assert!(told(ALL).is_empty());
}

#[test]
fn a_refused_text_makes_no_engine() {
    let error = Engine::new("permit (principal, action, resource)").unwrap_err();
    assert!(
        error.to_string().starts_with("the policy is not valid: line 1: "),
        "{error}"
    );
}

/// THREATS POL-06, POL-10.
#[test]
fn a_text_that_is_too_large_or_too_deep_is_refused() {
    let large = format!("//{}", "x".repeat(MAX_POLICY_BYTES));
    assert!(check(&large).errors[0].message.contains("bytes"));
    let brackets = |depth: usize| {
        let (open, close) = ("(".repeat(depth), ")".repeat(depth));
        format!("permit (principal, action, resource)\nwhen {{ {open}true{close} }};")
    };
    assert!(check(&brackets(20)).errors.is_empty());
    let deep = check(&brackets(10_000)).errors.remove(0).to_string();
    assert_eq!(deep, "line 2: brackets are nested more than 64 deep");
    let ifs = |depth: usize| {
        let (open, close) = ("if true then ".repeat(depth), " else true".repeat(depth));
        format!("permit (principal, action, resource) when {{ {open}true{close} }};")
    };
    assert!(check(&ifs(20)).errors.is_empty());
    assert_eq!(
        check(&ifs(8_000)).errors.remove(0).to_string(),
        "line 1: `if` is nested more than 64 deep"
    );
}

#[test]
fn what_stands_in_strings_and_comments_is_not_counted() {
    let many = "if ( ".repeat(200);
    let text = format!(
        "// {many}\npermit (principal, action == Action::\"connect\", resource)\n\
         when {{ context has reason && context.reason == \"\\\" {many}\" }};"
    );
    assert_eq!(check(&text).errors, []);
}

/// THREATS POL-10: depth without brackets. What Cedar cannot take is refused and stops nothing.
#[test]
fn long_chains_of_operators_stop_nothing() {
    let wrap = |condition: String| format!("permit (principal, action, resource) when {{ {condition} }};");
    for condition in [
        format!("{}true", "!".repeat(50_000)),
        format!("{}1 == 1", "-".repeat(50_000)),
        format!("true{}", " && true".repeat(20_000)),
        format!("true{}", " || true".repeat(20_000)),
        format!("1{} == 1", " + 1".repeat(20_000)),
        format!("context{}", ".now".repeat(20_000)),
        format!("context has {}", "now.".repeat(20_000)),
    ] {
        let text = wrap(condition);
        let start = &text[..80];
        let checked = check(&text);
        if checked.errors.is_empty() {
            let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
            let decision = connect(&text, &ana, &pump, "ssh", None);
            assert!(decision.is_allowed() || !decision.errors.is_empty(), "{start}");
        }
    }
}

/// THREATS POL-10.
#[test]
fn a_pattern_bomb_is_matched_in_no_time() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let pattern = "*a".repeat(200);
    let policy = format!(
        r#"permit (principal, action == Action::"connect", resource) when {{ context has reason && context.reason like "{pattern}*b" }};"#
    );
    let reason = "a".repeat(512);
    let start = std::time::Instant::now();
    assert!(!connect(&policy, &ana, &pump, "ssh", Some(&reason)).is_allowed());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
