//! What a fleet accepts and refuses: each bad chain stands beside the good one that it differs from.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod bytes;
mod chains;
mod forge;
mod names;
mod times;
mod usages;
