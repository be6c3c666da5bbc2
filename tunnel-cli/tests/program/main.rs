//! The program as its users meet it.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod from_outside;
mod lock;
mod login;
mod openssh;
mod place;
mod policy;
