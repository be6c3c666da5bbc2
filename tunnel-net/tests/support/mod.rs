//! What the tests of this crate share; each uses its part.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod fleet;
pub(crate) mod lab;
pub(crate) mod relay;
pub(crate) mod skip;

use std::time::Duration;

/// A machine that does much else is slow, and what hangs hangs for ever.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for something that must happen soon.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("not in time: {what}"),
    }
}
