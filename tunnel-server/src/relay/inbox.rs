//! Datagrams for the relay's own QUIC endpoint on their way from the forwarding threads: bounded, copied, never waited for.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use quinn_udp::{EcnCodepoint, RecvMeta};

use super::endpoint::is_plausible;
use super::train::Train;

/// Bytes that wait in one box at most: some 800 first packets of a handshake, half a second of work for one core.
const BYTES: usize = 1024 * 1024;

/// Datagrams that wait in one box at most.
const DATAGRAMS: usize = 4096;

/// Largest datagram that is taken in: what an Ethernet carries.
pub(super) const MAX_DATAGRAM: usize = 1472;

/// One box for each thread that receives, so that they do not wait for each other.
#[derive(Debug)]
pub(super) struct Inbox {
    boxes: Vec<Mutex<Waiting>>,
    /// The box that is emptied first the next time: a flood into one must not hide the others.
    next: AtomicUsize,
    reader: AtomicWaker,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Waiting {
    bytes: VecDeque<u8>,
    heads: VecDeque<Head>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    from: SocketAddr,
    to: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    length: usize,
}

impl Inbox {
    /// Makes `count` boxes, with all the memory that they will ever have.
    pub(super) fn new(count: usize) -> Self {
        let waiting = || Waiting {
            bytes: VecDeque::with_capacity(BYTES),
            heads: VecDeque::with_capacity(DATAGRAMS),
        };
        Self {
            boxes: (0..count).map(|_| Mutex::new(waiting())).collect(),
            next: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Puts datagrams into a box; what finds no room, or cannot be of a link, is dropped and counted.
    pub(super) fn push(&self, number: usize, from: SocketAddr, to: Option<IpAddr>, train: Train<'_>) {
        let Some(waiting) = self.boxes.get(number) else {
            return;
        };
        let mut dropped = 0;
        {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for datagram in train.datagrams() {
                if !waiting.push(
                    Head {
                        from,
                        to,
                        ecn: train.ecn,
                        length: datagram.len(),
                    },
                    datagram,
                ) {
                    dropped += 1;
                }
            }
        }
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        self.reader.wake();
    }

    /// Takes datagrams out, one into each buffer.
    pub(super) fn poll(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<usize> {
        let mut count = self.take(buffers, metas);
        if count == 0 {
            self.reader.register(cx.waker());
            count = self.take(buffers, metas);
        }
        if count == 0 {
            Poll::Pending
        } else {
            Poll::Ready(count)
        }
    }

    /// Returns how many datagrams were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn take(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut slots = buffers.iter_mut().zip(metas.iter_mut());
        let mut count = 0;
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.boxes.len().max(1);
        let (before, from) = self.boxes.split_at(first);
        for waiting in from.iter().chain(before) {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            while !waiting.heads.is_empty() {
                let Some((buffer, meta)) = slots.next() else {
                    return count;
                };
                *meta = waiting.pop(buffer);
                count += 1;
            }
        }
        count
    }
}

impl Waiting {
    fn push(&mut self, head: Head, datagram: &[u8]) -> bool {
        let fits = datagram.len() <= MAX_DATAGRAM
            && is_plausible(datagram)
            && self.bytes.len() + datagram.len() <= BYTES;
        if !fits || self.heads.len() >= DATAGRAMS {
            return false;
        }
        self.heads.push_back(head);
        self.bytes.extend(datagram);
        true
    }

    fn pop(&mut self, buffer: &mut [u8]) -> RecvMeta {
        let mut meta = RecvMeta::default();
        let Some(head) = self.heads.pop_front() else {
            return meta;
        };
        let length = head.length.min(buffer.len());
        let (front, back) = self.bytes.as_slices();
        let split = length.min(front.len());
        buffer[..split].copy_from_slice(&front[..split]);
        buffer[split..length].copy_from_slice(&back[..length - split]);
        self.bytes.drain(..head.length);
        meta.addr = head.from;
        meta.dst_ip = head.to;
        meta.ecn = head.ecn;
        meta.len = length;
        meta.stride = length;
        meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn poll(inbox: &Inbox) -> Vec<(u16, Vec<u8>)> {
        let mut bytes = vec![[0; MAX_DATAGRAM]; 32];
        let mut buffers: Vec<_> = bytes.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); 32];
        match inbox.poll(&mut Context::from_waker(Waker::noop()), &mut buffers, &mut metas) {
            Poll::Ready(count) => {
                let seen = metas[..count].iter().zip(&bytes);
                seen.map(|(meta, bytes)| (meta.addr.port(), bytes[..meta.len].to_vec()))
                    .collect()
            }
            Poll::Pending => Vec::new(),
        }
    }

    fn from(port: u16) -> SocketAddr {
        SocketAddr::new([192, 0, 2, 1].into(), port)
    }

    #[test]
    fn datagrams_come_out_as_they_went_in() {
        let inbox = Inbox::new(2);
        inbox.push(0, from(6), None, Train::new(&[0x40; 55], 30, None).unwrap());
        assert_eq!(poll(&inbox), [(6, vec![0x40; 30]), (6, vec![0x40; 25])]);
        inbox.push(1, from(7), None, Train::new(&[0x41; 50], 50, None).unwrap());
        assert_eq!(poll(&inbox), [(7, vec![0x41; 50])]);
        assert_eq!(poll(&inbox), []);
    }

    #[test]
    fn a_full_box_drops_and_its_memory_does_not_grow() {
        let inbox = Inbox::new(1);
        let capacity = inbox.boxes[0].lock().unwrap().bytes.capacity();
        let bytes = [0x40; 1200 * 50];
        for _ in 0..100 {
            inbox.push(0, from(1), None, Train::new(&bytes, 1200, None).unwrap());
        }
        inbox.push(0, from(1), None, Train::new(&bytes, 1473, None).unwrap());
        assert_eq!(inbox.dropped(), 100 * 50 - (BYTES / 1200) as u64 + 41);
        let mut seen = 0;
        loop {
            match poll(&inbox).len() {
                0 => break,
                count => seen += count,
            }
        }
        assert_eq!(seen, BYTES / 1200);
        assert_eq!(inbox.boxes[0].lock().unwrap().bytes.capacity(), capacity);
    }
}
