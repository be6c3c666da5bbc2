//! The end-to-end suites: the real programs, a real sshd, loopback and emulated networks.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod audit;
mod backpressure;
mod blindness;
mod carriers;
mod certificates;
mod chaos;
mod cut;
mod doctor;
mod durability;
mod forward;
<<<<<<< HEAD
mod handover;
=======
mod hostile;
>>>>>>> 0a5c135 (tests: networks that lie, break, forget and queue)
mod latency;
mod names;
mod nat;
mod policy;
mod presence;
mod proxies;
mod ssh;
mod strangers;
mod tools;
mod world;
