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
    /// Counts refusals. `what` is one of few words: a kind of record and a code.
    pub(crate) fn count(&mut self, by: &str, source: &str, what: &str, count: u64, now: UnixTime) {
        let counts = self.of((by.to_owned(), source.to_owned()), now);
        counts.add(what.to_owned(), count);
    }

    /// Returns the counts of somebody, who is one of the others when there are too many.
    fn of(&mut self, mut key: (String, String), since: UnixTime) -> &mut Counts {
        if self.by.len() >= MAX_SOURCES && !self.by.contains_key(&key) {
            key = (OTHERS.to_owned(), String::new());
        }
        let counts = self.by.entry(key).or_insert_with(|| Counts {
            since,
            what: BTreeMap::new(),
        });
        counts.since = counts.since.min(since);
        counts
    }

    /// Returns the records of what was counted, and begins anew.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        let event = |((by, source), Counts { since, what })| Event::DenialsGathered {
            by,
            source,
            since,
            count: what
                .values()
                .fold(0, |sum: u64, count| sum.saturating_add(*count)),
            what,
        };
        std::mem::take(&mut self.by).into_iter().map(event).collect()
    }

    /// Takes back records that could not be written. However often that happens, they take no more room than others.
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
            let counts = self.of((by, source), since);
            for (what, count) in what {
                counts.add(what, count);
            }
        }
    }
}

impl Counts {
    fn add(&mut self, what: String, count: u64) {
        let counted = self.what.entry(what).or_default();
        *counted = counted.saturating_add(count);
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
            gathered.count(&by, "192.0.2.1", "tunnel.denied E_POLICY_DENY", 1, NOW);
        }
        let events = gathered.take();
        assert_eq!(events.len(), MAX_SOURCES + 1);
        let bytes: usize = events.iter().map(|event| event.write().body.len()).sum();
        assert!(bytes < 100_000, "{bytes}");
        assert_eq!(counted(&events), 1_000_000);
        assert!(gathered.take().is_empty());
        gathered.count("operator/o1", "192.0.2.1", "access.denied", 1, NOW);
        gathered.put_back(events);
        assert_eq!(counted(&gathered.take()), 1_000_001);
    }

    fn counted(events: &[Event]) -> u64 {
        let count = |event: &Event| match event {
            Event::DenialsGathered { count, .. } => *count,
            _ => 0,
        };
        events.iter().map(count).sum()
    }

    /// THREATS AUD-05: a disk that fails for long makes them no more, whoever comes meanwhile.
    #[test]
    fn rounds_that_fail_without_end_are_bounded_and_each_refusal_counts() {
        let mut gathered = Gathered::default();
        for round in 0..1_000_u64 {
            let now = NOW.after(std::time::Duration::from_secs(60 * round));
            for number in 0..300 {
                let by = format!("operator/o{round}-{number}");
                gathered.count(&by, "192.0.2.1", "access.denied", 1, now);
            }
            let mut events = gathered.take();
            assert!(events.len() <= MAX_SOURCES + 1, "{}", events.len());
            // One of them was written, and the next was refused.
            if round == 0 {
                assert_eq!(counted(&[events.remove(0)]), 1);
            }
            let meanwhile = format!("operator/new-{round}");
            gathered.count(&meanwhile, "192.0.2.1", "access.denied", 1, now);
            gathered.put_back(events);
        }
        let events = gathered.take();
        assert_eq!(counted(&events), 301_000 - 1);
        let others = |event: &&Event| matches!(event, Event::DenialsGathered { by, .. } if by == OTHERS);
        let Some(Event::DenialsGathered { since, .. }) = events.iter().find(others) else {
            panic!("there are others")
        };
        assert_eq!(*since, NOW, "since the first of them");
    }
}
