//! What waits to go out over one WebSocket connection: bounded, dropping what comes too late, never making anybody wait.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tunnel_proto::carrier::{self, Batch, PREFIX};

use super::train::{Sent, Train};

/// Bytes that wait at most (THREATS part 5, "per circuit queue").
pub(super) const LIMIT: usize = 256 * 1024;

/// How long the first in the queue may wait before the ends are made to slow down. On a slow link a queue that is full by
/// bytes would make a keystroke wait for all of them.
const LATE: Duration = Duration::from_millis(30);

/// How long the ends need to notice: they miss one datagram in that time, and more in each following one as long as it does
/// not help (after RFC 8289, CoDel).
const NOTICE: Duration = Duration::from_millis(100);

/// How long the first in the queue may wait before no more than [`FLOOR`] is taken.
const TOO_LATE: Duration = Duration::from_millis(200);

/// Bytes that may wait however slow the link is: what an end sends at once at first.
const FLOOR: usize = 32 * 1024;

/// Room above the limit that only control datagrams may use: a full queue must not hide the end of a circuit.
const RESERVE: usize = 4 * 1024;

/// The queue of one connection. Datagrams stand in it as they will stand in messages, so that nothing is copied twice.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    messages: VecDeque<Waits>,
    bytes: usize,
    batch: Batch,
    writer: Option<Waker>,
    /// Datagrams that were dropped since the queue was last in time.
    dropped: u32,
    /// When the next one may be dropped.
    patience: Option<Instant>,
}

/// A message and when its first datagram came.
#[derive(Debug)]
struct Waits {
    message: Vec<u8>,
    since: Instant,
}

impl Default for Queue {
    fn default() -> Self {
        Self(Mutex::new(Waiting {
            messages: VecDeque::new(),
            bytes: 0,
            batch: Batch::new(Instant::now()),
            writer: None,
            dropped: 0,
            patience: None,
        }))
    }
}

impl Queue {
    /// Adds the datagrams of a train for which there is room.
    pub(super) fn push(&self, train: Train<'_>) -> Sent {
        self.push_at(Instant::now(), train)
    }

    fn push_at(&self, now: Instant, train: Train<'_>) -> Sent {
        let mut waiting = self.waiting();
        let late = waiting.late(now);
        let limit = if late > TOO_LATE { FLOOR } else { LIMIT };
        let dropped = usize::from(waiting.must_drop(now, late));
        self.add(waiting, now, limit, train, dropped)
    }

    /// Adds a control datagram, also where others find no room.
    pub(super) fn push_control(&self, datagram: &[u8]) {
        if let Some(train) = Train::new(datagram, datagram.len(), None) {
            self.add(self.waiting(), Instant::now(), LIMIT + RESERVE, train, 0);
        }
    }

    fn add(
        &self,
        mut waiting: MutexGuard<'_, Waiting>,
        now: Instant,
        limit: usize,
        train: Train<'_>,
        dropped: usize,
    ) -> Sent {
        let mut sent = Sent::default();
        for datagram in train.datagrams().skip(dropped) {
            if waiting.bytes + datagram.len() + PREFIX > limit {
                break;
            }
            waiting.add(now, datagram, train.bytes.len());
            sent += Sent {
                datagrams: 1,
                bytes: datagram.len(),
            };
        }
        waiting.batch.add(now, sent.bytes);
        let writer = waiting.writer.take();
        drop(waiting);
        if let Some(writer) = writer {
            writer.wake();
        }
        sent
    }

    /// Takes the next message out, or has the task woken when there is one.
    pub(super) fn poll_message(&self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut waiting = self.waiting();
        match waiting.messages.pop_front() {
            Some(Waits { message, .. }) => {
                waiting.bytes -= message.len();
                Poll::Ready(message)
            }
            None => {
                if !waiting
                    .writer
                    .as_ref()
                    .is_some_and(|writer| writer.will_wake(cx.waker()))
                {
                    waiting.writer = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// Throws away what waits.
    pub(super) fn clear(&self) {
        let mut waiting = self.waiting();
        waiting.messages.clear();
        waiting.bytes = 0;
    }

    /// Returns how many bytes wait.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.waiting().bytes
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Returns how long the first in the queue has waited.
    fn late(&self, now: Instant) -> Duration {
        let first = self.messages.front();
        first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first.since))
    }

    /// Says whether a datagram is to be dropped to make the ends slow down.
    fn must_drop(&mut self, now: Instant, late: Duration) -> bool {
        if late <= LATE {
            self.dropped = 0;
            return false;
        }
        if self.patience.is_some_and(|until| now < until) {
            return false;
        }
        self.dropped += 1;
        self.patience = Some(now + NOTICE.div_f64(f64::from(self.dropped).sqrt()));
        true
    }

    fn add(&mut self, now: Instant, datagram: &[u8], more: usize) {
        let needed = datagram.len() + PREFIX;
        let last = self.messages.back().map_or(0, |last| last.message.len());
        if last == 0 || !self.batch.takes(last, needed) {
            let room = self.batch.room(more + more / 16 + needed);
            self.messages.push_back(Waits {
                message: Vec::with_capacity(room.max(needed)),
                since: now,
            });
        }
        if let Some(last) = self.messages.back_mut() {
            carrier::push(&mut last.message, datagram);
            self.bytes += needed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &Queue) -> Option<Vec<u8>> {
        match queue.poll_message(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        }
    }

    #[test]
    fn datagrams_come_out_in_messages_of_bounded_size() {
        let queue = Queue::default();
        let bytes = [0x40; 1200 * 64];
        for _ in 0..3 {
            assert_eq!(queue.push(Train::new(&bytes, 1200, None).unwrap()).datagrams, 64);
        }
        let mut seen = 0;
        while let Some(message) = take(&queue) {
            assert!(message.len() <= Batch::MOST);
            seen += carrier::datagrams(&message)
                .inspect(|datagram| assert_eq!(datagram.len(), 1200))
                .count();
        }
        assert_eq!(seen, 192);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_full_queue_drops_the_tail_but_takes_control() {
        let queue = Queue::default();
        let bytes = [0x40; 1200 * 50];
        let train = Train::new(&bytes, 1200, None).unwrap();
        let sent: usize = (0..20).map(|_| queue.push(train).datagrams).sum();
        assert_eq!(sent, LIMIT / (1200 + PREFIX));
        assert!(queue.bytes() <= LIMIT);
        queue.push_control(&[4; 50]);
        assert!(queue.bytes() > LIMIT - 1300);
        for _ in 0..1000 {
            queue.push_control(&[4; 50]);
        }
        assert!(queue.bytes() <= LIMIT + RESERVE);
        queue.clear();
        assert_eq!((queue.bytes(), take(&queue)), (0, None));
    }

    #[test]
    fn a_slow_queue_drops_one_by_one_and_sooner_each_time() {
        let (queue, start) = (Queue::default(), Instant::now());
        let bytes = [0x40; 1200 * 10];
        let train = Train::new(&bytes, 1200, None).unwrap();
        let at = |millis| {
            queue
                .push_at(start + Duration::from_millis(millis), train)
                .datagrams
        };
        assert_eq!(
            [0, 30, 31, 32, 130, 131, 132, 190, 202].map(at),
            [10, 10, 9, 10, 10, 9, 10, 10, 0]
        );
        // What is dropped by then is all that does not fit the floor, and it goes on once the writer has caught up.
        while take(&queue).is_some() {}
        assert_eq!([203, 210].map(at), [10, 10]);
    }

    #[test]
    fn a_queue_that_stands_still_takes_no_more_than_its_floor() {
        let (queue, start) = (Queue::default(), Instant::now());
        let bytes = [0x40; 1200];
        let train = Train::new(&bytes, 1200, None).unwrap();
        assert_eq!(queue.push_at(start, train).datagrams, 1);
        for _ in 0..100 {
            queue.push_at(start + TOO_LATE * 2, train);
        }
        assert!(
            (FLOOR - 2500..=FLOOR).contains(&queue.bytes()),
            "{}",
            queue.bytes()
        );
    }

    #[test]
    fn the_largest_datagram_fits_a_message() {
        let queue = Queue::default();
        let bytes = [0x40; super::super::train::MAX_BYTES];
        assert_eq!(
            queue
                .push(Train::new(&bytes, bytes.len(), None).unwrap())
                .datagrams,
            1
        );
        assert!(take(&queue).unwrap().len() <= tunnel_proto::defaults::MAX_WS_MESSAGE);
    }
}
