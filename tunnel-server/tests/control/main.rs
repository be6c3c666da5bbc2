//! The control plane in-process, on loopback, with real TLS, the real store and the real relay. Only the agents are
//! stand-ins: they speak the control link and do what a test tells them.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod agent;
mod api;
mod approvals;
mod audit;
mod authoriser;
mod cuts;
mod ending;
mod enrolment;
mod facts;
mod hook;
mod leg;
mod limits;
mod notifications;
mod opening;
mod outages;
mod probing;
mod restart;
mod rotation;
mod sessions;
mod suspension;
mod trust;
mod world;
