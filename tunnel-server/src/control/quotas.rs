//! How much callers and agents may make the server do and write down.

use std::time::{Duration, Instant};

use tunnel_proto::{DeviceId, Identity};

use crate::run::gate::Source;
use crate::run::rate::{Allowance, Rate};

/// Enrolments that fail. Ten people behind one address can log in together.
const ENROLMENTS: Allowance = Allowance {
    burst: 30,
    refill: Duration::from_secs(2),
    burst_all: 2_000,
    refill_all: Duration::from_millis(20),
};

/// Tunnels that one operator asks for: an automation's burst over a whole fleet, and then fifty a second.
const DECISIONS: Allowance = Allowance {
    burst: 1_000,
    refill: Duration::from_millis(20),
    burst_all: 10_000,
    refill_all: Duration::from_millis(1),
};

/// Explanations, each of which takes many decisions: people ask for them one by one.
const EXPLANATIONS: Allowance = Allowance {
    burst: 60,
    refill: Duration::from_millis(500),
    burst_all: 500,
    refill_all: Duration::from_millis(20),
};

/// Records that one can cause without having any right: refused tokens, and links that come and go (THREATS AUD-05).
const RECORDS: Allowance = Allowance {
    burst: 200,
    refill: Duration::from_secs(1),
    burst_all: 20_000,
    refill_all: Duration::from_millis(2),
};

/// Refusals that get a record each; those beyond are gathered. All together about 7 MB in the first minute of a flood, and
/// 5 MB in each one after (THREATS AUD-05).
const DENIALS: Allowance = Allowance {
    burst: 100,
    refill: Duration::from_secs(1),
    burst_all: 1_000,
    refill_all: Duration::from_millis(30),
};

/// Links of one device. A network that comes and goes needs some in a row; what a device takes beyond that would be taken
/// from the rest of the fleet, and all together have a rate of their own (THREATS SRV-08).
const LINKS: Allowance = Allowance {
    burst: 5,
    refill: Duration::from_secs(1),
    burst_all: u32::MAX,
    refill_all: Duration::from_millis(1),
};

/// The quotas of everybody.
#[derive(Debug)]
pub(crate) struct Quotas {
    pub(crate) enrolments: Rate<Source>,
    pub(crate) decisions: Rate<Identity>,
    pub(crate) explanations: Rate<Identity>,
    pub(crate) records: Rate<Identity>,
    pub(crate) denials: Rate<Identity>,
    pub(crate) links: Rate<DeviceId>,
}

impl Quotas {
    /// Starts with nothing used.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            enrolments: Rate::new(ENROLMENTS, now),
            decisions: Rate::new(DECISIONS, now),
            explanations: Rate::new(EXPLANATIONS, now),
            records: Rate::new(RECORDS, now),
            denials: Rate::new(DENIALS, now),
            links: Rate::new(LINKS, now),
        }
    }
}
