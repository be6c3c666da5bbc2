//! The engine beside a plain evaluator that knows nothing of Cedar, on random policies and requests (THREATS POL-02).

use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use tunnel_proto::ServiceName;

use super::{NOW, asserting, circumstances, device, operator, reporting};
use crate::{
    Action, Approval, Circumstances, Device, Engine, Limits, Operator, Outcome, Question, Request, Terms,
};

const OPERATORS: [&str; 3] = ["ana", "ben", "eve"];
const OPERATOR_GROUPS: [&str; 3] = ["admins", "technicians", "guests"];
const DEVICES: [&str; 3] = ["pump-1", "pump-2", "mill-1"];
const DEVICE_GROUPS: [&str; 2] = ["pumps", "mills"];
const SERVICES: [&str; 3] = ["ssh", "diag", "web"];
const REPORTED_GROUPS: [&str; 2] = ["pumps", "old"];
const VALUES: [&str; 3] = ["north", "south", "7"];
const ACTIONS: [&str; 4] = ["connect", "view", "revoke", "read-audit"];

/// Policy sets that are tried; the engine answers several requests for each.
const SETS: u32 = 2_000;
const REQUESTS: u32 = 8;

#[derive(Clone, Debug)]
struct Policy {
    permit: bool,
    approvals: u32,
    sessions: Option<u32>,
    operator: Who,
    actions: Vec<&'static str>,
    resource: What,
    conditions: Vec<(bool, Condition)>,
}

#[derive(Clone, Debug)]
enum Who {
    Anybody,
    AnyOperator,
    OperatorIn(&'static str),
    NamedOrIn(&'static str),
    Named(&'static str),
    In(&'static str),
}

#[derive(Clone, Debug)]
enum What {
    Anything,
    AnyService,
    ServiceIn(&'static str),
    OfDevice(&'static str),
    In(&'static str),
    InReported(&'static str),
    Service(&'static str, &'static str),
}

#[derive(Clone, Debug)]
enum Condition {
    HasReason,
    ReasonIs(&'static str),
    TtlBelow(u64),
    AsksFor(&'static str),
    NameIs(&'static str),
    FromTen,
    /// Of the asserted facts if true, else of the reported ones.
    FactIs(bool, &'static str),
    FactAbove(bool, i64),
    HourBelow(u64),
    Approved,
    MfaBelow(u64),
    Fails,
}

/// A request, as the plain evaluator sees it.
#[derive(Clone, Debug)]
struct Asked {
    operator: Operator,
    device: Device,
    action: &'static str,
    service: &'static str,
    services: Vec<ServiceName>,
    ttl: u64,
    reason: Option<&'static str>,
    asserted: Option<&'static str>,
    reported: Option<&'static str>,
    hour: u64,
    agreed: u32,
    mfa: Option<u64>,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn some_of<T: Copy>(rng: &mut Rng, from: &[T]) -> Vec<T> {
    from.iter().copied().filter(|_| rng.bool()).collect()
}

impl Policy {
    fn random(rng: &mut Rng) -> Self {
        // Conditions speak of what only a connection has, so those policies are about connections.
        let conditions = if rng.bool() {
            (0..rng.usize(1..4))
                .map(|_| (rng.bool(), Condition::random(rng)))
                .collect()
        } else {
            Vec::new()
        };
        let actions = if conditions.is_empty() {
            some_of(rng, &ACTIONS)
        } else {
            vec!["connect"]
        };
        let permit = rng.u8(..3) > 0;
        let connects = actions == ["connect"];
        Self {
            permit,
            approvals: if connects && rng.u8(..4) == 0 {
                rng.u32(1..=2)
            } else {
                0
            },
            sessions: (connects && permit && rng.bool()).then(|| rng.u32(1..9)),
            operator: match rng.u8(..7) {
                0 => Who::Anybody,
                1 => Who::AnyOperator,
                2 => Who::OperatorIn(pick(rng, &OPERATOR_GROUPS)),
                3 => Who::NamedOrIn(pick(rng, &OPERATORS)),
                4 => Who::Named(pick(rng, &OPERATORS)),
                _ => Who::In(pick(rng, &OPERATOR_GROUPS)),
            },
            actions,
            resource: match rng.u8(..9) {
                7 if connects => What::AnyService,
                8 if connects => What::ServiceIn(pick(rng, &DEVICE_GROUPS)),
                0..3 | 7.. => What::Anything,
                3 => What::OfDevice(pick(rng, &DEVICES)),
                4 => What::In(pick(rng, &DEVICE_GROUPS)),
                5 => What::InReported(pick(rng, &REPORTED_GROUPS)),
                _ => What::Service(pick(rng, &DEVICES), pick(rng, &SERVICES)),
            },
            conditions,
        }
    }

    fn to_cedar(&self, number: usize) -> String {
        let effect = if self.permit { "permit" } else { "forbid" };
        let operator = match &self.operator {
            Who::Anybody => "principal".to_owned(),
            Who::AnyOperator => "principal is Operator".to_owned(),
            Who::OperatorIn(group) => format!("principal is Operator in OperatorGroup::\"{group}\""),
            Who::NamedOrIn(name) => format!("principal in Operator::\"{name}\""),
            Who::Named(name) => format!("principal == Operator::\"{name}\""),
            Who::In(group) => format!("principal in OperatorGroup::\"{group}\""),
        };
        let action = match &self.actions[..] {
            [] => "action".to_owned(),
            [one] => format!("action == Action::\"{one}\""),
            many => {
                let names: Vec<String> = many.iter().map(|name| format!("Action::\"{name}\"")).collect();
                format!("action in [{}]", names.join(", "))
            }
        };
        let resource = match &self.resource {
            What::Anything => "resource".to_owned(),
            What::AnyService => "resource is Service".to_owned(),
            What::ServiceIn(group) => format!("resource is Service in DeviceGroup::\"{group}\""),
            What::OfDevice(id) => format!("resource in Device::\"{id}\""),
            What::In(group) => format!("resource in DeviceGroup::\"{group}\""),
            What::InReported(group) => format!("resource in ReportedGroup::\"{group}\""),
            What::Service(device, service) => format!("resource == Service::\"{device}/{service}\""),
        };
        let mut text = format!("@id(\"p{number}\") ");
        match self.approvals {
            0 => {}
            1 => text.push_str("@requires_approval "),
            count => text.push_str(&format!("@approvals(\"{count}\") ")),
        }
        if let Some(sessions) = self.sessions {
            let _ = write!(text, "@max_sessions(\"{sessions}\") ");
        }
        let _ = write!(text, "{effect} ({operator}, {action}, {resource})");
        for (when, condition) in &self.conditions {
            let word = if *when { "when" } else { "unless" };
            let _ = write!(text, " {word} {{ {} }}", condition.to_cedar());
        }
        text + ";\n"
    }

    /// Says whether the policy fits; `Err` where it fails.
    fn fits(&self, asked: &Asked) -> Result<bool, ()> {
        let operator = match &self.operator {
            Who::Anybody | Who::AnyOperator => true,
            Who::Named(name) | Who::NamedOrIn(name) => asked.operator.name.as_str() == *name,
            Who::In(group) | Who::OperatorIn(group) => {
                asked.operator.groups.iter().any(|of| of.as_str() == *group)
            }
        };
        let action = self.actions.is_empty() || self.actions.contains(&asked.action);
        let about_device = matches!(asked.action, "connect" | "view");
        let resource = match &self.resource {
            What::Anything => true,
            What::AnyService => asked.action == "connect",
            What::OfDevice(id) => about_device && asked.device.id.as_str() == *id,
            What::In(group) | What::ServiceIn(group) => {
                about_device && asked.device.groups.iter().any(|of| of.as_str() == *group)
            }
            What::InReported(group) => about_device && asked.reported_groups().contains(group),
            What::Service(device, service) => {
                asked.action == "connect" && asked.device.id.as_str() == *device && asked.service == *service
            }
        };
        if !(operator && action && resource) {
            return Ok(false);
        }
        for (when, condition) in &self.conditions {
            if condition.holds(asked)? != *when {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Condition {
    fn random(rng: &mut Rng) -> Self {
        match rng.u8(..22) {
            0..2 => Self::HasReason,
            2..4 => Self::ReasonIs(pick(rng, &["a", "b"])),
            4..6 => Self::TtlBelow(rng.u64(..5)),
            6..8 => Self::AsksFor(pick(rng, &SERVICES)),
            8..10 => Self::NameIs(pick(rng, &SERVICES)),
            10..12 => Self::FromTen,
            12..14 => Self::FactIs(rng.bool(), pick(rng, &VALUES)),
            14..16 => Self::FactAbove(rng.bool(), rng.i64(5..9)),
            16..18 => Self::HourBelow(rng.u64(..24)),
            18 => Self::Approved,
            19..21 => Self::MfaBelow(rng.u64(..5)),
            _ => Self::Fails,
        }
    }

    fn to_cedar(&self) -> String {
        match self {
            Self::HasReason => "context has reason".into(),
            Self::ReasonIs(text) => format!("context has reason && context.reason == \"{text}\""),
            Self::TtlBelow(secs) => format!("context.ttl_secs < {secs}"),
            Self::AsksFor(name) => format!("context.services.contains(\"{name}\")"),
            Self::NameIs(name) => format!("resource.name == \"{name}\""),
            Self::FromTen => "context.source.isInRange(ip(\"10.0.0.0/8\"))".into(),
            Self::FactIs(asserted, value) => {
                let kind = kind(*asserted);
                format!(
                    "resource.device.{kind}.hasTag(\"f\") && resource.device.{kind}.getTag(\"f\").value == \"{value}\""
                )
            }
            Self::FactAbove(asserted, least) => {
                let kind = kind(*asserted);
                format!(
                    "resource.device.{kind}.hasTag(\"f\") && resource.device.{kind}.getTag(\"f\") has number && \
                     resource.device.{kind}.getTag(\"f\").number > {least}"
                )
            }
            Self::HourBelow(hour) => format!("context.utc.hour < {hour}"),
            Self::Approved => "context has approval && context.approval.approvers.contains(\"ben\")".into(),
            Self::MfaBelow(secs) => format!("context has mfa_age_secs && context.mfa_age_secs < {secs}"),
            Self::Fails => format!("context.now * {} > 0", i64::MAX),
        }
    }

    fn holds(&self, asked: &Asked) -> Result<bool, ()> {
        Ok(match self {
            Self::HasReason => asked.reason.is_some(),
            Self::ReasonIs(text) => asked.reason == Some(text),
            Self::TtlBelow(secs) => asked.ttl < *secs,
            Self::AsksFor(name) => asked.services.iter().any(|service| service.as_str() == *name),
            Self::NameIs(name) => asked.service == *name,
            Self::FromTen => true,
            Self::FactIs(asserted, value) => asked.fact(*asserted) == Some(value),
            Self::FactAbove(asserted, least) => asked
                .fact(*asserted)
                .and_then(|value| value.parse::<i64>().ok())
                .is_some_and(|number| number > *least),
            Self::HourBelow(hour) => asked.hour < *hour,
            Self::Approved => asked.agreed > 0,
            Self::MfaBelow(secs) => asked.mfa.is_some_and(|age| age < *secs),
            Self::Fails => return Err(()),
        })
    }
}

impl Asked {
    fn random(rng: &mut Rng) -> Self {
        let services: Vec<ServiceName> = SERVICES.iter().map(|name| name.parse().unwrap()).collect();
        let operator_groups = some_of(rng, &OPERATOR_GROUPS);
        let device_groups = some_of(rng, &DEVICE_GROUPS);
        let fact = [None, Some("north"), Some("south"), Some("7"), Some("8")];
        let (asserted, reported) = (pick(rng, &fact), pick(rng, &fact));
        let device = device(pick(rng, &DEVICES), &device_groups);
        let device = asserting(device, &asserted.map_or(vec![], |value| vec![("f", value)]));
        Self {
            operator: operator(pick(rng, &OPERATORS), &operator_groups),
            device: reporting(device, &reported.map_or(vec![], |value| vec![("f", value)])),
            action: pick(rng, &ACTIONS),
            service: pick(rng, &SERVICES),
            services: services.into_iter().filter(|_| rng.bool()).collect(),
            ttl: rng.u64(..5),
            reason: pick(rng, &[None, Some("a"), Some("b")]),
            asserted,
            reported,
            hour: rng.u64(..24),
            agreed: rng.u32(..=2),
            mfa: rng.bool().then(|| rng.u64(..5)),
        }
    }

    fn fact(&self, asserted: bool) -> Option<&'static str> {
        if asserted { self.asserted } else { self.reported }
    }

    /// What [`GROUPS`] says.
    fn reported_groups(&self) -> Vec<&'static str> {
        let north = (self.reported == Some("north")).then_some("pumps");
        let old = (self.reported == Some("south") || self.asserted == Some("south")).then_some("old");
        north.into_iter().chain(old).collect()
    }

    fn terms(&self) -> Terms {
        Terms {
            services: self.services.clone(),
            ttl: Duration::from_secs(self.ttl),
            reason: self.reason.map(str::to_owned),
            approval: (self.agreed > 0).then(|| Approval {
                id: None,
                // One who agrees twice is one.
                approvers: ["ben", "ben", "cid"][..self.agreed as usize + 1]
                    .iter()
                    .map(|name| name.parse().unwrap())
                    .collect(),
                until: NOW,
            }),
            break_glass: false,
            batch: false,
            authoriser: None,
        }
    }

    fn circumstances(&self) -> Circumstances {
        let day = NOW.as_secs() / 86_400 * 86_400;
        Circumstances {
            now: tunnel_proto::UnixTime::from_secs(day + self.hour * 3600),
            mfa_age: self.mfa.map(Duration::from_secs),
            ..circumstances()
        }
    }

    fn action<'a>(&'a self, service: &'a ServiceName, terms: &'a Terms) -> Action<'a> {
        match self.action {
            "connect" => Action::Connect {
                device: &self.device,
                service,
                terms,
            },
            "view" => Action::View(&self.device),
            "revoke" => Action::Revoke,
            _ => Action::ReadAudit,
        }
    }
}

fn kind(asserted: bool) -> &'static str {
    if asserted { "asserted" } else { "reported" }
}

/// The reported groups of all sets. One has the name of a group that devices are put into.
const GROUPS: &str = r#"
@id("g0") permit (principal, action == Action::"belong", resource == ReportedGroup::"pumps")
when { principal.reported.hasTag("f") && principal.reported.getTag("f").value == "north" };
@id("g1") permit (principal, action == Action::"belong", resource == ReportedGroup::"old")
when { (principal.reported.hasTag("f") && principal.reported.getTag("f").value == "south")
    || (principal.asserted.hasTag("f") && principal.asserted.getTag("f").value == "south") };
"#;

/// Decides as the words say it: deny by default, `forbid` wins, a failure denies, an agreement takes away what asks for
/// one, and the narrowest limit counts.
fn decide(policies: &[Policy], asked: &Asked) -> (Outcome, Vec<String>, Limits) {
    let named = |which: &dyn Fn(&Policy) -> bool| -> Vec<String> {
        let numbered = policies.iter().enumerate().filter(|(_, policy)| which(policy));
        let mut names: Vec<String> = numbered.map(|(number, _)| format!("p{number}")).collect();
        names.sort_unstable();
        names
    };
    let agreed = if asked.action == "connect" {
        asked.agreed
    } else {
        0
    };
    let approved = |policy: &Policy| agreed >= policy.approvals;
    let soft = |policy: &Policy| !policy.permit && policy.approvals > 0;
    let fits = |policy: &Policy| policy.fits(asked) == Ok(true);
    let permits = named(&|policy| policy.permit && fits(policy));
    let free = named(&|policy| policy.permit && fits(policy) && approved(policy));
    let forbids = named(&|policy| !policy.permit && policy.approvals == 0 && fits(policy));
    let forbids_softly = named(&|policy| soft(policy) && !approved(policy) && fits(policy));
    let failed = named(&|policy| !soft(policy) && policy.fits(asked).is_err());
    let failed_softly = named(&|policy| soft(policy) && !approved(policy) && policy.fits(asked).is_err());
    let none = Limits::default();
    if !forbids.is_empty() {
        return (Outcome::Deny, forbids, none);
    }
    if permits.is_empty() {
        return (Outcome::Deny, Vec::new(), none);
    }
    for failed in [failed, failed_softly] {
        if !failed.is_empty() {
            return (Outcome::Deny, failed, none);
        }
    }
    if !forbids_softly.is_empty() {
        return (Outcome::NeedsApproval, forbids_softly, none);
    }
    if free.is_empty() {
        return (Outcome::NeedsApproval, permits, none);
    }
    let counting = policies
        .iter()
        .filter(|policy| policy.permit && fits(policy) && approved(policy));
    let sessions = counting.filter_map(|policy| policy.sessions).min();
    (Outcome::Allow, free, Limits { sessions, ..none })
}

/// THREATS POL-02.
#[test]
fn the_engine_decides_as_a_plain_evaluator_does() {
    let seed = std::env::var("TUNNEL_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let mut rng = Rng::with_seed(seed);
    let (mut allowed, mut failed, mut waiting, mut limited, mut at_once) = (0, 0, 0, 0, 0);
    for _ in 0..SETS {
        let policies: Vec<Policy> = (0..rng.usize(..7)).map(|_| Policy::random(&mut rng)).collect();
        let text: String = policies
            .iter()
            .enumerate()
            .map(|(number, policy)| policy.to_cedar(number))
            .chain([GROUPS.to_owned()])
            .collect();
        let engine = Engine::new(&text).unwrap_or_else(|error| panic!("seed {seed}: {error} in\n{text}"));
        let unsorted = Engine::unsorted(&text).unwrap();
        let before: String = text.lines().skip(rng.usize(..4)).collect::<Vec<_>>().join("\n");
        let successor = Engine::new(&text)
            .unwrap()
            .after(&Engine::new(&before).unwrap_or_else(|_| Engine::deny_all()));
        for _ in 0..REQUESTS {
            let asked = Asked::random(&mut rng);
            let service: ServiceName = asked.service.parse().unwrap();
            let (circumstances, terms) = (asked.circumstances(), asked.terms());
            let request = Request {
                operator: &asked.operator,
                action: asked.action(&service, &terms),
                circumstances: &circumstances,
            };
            let decision = engine.decide(&request);
            // What is left out because of its scope changes nothing: not the decision, the reasons, nor the errors.
            assert_eq!(
                decision,
                unsorted.decide(&request),
                "seed {seed}: {asked:?}\n{text}"
            );
            let (outcome, names, limits) = decide(&policies, &asked);
            assert_eq!(
                (decision.outcome, &decision.policies, decision.limits),
                (outcome, &names, limits),
                "seed {seed}: {asked:?}\n{text}{decision:?}"
            );
            if asked.action == "connect" {
                let question = Question {
                    operator: asked.operator.clone(),
                    circumstances: circumstances.clone(),
                    device: asked.device.clone(),
                    terms: Terms {
                        services: vec![service.clone()],
                        ..terms.clone()
                    },
                };
                // The quick no is never wrong, and there mostly when it can be.
                let quick = successor.denies_at_once(&question);
                assert!(
                    !quick || !engine.weigh(&question).is_allowed(),
                    "seed {seed}: {asked:?}\n{text}"
                );
                at_once += u32::from(quick);
            }
            allowed += u32::from(outcome == Outcome::Allow);
            waiting += u32::from(outcome == Outcome::NeedsApproval);
            limited += u32::from(limits.sessions.is_some());
            failed += u32::from(!decision.errors.is_empty());
        }
    }
    // The comparison is worth something only if all outcomes occur.
    let total = SETS * REQUESTS;
    assert!(
        allowed > total / 20 && allowed < total * 19 / 20,
        "seed {seed}: {allowed} of {total} were allowed"
    );
    for (count, what) in [
        (failed, "failed"),
        (waiting, "need an approval"),
        (limited, "are limited"),
        (at_once, "are denied at once"),
    ] {
        assert!(count > total / 1000, "seed {seed}: {count} of {total} {what}");
    }
}
