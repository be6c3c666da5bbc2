//! Tests of policies: cases in a file, each with a question and the decision that is expected.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tunnel_proto::names::{FactName, FactValue, GroupName};
use tunnel_proto::{DeviceId, OperatorName, ServiceName, UnixTime};

use crate::engine::{Engine, Outcome, Verdict};
use crate::question::{Approval, Circumstances, Device, Fact, Operator, Question, Reported, Terms};
use crate::units;

/// Largest file of cases, in bytes.
pub const MAX_CASES_BYTES: usize = 1 << 20;

/// When a case takes place that says nothing of the time: Monday 2026-01-05, 12:00 UTC.
const NOON: UnixTime = UnixTime::from_secs(1_767_614_400);

/// A file of cases.
#[derive(Clone, Debug)]
pub struct Cases {
    /// The policy that is tested, if the file names it: a path beside the file.
    pub policy: Option<String>,
    cases: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    question: Question,
    /// Who asks, where it is about an approval by the operator.
    requester: Option<Operator>,
    expect: Outcome,
    policies: Option<Vec<String>>,
}

/// Tells what is wrong with a file of cases.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CaseError {
    /// The file is no TOML, or has a field that cases do not have.
    #[error("{0}")]
    Form(String),
    /// A value of a case cannot be read.
    #[error("case `{case}`: `{field}` {problem}")]
    Value {
        /// The case.
        case: String,
        /// The field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// How a case went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CaseResult {
    /// The case.
    pub name: String,
    /// Whether all is as expected.
    pub ok: bool,
    /// What was expected: `allow`, `deny` or `approval`.
    pub expected: &'static str,
    /// What came.
    pub got: &'static str,
    /// The policies that were expected to decide, if any were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_policies: Option<Vec<String>>,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// What failed in the evaluation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

impl Outcome {
    /// Returns the outcome as files of cases write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::NeedsApproval => "approval",
        }
    }
}

impl Cases {
    /// Reads a file of cases.
    ///
    /// # Errors
    /// Returns the first thing that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, CaseError> {
        if text.len() > MAX_CASES_BYTES {
            return Err(CaseError::Form(format!(
                "the file has more than {MAX_CASES_BYTES} bytes"
            )));
        }
        let file: File = toml::from_str(text).map_err(|error| CaseError::Form(error.to_string()))?;
        let cases = file.case.into_iter().enumerate();
        Ok(Self {
            policy: file.policy,
            cases: cases.map(|(at, case)| case.read(at)).collect::<Result<_, _>>()?,
        })
    }

    /// Returns how many cases there are.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Says whether there is no case.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Puts all cases to a policy.
    pub fn run(&self, engine: &Engine) -> Vec<CaseResult> {
        self.cases.iter().map(|case| case.run(engine)).collect()
    }
}

impl Case {
    fn run(&self, engine: &Engine) -> CaseResult {
        let Verdict {
            visible,
            mut decision,
            ..
        } = match &self.requester {
            Some(requester) => engine.weigh_approval(&self.question, requester),
            None => engine.weigh(&self.question),
        };
        if !visible {
            decision.outcome = Outcome::Deny;
        }
        let as_named = self
            .policies
            .as_ref()
            .is_none_or(|policies| *policies == decision.policies);
        CaseResult {
            name: self.name.clone(),
            ok: decision.outcome == self.expect && as_named,
            expected: self.expect.as_str(),
            got: decision.outcome.as_str(),
            expected_policies: self.policies.clone(),
            policies: decision.policies,
            errors: decision.errors,
        }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    policy: Option<String>,
    #[serde(default)]
    case: Vec<RawCase>,
}

/// A case as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: Option<String>,
    expect: String,
    policies: Option<Vec<String>>,
    operator: OperatorName,
    #[serde(default)]
    groups: Vec<GroupName>,
    /// Who asks for what the operator would agree to.
    requester: Option<OperatorName>,
    #[serde(default)]
    requester_groups: Vec<GroupName>,
    device: DeviceId,
    #[serde(default)]
    device_groups: Vec<GroupName>,
    service: Option<ServiceName>,
    #[serde(default)]
    services: Vec<ServiceName>,
    #[serde(default)]
    context: RawContext,
    #[serde(default)]
    asserted: BTreeMap<FactName, toml::Value>,
    #[serde(default)]
    reported: RawReport,
}

/// The circumstances as they are written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawContext {
    time: Option<String>,
    source: Option<IpAddr>,
    login_age: Option<String>,
    mfa_age: Option<String>,
    ttl: Option<String>,
    reason: Option<String>,
    approvers: Option<Vec<OperatorName>>,
    #[serde(default)]
    break_glass: bool,
    #[serde(default)]
    batch: bool,
    /// What the authoriser says; it is asked if this is there.
    authoriser: Option<BTreeMap<FactName, FactValue>>,
}

/// What the device says of itself, as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReport {
    age: Option<String>,
    access: Option<bool>,
    version: Option<String>,
    platform: Option<String>,
    #[serde(default)]
    facts: BTreeMap<FactName, toml::Value>,
}

/// Reads the values of one case.
struct Reader<'a> {
    case: &'a str,
}

impl RawCase {
    fn read(self, at: usize) -> Result<Case, CaseError> {
        let name = self.name.unwrap_or_else(|| format!("{}", at + 1));
        let reader = Reader { case: &name };
        let now = match &self.context.time {
            Some(time) => reader.time(time)?,
            None => NOON,
        };
        let mut services = self.services;
        services.extend(self.service);
        if services.is_empty() {
            return Err(reader.wrong("service", "is missing"));
        }
        let expect = [Outcome::Allow, Outcome::Deny, Outcome::NeedsApproval]
            .into_iter()
            .find(|outcome| outcome.as_str() == self.expect)
            .ok_or_else(|| reader.wrong("expect", "is `allow`, `deny` or `approval`"))?;
        let context = self.context;
        let approval = context.approvers.map(|approvers| Approval {
            id: None,
            approvers,
            until: now.after(Duration::from_secs(3600)),
        });
        let asserted = self
            .asserted
            .into_iter()
            .map(|(name, value)| Ok((name, reader.fact(&value, now)?)));
        let question = Question {
            operator: Operator {
                name: self.operator,
                groups: self.groups,
            },
            circumstances: Circumstances {
                now,
                steady: true,
                source: context.source.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
                certificate_age: reader.span("login_age", context.login_age)?.unwrap_or_default(),
                mfa_age: reader.span("mfa_age", context.mfa_age)?,
            },
            device: Device {
                id: self.device,
                groups: self.device_groups,
                enrolled_at: now,
                certificate_expires_at: now.after(Duration::from_secs(90 * 86_400)),
                asserted: asserted.collect::<Result<_, _>>()?,
                reported: self.reported.read(&reader, &services, now)?,
            },
            terms: Terms {
                services,
                ttl: reader
                    .span("ttl", context.ttl)?
                    .unwrap_or(Duration::from_secs(3600)),
                reason: context.reason,
                approval,
                break_glass: context.break_glass,
                authoriser: context.authoriser,
                batch: context.batch,
            },
        };
        let mut policies = self.policies;
        if let Some(policies) = &mut policies {
            policies.sort_unstable();
        }
        Ok(Case {
            name,
            question,
            requester: self.requester.map(|name| Operator {
                name,
                groups: self.requester_groups,
            }),
            expect,
            policies,
        })
    }
}

impl RawReport {
    fn read(
        self,
        reader: &Reader<'_>,
        services: &[ServiceName],
        now: UnixTime,
    ) -> Result<Reported, CaseError> {
        let facts = self
            .facts
            .into_iter()
            .map(|(name, value)| Ok((name, reader.value(&value)?)));
        Ok(Reported {
            at: now.before(reader.span("reported.age", self.age)?.unwrap_or_default()),
            access: self.access.unwrap_or(true),
            services: services.to_vec(),
            version: self.version,
            platform: self.platform,
            facts: facts.collect::<Result<_, _>>()?,
        })
    }
}

impl Reader<'_> {
    fn wrong(&self, field: &'static str, problem: impl Into<String>) -> CaseError {
        CaseError::Value {
            case: self.case.to_owned(),
            field,
            problem: problem.into(),
        }
    }

    fn time(&self, text: &str) -> Result<UnixTime, CaseError> {
        let time: Option<jiff::Timestamp> = text.parse().ok();
        let secs = time.and_then(|time| u64::try_from(time.as_second()).ok());
        secs.map(UnixTime::from_secs)
            .ok_or_else(|| self.wrong("time", "is a time, as `2026-01-05T10:00:00Z`"))
    }

    fn span(&self, field: &'static str, text: Option<String>) -> Result<Option<Duration>, CaseError> {
        let Some(text) = text else { return Ok(None) };
        units::span(&text)
            .map(Some)
            .ok_or_else(|| self.wrong(field, "is a span of time, as `30m`"))
    }

    /// Reads `"north"`, or `{ value = "north", age = "2d" }`.
    fn fact(&self, value: &toml::Value, now: UnixTime) -> Result<Fact, CaseError> {
        let Some(table) = value.as_table() else {
            let value = self.value(value)?;
            return Ok(Fact { value, at: now });
        };
        let age = table.get("age").and_then(|age| age.as_str()).map(str::to_owned);
        let value = table
            .get("value")
            .ok_or_else(|| self.wrong("asserted", "has a fact without `value`"))?;
        if table.keys().any(|key| key != "age" && key != "value") {
            return Err(self.wrong("asserted", "has facts with `value` and `age` only"));
        }
        let age = self.span("age", age)?.unwrap_or_default();
        Ok(Fact {
            value: self.value(value)?,
            at: now.before(age),
        })
    }

    fn value(&self, value: &toml::Value) -> Result<FactValue, CaseError> {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(switch) => switch.to_string(),
            _ => return Err(self.wrong("facts", "are texts, whole numbers, `true` or `false`")),
        };
        text.parse()
            .map_err(|error: tunnel_proto::names::NameError| self.wrong("facts", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
        @id("view") permit (principal, action == Action::"view", resource);
        @id("north") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
        when { resource.device.asserted.hasTag("site") && resource.device.asserted.getTag("site").value == "north"
            && resource.device.asserted.getTag("site").age_secs < 86400 && context.utc.hour >= 8 };
        @id("asks") @requires_approval permit (principal, action == Action::"connect", resource)
        when { resource.name == "web" };
    "#;

    const CASE: &str = r#"
        [[case]]
        name = "by day"
        expect = "EXPECT"
        operator = "ana"
        groups = ["technicians"]
        device = "pump-17"
        service = "ssh"
        context = { time = "2026-01-05T09:00:00Z", reason = "INC-7" }
        asserted = { site = { value = "north", age = "2h" } }
        reported = { facts = { battery = 80 }, version = "0.1.0" }
    "#;

    fn run(text: &str) -> CaseResult {
        let cases = Cases::parse(text).unwrap();
        cases.run(&Engine::new(POLICY).unwrap()).remove(0)
    }

    #[test]
    fn a_case_tells_what_was_expected_and_what_came() {
        let good = run(&CASE.replace("EXPECT", "allow"));
        assert!(good.ok && good.policies == ["north"], "{good:?}");
        let bad = run(&CASE.replace("EXPECT", "deny"));
        assert_eq!((bad.ok, bad.expected, bad.got), (false, "deny", "allow"));
        let other = run(&CASE.replace("\"EXPECT\"", "\"allow\"\npolicies = [\"south\"]"));
        assert!(!other.ok);
        let night = CASE.replace("EXPECT", "deny").replace("09:00", "07:59");
        assert!(run(&night).ok);
        let old = CASE.replace("EXPECT", "deny").replace("2h", "1d");
        assert!(run(&old).ok);
        let web = CASE
            .replace("EXPECT", "approval")
            .replace("ssh", "web")
            .replace("north", "x");
        assert!(run(&web).ok, "{:?}", run(&web));
        let approved = web
            .replace("approval", "allow")
            .replace("reason =", "approvers = [\"ben\"], reason =");
        assert!(run(&approved).ok);
    }

    #[test]
    fn what_is_no_case_is_refused_with_its_place() {
        let good = CASE.replace("EXPECT", "allow");
        for (from, to, why) in [
            ("allow", "perhaps", "`expect`"),
            ("ana", "-ana", "operator name"),
            ("service =", "servise =", "servise"),
            ("2h", "2 hours", "`age`"),
            ("2026-01-05T09:00:00Z", "noon", "`time`"),
            ("80", "1.5", "whole numbers"),
            ("reason =", "raeson =", "raeson"),
            ("[[case]]", "[[case]", "line 2"),
        ] {
            let error = Cases::parse(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(why), "{to}: {error}");
        }
        assert!(Cases::parse("").unwrap().is_empty());
    }
}
