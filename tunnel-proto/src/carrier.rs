//! Carriers: how a leg's datagrams travel, and how several of them share one WebSocket message.

use std::fmt;
use std::time::{Duration, Instant};

/// A way for datagrams.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Carrier {
    /// One datagram in one UDP packet: preferred, since nothing waits for anything else.
    Udp,
    /// Many datagrams in one message of a WebSocket over TLS: passes where only the web does.
    WebSocket,
}

impl Carrier {
    /// Returns the name that logs, the CLI and the API use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::WebSocket => "websocket",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes before each datagram in a message: its length, big-endian.
pub const PREFIX: usize = 2;

/// Where a message is full, in bytes: below the bound of a WebSocket message with room for one datagram of a path's MTU.
pub const FULL: usize = 60_000;

/// How large the messages of one WebSocket may be: what it has lately carried in a millisecond.
///
/// A message can be read only when the last of it has come. On a slow line a large one keeps its first datagram waiting, on
/// each leg again, and congestion control takes that for a queue; on a fast one small messages cost processor time.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    since: Instant,
    bytes: usize,
    limit: usize,
}

impl Batch {
    /// For so long a datagram may wait for the others of its message.
    const TIME: Duration = Duration::from_millis(1);

    /// How often it is reckoned anew.
    const INTERVAL: Duration = Duration::from_millis(50);

    /// Most bytes that share a message: it is written before anything else can be.
    pub const MOST: usize = 32 * 1024;

    /// Starts with a datagram in each message.
    pub const fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            limit: 0,
        }
    }

    /// So many bytes were handed to the WebSocket.
    pub fn add(&mut self, now: Instant, bytes: usize) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= Self::INTERVAL {
            let share = self.bytes as u128 * Self::TIME.as_nanos() / elapsed.as_nanos();
            self.limit = usize::try_from(share).map_or(Self::MOST, |limit| limit.min(Self::MOST));
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// Returns how much of so many bytes a message will hold, to make room for them.
    pub fn room(&self, bytes: usize) -> usize {
        bytes.min(self.limit)
    }

    /// Says whether a message of so many bytes takes so many more. An empty one takes any datagram.
    pub const fn takes(&self, message: usize, more: usize) -> bool {
        message == 0 || message + more <= self.limit
    }
}

/// Adds one datagram to a message. The caller keeps the message below its bound.
pub fn push(message: &mut Vec<u8>, datagram: &[u8]) {
    let Ok(length) = u16::try_from(datagram.len()) else {
        return;
    };
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(datagram);
}

/// Goes through the datagrams of a message. A message that is cut off gives what is whole, and then ends.
pub fn datagrams(mut message: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = message.split_first_chunk::<PREFIX>()?;
        let (datagram, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        message = rest;
        Some(datagram)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn datagrams_come_back(sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..20)) {
            let mut message = Vec::new();
            for datagram in &sent {
                push(&mut message, datagram);
            }
            prop_assert_eq!(datagrams(&message).collect::<Vec<_>>(), sent);
        }

        #[test]
        fn messages_hold_what_is_carried_in_a_millisecond(mbit in 1_usize..10_000, size in 40_usize..1500) {
            let mut now = Instant::now();
            let mut batch = Batch::new(now);
            prop_assert!(batch.takes(0, size) && !batch.takes(1, size));
            for _ in 0..120 {
                batch.add(now, mbit * 125);
                now += Duration::from_millis(1);
            }
            let expected = (mbit * 125).min(Batch::MOST);
            let off = batch.limit.abs_diff(expected);
            prop_assert!(off <= expected / 8, "{} for {}", batch.limit, expected);
            // After a rest it begins anew.
            batch.add(now + Duration::from_hours(1), size);
            prop_assert!(!batch.takes(1, size.max(400)));
        }

        #[test]
        fn any_message_ends(message in prop::collection::vec(any::<u8>(), 0..500)) {
            let whole: usize = datagrams(&message).map(|d| d.len() + PREFIX).sum();
            prop_assert!(whole <= message.len());
        }
    }
}
