//! Everything between the pure protocol crate and a socket: carriers, the switching socket under quinn, QUIC endpoints,
//! the control link's transport, TLS set-up, private files and clocks.
//!
//! It knows nothing of policies, stores, services or commands; it moves datagrams and proves who is at the other end.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

pub mod addr;
pub mod clock;
pub mod files;
pub mod leg;
pub mod link;
pub mod measure;
pub mod network;
pub mod proxy;
pub mod quic;
pub mod resolve;
pub mod stream;
pub mod tls;
pub mod wake;
pub mod websocket;

mod congestion;
mod dial;
mod wire;

pub use addr::ServerAddr;
pub use proxy::{Proxy, ProxyChoice};
