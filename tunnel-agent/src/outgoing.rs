//! What the agent has to tell the server and has not told yet, or not in vain. Pure and bounded.

use std::collections::{BTreeSet, VecDeque};

use tunnel_proto::TunnelId;
use tunnel_proto::frame;
use tunnel_proto::message::{EndsDropped, FromAgent, SessionEnded, SessionKey};

/// Messages that wait for the link, and ends of sessions until the server has said that it has them.
///
/// Ends of tunnels and sessions outlast a link; the rest makes sense on it only. An end of a session was lost for good if
/// the link broke, or the server did, before its record was on the disk. So it is told on each link until it is confirmed.
#[derive(Debug)]
pub struct Outgoing {
    waiting: VecDeque<Waiting>,
    /// Told on this link, and not confirmed.
    told: VecDeque<Waiting>,
    bounds: Bounds,
    /// What both take.
    bytes: usize,
    /// Whether the server of this link confirms.
    confirms: bool,
    /// Ends of sessions that were dropped, and that no message tells yet.
    untold: EndsDropped,
    /// Dropped since it was logged.
    dropped: Dropped,
}

/// How much may wait, what was told and is not confirmed included.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Messages.
    pub count: usize,
    /// Bytes, as they travel.
    pub bytes: usize,
    /// Ends of sessions that were told and are not confirmed. The next ones wait for their answers: a server whose disk hangs
    /// must not be told so much that the questions of the link wait behind it.
    pub unconfirmed: usize,
}

#[derive(Debug)]
struct Waiting {
    message: FromAgent,
    bytes: usize,
    /// It was told on a link before, so the server may have it just as it is.
    was_told: bool,
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
    /// Makes an empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            waiting: VecDeque::new(),
            told: VecDeque::new(),
            bounds,
            bytes: 0,
            confirms: false,
            untold: EndsDropped::default(),
            dropped: Dropped::default(),
        }
    }

    /// Adds a message. When there is no room, the oldest of the least worth makes some: of sessions that were refused,
    /// which cost an operator nothing to have, then of sessions that took place, then of all.
    pub fn push(&mut self, message: FromAgent) {
        let waiting = Waiting {
            bytes: frame::encode(&message).len(),
            message,
            was_told: false,
        };
        self.bytes += waiting.bytes;
        self.waiting.push_back(waiting);
        while self.told.len() + self.waiting.len() > self.bounds.count || self.bytes > self.bounds.bytes {
            self.drop_least();
        }
    }

    fn drop_least(&mut self) {
        // What was told is older than what waits.
        let all = self.told.iter().chain(&self.waiting).enumerate();
        let least = all.min_by_key(|(_, waiting)| waiting.worth());
        let place = least.map(|(place, _)| place).unwrap_or_default();
        let dropped = match place.checked_sub(self.told.len()) {
            None => self.told.remove(place),
            Some(place) => self.waiting.remove(place),
        };
        let Some(dropped) = dropped else { return };
        self.bytes -= dropped.bytes;
        match dropped.worth() {
            0 => self.dropped.refusals += 1,
            _ => self.dropped.others += 1,
        }
        if let FromAgent::SessionEnded(ended) = dropped.message {
            // What it was to tell of others is told with the next one.
            let told = ended.dropped.unwrap_or_default();
            let refusal = u64::from(ended.refused.is_some());
            self.untold.refusals += told.refusals + refusal;
            self.untold.sessions += told.sessions + (1 - refusal);
        }
    }

    /// There is a link to a server that confirms the ends of sessions, or to one of before.
    pub fn link_up(&mut self, confirms: bool) {
        self.confirms = confirms;
    }

    /// Holds nothing back any more: this process stops, and has no link to spare.
    pub const fn tell_all(&mut self) {
        self.bounds.unconfirmed = usize::MAX;
    }

    /// Takes the oldest message that may be told now, to tell it on the link. An end of a session that the server will confirm
    /// is kept.
    pub fn pop(&mut self) -> Option<FromAgent> {
        let mut next = self.waiting.remove(self.next()?)?;
        let FromAgent::SessionEnded(ended) = &next.message else {
            self.bytes -= next.bytes;
            return Some(next.message);
        };
        if self.is_confirmed(ended) {
            self.say_dropped(&mut next);
            next.was_told = true;
            let message = next.message.clone();
            self.told.push_back(next);
            return Some(message);
        }
        self.bytes -= next.bytes;
        Some(next.message)
    }

    /// Returns the place of the oldest message that may be told now. While enough ends of sessions are unconfirmed, what else
    /// waits goes past those, but the end of a tunnel not past its sessions.
    fn next(&self) -> Option<usize> {
        let is_full = self.told.len() >= self.bounds.unconfirmed;
        let mut held: BTreeSet<TunnelId> = BTreeSet::new();
        self.waiting.iter().position(|waiting| match &waiting.message {
            FromAgent::SessionEnded(ended) if is_full && self.is_confirmed(ended) => {
                held.insert(ended.tunnel);
                false
            }
            FromAgent::TunnelEnded(ended) => !held.contains(&ended.tunnel),
            _ => true,
        })
    }

    /// Says whether the server of this link will confirm an end of a session.
    fn is_confirmed(&self, ended: &SessionEnded) -> bool {
        self.confirms && ended.key().is_some()
    }

    /// Takes the oldest message for good, to hand it to another process of this device.
    pub fn hand_over(&mut self) -> Option<FromAgent> {
        let mut next = self.waiting.pop_front()?;
        self.say_dropped(&mut next);
        self.bytes -= next.bytes;
        Some(next.message)
    }

    /// Has an end of a session tell what was dropped before it, unless the server may have it already as it is.
    fn say_dropped(&mut self, next: &mut Waiting) {
        if let FromAgent::SessionEnded(ended) = &mut next.message
            && !next.was_told
            && self.untold != EndsDropped::default()
        {
            let before = ended.dropped.get_or_insert_default();
            let untold = std::mem::take(&mut self.untold);
            before.sessions += untold.sessions;
            before.refusals += untold.refusals;
            let bytes = frame::encode(&next.message).len();
            self.bytes = self.bytes - next.bytes + bytes;
            next.bytes = bytes;
        }
    }

    /// The server has these for good.
    pub fn handle_kept(&mut self, keys: &[SessionKey]) {
        let keys: BTreeSet<_> = keys.iter().copied().collect();
        let mut freed = 0;
        let mut stays = |waiting: &Waiting| {
            let goes = waiting.key().is_some_and(|key| keys.contains(&key));
            freed += if goes { waiting.bytes } else { 0 };
            !goes
        };
        self.told.retain(&mut stays);
        // What a link before has told may be confirmed on this one.
        self.waiting.retain(&mut stays);
        self.bytes -= freed;
    }

    /// Has all that is not confirmed told once more.
    pub fn tell_again(&mut self) {
        self.told.append(&mut self.waiting);
        std::mem::swap(&mut self.told, &mut self.waiting);
    }

    /// Forgets what makes sense only on the link that is gone. What was told on it in vain is told on the next.
    pub fn link_lost(&mut self) {
        self.confirms = false;
        self.tell_again();
        let lasting =
            |message: &FromAgent| matches!(message, FromAgent::TunnelEnded(_) | FromAgent::SessionEnded(_));
        self.waiting.retain(|waiting| lasting(&waiting.message));
        self.bytes = self.waiting.iter().map(|waiting| waiting.bytes).sum();
    }

    /// Says whether nothing can be told now: nothing waits, or what waits does so for answers of the server.
    pub fn is_empty(&self) -> bool {
        self.next().is_none()
    }

    /// Says whether the server has yet to confirm something that it was told.
    pub fn is_unconfirmed(&self) -> bool {
        !self.told.is_empty()
    }

    /// Returns what was dropped for want of room since this was asked last, if anything was.
    pub fn take_dropped(&mut self) -> Option<Dropped> {
        let dropped = std::mem::take(&mut self.dropped);
        (dropped != Dropped::default()).then_some(dropped)
    }
}

impl Waiting {
    fn key(&self) -> Option<SessionKey> {
        match &self.message {
            FromAgent::SessionEnded(ended) => ended.key(),
            _ => None,
        }
    }

    /// Says how much a message is worth beside others: less makes room first.
    const fn worth(&self) -> u8 {
        match &self.message {
            FromAgent::SessionEnded(ended) if ended.refused.is_some() => 0,
            FromAgent::SessionEnded(_) => 1,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests;
