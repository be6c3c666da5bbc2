//! Waiting for a state, with a deadline that says what was waited for.

use std::time::{Duration, Instant};

/// How long things may take that take milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Pause between two looks at a state.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks at a state until there is an answer.
///
/// # Panics
/// When there is none in time: the message names `what`.
#[track_caller]
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    until_ok(what, deadline, || look().ok_or("not yet"))
}

/// As [`until`], and tells the last reason why there was no answer.
///
/// # Panics
/// When there is none in time.
#[track_caller]
pub fn until_ok<T, E: std::fmt::Display>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        let error = match look() {
            Ok(answer) => return answer,
            Err(error) => error,
        };
        assert!(
            start.elapsed() < deadline,
            "waited {deadline:?} for {what}: {error}"
        );
        std::thread::sleep(PAUSE);
    }
}
