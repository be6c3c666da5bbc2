//! A queue that is bounded in number and in bytes. Pure.

use std::collections::VecDeque;

/// What waits in a queue.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    most: Most,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl<T> Waiting<T> {
    /// Makes an empty queue.
    pub(super) const fn new(most: Most) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            most,
        }
    }

    /// Adds an item of so many bytes; says whether there was room.
    #[must_use]
    pub(super) fn push(&mut self, item: T, bytes: usize) -> bool {
        let fits = self.items.len() < self.most.count && self.bytes.saturating_add(bytes) <= self.most.bytes;
        if fits {
            self.bytes += bytes;
            self.items.push_back((bytes, item));
        }
        fits
    }

    /// Takes those that have waited longest, `count` at most, each with its bytes.
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
        let mut waiting = Waiting::new(Most { count, bytes });
        assert!(waiting.push("a", 10) && waiting.push("b", 10) && waiting.push("c", 10));
        assert!(!waiting.push("d", 10), "too many");
        let taken = waiting.take(2);
        assert_eq!(taken, [(10, "a"), (10, "b")]);
        assert!(!waiting.push("e", 91), "too long");
        assert!(!waiting.push("e", usize::MAX), "far too long");
        assert!(waiting.push("e", 90));
        assert!(!waiting.push("f", 1));
        waiting.put_back(taken);
        assert!(!waiting.push("f", 0), "too many again");
        let all: Vec<_> = waiting.take(10).into_iter().map(|(_, item)| item).collect();
        assert_eq!(all, ["a", "b", "c", "e"]);
        assert!(waiting.is_empty());
        assert!(waiting.push("g", 100), "and all the room is there again");
    }
}
