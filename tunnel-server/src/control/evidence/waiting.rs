//! A queue that is bounded in number and in bytes, and takes what has a key once. Pure.

use std::collections::{BTreeSet, VecDeque};

/// What waits in a queue.
#[derive(Debug)]
pub(super) struct Waiting<K, T> {
    items: VecDeque<(usize, T)>,
    /// Of what waits, or was taken and is not done.
    keys: BTreeSet<K>,
    bytes: usize,
    most: Most,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl<K: Ord, T> Waiting<K, T> {
    /// Makes an empty queue.
    pub(super) const fn new(most: Most) -> Self {
        Self {
            items: VecDeque::new(),
            keys: BTreeSet::new(),
            bytes: 0,
            most,
        }
    }

    /// Adds an item of so many bytes, unless there is one of its key; says whether there is one or there was room.
    #[must_use]
    pub(super) fn push(&mut self, key: Option<K>, item: T, bytes: usize) -> bool {
        if key.as_ref().is_some_and(|key| self.keys.contains(key)) {
            return true;
        }
        let fits = self.items.len() < self.most.count && self.bytes.saturating_add(bytes) <= self.most.bytes;
        if fits {
            self.keys.extend(key);
            self.bytes += bytes;
            self.items.push_back((bytes, item));
        }
        fits
    }

    /// Takes those that have waited longest, `count` at most, each with its bytes. Others of their keys are passed over until
    /// those are forgotten.
    pub(super) fn take(&mut self, count: usize) -> Vec<(usize, T)> {
        let count = count.min(self.items.len());
        let taken: Vec<_> = self.items.drain(..count).collect();
        self.bytes -= taken.iter().map(|(bytes, _)| bytes).sum::<usize>();
        taken
    }

    /// Takes items back that were taken, before those that came after them. There is always room for those.
    pub(super) fn put_back(&mut self, taken: Vec<(usize, T)>) {
        for item in taken.into_iter().rev() {
            self.bytes += item.0;
            self.items.push_front(item);
        }
    }

    /// What had this key is done.
    pub(super) fn forget(&mut self, key: Option<K>) {
        if let Some(key) = key {
            self.keys.remove(&key);
        }
    }

    /// Says whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_number_nor_bytes_grow_without_bound_and_the_order_stays() {
        let (count, bytes) = (3, 100);
        let mut waiting = Waiting::<u8, _>::new(Most { count, bytes });
        assert!(waiting.push(None, "a", 10) && waiting.push(None, "b", 10) && waiting.push(None, "c", 10));
        assert!(!waiting.push(None, "d", 10), "too many");
        let taken = waiting.take(2);
        assert_eq!(taken, [(10, "a"), (10, "b")]);
        assert!(!waiting.push(None, "e", 91), "too long");
        assert!(!waiting.push(None, "e", usize::MAX), "far too long");
        assert!(waiting.push(None, "e", 90));
        assert!(!waiting.push(None, "f", 1));
        waiting.put_back(taken);
        assert!(!waiting.push(None, "f", 0), "too many again");
        let all: Vec<_> = waiting.take(10).into_iter().map(|(_, item)| item).collect();
        assert_eq!(all, ["a", "b", "c", "e"]);
        assert!(waiting.is_empty());
        assert!(waiting.push(None, "g", 100), "and all the room is there again");
    }

    #[test]
    fn what_waits_or_is_being_done_is_passed_over_when_it_comes_again() {
        let (count, bytes) = (2, 100);
        let mut waiting = Waiting::new(Most { count, bytes });
        assert!(waiting.push(Some(1), "a", 1) && waiting.push(Some(2), "b", 1));
        assert!(waiting.push(Some(1), "again", 1), "no room is needed");
        assert!(!waiting.push(Some(3), "c", 1));
        let taken = waiting.take(1);
        assert!(waiting.push(Some(1), "again", 1));
        waiting.put_back(taken);
        assert_eq!(waiting.take(10), [(1, "a"), (1, "b")]);
        waiting.forget(Some(1));
        assert!(waiting.push(Some(1), "later", 1) && waiting.push(Some(2), "again", 1));
        assert!(
            waiting.push(Some(3), "c", 1),
            "one that had no room is not taken for one that waits"
        );
        assert_eq!(waiting.take(10), [(1, "later"), (1, "c")]);
    }
}
