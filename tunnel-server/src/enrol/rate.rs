//! A token bucket for each source, in a map that cannot grow without end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::run::gate::Source;

/// Attempts that one source has at once. Ten people behind one address can log in together.
const BURST: u32 = 30;
/// How soon one attempt comes back.
const REFILL: Duration = Duration::from_secs(2);
/// Sources that are remembered.
const MAX_SOURCES: usize = 4096;
/// Failed attempts of all sources together that are let through in a row.
const BURST_ALL: u32 = 2000;
/// How soon one of those comes back.
const REFILL_ALL: Duration = Duration::from_millis(20);

/// Limits attempts by source and in all (THREATS ENR-02, SRV-21).
#[derive(Debug)]
pub(crate) struct Rate {
    sources: BTreeMap<Source, Bucket>,
    all: Bucket,
}

/// How many attempts are left, as of an instant.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    used: u32,
    since: Instant,
}

impl Bucket {
    /// Gives back what time has given back.
    fn refill(&mut self, now: Instant, every: Duration) {
        let back = now.saturating_duration_since(self.since).as_nanos() / every.as_nanos();
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        if back >= self.used {
            *self = Self { used: 0, since: now };
        } else {
            self.used -= back;
            self.since += every * back;
        }
    }
}

impl Rate {
    /// Starts with nothing used.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            sources: BTreeMap::new(),
            all: Bucket { used: 0, since: now },
        }
    }

    /// Takes one attempt of a source; `false` if it has none left.
    #[must_use]
    pub(crate) fn take(&mut self, now: Instant, source: IpAddr) -> bool {
        self.make_room(now);
        self.all.refill(now, REFILL_ALL);
        let bucket = self
            .sources
            .entry(Source::of(source))
            .or_insert(Bucket { used: 0, since: now });
        bucket.refill(now, REFILL);
        if bucket.used >= BURST || self.all.used >= BURST_ALL {
            return false;
        }
        bucket.used += 1;
        self.all.used += 1;
        true
    }

    /// Gives an attempt back that was a good one.
    pub(crate) fn refund(&mut self, source: IpAddr) {
        if let Some(bucket) = self.sources.get_mut(&Source::of(source)) {
            bucket.used = bucket.used.saturating_sub(1);
        }
        self.all.used = self.all.used.saturating_sub(1);
    }

    /// Forgets the sources that have all of their attempts again; if none has, the one that used least.
    fn make_room(&mut self, now: Instant) {
        if self.sources.len() < MAX_SOURCES {
            return;
        }
        self.sources.retain(|_, bucket| {
            bucket.refill(now, REFILL);
            bucket.used > 0
        });
        while self.sources.len() >= MAX_SOURCES {
            let Some(least) = self
                .sources
                .iter()
                .min_by_key(|(_, bucket)| bucket.used)
                .map(|(source, _)| *source)
            else {
                return;
            };
            self.sources.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_source_runs_out_alone_and_gets_back() {
        let now = Instant::now();
        let mut rate = Rate::new(now);
        assert!((0..BURST).all(|_| rate.take(now, source(1))));
        assert!(!rate.take(now, source(1)));
        assert!(rate.take(now, source(2)));
        assert!(!rate.take(now + REFILL / 2, source(1)));
        assert!(rate.take(now + REFILL, source(1)));
        assert!(!rate.take(now + REFILL, source(1)));
    }

    #[test]
    fn a_good_attempt_costs_nothing() {
        let now = Instant::now();
        let mut rate = Rate::new(now);
        for _ in 0..10 * BURST {
            assert!(rate.take(now, source(1)));
            rate.refund(source(1));
        }
    }

    #[test]
    fn the_map_and_all_sources_together_are_bounded() {
        let now = Instant::now();
        let mut rate = Rate::new(now);
        let passed = (0..10_000).filter(|&n| rate.take(now, source(n))).count();
        assert_eq!(passed, BURST_ALL as usize);
        assert!(rate.sources.len() <= MAX_SOURCES);
    }
}
