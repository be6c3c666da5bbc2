//! In which order addresses are tried. Pure: answers in, order out.

use std::net::IpAddr;

/// Addresses of one answer that are looked at: many more than a server has, and a bound for a resolver that lies.
const MOST: usize = 16;

/// Puts addresses in the order in which they are tried: what the resolver says now, and after that where the server has
/// proven to be before.
///
/// An address that is both comes first, for it has shown that it works (RFC 8305 section 4). The rest keeps the
/// resolver's order, with the families in turn, so that one broken family costs one attempt.
pub(super) fn order(fresh: &[IpAddr], proven: &[IpAddr]) -> Vec<IpAddr> {
    let known = |ip: &IpAddr| proven.iter().position(|other| other == ip).unwrap_or(usize::MAX);
    let mut answers: Vec<IpAddr> = Vec::new();
    for ip in fresh.iter().map(IpAddr::to_canonical) {
        if !answers.contains(&ip) && answers.len() < MOST {
            answers.push(ip);
        }
    }
    answers.sort_by_key(known);
    let mut order = in_turn(&answers);
    for &ip in proven {
        if !order.contains(&ip) {
            order.push(ip);
        }
    }
    order
}

/// Takes the families in turn, beginning with that of the first address.
fn in_turn(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .iter()
        .copied()
        .partition(|ip: &IpAddr| ip.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::with_capacity(addresses.len());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn fresh_answers_come_first_and_the_last_proven_ones_after() {
        for (fresh, proven, expected) in [
            ("", "", ""),
            ("192.0.2.1", "", "192.0.2.1"),
            ("", "192.0.2.9", "192.0.2.9"),
            // A resolver that lies: the last good address is still there.
            ("10.0.0.1", "192.0.2.9", "10.0.0.1 192.0.2.9"),
            // The families in turn, as the resolver begins.
            (
                "2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2",
                "",
                "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2",
            ),
            (
                "192.0.2.1 192.0.2.2 2001:db8::1",
                "",
                "192.0.2.1 2001:db8::1 192.0.2.2",
            ),
            // What is fresh and proven comes first, then the other family.
            (
                "2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2",
                "192.0.2.2 192.0.2.9",
                "192.0.2.2 2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.9",
            ),
            ("192.0.2.1 192.0.2.1 ::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(
                order(&ips(fresh), &ips(proven)),
                ips(expected),
                "{fresh} / {proven}"
            );
        }
    }

    #[test]
    fn a_flood_of_answers_does_not_push_the_proven_ones_out() {
        let fresh: Vec<IpAddr> = (0..1000u32)
            .map(|n| IpAddr::V4((0x0a00_0000 + n).into()))
            .collect();
        let order = order(&fresh, &ips("192.0.2.9"));
        assert_eq!(order.len(), MOST + 1);
        assert_eq!(order.last(), ips("192.0.2.9").last());
    }
}
