//! Why a tunnel is permitted or not: the rules and facts that decide, and what is missing where that can be known.

use std::collections::BTreeMap;
use std::time::Duration;

use cedar_policy::{Effect, Entities, Policy, PolicySet};

use crate::check::SCHEMAS;
use crate::engine::{Engine, Verdict};
use crate::entities;
use crate::question::{Action, Approval, MAX_APPROVALS, Question, Request};

/// A policy, as it is shown to who may read policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Whether it permits; it forbids otherwise.
    pub permits: bool,
    /// Its text.
    pub text: String,
}

/// What an operator can add to a request by itself, or ask others for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Need {
    /// The agreement of others.
    Approval,
    /// A reason.
    Reason,
    /// A login that is not so long ago.
    Login,
    /// A second factor, or one that is not so long ago.
    SecondFactor,
    /// A shorter lifetime.
    ShorterLife,
    /// To ask for one batch of commands instead of the whole service.
    Batch,
}

/// Why something is decided as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// The decision.
    pub verdict: Verdict,
    /// The policies that decided.
    pub rules: Vec<Rule>,
    /// Of a denial that no policy made: those that would permit it under other conditions.
    pub near: Vec<Rule>,
    /// With which additions it would be permitted, all of them together; empty if that is not known.
    pub missing: Vec<Need>,
    /// The facts of the question that those policies speak of, by how policies write them.
    pub facts: BTreeMap<String, String>,
}

impl Need {
    /// All of them, the most costly first: what can be left out is.
    const ALL: [Self; 6] = [
        Self::Approval,
        Self::SecondFactor,
        Self::Login,
        Self::ShorterLife,
        Self::Reason,
        Self::Batch,
    ];

    /// Says what is missing, as half a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approval => "an approval",
            Self::Reason => "a reason",
            Self::Login => "a fresh login",
            Self::SecondFactor => "a fresh second factor",
            Self::ShorterLife => "a shorter lifetime",
            Self::Batch => "a batch of commands",
        }
    }

    /// Adds it to a question; says whether that makes a difference.
    fn add_to(self, question: &mut Question) -> bool {
        let (terms, circumstances) = (&mut question.terms, &mut question.circumstances);
        let shortest = Duration::from_secs(60);
        match self {
            Self::Approval if terms.approval.is_none() => {
                terms.approval = Approval::supposed(MAX_APPROVALS, circumstances.now);
            }
            Self::Reason if terms.reason.is_none() => terms.reason = Some("a reason".into()),
            Self::Login if !circumstances.certificate_age.is_zero() => {
                circumstances.certificate_age = Duration::ZERO
            }
            Self::SecondFactor if circumstances.mfa_age != Some(Duration::ZERO) => {
                circumstances.mfa_age = Some(Duration::ZERO);
            }
            Self::ShorterLife if terms.ttl > shortest => terms.ttl = shortest,
            Self::Batch if !terms.batch => terms.batch = true,
            _ => return false,
        }
        true
    }
}

impl Engine {
    /// Decides, and says what everybody may know: the verdict and what is missing. The rest is empty, and costs nothing.
    pub fn outline(&self, question: &Question) -> Why {
        let verdict = self.weigh(question);
        let missing = if verdict.visible && !verdict.is_allowed() {
            self.missing(question)
        } else {
            Vec::new()
        };
        Why {
            verdict,
            rules: Vec::new(),
            near: Vec::new(),
            missing,
            facts: BTreeMap::new(),
        }
    }

    /// Decides, and says why: for who may read policies.
    pub fn why(&self, question: &Question) -> Why {
        let outline = self.outline(question);
        let verdict = &outline.verdict;
        let deciding = &verdict.decision.policies;
        let rules: Vec<Rule> = self
            .policies()
            .filter(|(name, _)| deciding.iter().any(|one| one == name))
            .map(|(name, policy)| rule(name, policy))
            .collect();
        let near = if verdict.is_allowed() || !rules.is_empty() {
            Vec::new()
        } else {
            self.near(question, verdict)
        };
        let facts = facts(question)
            .into_iter()
            .filter(|(_, word, _)| {
                rules
                    .iter()
                    .chain(&near)
                    .any(|rule| rule.text.contains(word.as_str()))
            })
            .map(|(path, _, value)| (path, value))
            .collect();
        Why {
            rules,
            near,
            facts,
            ..outline
        }
    }

    /// Finds the fewest additions with which a question would be answered otherwise.
    fn missing(&self, question: &Question) -> Vec<Need> {
        let with = |needs: &[Need]| {
            let mut question = question.clone();
            for need in needs {
                need.add_to(&mut question);
            }
            self.weigh(&question).is_allowed()
        };
        let mut needs: Vec<Need> = Need::ALL
            .into_iter()
            .filter(|need| need.add_to(&mut question.clone()))
            .collect();
        // A batch is another wish and no circumstance: where it is not needed, rules against batches are not asked.
        let service = needs.iter().copied().filter(|need| *need != Need::Batch);
        let service: Vec<Need> = service.collect();
        if with(&service) {
            needs = service;
        } else if !with(&needs) {
            return Vec::new();
        }
        for need in Need::ALL {
            let fewer: Vec<Need> = needs.iter().copied().filter(|one| *one != need).collect();
            if with(&fewer) {
                needs = fewer;
            }
        }
        needs
    }

    /// Returns the permits whose scope fits and whose conditions do not.
    fn near(&self, question: &Question, verdict: &Verdict) -> Vec<Rule> {
        let device = &question.device;
        let action = match (&verdict.denied, verdict.visible) {
            (Some(service), true) => Action::Connect {
                device,
                service,
                terms: &question.terms,
            },
            _ => Action::View(device),
        };
        let request = Request {
            operator: &question.operator,
            action,
            circumstances: &question.circumstances,
        };
        let groups = self
            .reported_groups(device, question.circumstances.clock())
            .unwrap_or_default();
        let Ok((entities, asked)) = entities::build(&request, &groups, &SCHEMAS.actions) else {
            return Vec::new();
        };
        self.policies()
            .filter(|(_, policy)| {
                policy.effect() == Effect::Permit && fits_by_scope(policy, &entities, &asked)
            })
            .map(|(name, policy)| rule(name, policy))
            .collect()
    }
}

/// Says whether a policy would fit if it had no conditions.
fn fits_by_scope(policy: &Policy, entities: &Entities, asked: &cedar_policy::Request) -> bool {
    let Ok(mut json) = policy.to_json() else {
        return false;
    };
    if let Some(conditions) = json.get_mut("conditions") {
        *conditions = serde_json::Value::Array(Vec::new());
    }
    let bare = Policy::from_json(None, json).ok();
    let set = bare.and_then(|bare| PolicySet::from_policies([bare]).ok());
    set.is_some_and(|set| {
        let answer = cedar_policy::Authorizer::new().is_authorized(asked, &set, entities);
        answer.decision() == cedar_policy::Decision::Allow
    })
}

fn rule(name: &str, policy: &Policy) -> Rule {
    Rule {
        name: name.to_owned(),
        permits: policy.effect() == Effect::Permit,
        text: policy.to_string().trim().to_owned(),
    }
}

/// Lists what a question holds: how policies write it, the word that tells a policy which speaks of it, and the value.
fn facts(question: &Question) -> Vec<(String, String, String)> {
    let Question {
        operator,
        circumstances,
        device,
        terms,
    } = question;
    let secs = circumstances.now.as_secs() % 86_400;
    let plain = |path: &str, value: String| {
        let word = path.rsplit('.').next().unwrap_or(path).to_owned();
        (path.to_owned(), word, value)
    };
    let mut all = vec![
        plain("context.now", circumstances.now.to_string()),
        plain("context.utc.hour", (secs / 3600).to_string()),
        plain("context.utc.minute_of_day", (secs / 60).to_string()),
        plain("context.source", circumstances.source.to_string()),
        plain(
            "context.certificate_age_secs",
            circumstances.certificate_age.as_secs().to_string(),
        ),
        plain(
            "context.mfa_age_secs",
            circumstances
                .mfa_age
                .map_or("absent".into(), |age| age.as_secs().to_string()),
        ),
        plain("context.ttl_secs", terms.ttl.as_secs().to_string()),
        plain("context.batch", terms.batch.to_string()),
        plain(
            "context.reason",
            terms.reason.clone().unwrap_or_else(|| "absent".into()),
        ),
        plain(
            "context.approval",
            if terms.approval.is_some() {
                "present"
            } else {
                "absent"
            }
            .into(),
        ),
        plain(
            "resource.device.asserted.alarms",
            device.alarms().collect::<Vec<_>>().join(","),
        ),
        plain(
            "resource.device.reported.access",
            device.reported.access.to_string(),
        ),
        plain(
            "resource.device.reported.version",
            device.reported.version.clone().unwrap_or_else(|| "absent".into()),
        ),
    ];
    for (group, kind) in operator
        .groups
        .iter()
        .map(|group| (group, "OperatorGroup"))
        .chain(device.groups.iter().map(|group| (group, "DeviceGroup")))
    {
        let of = if kind == "OperatorGroup" {
            "principal"
        } else {
            "resource"
        };
        let word = format!("{kind}::\"{group}\"");
        all.push((format!("{of} in {word}"), word, "true".into()));
    }
    for (name, fact) in &device.asserted {
        let (path, word) = (
            format!("resource.device.asserted.getTag(\"{name}\")"),
            format!("\"{name}\""),
        );
        all.push((path, word, fact.value.to_string()));
    }
    for (name, value) in &device.reported.facts {
        let (path, word) = (
            format!("resource.device.reported.getTag(\"{name}\")"),
            format!("\"{name}\""),
        );
        all.push((path, word, value.to_string()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{asserting, device, operator, question};

    const POLICY: &str = r#"
        @id("view") permit (principal, action == Action::"view", resource);
        @id("ssh") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
        when { resource.name == "ssh" && context has reason && context.certificate_age_secs < 300 };
        @id("web") @requires_approval permit (principal, action == Action::"connect", resource)
        when { resource.name == "web" };
        @id("site") permit (principal, action == Action::"connect", resource)
        when { resource.device.asserted.hasTag("site") && resource.device.asserted.getTag("site").value == "north" };
        @id("no-diag") forbid (principal, action == Action::"connect", resource) when { resource.name == "diag" };
        @id("run") @requires_approval permit (principal, action == Action::"connect", resource)
        when { resource.name == "run" && context.batch };
        @id("no-batch") forbid (principal, action == Action::"connect", resource)
        when { resource.name == "web" && context.batch };
    "#;

    fn why(service: &str, reason: Option<&str>, groups: &[&str], facts: &[(&str, &str)]) -> Why {
        let pump = asserting(device("pump-17", &[]), facts);
        let asked = question(&operator("ana", groups), &pump, &[service], reason);
        Engine::new(POLICY).unwrap().why(&asked)
    }

    fn names(rules: &[Rule]) -> Vec<&str> {
        rules.iter().map(|rule| rule.name.as_str()).collect()
    }

    #[test]
    fn what_decides_and_what_is_missing_is_told() {
        let denied = why("ssh", None, &["technicians"], &[]);
        assert!(
            denied.rules.is_empty() && names(&denied.near).contains(&"ssh"),
            "{denied:?}"
        );
        assert_eq!(denied.missing, [Need::Login, Need::Reason]);
        assert_eq!(denied.facts["context.reason"], "absent");
        assert_eq!(
            denied.facts["principal in OperatorGroup::\"technicians\""],
            "true"
        );
        let denied = why("ssh", Some("INC-7"), &["technicians"], &[]);
        assert_eq!(denied.missing, [Need::Login]);
        // A rule against batches is none against the service.
        assert_eq!(why("web", None, &[], &[]).missing, [Need::Approval]);
        let batchless = why("run", None, &[], &[]);
        assert_eq!(batchless.missing, [Need::Approval, Need::Batch]);
        assert_eq!(batchless.facts["context.batch"], "false");
        let forbidden = why("diag", None, &[], &[("site", "north")]);
        assert_eq!(
            (
                names(&forbidden.rules),
                forbidden.near.len(),
                forbidden.missing.len()
            ),
            (vec!["no-diag"], 0, 0)
        );
        let allowed = why("ssh", None, &[], &[("site", "north"), ("floor", "7")]);
        assert_eq!((names(&allowed.rules), allowed.missing.len()), (vec!["site"], 0));
        assert_eq!(
            allowed.facts["resource.device.asserted.getTag(\"site\")"],
            "north"
        );
        assert!(
            !allowed
                .facts
                .contains_key("resource.device.asserted.getTag(\"floor\")")
        );
        // What everybody may know is the same, and is all there is.
        let pump = device("pump-17", &[]);
        let asked = question(&operator("ana", &["technicians"]), &pump, &["ssh"], None);
        let (engine, outline) = (
            Engine::new(POLICY).unwrap(),
            Engine::new(POLICY).unwrap().outline(&asked),
        );
        let full = engine.why(&asked);
        assert_eq!(
            (&outline.verdict, &outline.missing),
            (&full.verdict, &full.missing)
        );
        assert!(outline.rules.is_empty() && outline.near.is_empty() && outline.facts.is_empty());
        // Who is in no group is not near to the rule of one.
        assert!(!names(&why("ssh", None, &[], &[]).near).contains(&"ssh"));
    }
}
