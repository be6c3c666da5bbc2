//! What the agent has to tell the server and has not told yet. Pure and bounded.

use std::collections::VecDeque;

use tunnel_proto::message::FromAgent;

/// Messages that wait for the link. Ends of tunnels and sessions outlast a link; the rest makes sense on it only.
#[derive(Debug)]
pub struct Outgoing {
    waiting: VecDeque<FromAgent>,
    capacity: usize,
    dropped: u64,
}

impl Outgoing {
    /// Makes an empty queue for at most `capacity` messages.
    pub fn new(capacity: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            capacity,
            dropped: 0,
        }
    }

    /// Adds a message. When the queue is full, the oldest end of a session makes room, else the oldest message.
    pub fn push(&mut self, message: FromAgent) {
        if self.waiting.len() >= self.capacity {
            let session = self
                .waiting
                .iter()
                .position(|message| matches!(message, FromAgent::SessionEnded(_)));
            self.waiting.remove(session.unwrap_or(0));
            self.dropped += 1;
        }
        self.waiting.push_back(message);
    }

    /// Takes the oldest message.
    pub fn pop(&mut self) -> Option<FromAgent> {
        self.waiting.pop_front()
    }

    /// Forgets what makes sense only on the link that is gone.
    pub fn link_lost(&mut self) {
        self.waiting
            .retain(|message| matches!(message, FromAgent::TunnelEnded(_) | FromAgent::SessionEnded(_)));
    }

    /// Says whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns how many messages were dropped for want of room.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::message::{Report, SessionEnded, TunnelEnded};
    use tunnel_proto::{Code, TunnelId};

    use super::*;

    fn tunnel(number: u8) -> FromAgent {
        let tunnel = TunnelId::from_bytes([number; 16]);
        FromAgent::TunnelEnded(TunnelEnded {
            tunnel,
            reason: Code::TunnelIdle,
            sessions: 0,
        })
    }

    fn session(number: u8) -> FromAgent {
        FromAgent::SessionEnded(SessionEnded {
            tunnel: TunnelId::from_bytes([number; 16]),
            service: "ssh".into(),
            refused: None,
            millis: 0,
            bytes_in: 0,
            bytes_out: 0,
            end: None,
        })
    }

    #[test]
    fn ends_outlast_a_link_and_nothing_else_does() {
        let mut queue = Outgoing::new(10);
        queue.push(FromAgent::Report(Report::default()));
        queue.push(session(1));
        queue.push(FromAgent::Renew(Vec::new()));
        queue.push(tunnel(1));
        queue.link_lost();
        assert_eq!(queue.pop(), Some(session(1)));
        assert_eq!(queue.pop(), Some(tunnel(1)));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_keeps_ends_of_tunnels() {
        let mut queue = Outgoing::new(3);
        for message in [tunnel(1), session(1), session(2), tunnel(2), tunnel(3), tunnel(4)] {
            queue.push(message);
        }
        assert_eq!(queue.dropped(), 3);
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(rest, [tunnel(2), tunnel(3), tunnel(4)]);
    }
}
