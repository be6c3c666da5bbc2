//! What the fleet's own authoriser says.

use super::*;

fn said(mut question: Question, facts: &[(&str, &str)]) -> Question {
    let facts = facts
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    question.terms.authoriser = Some(facts.collect());
    question
}

const VIEW: &str = r#"@id("view") permit (principal, action == Action::"view", resource);"#;

/// THREATS SRV-15: whoever takes the authoriser over can forbid, and permit nothing.
#[test]
fn an_authoriser_takes_away_and_never_gives() {
    let policy = format!(
        r#"{VIEW}
        @id("all") @max_lifetime("1h") permit (principal, action == Action::"connect", resource)
        unless {{ context has authoriser && context.authoriser.hasTag("wide") }};
        @id("wide") @max_lifetime("8h") permit (principal, action == Action::"connect", resource)
        when {{ context has authoriser && context.authoriser.hasTag("wide") }};
        @id("risky") forbid (principal, action == Action::"connect", resource)
        when {{ context has authoriser && context.authoriser.hasTag("risk")
            && context.authoriser.getTag("risk") has number && context.authoriser.getTag("risk").number > 5 }};
        @id("step-up") @requires_approval forbid (principal, action == Action::"connect", resource)
        when {{ context has authoriser && context.authoriser.hasTag("odd") }};
        @id("never") forbid (principal, action == Action::"connect", resource)
        when {{ resource.name == "web" }} unless {{ context has authoriser && context.authoriser.hasTag("web") }};"#
    );
    let engine = Engine::new(&policy).unwrap();
    let (ana, pump) = (operator("ana", &[]), device("pump-17", &[]));
    let weigh = |service: &str, facts: &[(&str, &str)]| {
        engine.weigh(&said(question(&ana, &pump, &[service], None), facts))
    };
    let outcome = |service: &str, facts: &[(&str, &str)]| weigh(service, facts).decision.outcome;
    assert_eq!(outcome("ssh", &[]), Outcome::Allow);
    assert_eq!(outcome("ssh", &[("risk", "5")]), Outcome::Allow);
    assert_eq!(outcome("ssh", &[("risk", "6")]), Outcome::Deny);
    assert_eq!(outcome("ssh", &[("odd", "yes")]), Outcome::NeedsApproval);
    // What only the authoriser would permit stays forbidden, also where each service is looked at alone.
    assert_eq!(outcome("web", &[("web", "yes")]), Outcome::Deny);
    let web = said(question(&ana, &pump, &["web"], None), &[("web", "yes")]);
    assert_eq!(engine.weigh_service(&web, &"web".parse().unwrap()), Outcome::Deny);
    // Another permit does not come with wider limits.
    let wide = weigh("ssh", &[("wide", "yes")]);
    assert!(wide.is_allowed(), "{wide:?}");
    assert_eq!(wide.decision.limits.lifetime, Some(Duration::from_secs(3600)));
}
