//! How long the server may be silent before the device ends its tunnels by itself. Pure.
//!
//! Nobody can tell a device without a server that trust has ended. Most owners want its tunnels to go on all the same, until
//! their grants' end; one who does not says for how long (THREATS SRV-10).

use std::time::{Duration, Instant};

/// How often the server is asked within the longest silence, so that one lost answer ends nothing.
const ASKED: u32 = 3;

/// When the server was heard, and how long that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence {
    longest: Option<Duration>,
    since: Instant,
}

impl Silence {
    /// Starts to count; for ever if there is no longest silence.
    pub(crate) const fn new(now: Instant, longest: Option<Duration>) -> Self {
        Self { longest, since: now }
    }

    /// The server was there at this time.
    pub(crate) fn handle_heard(&mut self, at: Instant) {
        self.since = self.since.max(at);
    }

    /// The owner has said what counts. Where that is something else than before, it counts from here on: until now the
    /// server was asked more seldom.
    pub(crate) fn handle_setting(&mut self, now: Instant, longest: Option<Duration>) {
        if longest != self.longest {
            *self = Self::new(now, longest);
        }
    }

    /// Returns when the silence is too long; other calls may change it.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.longest.map(|longest| self.since + longest)
    }

    /// Returns how often the server is to be asked at least.
    pub(crate) fn ask_every(&self) -> Option<Duration> {
        self.longest.map(|longest| longest / ASKED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_counted_from_the_last_time_that_the_server_was_there() {
        let mut silence = Silence::new(start(), Some(9 * SECOND));
        assert_eq!(silence.due(), Some(start() + 9 * SECOND));
        assert_eq!(silence.ask_every(), Some(3 * SECOND));
        silence.handle_heard(start() + 4 * SECOND);
        silence.handle_heard(start() + 2 * SECOND);
        assert_eq!(silence.due(), Some(start() + 13 * SECOND));
    }

    #[test]
    fn a_new_setting_counts_from_when_it_is_made_and_without_one_nothing_is_due() {
        let mut silence = Silence::new(start(), None);
        assert_eq!((silence.due(), silence.ask_every()), (None, None));
        let later = start() + 1000 * SECOND;
        silence.handle_setting(later, Some(10 * SECOND));
        assert_eq!(silence.due(), Some(later + 10 * SECOND));
        silence.handle_setting(later + SECOND, Some(10 * SECOND));
        assert_eq!(
            silence.due(),
            Some(later + 10 * SECOND),
            "it is the same as before"
        );
        silence.handle_setting(later + SECOND, None);
        assert_eq!(silence.due(), None);
    }
}
