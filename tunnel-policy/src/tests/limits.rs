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
