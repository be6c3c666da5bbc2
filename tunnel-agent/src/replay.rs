//! Remembers which tunnels were offered, so that none is accepted twice. Pure.

use std::collections::{BTreeMap, BTreeSet};

use tunnel_proto::{Code, TunnelId, UnixTime};

/// The tunnels that were offered and whose grants have not expired.
///
/// Bounded: when it is full, new tunnels are refused rather than old ones forgotten.
#[derive(Clone, Debug)]
pub struct ReplayMemory {
    seen: BTreeMap<TunnelId, UnixTime>,
    by_expiry: BTreeSet<(UnixTime, TunnelId)>,
    capacity: usize,
}

impl ReplayMemory {
    /// Makes an empty memory for at most `capacity` tunnels.
    pub const fn new(capacity: usize) -> Self {
        Self {
            seen: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            capacity,
        }
    }

    /// Takes a tunnel in, and forgets those whose grants expired before `now`.
    ///
    /// `forget_at` is when the grant can no longer be accepted, tolerance included.
    ///
    /// # Errors
    /// Returns [`Code::TokenReplay`] if the tunnel was offered before, and [`Code::Busy`] when the memory is full.
    pub fn remember(&mut self, tunnel: TunnelId, forget_at: UnixTime, now: UnixTime) -> Result<(), Code> {
        self.forget(now);
        if self.seen.contains_key(&tunnel) {
            return Err(Code::TokenReplay);
        }
        if self.seen.len() >= self.capacity {
            return Err(Code::Busy);
        }
        self.seen.insert(tunnel, forget_at);
        self.by_expiry.insert((forget_at, tunnel));
        Ok(())
    }

    /// Returns how many tunnels are remembered.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Says whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    fn forget(&mut self, now: UnixTime) {
        while let Some(&(forget_at, tunnel)) = self.by_expiry.first() {
            if forget_at > now {
                break;
            }
            self.by_expiry.pop_first();
            self.seen.remove(&tunnel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(number: u8) -> TunnelId {
        TunnelId::from_bytes([number; 16])
    }

    fn at(secs: u64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    #[test]
    fn a_tunnel_is_taken_once_while_its_grant_lives() {
        let mut memory = ReplayMemory::new(10);
        assert_eq!(memory.remember(tunnel(1), at(100), at(0)), Ok(()));
        assert_eq!(
            memory.remember(tunnel(1), at(100), at(99)),
            Err(Code::TokenReplay)
        );
        assert_eq!(memory.remember(tunnel(2), at(100), at(99)), Ok(()));
    }

    #[test]
    fn a_full_memory_refuses_and_forgets_only_what_expired() {
        let mut memory = ReplayMemory::new(3);
        for number in 0..3 {
            memory
                .remember(tunnel(number), at(10 * u64::from(number) + 10), at(0))
                .unwrap();
        }
        assert_eq!(memory.remember(tunnel(9), at(50), at(9)), Err(Code::Busy));
        assert_eq!(memory.remember(tunnel(0), at(50), at(9)), Err(Code::TokenReplay));
        assert_eq!(memory.remember(tunnel(9), at(50), at(10)), Ok(()));
        assert_eq!(memory.len(), 3);
        assert_eq!(memory.remember(tunnel(1), at(50), at(11)), Err(Code::TokenReplay));
    }
}
