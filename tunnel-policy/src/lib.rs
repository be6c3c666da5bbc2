//! Policies: facts and a question in, a decision with its reasons out.
//!
//! The crate is pure: no clock, no store, no network, no file. Deny is the default, `forbid` wins over `permit`, and a
//! policy that fails while it is evaluated denies, since a `forbid` that failed may have been the one that counts (THREATS
//! I3). The server decides with it, and the command line tests, compares and replays policies with it, without a server.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

mod cases;
mod check;
mod diff;
mod engine;
mod entities;
mod index;
mod limits;
mod question;
mod replay;
mod units;
mod why;

#[cfg(test)]
mod tests;

pub use cases::{CaseError, CaseResult, Cases, MAX_CASES_BYTES};
pub use check::{Checked, MAX_POLICY_BYTES, PolicyErrors, Problem, check};
pub use diff::{Difference, diff};
pub use engine::{Decision, Engine, Outcome, Verdict};
pub use limits::Limits;
pub use question::{
    Action, Approval, Circumstances, Device, Fact, MAX_APPROVALS, Operator, Question, Reported, Request,
    Terms,
};

pub use replay::{Line, Past, Replay, Replayed};
pub use why::{Need, Rule, Why};

/// The schema: what policies can speak about, in Cedar's own form.
pub const SCHEMA_TEXT: &str = concat!(
    include_str!("schema/types.cedarschema"),
    include_str!("schema/actions.cedarschema"),
    include_str!("schema/groups.cedarschema"),
);

/// The policy that a new fleet starts with.
pub const FIRST_POLICY: &str = include_str!("first.cedar");
