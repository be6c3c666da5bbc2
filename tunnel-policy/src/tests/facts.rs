//! Facts, groups and circumstances: what is asserted is never met by what is reported.

use super::*;

const SITE: &str = r#"@id("site") permit (principal, action == Action::"connect", resource)
    when { resource.device.KIND.hasTag("site") && resource.device.KIND.getTag("site").value == "north" };"#;

/// THREATS POL-08: a rule that asks for the one kind of fact is never met by the other.
#[test]
fn pol_08_reported_facts_are_no_asserted_ones() {
    let ana = operator("ana", &[]);
    let (said, set) = (
        reporting(device("pump-17", &[]), &[("site", "north")]),
        asserting(device("pump-17", &[]), &[("site", "north")]),
    );
    for (kind, of_said, of_set) in [("asserted", false, true), ("reported", true, false)] {
        let policy = SITE.replace("KIND", kind);
        assert_eq!(
            connect(&policy, &ana, &said, "ssh", None).is_allowed(),
            of_said,
            "{kind}"
        );
        assert_eq!(
            connect(&policy, &ana, &set, "ssh", None).is_allowed(),
            of_set,
            "{kind}"
        );
    }
    let forged = r#"permit (principal, action == Action::"connect", resource) when { resource.device.asserted.access };"#;
    assert_eq!(check(forged).errors.remove(0).line, Some(1));
    // Nor do they raise alarms.
    let claims = reporting(device("pump-17", &[]), &[("alarm.clone", "seen")]);
    assert!(claims.alarms().next().is_none());
}

/// THREATS POL-08: a group by report is of another kind than a group by assignment, also if it has its name.
#[test]
fn pol_08_a_reported_group_is_never_a_group_of_devices() {
    let groups = r#"@id("members") permit (principal, action == Action::"belong", resource == ReportedGroup::"pumps")
        when { principal.reported.hasTag("kind") && principal.reported.getTag("kind").value == "pump" };"#;
    let permit = |group: &str| {
        format!(
            "{groups}\npermit (principal, action == Action::\"connect\", resource in {group}::\"pumps\");"
        )
    };
    let ana = operator("ana", &[]);
    let (claims, member) = (
        reporting(
            device("x", &[]),
            &[("kind", "pump"), ("group", "pumps"), ("owner", "admin")],
        ),
        device("y", &["pumps"]),
    );
    let may = |group: &str, device: &Device| connect(&permit(group), &ana, device, "ssh", None).is_allowed();
    assert_eq!(
        (may("ReportedGroup", &claims), may("ReportedGroup", &member)),
        (true, false)
    );
    assert_eq!(
        (may("DeviceGroup", &claims), may("DeviceGroup", &member)),
        (false, true)
    );
    // A permission for everything puts no device into a group.
    let everything = "permit (principal, action, resource);";
    let only = format!(
        "{everything}\n@id(\"no\") forbid (principal, action, resource in ReportedGroup::\"pumps\");"
    );
    assert!(connect(&only, &ana, &claims, "ssh", None).is_allowed());
}

#[test]
fn a_rule_about_a_group_names_it_and_speaks_of_devices_only() {
    for (policy, line) in [
        (
            r#"permit (principal, action == Action::"belong", resource);"#,
            "has to name its group",
        ),
        (
            r#"permit (principal, action == Action::"belong", resource == ReportedGroup::"a") when { context.now > 1 };"#,
            "now",
        ),
        (
            r#"permit (principal, action in [Action::"belong", Action::"view"], resource);"#,
            "belong",
        ),
        // Two groups of which each would be in the other; and a rule that would never fit.
        (
            r#"permit (principal in ReportedGroup::"b", action == Action::"belong", resource == ReportedGroup::"a");
               permit (principal in ReportedGroup::"a", action == Action::"belong", resource == ReportedGroup::"b");"#,
            "asks for a `ReportedGroup`",
        ),
        (
            r#"forbid (principal, action == Action::"belong", resource == ReportedGroup::"a")
               when { principal in ReportedGroup::"b" };"#,
            "asks for a `ReportedGroup`",
        ),
    ] {
        let errors = check(policy).errors;
        assert!(
            errors.iter().any(|error| error.to_string().contains(line)),
            "{policy}: {errors:?}"
        );
    }
    let of_devices = r#"permit (principal in DeviceGroup::"pumps", action == Action::"belong", resource == ReportedGroup::"a")
        when { principal.reported has version && principal.reported.version != "ReportedGroup" };"#;
    assert_eq!(check(of_devices).errors, []);
    let failing = r#"permit (principal, action, resource);
        permit (principal, action == Action::"belong", resource == ReportedGroup::"a")
        when { principal.reported.age_secs + 9223372036854775807 > 0 };"#;
    let decision = connect(
        failing,
        &operator("ana", &[]),
        &device("pump-17", &[]),
        "ssh",
        None,
    );
    assert!(
        !decision.is_allowed() && decision.errors.len() == 1,
        "{decision:?}"
    );
}

#[test]
fn facts_have_texts_numbers_and_ages() {
    let ana = operator("ana", &[]);
    let pump = reporting(
        asserting(device("pump-17", &[]), &[("floor", "7"), ("code", "007")]),
        &[("battery", "80")],
    );
    let may = |condition: &str| {
        let policy =
            format!("permit (principal, action == Action::\"connect\", resource) when {{ {condition} }};");
        connect(&policy, &ana, &pump, "ssh", None).is_allowed()
    };
    let fact = |kind: &str, name: &str, rest: &str| {
        let of = format!("resource.device.{kind}");
        may(&format!(
            "{of}.hasTag(\"{name}\") && {of}.getTag(\"{name}\"){rest}"
        ))
    };
    assert!(fact("asserted", "floor", ".value == \"7\""));
    assert!(fact("asserted", "floor", ".age_secs == 3600"));
    assert!(fact("reported", "battery", ".age_secs == 60"));
    assert!(fact(
        "asserted",
        "floor",
        " has number && resource.device.asserted.getTag(\"floor\").number == 7"
    ));
    assert!(!fact(
        "asserted",
        "code",
        " has number && resource.device.asserted.getTag(\"code\").number == 7"
    ));
    assert!(!fact("asserted", "roof", ".value == \"7\""));
    assert!(may("resource.device.reported.age_secs == 60"));
    // To ask for a fact that may be absent is found before the policy is accepted.
    let careless = r#"permit (principal, action == Action::"connect", resource)
        when { resource.device.asserted.getTag("floor").value == "7" };"#;
    assert!(!check(careless).errors.is_empty());
}

#[test]
fn time_is_utc_and_a_second_factor_may_be_absent() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let mut question = question(&ana, &pump, &["ssh"], None);
    let may = |condition: &str, question: &Question| {
        let policy =
            format!("permit (principal, action == Action::\"connect\", resource) when {{ {condition} }};");
        ask(&policy, question).is_allowed()
    };
    assert!(may(
        "context.utc.hour == 8 && context.utc.minute_of_day == 480 && context.utc.weekday == 5",
        &question
    ));
    for (secs, weekday, hour) in [(0, 4, 0), (4 * 86_400 - 1, 7, 23), (4 * 86_400, 1, 0)] {
        question.circumstances.now = UnixTime::from_secs(secs);
        let condition = format!("context.utc.weekday == {weekday} && context.utc.hour == {hour}");
        assert!(may(&condition, &question), "{secs}");
    }
    let fresh = "context has mfa_age_secs && context.mfa_age_secs <= 300";
    assert!(!may(fresh, &question));
    question.circumstances.mfa_age = Some(Duration::from_secs(301));
    assert!(!may(fresh, &question));
    question.circumstances.mfa_age = Some(Duration::from_secs(300));
    assert!(may(fresh, &question));
}

/// THREATS POL-11: while the clock cannot be relied on, a rule that asks for the time denies, and no other one does.
#[test]
fn pol_11_a_clock_that_jumped_denies_what_depends_on_it() {
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let mut question = question(&ana, &pump, &["ssh"], None);
    let by_day =
        r#"permit (principal, action == Action::"connect", resource) when { context.utc.hour < 18 };"#;
    let not_by_night = r#"permit (principal, action == Action::"connect", resource);
        forbid (principal, action == Action::"connect", resource) when { context.now < 5 };"#;
    for steady in [true, false] {
        question.circumstances.steady = steady;
        assert_eq!(ask(by_day, &question).is_allowed(), steady);
        assert_eq!(ask(not_by_night, &question).is_allowed(), steady);
        assert!(ask(ALL, &question).is_allowed());
    }
}

/// THREATS POL-11: a clock that was set back makes no age look young, neither to a rule that permits nor to one that forbids.
#[test]
fn pol_11_a_clock_that_jumped_knows_no_ages() {
    let ana = operator("ana", &[]);
    let pump = reporting(
        asserting(device("pump-17", &[]), &[("site", "north")]),
        &[("battery", "80")],
    );
    let mut question = question(&ana, &pump, &["ssh"], None);
    question.circumstances.mfa_age = Some(Duration::ZERO);
    let old = |age: &str| {
        format!(
            r#"permit (principal, action == Action::"connect", resource);
            forbid (principal, action == Action::"connect", resource) when {{ {age} > 7200 }};"#
        )
    };
    let permit = r#"permit (principal, action == Action::"connect", resource)"#;
    let of = |kind: &str, name: &str| {
        let of = format!("resource.device.{kind}");
        format!("{permit} when {{ {of}.hasTag(\"{name}\") && {of}.getTag(\"{name}\").age_secs < 7200 }};")
    };
    let belongs = format!(
        r#"{permit}; permit (principal, action == Action::"belong", resource == ReportedGroup::"lost")
        when {{ principal.reported.age_secs > 7200 }};
        forbid (principal, action, resource in ReportedGroup::"lost");"#
    );
    for policy in [
        old("context.certificate_age_secs"),
        old("resource.device.reported.age_secs"),
        of("asserted", "site"),
        of("reported", "battery"),
        format!("{permit} when {{ context has mfa_age_secs && context.mfa_age_secs < 300 }};"),
        belongs,
    ] {
        for steady in [true, false] {
            question.circumstances.steady = steady;
            assert_eq!(ask(&policy, &question).is_allowed(), steady, "{policy}");
        }
    }
    // What does not ask for ages reads facts as ever.
    let value = format!("{permit} when {{ resource.device.asserted.hasTag(\"site\") }};");
    assert!(ask(&value, &question).is_allowed());
}

/// THREATS POL-01: what an older record or another release left out is absent, and absent is never permitted.
#[test]
fn a_question_reads_back_as_it_was_written() {
    let pump = reporting(
        asserting(device("pump-17", &["pumps"]), &[("site", "north")]),
        &[("kind", "pump")],
    );
    let asked = approved(question(
        &operator("ana", &["night"]),
        &pump,
        &["ssh"],
        Some("INC-7"),
    ));
    let text = serde_json::to_string(&asked).unwrap();
    assert_eq!(serde_json::from_str::<Question>(&text).unwrap(), asked);
    assert!(serde_json::from_str::<Question>(r#"{"operator":{"name":"ana","groups":[]}}"#).is_err());
}
