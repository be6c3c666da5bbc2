//! The end-to-end suites: the real programs, a real sshd, loopback and emulated networks.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod approvals;
mod audit;
mod backpressure;
mod blindness;
mod carriers;
mod certificates;
mod chaos;
mod commands;
mod cut;
mod doctor;
mod durability;
mod forward;
mod handover;
mod hostile;
mod latency;
mod lock;
mod names;
mod nat;
mod notifications;
mod onsite;
mod policy;
mod presence;
mod proxies;
mod ssh;
mod strangers;
mod tools;
mod world;
mod zero_trust;
