//! A candidate weighed against decisions of the past: who would lose what, and who would gain.
//!
//! A decision can be made again only if its record holds the question. What older records lack is counted, never guessed.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use tunnel_proto::{OperatorName, ServiceName};

use crate::engine::{Engine, Outcome};
use crate::question::Question;

/// What a record of a decision holds of it: the body of `tunnel.opened` and `tunnel.denied`.
#[derive(Clone, Debug, Deserialize)]
pub struct Past {
    /// Who asked.
    pub operator: OperatorName,
    /// The revision of the policy that decided.
    pub policy_revision: u64,
    /// Whether there was such a device; older records do not say.
    #[serde(default)]
    pub device_known: Option<bool>,
    /// What it was decided from. A decision about a device that is not known has none, and none is needed.
    #[serde(default)]
    pub question: Option<Question>,
}

/// One difference: what an operator may do with the devices of a group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Line {
    /// Who.
    pub operator: OperatorName,
    /// The groups of the devices, joined by commas; `-` for those without any.
    pub devices: String,
    /// The service.
    pub service: ServiceName,
    /// What was decided.
    pub before: &'static str,
    /// What the candidate decides.
    pub after: &'static str,
}

/// What came of a replay.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Replayed {
    /// Decisions that were made again.
    pub decisions: u64,
    /// Decisions that cannot be made again: their records do not hold what they were made from.
    pub unknown: u64,
    /// Decisions of policies that are not at hand, or that this release cannot read.
    pub no_policy: u64,
    /// Decisions about devices that were not there.
    pub no_device: u64,
    /// Who would lose something, with the number of decisions.
    #[serde(serialize_with = "as_list")]
    pub lost: BTreeMap<Line, u64>,
    /// Who would gain something.
    #[serde(serialize_with = "as_list")]
    pub gained: BTreeMap<Line, u64>,
}

/// A replay under way.
#[derive(Debug)]
pub struct Replay {
    candidate: Engine,
    /// The policies of the past, as far as they are at hand.
    revisions: HashMap<u64, Option<Engine>>,
    replayed: Replayed,
}

impl Replay {
    /// Begins to weigh a candidate.
    pub fn new(candidate: Engine) -> Self {
        Self {
            candidate,
            revisions: HashMap::new(),
            replayed: Replayed::default(),
        }
    }

    /// Says whether the policy of a revision has been looked for already.
    pub fn knows(&self, revision: u64) -> bool {
        self.revisions.contains_key(&revision)
    }

    /// Brings the policy of a revision; `None` if there is none, or none that can be read.
    pub fn learn(&mut self, revision: u64, engine: Option<Engine>) {
        self.revisions.insert(revision, engine);
    }

    /// Makes a decision again: with the policy that decided then, for what each service got, and with the candidate.
    pub fn weigh(&mut self, past: &Past) {
        let Some(question) = &past.question else {
            match past.device_known {
                Some(false) => self.replayed.no_device += 1,
                _ => self.replayed.unknown += 1,
            }
            return;
        };
        let Some(Some(then)) = self.revisions.get(&past.policy_revision) else {
            self.replayed.no_policy += 1;
            return;
        };
        self.replayed.decisions += 1;
        for service in &question.terms.services {
            let (before, after) = (
                decide(then, question, service),
                decide(&self.candidate, question, service),
            );
            let lines = match rank(before).cmp(&rank(after)) {
                std::cmp::Ordering::Equal => continue,
                std::cmp::Ordering::Less => &mut self.replayed.gained,
                std::cmp::Ordering::Greater => &mut self.replayed.lost,
            };
            *lines.entry(line(question, service, before, after)).or_default() += 1;
        }
    }

    /// Returns what came of it.
    pub fn finish(self) -> Replayed {
        self.replayed
    }
}

fn decide(engine: &Engine, question: &Question, service: &ServiceName) -> Outcome {
    // What is asked for together stays as it was: rules may speak of it.
    engine.weigh_service(question, service)
}

fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Deny => 0,
        Outcome::NeedsApproval => 1,
        Outcome::Allow => 2,
    }
}

fn line(question: &Question, service: &ServiceName, before: Outcome, after: Outcome) -> Line {
    let groups: Vec<&str> = question
        .device
        .groups
        .iter()
        .map(|group| group.as_str())
        .collect();
    Line {
        operator: question.operator.name.clone(),
        devices: if groups.is_empty() {
            "-".to_owned()
        } else {
            groups.join(",")
        },
        service: service.clone(),
        before: before.as_str(),
        after: after.as_str(),
    }
}

/// Writes lines with their counts as a list: JSON has no maps with such keys.
fn as_list<S: serde::Serializer>(lines: &BTreeMap<Line, u64>, s: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Counted<'a> {
        #[serde(flatten)]
        line: &'a Line,
        count: u64,
    }
    s.collect_seq(lines.iter().map(|(line, count)| Counted { line, count: *count }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{device, operator, question};

    const THEN: &str = r#"
        @id("view") permit (principal, action == Action::"view", resource);
        @id("ssh") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
        when { resource.name == "ssh" };
    "#;

    const NOW: &str = r#"
        @id("view") permit (principal, action == Action::"view", resource);
        @id("ssh") @requires_approval permit (principal in OperatorGroup::"technicians", action == Action::"connect",
            resource in DeviceGroup::"pumps") when { resource.name == "ssh" };
        @id("web") permit (principal == Operator::"eve", action == Action::"connect", resource);
    "#;

    fn past(name: &str, groups: &[&str], of: &[&str], services: &[&str], revision: u64) -> Past {
        Past {
            operator: name.parse().unwrap(),
            policy_revision: revision,
            device_known: None,
            question: Some(question(
                &operator(name, groups),
                &device("pump-17", of),
                services,
                None,
            )),
        }
    }

    #[test]
    fn who_loses_and_who_gains_is_counted() {
        let mut replay = Replay::new(Engine::new(NOW).unwrap());
        replay.learn(1, Some(Engine::new(THEN).unwrap()));
        replay.learn(2, None);
        let technicians = &["technicians"][..];
        for _ in 0..2 {
            replay.weigh(&past("ana", technicians, &["pumps"], &["ssh"], 1));
        }
        replay.weigh(&past("ana", technicians, &[], &["ssh", "web"], 1));
        replay.weigh(&past("eve", &[], &[], &["web"], 1));
        replay.weigh(&past("ben", &[], &[], &["web"], 1));
        replay.weigh(&past("ana", technicians, &[], &["ssh"], 2));
        let old = Past {
            question: None,
            ..past("ana", &[], &[], &[], 1)
        };
        replay.weigh(&old);
        replay.weigh(&Past {
            device_known: Some(false),
            ..old
        });
        let done = replay.finish();
        assert_eq!(
            (done.decisions, done.unknown, done.no_policy, done.no_device),
            (5, 1, 1, 1)
        );
        let lines = |lines: &BTreeMap<Line, u64>| -> Vec<String> {
            let text = |(line, count): (&Line, &u64)| {
                format!(
                    "{} {} {} {}>{} {count}",
                    line.operator, line.devices, line.service, line.before, line.after
                )
            };
            lines.iter().map(text).collect()
        };
        assert_eq!(
            lines(&done.lost),
            ["ana - ssh allow>deny 1", "ana pumps ssh allow>approval 2"]
        );
        assert_eq!(lines(&done.gained), ["eve - web deny>allow 1"]);
        let json = serde_json::to_value(&done).unwrap();
        assert_eq!(
            (&json["gained"][0]["operator"], &json["gained"][0]["count"]),
            (&"eve".into(), &1.into())
        );
    }
}
