//! The engine beside a plain evaluator that knows nothing of Cedar, on random policies and requests (THREATS POL-02).

use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use tunnel_proto::ServiceName;

use super::{circumstances, device, operator};
use crate::policy::{Action, Device, Engine, Operator, Request};

const OPERATORS: [&str; 3] = ["ana", "ben", "eve"];
const OPERATOR_GROUPS: [&str; 3] = ["admins", "technicians", "guests"];
const DEVICES: [&str; 3] = ["pump-1", "pump-2", "mill-1"];
const DEVICE_GROUPS: [&str; 2] = ["pumps", "mills"];
const SERVICES: [&str; 3] = ["ssh", "diag", "web"];
const ACTIONS: [&str; 4] = ["connect", "view", "revoke", "read-audit"];

/// Policy sets that are tried; the engine answers several requests for each.
const SETS: u32 = 2_000;
const REQUESTS: u32 = 8;

#[derive(Clone, Debug)]
struct Policy {
    permit: bool,
    operator: Who,
    actions: Vec<&'static str>,
    resource: What,
    conditions: Vec<(bool, Condition)>,
}

#[derive(Clone, Debug)]
enum Who {
    Anybody,
    Named(&'static str),
    In(&'static str),
}

#[derive(Clone, Debug)]
enum What {
    Anything,
    OfDevice(&'static str),
    In(&'static str),
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
        Self {
            permit: rng.u8(..3) > 0,
            operator: match rng.u8(..3) {
                0 => Who::Anybody,
                1 => Who::Named(pick(rng, &OPERATORS)),
                _ => Who::In(pick(rng, &OPERATOR_GROUPS)),
            },
            actions,
            resource: match rng.u8(..6) {
                0..3 => What::Anything,
                3 => What::OfDevice(pick(rng, &DEVICES)),
                4 => What::In(pick(rng, &DEVICE_GROUPS)),
                _ => What::Service(pick(rng, &DEVICES), pick(rng, &SERVICES)),
            },
            conditions,
        }
    }

    fn to_cedar(&self, number: usize) -> String {
        let effect = if self.permit { "permit" } else { "forbid" };
        let operator = match &self.operator {
            Who::Anybody => "principal".to_owned(),
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
            What::OfDevice(id) => format!("resource in Device::\"{id}\""),
            What::In(group) => format!("resource in DeviceGroup::\"{group}\""),
            What::Service(device, service) => format!("resource == Service::\"{device}/{service}\""),
        };
        let mut text = format!("@id(\"p{number}\") {effect} ({operator}, {action}, {resource})");
        for (when, condition) in &self.conditions {
            let word = if *when { "when" } else { "unless" };
            let _ = write!(text, " {word} {{ {} }}", condition.to_cedar());
        }
        text + ";\n"
    }

    /// Says whether the policy fits; `Err` where it fails.
    fn fits(&self, asked: &Asked) -> Result<bool, ()> {
        let operator = match &self.operator {
            Who::Anybody => true,
            Who::Named(name) => asked.operator.name.as_str() == *name,
            Who::In(group) => asked.operator.groups.iter().any(|of| of.as_str() == *group),
        };
        let action = self.actions.is_empty() || self.actions.contains(&asked.action);
        let about_device = matches!(asked.action, "connect" | "view");
        let resource = match &self.resource {
            What::Anything => true,
            What::OfDevice(id) => about_device && asked.device.id.as_str() == *id,
            What::In(group) => about_device && asked.device.groups.iter().any(|of| of.as_str() == *group),
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
        match rng.u8(..13) {
            0..2 => Self::HasReason,
            2..4 => Self::ReasonIs(pick(rng, &["a", "b"])),
            4..6 => Self::TtlBelow(rng.u64(..5)),
            6..8 => Self::AsksFor(pick(rng, &SERVICES)),
            8..10 => Self::NameIs(pick(rng, &SERVICES)),
            10..12 => Self::FromTen,
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
            Self::Fails => return Err(()),
        })
    }
}

impl Asked {
    fn random(rng: &mut Rng) -> Self {
        let services: Vec<ServiceName> = SERVICES.iter().map(|name| name.parse().unwrap()).collect();
        let operator_groups = some_of(rng, &OPERATOR_GROUPS);
        let device_groups = some_of(rng, &DEVICE_GROUPS);
        Self {
            operator: operator(pick(rng, &OPERATORS), &operator_groups),
            device: device(pick(rng, &DEVICES), &device_groups),
            action: pick(rng, &ACTIONS),
            service: pick(rng, &SERVICES),
            services: services.into_iter().filter(|_| rng.bool()).collect(),
            ttl: rng.u64(..5),
            reason: pick(rng, &[None, Some("a"), Some("b")]),
        }
    }

    fn action<'a>(&'a self, service: &'a ServiceName) -> Action<'a> {
        match self.action {
            "connect" => Action::Connect {
                device: &self.device,
                service,
                services: &self.services,
                ttl: Duration::from_secs(self.ttl),
                reason: self.reason,
            },
            "view" => Action::View(&self.device),
            "revoke" => Action::Revoke,
            _ => Action::ReadAudit,
        }
    }
}

/// Decides as the words say it: deny by default, `forbid` wins, a failure denies.
fn decide(policies: &[Policy], asked: &Asked) -> (bool, Vec<String>) {
    let named = |which: &dyn Fn(&Policy) -> bool| -> Vec<String> {
        let numbered = policies.iter().enumerate().filter(|(_, policy)| which(policy));
        let mut names: Vec<String> = numbered.map(|(number, _)| format!("p{number}")).collect();
        names.sort_unstable();
        names
    };
    let permits = named(&|policy| policy.permit && policy.fits(asked) == Ok(true));
    let forbids = named(&|policy| !policy.permit && policy.fits(asked) == Ok(true));
    let failed = named(&|policy| policy.fits(asked).is_err());
    match (permits.is_empty(), forbids.is_empty(), failed.is_empty()) {
        (_, false, _) => (false, forbids),
        (true, true, _) => (false, Vec::new()),
        (false, true, false) => (false, failed),
        (false, true, true) => (true, permits),
    }
}

#[test]
fn the_engine_decides_as_a_plain_evaluator_does() {
    let seed = std::env::var("TUNNEL_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let mut rng = Rng::with_seed(seed);
    let (mut allowed, mut failed) = (0, 0);
    for _ in 0..SETS {
        let policies: Vec<Policy> = (0..rng.usize(..7)).map(|_| Policy::random(&mut rng)).collect();
        let text: String = policies
            .iter()
            .enumerate()
            .map(|(number, policy)| policy.to_cedar(number))
            .collect();
        let engine = Engine::new(&text).unwrap_or_else(|error| panic!("seed {seed}: {error} in\n{text}"));
        for _ in 0..REQUESTS {
            let asked = Asked::random(&mut rng);
            let service: ServiceName = asked.service.parse().unwrap();
            let circumstances = circumstances();
            let request = Request {
                operator: &asked.operator,
                action: asked.action(&service),
                circumstances: &circumstances,
            };
            let decision = engine.decide(&request);
            let (allow, names) = decide(&policies, &asked);
            assert_eq!(
                decision.allow, allow,
                "seed {seed}: {asked:?}\n{text}{decision:?}"
            );
            assert_eq!(
                decision.policies, names,
                "seed {seed}: {asked:?}\n{text}{decision:?}"
            );
            allowed += u32::from(allow);
            failed += u32::from(!decision.errors.is_empty());
        }
    }
    // The comparison is worth something only if all outcomes occur.
    let total = SETS * REQUESTS;
    assert!(
        allowed > total / 20 && allowed < total * 19 / 20,
        "seed {seed}: {allowed} of {total} were allowed"
    );
    assert!(failed > total / 200, "seed {seed}: {failed} of {total} failed");
}
