//! What is measured, each as a function that gives rows of figures.

pub mod bulk;
pub mod cut;
pub mod day;
pub mod echo;
pub mod idle;
pub mod loss;
pub mod open;
pub mod setup;
pub mod ssh;
pub mod stall;
pub mod typing;

/// Bytes of a GiB.
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Bytes of a MB of memory, as the limits on memory have it.
const MB: f64 = 1e6;

/// Turns a number of bytes into one that can be divided.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark stay below 2^52")]
const fn float(bytes: u64) -> f64 {
    bytes as f64
}
