//! The agent on a device: it dials out, offers named services, and decides for itself who may use them.
//!
//! It listens on no port and takes no address, command or policy from the network: what may happen stands in the owner's
//! file, and a grant can only use it. The deciding parts (`policy`, `acceptance`, `commands`, `replay`, `lifetime`, `moment`, `outgoing`,
//! `target`, `windows`, the reading of `config`) are pure; the rest are thin shells round them.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

pub mod acceptance;
pub mod access;
pub mod agent;
pub mod causes;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod connect;
pub mod defaults;
pub mod enrol;
pub mod failure;
pub mod host_keys;
pub mod http;
pub mod lifetime;
pub mod moment;
pub mod operator;
pub mod outgoing;
pub mod policy;
pub mod replay;
pub mod run;
pub mod session;
pub mod sessions;
mod silence;
pub mod state;
pub mod target;
pub mod windows;

mod channel;
mod consent;
mod link;
mod notice;
mod site;
mod supervisor;
mod tunnel;

#[cfg(test)]
mod testing;
