//! What the three programs agree on: names and ids, signed grants and tokens, wire messages, datagram headers,
//! and the state machines of circuits, legs and links.
//!
//! Everything here is pure. There is no socket, file, clock, environment or task in this crate: time, random bytes
//! and input are handed in, and what should happen next is handed out. The one thing it uses is `ring`, for signatures
//! and message authentication.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

pub mod backoff;
pub mod batch;
pub mod bind;
pub mod blackbox;
pub mod carrier;
pub mod circuit;
pub mod code;
pub mod congestion;
pub mod cose;
pub mod defaults;
pub mod enrol;
pub mod frame;
pub mod grant;
pub mod handover;
pub mod ids;
pub mod keepalive;
pub mod keys;
pub mod leg;
pub mod lock;
pub mod message;
pub mod names;
pub mod outage;
pub mod time;
pub mod token;
mod word;

#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "api")]
pub mod audit;

pub use code::{Code, Refusal};
pub use ids::{ApprovalId, CircuitId, TokenId, TunnelId};
pub use names::{DeviceId, Identity, NodeName, OperatorName, ServiceName, TrustDomain};
pub use time::UnixTime;
