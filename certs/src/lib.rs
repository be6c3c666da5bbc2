//! Identities in certificates: keys, requests, the authority that answers them, and the verification of what a peer
//! shows.
//!
//! Everything here is pure: it knows no socket, file, clock or task. Time is handed in; random bytes come from `ring`
//! where a key or a signature is made, and are handed in everywhere else.
//!
//! A certificate of a fleet has exactly one name, a SPIFFE id in its only URI, and one usage, which follows from the
//! kind of that name. Whatever has more, or less, is refused.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

#[cfg(feature = "authority")]
pub mod authority;
pub mod error;
pub mod key;
pub mod pem;
pub mod renew;
pub mod request;
pub mod serial;
pub mod trust;

#[cfg(feature = "authority")]
pub use authority::{Authority, AuthorityError, Issued, NewAuthority};
pub use error::CertError;
pub use key::{KeyError, KeyPair, PublicKey};
pub use renew::renew_at;
pub use request::{CertificateRequest, RequestError, request};
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer};
pub use serial::Serial;
pub use trust::{Peer, Trust};
