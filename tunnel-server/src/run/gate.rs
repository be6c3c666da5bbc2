//! Counts what is in progress, in all and by source or identity, and lets no more in than allowed (THREATS part 5).

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes in progress, in all.
pub(crate) const HANDSHAKES: usize = 1024;
/// Handshakes in progress of one source whose address is not proven.
pub(crate) const PER_SOURCE: usize = 64;
/// Handshakes in progress of one source whose address is proven.
pub(crate) const PER_PROVEN_SOURCE: usize = 512;

/// Connections that measure, in all.
pub(crate) const PROBES: usize = 512;
/// Connections that measure of one identity: one for each address of the server that is tried, and one over TCP.
pub(crate) const PROBES_OF_ONE: usize = 8;

/// Where a peer comes from, as far as limits go: an IPv4 address, or the first 64 bits of an IPv6 address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Source(Ipv6Addr);

impl Source {
    /// Returns the source of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        }
    }
}

/// Lets a bounded number in, of each by what it is known by.
#[derive(Clone, Debug)]
pub(crate) struct Gate<K: Eq + Hash = Source> {
    inside: Arc<Mutex<Inside<K>>>,
    most: usize,
}

#[derive(Debug)]
struct Inside<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

impl Gate {
    /// Lets one in, unless there are too many of its source, or of all.
    pub(crate) fn enter(&self, address: IpAddr, per_source: usize) -> Option<Pass> {
        self.enter_as(Source::of(address), per_source)
    }
}

impl<K: Eq + Hash + Clone> Gate<K> {
    /// Makes a gate that lets at most `most` in at once.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            inside: Arc::new(Mutex::new(Inside {
                all: 0,
                by_key: HashMap::new(),
            })),
            most,
        }
    }

    /// Lets one in, unless there are too many of it, or of all.
    pub(crate) fn enter_as(&self, key: K, per_key: usize) -> Option<Pass<K>> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inside.by_key.get(&key).copied().unwrap_or(0);
        if inside.all >= self.most || count >= per_key {
            return None;
        }
        inside.all += 1;
        inside.by_key.insert(key.clone(), count + 1);
        Some(Pass {
            inside: self.inside.clone(),
            key,
        })
    }
}

/// One place inside; given back on drop.
#[derive(Debug)]
pub(crate) struct Pass<K: Eq + Hash = Source> {
    inside: Arc<Mutex<Inside<K>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Pass<K> {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all = inside.all.saturating_sub(1);
        if let Some(count) = inside.by_key.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                inside.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_does_not_shut_others_out() {
        let gate = Gate::new(4);
        let held: Vec<_> = (0..3)
            .filter_map(|_| gate.enter(address("192.0.2.1"), 2))
            .collect();
        assert_eq!(held.len(), 2);
        let other = gate.enter(address("192.0.2.2"), 2);
        assert!(other.is_some());
        drop(held);
        assert!(gate.enter(address("192.0.2.1"), 2).is_some());
    }

    #[test]
    fn the_whole_is_bounded_and_nothing_is_left_behind() {
        let gate = Gate::new(10);
        let held: Vec<_> = (0..50u32)
            .filter_map(|n| gate.enter(IpAddr::V4(n.into()), 64))
            .collect();
        assert_eq!(held.len(), 10);
        drop(held);
        assert!(gate.inside.lock().unwrap().by_key.is_empty());
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_one_customer() {
        let of = |text| Source::of(address(text));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
