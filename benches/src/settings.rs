//! How long and how often a run measures.

use std::path::PathBuf;
use std::time::Duration;

/// Sizes of a run. Tests use small ones.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This crate's binary, which also holds the baselines.
    pub program: PathBuf,
    /// How often everything is measured; runs of the columns alternate, so that a change of the machine meets them all.
    pub runs: usize,
    /// What is left out at the start of a bulk transfer.
    pub warm_up: Duration,
    /// How long a bulk transfer is measured.
    pub bulk: Duration,
    /// Round trips for each latency.
    pub echoes: usize,
    /// Keystrokes beside a bulk transfer, and without one.
    pub keystrokes: usize,
    /// Faults of each kind that a session has to outlive.
    pub faults: u32,
    /// Connections for the time to the first byte.
    pub connects: usize,
    /// Idle agents that are linked at once.
    pub agents: usize,
    /// How long an idle device is listened to.
    pub idle: Duration,
    /// Devices that are linked while tunnels are opened and cut.
    pub crowd: usize,
    /// Tunnels that are opened in a row.
    pub opens: usize,
    /// Sessions that one event cuts.
    pub live: usize,
    /// Events that cut one session each.
    pub cuts: usize,
}

impl Settings {
    /// Returns the sizes for figures that are published.
    pub fn full(program: PathBuf) -> Self {
        Self {
            program,
            runs: 5,
            warm_up: Duration::from_millis(700),
            bulk: Duration::from_secs(3),
            echoes: 5000,
            keystrokes: 500,
            faults: 100,
            connects: 200,
            agents: 100,
            idle: Duration::from_secs(300),
            crowd: 10_000,
            opens: 2_000,
            live: 1_000,
            cuts: 100,
        }
    }

    /// Returns sizes that show that everything works, and whose figures mean little.
    pub fn small(program: PathBuf) -> Self {
        Self {
            program,
            runs: 1,
            warm_up: Duration::from_millis(100),
            bulk: Duration::from_millis(300),
            echoes: 50,
            keystrokes: 20,
            faults: 1,
            connects: 5,
            agents: 2,
            idle: Duration::from_secs(30),
            crowd: 20,
            opens: 40,
            live: 20,
            cuts: 2,
        }
    }
}
