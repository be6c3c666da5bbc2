//! The attacks of `docs/threats.md` as tests: each row is one, named by its id, against the real programs over real sockets.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod binds;
mod datagrams;
mod evidence;
mod floods;
mod handshakes;
mod lock;
mod path;
mod policies;
mod quic;
mod report;
mod rights;
mod streams;
mod tokens;
mod web;
mod world;
