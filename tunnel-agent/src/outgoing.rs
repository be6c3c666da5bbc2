//! What the agent has to tell the server and has not told yet. Pure and bounded.

use std::collections::VecDeque;

use tunnel_proto::message::FromAgent;

/// Messages that wait for the link. Ends of tunnels and sessions outlast a link; the rest makes sense on it only.
#[derive(Debug)]
pub struct Outgoing {
    waiting: VecDeque<FromAgent>,
    capacity: usize,
    dropped: Dropped,
}

/// How many messages were dropped for want of room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// Of sessions that were refused.
    pub refusals: u64,
    /// Of anything else.
    pub others: u64,
}

impl Outgoing {
    /// Makes an empty queue for at most `capacity` messages.
    pub fn new(capacity: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            capacity,
            dropped: Dropped::default(),
        }
    }

    /// Adds a message. When the queue is full, the oldest of the least worth makes room: of sessions that were refused,
    /// which cost an operator nothing to have, then of sessions that took place, then of all.
    pub fn push(&mut self, message: FromAgent) {
        self.waiting.push_back(message);
        if self.waiting.len() <= self.capacity {
            return;
        }
        let waiting = self.waiting.iter().map(worth).enumerate();
        let (place, least) = waiting.min_by_key(|(_, worth)| *worth).unwrap_or_default();
        self.waiting.remove(place);
        match least {
            0 => self.dropped.refusals += 1,
            _ => self.dropped.others += 1,
        }
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

    /// Returns what was dropped for want of room since this was asked last, if anything was.
    pub fn take_dropped(&mut self) -> Option<Dropped> {
        let dropped = std::mem::take(&mut self.dropped);
        (dropped != Dropped::default()).then_some(dropped)
    }
}

/// Says how much a message is worth beside others: less makes room first.
const fn worth(message: &FromAgent) -> u8 {
    match message {
        FromAgent::SessionEnded(ended) if ended.refused.is_some() => 0,
        FromAgent::SessionEnded(_) => 1,
        _ => 2,
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

    fn refused(number: u8) -> FromAgent {
        let FromAgent::SessionEnded(ended) = session(number) else {
            unreachable!("a session is one")
        };
        FromAgent::SessionEnded(SessionEnded {
            refused: Some(Code::ServiceUnknown),
            ..ended
        })
    }

    #[test]
    fn a_flood_of_refusals_pushes_out_no_session_that_took_place() {
        let mut queue = Outgoing::new(4);
        queue.push(session(1));
        queue.push(refused(1));
        queue.push(session(2));
        (0..100).for_each(|_| queue.push(refused(2)));
        queue.push(session(3));
        queue.push(tunnel(1));
        let dropped = Dropped {
            refusals: 101,
            others: 0,
        };
        assert_eq!(queue.take_dropped(), Some(dropped));
        (0..100).for_each(|_| queue.push(refused(3)));
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(rest, [session(1), session(2), session(3), tunnel(1)]);
    }

    #[test]
    fn a_full_queue_keeps_ends_of_tunnels() {
        let mut queue = Outgoing::new(3);
        for message in [tunnel(1), session(1), session(2), tunnel(2), tunnel(3), tunnel(4)] {
            queue.push(message);
        }
        let dropped = Dropped {
            refusals: 0,
            others: 3,
        };
        assert_eq!(queue.take_dropped(), Some(dropped));
        assert_eq!(queue.take_dropped(), None, "told once");
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(rest, [tunnel(2), tunnel(3), tunnel(4)]);
    }
}
