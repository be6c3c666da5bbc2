//! The examples of `docs/policies.md` are good, and mean what the page says.

use super::*;
use crate::Cases;

const PAGE: &str = include_str!("../../../docs/policies.md");

/// Returns the blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    let rest = PAGE.split(open.as_str()).skip(1);
    rest.map(|block| block.split("```").next().unwrap()).collect()
}

#[test]
fn the_examples_are_good_policies() {
    let examples = blocks("cedar");
    assert!(!examples.is_empty());
    for example in examples {
        let checked = check(example);
        assert_eq!(
            (checked.errors, checked.warnings),
            (Vec::new(), Vec::new()),
            "{example}"
        );
    }
}

#[test]
fn the_cases_of_the_page_pass() {
    let engine = Engine::new(blocks("cedar")[0]).unwrap();
    let cases = Cases::parse(blocks("toml")[0]).unwrap();
    assert!(cases.len() > 5 && cases.policy.as_deref() == Some("fleet.cedar"));
    for case in cases.run(&engine) {
        assert!(case.ok, "{case:#?}");
    }
}

#[test]
fn the_page_names_all_actions_and_annotations() {
    let named = |word: &str| assert!(PAGE.contains(word), "{word}");
    for action in Action::NAMES {
        named(&format!("`{action}`"));
    }
    for annotation in [
        "max_lifetime",
        "max_sessions",
        "max_tunnels",
        "max_bytes",
        "max_rate",
        "requires_approval",
        "approvals",
    ] {
        named(&format!("`@{annotation}"));
    }
}

#[test]
fn the_rule_of_the_page_about_commands_asks_for_a_batch() {
    let page = include_str!("../../../docs/commands.md");
    let rule = page
        .split("```cedar\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    assert!(check(rule).errors.is_empty());
    let mut asked = approved(question(
        &operator("ana", &["technicians"]),
        &device("pump-17", &[]),
        &["diag"],
        None,
    ));
    assert_eq!(ask(rule, &asked).outcome, Outcome::Deny);
    asked.terms.batch = true;
    assert_eq!(ask(rule, &asked).outcome, Outcome::Allow);
    asked.terms.approval = None;
    assert_eq!(ask(rule, &asked).outcome, Outcome::NeedsApproval);
}
