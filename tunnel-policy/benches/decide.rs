//! How long a decision takes, with a large policy and beside one that allows everything. `cargo bench -p tunnel-policy`
//! prints a table, and fails if the figure that is asked for is missed.

#![allow(
    clippy::unwrap_used,
    reason = "what the bench makes up is good, or it cannot run"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tunnel_policy::{Circumstances, Device, Engine, Fact, Operator, Question, Reported, Terms};
use tunnel_proto::UnixTime;

/// Sizes of the fleet and of its policy.
const POLICIES: usize = 1_000;
const DEVICES: usize = 10_000;
const OPERATORS: usize = 1_000;

/// Groups that devices and operators are spread over.
const GROUPS: usize = 100;

/// Decisions that are measured, after some that warm up.
const DECISIONS: usize = 20_000;
const WARM_UP: usize = 1_000;

/// What 99 of 100 decisions have to stay below.
const MOST: Duration = Duration::from_millis(2);

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn main() -> ExitCode {
    let all = measure("permit (principal, action, resource);");
    let many = measure(&policies());
    let mut text = format!(
        "A decision about a tunnel: sight of the device and use of one service; {DEVICES} devices, {OPERATORS} operators.\n\n\
         | policy | allowed | p50 µs | p99 µs | max µs |\n|---|---|---|---|---|\n"
    );
    for (name, found) in [("everything is allowed", &all), ("1,000 policies", &many)] {
        let at = |share: f64| found.times[((found.times.len() - 1) as f64 * share) as usize].as_micros();
        let _ = writeln!(
            text,
            "| {name} | {} of {DECISIONS} | {} | {} | {} |",
            found.allowed,
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    let _ = std::io::stdout().write_all(text.as_bytes());
    let p99 = many.times[many.times.len() * 99 / 100];
    if p99 < MOST {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Found {
    times: Vec<Duration>,
    allowed: usize,
}

fn measure(policy: &str) -> Found {
    let engine = Engine::new(policy).unwrap();
    let (mut times, mut allowed) = (Vec::with_capacity(DECISIONS), 0);
    for number in 0..WARM_UP + DECISIONS {
        // An order that repeats no pair soon.
        let question = question(number * 7919);
        let begun = Instant::now();
        let verdict = black_box(engine.weigh(black_box(&question)));
        let took = begun.elapsed();
        if number >= WARM_UP {
            times.push(took);
            allowed += usize::from(verdict.is_allowed());
        }
    }
    times.sort_unstable();
    Found { times, allowed }
}

/// Rules as fleets have them: of groups, of single operators and devices, with conditions, limits and exceptions.
fn policies() -> String {
    let mut text = String::from("@id(\"view\") permit (principal, action == Action::\"view\", resource);\n");
    for number in 0..POLICIES - 1 {
        let group = number % GROUPS;
        let scope = match number % 4 {
            0 => format!(
                "principal in OperatorGroup::\"g{group}\", action == Action::\"connect\", resource in DeviceGroup::\"g{group}\""
            ),
            1 => format!(
                "principal == Operator::\"o{number}\", action == Action::\"connect\", resource in DeviceGroup::\"g{group}\""
            ),
            2 => format!(
                "principal in OperatorGroup::\"g{group}\", action == Action::\"connect\", resource in Device::\"d{number}\""
            ),
            _ => "principal, action == Action::\"connect\", resource".to_owned(),
        };
        let rule = match number % 4 {
            0 => "@max_lifetime(\"30m\") permit",
            1 | 2 => "permit",
            _ => "forbid",
        };
        let condition = match number % 4 {
            0 => "resource.name == \"ssh\" && context.source.isInRange(ip(\"10.0.0.0/8\"))".to_owned(),
            1 => "context has reason && context.reason like \"INC-*\"".to_owned(),
            2 => "context.utc.hour >= 6 && context.certificate_age_secs < 43200".to_owned(),
            _ => format!(
                "resource.device.asserted.hasTag(\"site\") && resource.device.asserted.getTag(\"site\").value == \"s{number}\""
            ),
        };
        let _ = writeln!(
            text,
            "@id(\"p{number}\") {rule} ({scope}) when {{ {condition} }};"
        );
    }
    text
}

fn question(number: usize) -> Question {
    let (operator, device) = (number % OPERATORS, number % DEVICES);
    let value = format!("s{}", device % 50).parse().unwrap();
    let fact = Fact { value, at: NOW };
    Question {
        operator: Operator {
            name: format!("o{operator}").parse().unwrap(),
            groups: (0..3)
                .map(|at| format!("g{}", (operator + at) % GROUPS).parse().unwrap())
                .collect(),
        },
        circumstances: Circumstances {
            now: NOW,
            steady: true,
            source: "10.1.2.3".parse().unwrap(),
            certificate_age: Duration::from_secs(600),
            mfa_age: None,
        },
        device: Device {
            id: format!("d{device}").parse().unwrap(),
            groups: (0..3)
                .map(|at| format!("g{}", (device + at) % GROUPS).parse().unwrap())
                .collect(),
            enrolled_at: NOW,
            certificate_expires_at: NOW,
            asserted: [("site".parse().unwrap(), fact)].into(),
            reported: Reported {
                at: NOW,
                access: true,
                services: vec!["ssh".parse().unwrap()],
                version: Some("0.1.0".into()),
                platform: None,
                facts: Default::default(),
            },
        },
        terms: Terms {
            services: vec!["ssh".parse().unwrap()],
            ttl: Duration::from_secs(3600),
            reason: Some("INC-7".into()),
            approval: None,
            break_glass: false,
            batch: false,
            authoriser: None,
        },
    }
}
