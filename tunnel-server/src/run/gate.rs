//! Counts what is in progress, in all and by source, and lets no more in than allowed (THREATS part 5).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes in progress, in all.
pub(crate) const HANDSHAKES: usize = 1024;
/// Handshakes in progress of one source whose address is not proven.
pub(crate) const PER_SOURCE: usize = 64;
/// Handshakes in progress of one source whose address is proven.
pub(crate) const PER_PROVEN_SOURCE: usize = 512;

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

/// Lets a bounded number in.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    inside: Arc<Mutex<Inside>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_source: HashMap<Source, usize>,
}

impl Gate {
    /// Makes a gate that lets at most `most` in at once.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            inside: Arc::default(),
            most,
        }
    }

    /// Lets one in, unless there are too many of it, or of all.
    pub(crate) fn enter(&self, address: IpAddr, per_source: usize) -> Option<Pass> {
        let source = Source::of(address);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inside.by_source.get(&source).copied().unwrap_or(0);
        if inside.all >= self.most || count >= per_source {
            return None;
        }
        inside.all += 1;
        inside.by_source.insert(source, count + 1);
        Some(Pass {
            gate: self.clone(),
            source,
        })
    }
}

/// One place inside; given back on drop.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Gate,
    source: Source,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all = inside.all.saturating_sub(1);
        if let Some(count) = inside.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                inside.by_source.remove(&self.source);
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
        assert!(gate.inside.lock().unwrap().by_source.is_empty());
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
