//! The control plane and the relay: who is who, what is decided, what is recorded, and the forwarding of datagrams.
//!
//! The relay knows circuits and addresses and nothing of operators, devices or policies. What is decided is for `tunnel-policy`: facts and a
//! question in, a decision with its reasons out. Nothing here ever holds a plaintext byte of a tunnel.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

pub mod api;
pub mod approvals;
pub mod audit;
pub mod ca;
pub mod cli;
pub mod config;
pub mod failure;
pub mod init;
pub mod notify;
pub mod relay;
pub mod run;
pub mod store;
pub mod webhook;

mod control;
mod enrol;
mod links;
mod metrics;
mod tunnels;
