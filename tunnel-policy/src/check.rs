//! Checking a policy text before it is accepted: syntax, schema, names.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr as _;
use std::sync::LazyLock;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    ActionConstraint, Policy, PolicySet, ResourceConstraint, Schema, ValidationMode, Validator,
};

use crate::entities::BELONG;
use crate::limits;

/// The schema in two parts: a policy without an action of its own is about what operators do, and never about groups.
pub(crate) struct Schemas {
    /// What operators do.
    pub(crate) actions: Schema,
    /// Which devices belong to a reported group.
    pub(crate) groups: Schema,
}

pub(crate) static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| {
    const TYPES: &str = include_str!("schema/types.cedarschema");
    let schema = |actions: &str| {
        let (schema, _) = Schema::from_cedarschema_str(&format!("{TYPES}{actions}"))
            .expect("the schema is part of the program, and tested");
        schema
    };
    Schemas {
        actions: schema(include_str!("schema/actions.cedarschema")),
        groups: schema(include_str!("schema/groups.cedarschema")),
    }
});

/// Longest policy text, in bytes: thousands of policies (THREATS POL-06).
pub const MAX_POLICY_BYTES: usize = 256 * 1024;

/// Deepest nesting of brackets and of `if`: more than anybody writes, and less than what costs a stack. Chains of other
/// operators cost none.
const MAX_DEPTH: usize = 64;

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// How many policies the text has; 0 if it cannot be read.
    pub policies: usize,
    /// What is wrong. The text is good if this is empty.
    pub errors: Vec<Problem>,
    /// What is odd, and allowed.
    pub warnings: Vec<Problem>,
}

/// One thing that is wrong or odd in a policy text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The line, counted from 1, where it is known.
    pub line: Option<usize>,
    /// What it is.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Everything that is wrong with a policy text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct PolicyErrors(pub Vec<Problem>);

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the policy is not valid")?;
        for (at, problem) in self.0.iter().enumerate() {
            write!(f, "{} {problem}", if at == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// Checks a policy text without effect.
pub fn check(text: &str) -> Checked {
    match read(text) {
        Ok(policies) => {
            let (errors, warnings) = judge(text, &policies);
            Checked {
                policies: policies.num_of_policies(),
                errors,
                warnings,
            }
        }
        Err(PolicyErrors(errors)) => Checked {
            errors,
            ..Checked::default()
        },
    }
}

/// Reads a policy text and refuses it unless it is good.
pub(crate) fn parse(text: &str) -> Result<PolicySet, PolicyErrors> {
    let policies = read(text)?;
    let (errors, _) = judge(text, &policies);
    if errors.is_empty() {
        Ok(policies)
    } else {
        Err(PolicyErrors(errors))
    }
}

fn read(text: &str) -> Result<PolicySet, PolicyErrors> {
    let refuse = |line, message: String| Err(PolicyErrors(vec![Problem { line, message }]));
    if text.len() > MAX_POLICY_BYTES {
        return refuse(
            None,
            format!(
                "the text has {} bytes; {MAX_POLICY_BYTES} are the most",
                text.len()
            ),
        );
    }
    if let Some((at, what)) = too_deep(text) {
        return refuse(
            Some(line_of(text, at)),
            format!("{what} more than {MAX_DEPTH} deep"),
        );
    }
    PolicySet::from_str(text).map_err(|errors| PolicyErrors(problems(text, &DetailedError::from(&errors))))
}

/// Returns errors and warnings of a text that can be read.
fn judge(text: &str, policies: &PolicySet) -> (Vec<Problem>, Vec<Problem>) {
    let mut errors = names(policies);
    if policies.num_of_templates() > 0 {
        errors.push(Problem {
            line: None,
            message: "templates (`?principal`, `?resource`) are not supported".into(),
        });
    }
    for policy in policies.policies() {
        let found = limits::read(policy).err().into_iter().flatten();
        let line = |policy: &Policy| policy_line(text, policy);
        let found = found.chain(wrong_group(policy)).chain(built_on_groups(policy));
        errors.extend(found.map(|message| Problem {
            line: line(policy),
            message,
        }));
    }
    let mut warnings = Vec::new();
    let (groups, others) = apart(policies);
    for (schema, policies) in [(&SCHEMAS.actions, &others), (&SCHEMAS.groups, &groups)] {
        let found = Validator::new(schema.clone()).validate(policies, ValidationMode::Strict);
        errors.extend(
            found
                .validation_errors()
                .flat_map(|error| problems(text, &DetailedError::from(error))),
        );
        warnings.extend(
            found
                .validation_warnings()
                .flat_map(|warning| problems(text, &DetailedError::from(warning))),
        );
    }
    errors.sort_by_key(|problem| problem.line);
    (errors, warnings)
}

/// Says whether a policy says which devices belong to a reported group.
pub(crate) fn is_about_groups(policy: &Policy) -> bool {
    matches!(policy.action_constraint(), ActionConstraint::Eq(action) if action.id().unescaped() == BELONG)
}

/// Parts the policies about reported groups from all others.
fn apart(policies: &PolicySet) -> (PolicySet, PolicySet) {
    let (mut groups, mut others) = (PolicySet::new(), PolicySet::new());
    for policy in policies.policies() {
        let set = if is_about_groups(policy) {
            &mut groups
        } else {
            &mut others
        };
        // Each has an id of its own.
        let _ = set.add(policy.clone());
    }
    (groups, others)
}

/// Refuses a policy about groups that names none: the groups that there are have to be known.
fn wrong_group(policy: &Policy) -> Option<String> {
    let named = matches!(policy.resource_constraint(), ResourceConstraint::Eq(_));
    (is_about_groups(policy) && !named).then(|| {
        format!(
            "`{}` has to name its group, as `resource == ReportedGroup::\"old\"`",
            limits::name(policy)
        )
    })
}

/// Refuses a policy about groups that asks for a reported group: while it is made out who belongs to which, nobody is in any,
/// so that a `forbid` of this kind would never fit.
fn built_on_groups(policy: &Policy) -> Option<String> {
    let text = policy.to_string();
    let mentions = tokens(&text)
        .filter(|(_, token)| *token == "ReportedGroup")
        .count();
    (is_about_groups(policy) && mentions > 1).then(|| {
        format!(
            "`{}` asks for a `ReportedGroup`; who belongs to one is told by facts and `DeviceGroup`s alone",
            limits::name(policy)
        )
    })
}

/// Returns the line at which a policy begins.
fn policy_line(text: &str, policy: &Policy) -> Option<usize> {
    // A policy of a text shows as it stands there.
    text.find(policy.to_string().trim()).map(|at| line_of(text, at))
}

/// Finds names that two policies share: a decision could not say which of them it means.
fn names(policies: &PolicySet) -> Vec<Problem> {
    let mut uses: BTreeMap<String, u32> = BTreeMap::new();
    for policy in policies.policies() {
        *uses.entry(limits::name(policy)).or_default() += 1;
    }
    let shared = uses.into_iter().filter(|(_, count)| *count > 1);
    shared
        .map(|(name, count)| Problem {
            line: None,
            message: format!("{count} policies have the name `{name}`"),
        })
        .collect()
}

/// Flattens an error of Cedar's into ours, each with its line.
fn problems(text: &str, error: &DetailedError) -> Vec<Problem> {
    let line = error
        .source_locations
        .first()
        .map(|label| line_of(text, label.loc.start));
    let mut message = error.message.clone();
    if let Some(help) = &error.help {
        message = format!("{message} ({help})");
    }
    let mut all = vec![Problem { line, message }];
    all.extend(error.related.iter().flat_map(|related| problems(text, related)));
    all
}

/// Returns the line of a byte, counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Finds nesting that would cost the parser its stack, and with it the process: returns where, and of what.
fn too_deep(text: &str) -> Option<(usize, &'static str)> {
    let (mut brackets, mut ifs) = (0_usize, 0_usize);
    for (at, token) in tokens(text) {
        match token {
            "(" | "[" | "{" => brackets += 1,
            ")" | "]" | "}" => brackets = brackets.saturating_sub(1),
            "if" => ifs += 1,
            ";" => ifs = 0,
            _ => {}
        }
        if brackets > MAX_DEPTH {
            return Some((at, "brackets are nested"));
        }
        if ifs > MAX_DEPTH {
            return Some((at, "`if` is nested"));
        }
    }
    None
}

/// Splits a text into words and single other characters, without strings and comments.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
            let start = at;
            let length = if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with('"') {
                string_length(rest)
            } else {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
                let length = length.max(rest.chars().next().map_or(1, char::len_utf8));
                at += length;
                return Some((start, &rest[..length]));
            };
            at += length;
        }
    })
}

/// Returns how long a string literal is, with its quotes; an open one goes to the end.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let close = text.bytes().skip(1).position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    close.map_or(text.len(), |at| at + 2)
}
