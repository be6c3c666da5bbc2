//! The harness of the end-to-end tests: it starts the real programs, a real sshd and small services beside them, on
//! loopback or in the namespaces of an emulated network, and ends them with the test.
//!
//! It knows the programs only from outside: their command lines, files, exit codes and JSON.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

pub mod agent;
pub mod api;
pub mod bare;
pub mod bytes;
pub mod chaos;
pub mod checked;
pub mod dns;
pub mod fleet;
pub mod lab;
pub mod manager;
pub mod middle;
pub mod operator;
pub mod place;
pub mod process;
pub mod programs;
pub mod puppet;
pub mod raw;
pub mod server;
pub mod service;
pub mod skip;
pub mod sshd;
pub mod translator;
pub mod wait;

pub use agent::Agent;
pub use fleet::{Fleet, Plan};
pub use lab::Lab;
pub use operator::Operator;
pub use place::Place;
pub use process::{Output, Process};
pub use server::Server;
pub use sshd::Sshd;
pub use wait::{until, until_ok};
