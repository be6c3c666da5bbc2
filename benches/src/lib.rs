//! Measures the programs of the tunnel system from outside, always beside a peer in the same run.
//!
//! A scenario is a function: it takes settings and paths and gives rows of figures, so that a test runs it small and the
//! program runs it whole. What is compared with is in [`baseline`] and [`path`]. How it is measured, and what the figures
//! do not say, stands in `docs/benchmarks.md`.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        reason = "tests may unwrap, and compare what they made"
    )
)]

pub mod baseline;
pub mod crowd;
pub mod load;
pub mod machine;
pub mod network;
pub mod path;
pub mod report;
pub mod scenario;
pub mod settings;
pub mod stats;
pub mod suite;
pub mod usage;
