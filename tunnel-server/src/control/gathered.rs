//! What is refused too often to be worth a record each: counted by who and from where, and recorded together (THREATS
//! AUD-05). What somebody with a right does is never here.

use std::collections::BTreeMap;

use tunnel_proto::UnixTime;

use crate::audit::Event;

/// Who and from where that are told apart between two records; all others are one.
const MAX_SOURCES: usize = 256;

/// Name of all who are not told apart.
const OTHERS: &str = "others";

/// Refusals since the last records of them. Pure.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    by: BTreeMap<(String, String), Counts>,
}

#[derive(Debug)]
struct Counts {
    since: UnixTime,
    what: BTreeMap<String, u64>,
}

impl Gathered {
    /// Counts a refusal. `what` is one of few words: a kind of record and a code.
    pub(crate) fn count(&mut self, by: &str, source: &str, what: &str, now: UnixTime) {
        let mut key = (by.to_owned(), source.to_owned());
        if self.by.len() >= MAX_SOURCES && !self.by.contains_key(&key) {
            key = (OTHERS.to_owned(), String::new());
        }
        let counts = self.by.entry(key).or_insert_with(|| Counts {
            since: now,
            what: BTreeMap::new(),
        });
        *counts.what.entry(what.to_owned()).or_default() += 1;
    }

    /// Returns the records of what was counted, and begins anew.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        let event = |((by, source), Counts { since, what })| Event::DenialsGathered {
            by,
            source,
            since,
            count: what.values().sum(),
            what,
        };
        std::mem::take(&mut self.by).into_iter().map(event).collect()
    }

    /// Takes back records that could not be written.
    pub(crate) fn put_back(&mut self, events: Vec<Event>) {
        for event in events {
            let Event::DenialsGathered {
                by,
                source,
                since,
                what,
                ..
            } = event
            else {
                continue;
            };
            let counts = self.by.entry((by, source)).or_insert_with(|| Counts {
                since,
                what: BTreeMap::new(),
            });
            counts.since = counts.since.min(since);
            for (what, count) in what {
                *counts.what.entry(what).or_default() += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    /// THREATS AUD-05: of a million refusals each is counted, and what they take is bounded.
    #[test]
    fn a_million_refusals_are_few_records_and_each_counts() {
        let mut gathered = Gathered::default();
        for number in 0..1_000_000_u64 {
            let by = format!("operator/o{}", number % 5000);
            gathered.count(&by, "192.0.2.1", "tunnel.denied E_POLICY_DENY", NOW);
        }
        let events = gathered.take();
        assert_eq!(events.len(), MAX_SOURCES + 1);
        let bytes: usize = events.iter().map(|event| event.write().body.len()).sum();
        assert!(bytes < 100_000, "{bytes}");
        let counted = |events: &[Event]| -> u64 {
            let count = |event: &Event| match event {
                Event::DenialsGathered { count, .. } => *count,
                _ => 0,
            };
            events.iter().map(count).sum()
        };
        assert_eq!(counted(&events), 1_000_000);
        assert!(gathered.take().is_empty());
        gathered.count("operator/o1", "192.0.2.1", "access.denied", NOW);
        gathered.put_back(events);
        assert_eq!(counted(&gathered.take()), 1_000_001);
    }
}
