//! Faults under live sessions: a scripted matrix and a random run, both with sessions that check every byte.
//!
//! [`fault`] says what can go wrong and, from a seed, what goes wrong when. [`field`] is the emulated network with the
//! fleet in it, and does it. [`session`] is what lives through it.

pub mod fault;
pub mod field;
pub mod matrix;
pub mod pulse;
pub mod report;
pub mod run;
pub mod service;
pub mod session;
