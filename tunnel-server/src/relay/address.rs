//! Addresses of legs and links: real ones of UDP, and virtual ones of WebSocket connections.
//!
//! A WebSocket connection gets an address of the discard-only block 100::/64 (RFC 6666), so that everything above, QUIC
//! too, deals with one kind of address. No such address is ever on a wire; one that comes in by UDP is spoofed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Port of every virtual address. It says nothing.
const PORT: u16 = 1;

/// Returns the virtual address of a WebSocket connection.
pub(super) fn of_connection(number: u64) -> SocketAddr {
    let bits = (0x0100_u128 << 112) | u128::from(number);
    SocketAddr::new(Ipv6Addr::from(bits).into(), PORT)
}

/// Returns which WebSocket connection an address is of, if it is a virtual one.
pub(super) fn connection(address: SocketAddr) -> Option<u64> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let bits = u128::from(ip);
    let (block, number) = (bits >> 64, bits & u128::from(u64::MAX));
    (block == 0x0100 << 48)
        .then_some(number)
        .and_then(|number| u64::try_from(number).ok())
}

/// Returns an IPv4 address that a dual-stack socket shows as IPv6 in its own form.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns an address in the form that a socket bound to `local` sends to.
pub(super) fn for_socket(local: SocketAddr, address: SocketAddr) -> SocketAddr {
    match (local.ip(), address.ip()) {
        (IpAddr::V6(_), IpAddr::V4(ip)) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_address_reads_back() {
        for number in [0, 1, 77, u64::MAX] {
            assert_eq!(connection(of_connection(number)), Some(number));
        }
        assert_eq!(of_connection(0x2a).to_string(), "[100::2a]:1");
    }

    #[test]
    fn a_real_address_is_no_virtual_one() {
        for text in [
            "192.0.2.1:1",
            "[::1]:1",
            "[101::2a]:1",
            "[100:0:0:1::2a]:1",
            "[::ffff:192.0.2.1]:1",
        ] {
            assert_eq!(connection(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_shown_as_ipv4() {
        assert_eq!(
            canonical("[::ffff:192.0.2.1]:9".parse().unwrap()).to_string(),
            "192.0.2.1:9"
        );
        assert_eq!(
            canonical("[2001:db8::1]:9".parse().unwrap()).to_string(),
            "[2001:db8::1]:9"
        );
    }
}
