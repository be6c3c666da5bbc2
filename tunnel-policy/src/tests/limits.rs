//! Limits and approvals.

use super::*;

fn permit(annotations: &str, condition: &str) -> String {
    format!(
        "{annotations} permit (principal, action == Action::\"connect\", resource) when {{ {condition} }};\n"
    )
}

const VIEW: &str = "@id(\"view\") permit (principal, action == Action::\"view\", resource);\n";

#[test]
fn the_narrowest_limit_of_all_permits_and_services_counts() {
    let policy = [
        VIEW.to_owned(),
        permit(r#"@id("a") @max_lifetime("30m") @max_bytes("1GiB")"#, "true"),
        permit(
            r#"@id("b") @max_lifetime("1h") @max_sessions("2") @max_rate("1MiB/s")"#,
            r#"resource.name == "ssh""#,
        ),
        permit(r#"@id("c") @max_bytes("1MiB")"#, r#"resource.name == "web""#),
        permit(r#"@id("d") @max_sessions("1")"#, r#"resource.name == "none""#),
    ];
    let engine = Engine::new(&policy.concat()).unwrap();
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let limits = |names: &[&str]| engine.weigh(&question(&ana, &pump, names, None)).decision.limits;
    let ssh = Limits {
        lifetime: Some(Duration::from_secs(1800)),
        sessions: Some(2),
        tunnels: None,
        bytes: Some(1 << 30),
        rate: Some(1 << 20),
    };
    assert_eq!(limits(&["ssh"]), ssh);
    assert_eq!(
        limits(&["ssh", "web"]),
        Limits {
            bytes: Some(1 << 20),
            ..ssh
        }
    );
}

/// THREATS POL-06: a limit that cannot be read, or would have no effect, is refused before the policy is accepted.
#[test]
fn pol_06_a_wrong_annotation_is_refused_with_its_line() {
    let good = permit(r#"@id("good") @note("why") @max_tunnels("3")"#, "true");
    for (bad, why) in [
        (
            permit(r#"@id("bad") @max_lifetime("30")"#, "true"),
            "a span of time",
        ),
        (permit(r#"@id("bad") @max_bytes("1GB")"#, "true"), "a size"),
        (permit(r#"@id("bad") @max_rate("1MiB")"#, "true"), "a rate"),
        (permit(r#"@id("bad") @max_sessions("0")"#, "true"), "a number"),
        (
            permit(r#"@id("bad") @requires_approval("no")"#, "true"),
            "without a value",
        ),
        (
            permit(r#"@id("bad") @approvals("6")"#, "true"),
            "a number up to 5",
        ),
        (permit(r#"@id("bad") @approvals"#, "true"), "a number up to 5"),
        (permit(r#"@id("bad") @max_lifetim("30m")"#, "true"), "not known"),
        (
            r#"@id("bad") @max_bytes("1GiB") permit (principal, action, resource);"#.into(),
            "connect",
        ),
        (
            r#"@id("bad") @requires_approval permit (principal, action == Action::"view", resource);"#.into(),
            "connect",
        ),
        (
            r#"@id("bad") @max_bytes("1GiB") forbid (principal, action == Action::"connect", resource);"#
                .into(),
            "permit",
        ),
    ] {
        let errors = check(&format!("{good}\n{bad}")).errors;
        assert_eq!(errors.len(), 1, "{bad}: {errors:?}");
        assert_eq!(errors[0].line, Some(3), "{bad}: {errors:?}");
        assert!(
            errors[0].message.contains(why) && errors[0].message.contains("`bad`"),
            "{errors:?}"
        );
    }
    assert!(check(&good).errors.is_empty());
}

#[test]
fn what_needs_an_approval_waits_for_it() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let asked = question(&ana, &pump, &["ssh"], None);
    let asks = permit(r#"@id("asks") @requires_approval @max_sessions("1")"#, "true");
    let decision = ask(&asks, &asked);
    assert_eq!(
        (decision.outcome, decision.policies),
        (Outcome::NeedsApproval, vec!["asks".to_owned()])
    );
    let decision = ask(&asks, &approved(asked.clone()));
    assert_eq!(
        (decision.outcome, decision.limits.sessions),
        (Outcome::Allow, Some(1))
    );

    // Another permit makes it needless, and brings its own limits only.
    let both = asks.clone() + &permit(r#"@id("free") @max_sessions("5")"#, "true");
    let decision = ask(&both, &asked);
    assert_eq!(
        (decision.outcome, decision.policies),
        (Outcome::Allow, vec!["free".to_owned()])
    );
    assert_eq!(decision.limits.sessions, Some(5));

    // A forbid that asks for one stands in the way of every permit until then ...
    let unless =
        r#"@id("unless") @requires_approval forbid (principal, action == Action::"connect", resource);"#;
    let guarded = both.clone() + unless;
    let decision = ask(&guarded, &asked);
    assert_eq!(
        (decision.outcome, decision.policies),
        (Outcome::NeedsApproval, vec!["unless".to_owned()])
    );
    assert!(ask(&guarded, &approved(asked.clone())).is_allowed());
    // ... and is no promise where nothing permits, or something else forbids.
    assert_eq!(ask(unless, &asked).outcome, Outcome::Deny);
    let forbidden = guarded + r#"forbid (principal, action, resource);"#;
    assert_eq!(ask(&forbidden, &asked).outcome, Outcome::Deny);
    assert_eq!(ask(&forbidden, &approved(asked)).outcome, Outcome::Deny);
}

#[test]
fn two_persons_can_be_asked_for() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let policy = permit("", "context has approval && context.approval.count >= 2");
    let mut asked = approved(question(&ana, &pump, &["ssh"], None));
    assert!(!ask(&policy, &asked).is_allowed());
    let approvers = &mut asked.terms.approval.as_mut().unwrap().approvers;
    approvers.push("ben".parse().unwrap());
    assert!(!ask(&policy, &asked).is_allowed());
    asked
        .terms
        .approval
        .as_mut()
        .unwrap()
        .approvers
        .push("cid".parse().unwrap());
    assert!(ask(&policy, &asked).is_allowed());
}

#[test]
fn as_many_have_to_agree_as_a_rule_says() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let asked = question(&ana, &pump, &["ssh"], None);
    let with = |count: u32| {
        let mut asked = asked.clone();
        asked.terms.approval = Approval::supposed(count, NOW);
        asked
    };
    let two = permit(r#"@id("two") @approvals("2")"#, "true");
    let three = r#"@id("three") @approvals("3") forbid (principal, action == Action::"connect", resource);"#;
    let both = format!("{VIEW}{two}{three}");
    let outcomes = |policy: &str| [0, 1, 2, 3].map(|count| ask(policy, &with(count)).outcome);
    let (waits, opens) = (Outcome::NeedsApproval, Outcome::Allow);
    assert_eq!(outcomes(&two), [waits, waits, opens, opens]);
    assert_eq!(outcomes(&both), [waits, waits, waits, opens]);
    let needed = |policy: &str| Engine::new(policy).unwrap().approvals_needed(&asked);
    assert_eq!(needed(&both), Some(3));
    assert_eq!(needed(&format!("{VIEW}{two}")), Some(2));
    assert_eq!(needed(&format!("{VIEW}{}", permit("", "true"))), Some(0));
    // A rule that counts by itself is found out too, and what no approval helps is known.
    let counts = permit("", "context has approval && context.approval.count >= 2");
    assert_eq!(needed(&format!("{VIEW}{counts}")), Some(2));
    assert_eq!(needed(VIEW), None);
    assert_eq!(needed(&two), None, "the device may not be seen");
}

/// THREATS POL-12.
#[test]
fn pol_12_nobody_agrees_to_an_own_request() {
    let engine = Engine::new(
        r#"permit (principal, action == Action::"view", resource);
           permit (principal in OperatorGroup::"leads", action == Action::"approve", resource)
           when { resource.name == "ssh" && context.window_secs <= 3600 &&
                  !(context.requester in OperatorGroup::"guests") };"#,
    )
    .unwrap();
    let (ana, ben) = (operator("ana", &["leads"]), operator("ben", &["leads"]));
    let pump = device("pump-17", &[]);
    let may = |approver: &Operator, requester: &Operator, names: &[&str]| {
        let asked = question(approver, &pump, names, Some("INC-7"));
        engine.weigh_approval(&asked, requester).is_allowed()
    };
    assert!(may(&ben, &ana, &["ssh"]) && may(&ana, &ben, &["ssh"]));
    assert!(
        !may(&ana, &ana, &["ssh"]),
        "policy permits it, and still nobody does"
    );
    assert!(!may(&ben, &operator("eve", &["guests"]), &["ssh"]));
    assert!(!may(&ben, &ana, &["ssh", "web"]) && !may(&ben, &ana, &[]));
    assert!(!may(&operator("cid", &[]), &ana, &["ssh"]));
}

#[test]
fn who_breaks_the_glass_needs_that_right_and_nobody_else() {
    let policy = [
        VIEW.to_owned(),
        permit(
            r#"@id("asks") @approvals("2") @max_lifetime("1h")"#,
            r#"resource.name != "diag""#,
        ),
        r#"@id("closed") @requires_approval forbid (principal, action == Action::"connect", resource);"#
            .into(),
        r#"@id("glass") @max_lifetime("10m") permit (principal in OperatorGroup::"on-call",
           action == Action::"break-glass", resource) when { context has reason };"#
            .into(),
        r#"@id("never") forbid (principal, action == Action::"connect", resource)
           when { resource.name == "web" };"#
            .into(),
    ];
    let engine = Engine::new(&policy.concat()).unwrap();
    let weigh = |groups: &[&str], names: &[&str], reason, glass| {
        let mut asked = question(&operator("ana", groups), &device("pump-17", &[]), names, reason);
        asked.terms.break_glass = glass;
        engine.weigh(&asked).decision
    };
    let on_call: &[&str] = &["on-call"];
    assert_eq!(
        weigh(on_call, &["ssh"], Some("fire"), false).outcome,
        Outcome::NeedsApproval
    );
    let broken = weigh(on_call, &["ssh"], Some("fire"), true);
    assert_eq!(broken.policies, ["asks", "glass"]);
    assert_eq!(broken.limits.lifetime, Some(Duration::from_secs(600)));
    for (groups, names, reason) in [
        (&[] as &[&str], ["ssh"], Some("fire")),
        (on_call, ["ssh"], None),
        // What policy forbids, or permits to nobody, stays so.
        (on_call, ["web"], Some("fire")),
        (on_call, ["diag"], Some("fire")),
    ] {
        assert_eq!(
            weigh(groups, &names, reason, true).outcome,
            Outcome::Deny,
            "{groups:?} {names:?}"
        );
    }
}

#[test]
fn a_tunnel_is_weighed_whole() {
    let engine = Engine::new(
        &[
            VIEW.to_owned(),
            permit(r#"@id("ssh")"#, r#"resource.name == "ssh""#),
            permit(r#"@id("web") @requires_approval"#, r#"resource.name == "web""#),
        ]
        .concat(),
    )
    .unwrap();
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let weigh = |names: &[&str]| engine.weigh(&question(&ana, &pump, names, None));
    let name = |name: &str| Some(name.parse::<ServiceName>().unwrap());
    assert!(weigh(&["ssh"]).is_allowed());
    let waiting = weigh(&["ssh", "web"]);
    assert_eq!(
        (waiting.decision.outcome, waiting.denied),
        (Outcome::NeedsApproval, name("web"))
    );
    let denied = weigh(&["web", "diag"]);
    assert_eq!(
        (denied.decision.outcome, denied.denied),
        (Outcome::Deny, name("diag"))
    );
    assert!(!weigh(&[]).is_allowed());
    let hidden = Engine::new(&permit("", "true"))
        .unwrap()
        .weigh(&question(&ana, &pump, &["ssh"], None));
    assert!(!hidden.visible && !hidden.is_allowed());
}

#[test]
fn it_is_known_whether_time_matters() {
    let depends = |condition: &str| Engine::new(&permit("", condition)).unwrap().depends_on_time();
    assert!(depends("context.utc.hour < 8") && depends("context.certificate_age_secs < 8"));
    assert!(!depends("context has reason"));
}
