//! Where requests may go: to public addresses, and to those that the fleet's owner has listed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses, as `10.1.0.0/16`, or one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

/// Tells that a text is no range of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("is no address or range of addresses, as `10.1.2.3` or `10.1.0.0/16`")]
pub struct NetError;

impl Net {
    fn holds(&self, ip: IpAddr) -> bool {
        let same = |one: u128, other: u128, width: u32| {
            let rest = width.saturating_sub(u32::from(self.prefix));
            one.checked_shr(rest) == other.checked_shr(rest)
        };
        match (self.address, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => same(u32::from(net).into(), u32::from(ip).into(), 32),
            (IpAddr::V6(net), IpAddr::V6(ip)) => same(net.into(), ip.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Net {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetError)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(width), str::parse).map_err(|_| NetError)?;
        if prefix > width {
            return Err(NetError);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Says whether requests may go to an address.
pub(super) fn may_go_to(ip: IpAddr, allowed: &[Net]) -> bool {
    // An IPv4 address in IPv6's clothes is an IPv4 address.
    let ip = ip.to_canonical();
    is_public(ip) || allowed.iter().any(|net| net.holds(ip))
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

/// Says whether an address is meant for hosts on the Internet (IANA's registry of special-purpose addresses).
fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(a == 0
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240)
}

/// As [`is_public_v4`]; an address that stands for one of IPv4 counts as that one, or as none.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        // 6to4, Teredo and others of the IETF's own; documentation.
        [0x2002, ..] | [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] | [0x3fff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(ip: &str, allowed: &[&str]) -> bool {
        let allowed: Vec<Net> = allowed.iter().map(|net| net.parse().unwrap()).collect();
        may_go_to(ip.parse().unwrap(), &allowed)
    }

    #[test]
    fn srv_15_only_public_addresses_are_gone_to_unasked() {
        for public in [
            "1.1.1.1",
            "93.184.216.34",
            "2606:4700::1111",
            "64:ff9b::1.1.1.1",
            "::ffff:1.1.1.1",
        ] {
            assert!(may(public, &[]), "{public}");
        }
        for private in [
            "127.0.0.1",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "2001:db8::1",
        ] {
            assert!(!may(private, &[]), "{private}");
        }
    }

    #[test]
    fn what_is_listed_is_gone_to() {
        assert!(may("127.0.0.1", &["127.0.0.1"]) && may("::ffff:127.0.0.1", &["127.0.0.1"]));
        assert!(!may("127.0.0.2", &["127.0.0.1"]) && !may("::1", &["127.0.0.1"]));
        assert!(may("10.1.255.255", &["10.1.0.0/16"]) && !may("10.2.0.0", &["10.1.0.0/16"]));
        assert!(may("fd12::1", &["fd12::/32"]) && !may("fd13::1", &["fd12::/32"]));
        assert!(may("192.168.0.1", &["0.0.0.0/0"]) && !may("::1", &["0.0.0.0/0"]));
        assert!(may("::1", &["::/0"]) && !may("10.0.0.1", &["::/0"]));
    }

    #[test]
    fn a_wrong_range_is_refused() {
        for bad in [
            "",
            "localhost",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0/8",
            "10.0.0.0/-1",
        ] {
            assert_eq!(bad.parse::<Net>(), Err(NetError), "{bad}");
        }
    }
}
