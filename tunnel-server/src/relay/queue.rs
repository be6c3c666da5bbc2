//! What waits to go out over one WebSocket connection: bounded, dropping what comes too late, never making anybody wait.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use tunnel_proto::carrier::{self, FULL, PREFIX};

use super::train::{Sent, Train};

/// Bytes that wait at most (THREATS part 5, "per circuit queue").
pub(super) const LIMIT: usize = 256 * 1024;

/// Room above the limit that only control datagrams may use: a full queue must not hide the end of a circuit.
const RESERVE: usize = 4 * 1024;

/// The queue of one connection. Datagrams stand in it as they will stand in messages, so that nothing is copied twice.
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    writer: Option<Waker>,
}

impl Queue {
    /// Adds the datagrams of a train for which there is room.
    pub(super) fn push(&self, train: Train<'_>) -> Sent {
        self.add(LIMIT, train)
    }

    /// Adds a control datagram, also where others find no room.
    pub(super) fn push_control(&self, datagram: &[u8]) {
        if let Some(train) = Train::new(datagram, datagram.len(), None) {
            self.add(LIMIT + RESERVE, train);
        }
    }

    fn add(&self, limit: usize, train: Train<'_>) -> Sent {
        let mut waiting = self.waiting();
        let mut sent = Sent::default();
        for datagram in train.datagrams() {
            if waiting.bytes + datagram.len() + PREFIX > limit {
                break;
            }
            waiting.add(datagram, train.bytes.len());
            sent += Sent {
                datagrams: 1,
                bytes: datagram.len(),
            };
        }
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
            Some(message) => {
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

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, datagram: &[u8], more: usize) {
        let needed = datagram.len() + PREFIX;
        let fits = self
            .messages
            .back()
            .is_some_and(|message| message.len() + needed <= FULL);
        if !fits {
            // The first message takes what is there; one behind it means that the writer is slow, and it will fill up.
            let room = if self.messages.is_empty() {
                (more + more / 16 + needed).min(FULL)
            } else {
                FULL
            };
            self.messages.push_back(Vec::with_capacity(room.max(needed)));
        }
        if let Some(message) = self.messages.back_mut() {
            carrier::push(message, datagram);
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
            assert!(message.len() <= FULL);
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
