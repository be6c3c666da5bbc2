//! NAT64: how an IPv6-only network reaches IPv4 (RFC 6052), and how its prefix is found (RFC 7050). Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The name whose IPv4 addresses are known to everybody: what a resolver says for IPv6 shows the prefix (RFC 7050
/// section 8).
pub const WELL_KNOWN_NAME: &str = "ipv4only.arpa";

/// The addresses of [`WELL_KNOWN_NAME`] (RFC 7050 section 2.2).
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// Lengths that a prefix may have, in bits (RFC 6052 section 2.2), the usual one first.
const LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// The byte between the prefix and the rest that is always zero (bits 64 to 71, RFC 6052 section 2.2).
const ZERO_BYTE: usize = 8;

/// A prefix under which a network's translator holds all of IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    bytes: [u8; 16],
    bits: u8,
}

impl Prefix {
    /// Finds the prefix in the IPv6 addresses of [`WELL_KNOWN_NAME`]; `None` where the network has no translator.
    pub fn discover(answers: &[Ipv6Addr]) -> Option<Self> {
        answers.iter().find_map(|&answer| {
            LENGTHS.iter().find_map(|&bits| {
                let prefix = Self::cut(answer, bits);
                let known = prefix.extract(answer).is_some_and(|ip| WELL_KNOWN.contains(&ip));
                known.then_some(prefix)
            })
        })
    }

    fn cut(address: Ipv6Addr, bits: u8) -> Self {
        let mut bytes = address.octets();
        bytes[usize::from(bits / 8)..].fill(0);
        Self { bytes, bits }
    }

    /// Returns the address at which the translator holds an IPv4 address (RFC 6052 section 2.2).
    pub fn embed(self, ip: Ipv4Addr) -> Ipv6Addr {
        let mut bytes = self.bytes;
        for (at, byte) in self.places().zip(ip.octets()) {
            bytes[at] = byte;
        }
        bytes.into()
    }

    /// Returns the IPv4 address in an address of this prefix.
    pub fn extract(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bytes = address.octets();
        let start = usize::from(self.bits / 8);
        let clean = self.bits == 96 || bytes[ZERO_BYTE] == 0;
        if bytes[..start] != self.bytes[..start] || !clean {
            return None;
        }
        let mut ip = [0; 4];
        for (at, byte) in self.places().zip(&mut ip) {
            *byte = bytes[at];
        }
        Some(ip.into())
    }

    /// Returns where the bytes of the IPv4 address stand.
    fn places(self) -> impl Iterator<Item = usize> {
        let bits = self.bits;
        (usize::from(bits / 8)..16).filter(move |&at| bits == 96 || at != ZERO_BYTE)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from(self.bytes), self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// RFC 6052 section 2.4.
    const VECTORS: [(&str, u8, &str); 7] = [
        ("2001:db8::", 32, "2001:db8:c000:221::"),
        ("2001:db8:100::", 40, "2001:db8:1c0:2:21::"),
        ("2001:db8:122::", 48, "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::", 56, "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::", 64, "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::", 96, "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::", 96, "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn the_vectors_of_rfc_6052_hold() {
        for (prefix, bits, expected) in VECTORS {
            let prefix = Prefix::cut(v6(prefix), bits);
            let ip = Ipv4Addr::new(192, 0, 2, 33);
            assert_eq!(prefix.embed(ip), v6(expected), "{prefix}");
            assert_eq!(prefix.extract(v6(expected)), Some(ip), "{prefix}");
        }
    }

    #[test]
    fn the_prefix_is_found_at_every_length() {
        for (prefix, bits, _) in VECTORS {
            let prefix = Prefix::cut(v6(prefix), bits);
            for known in WELL_KNOWN {
                let answer = prefix.embed(known);
                assert_eq!(Prefix::discover(&[answer]), Some(prefix), "{answer}");
            }
        }
        assert_eq!(
            Prefix::discover(&[v6("64:ff9b::192.0.0.171")]).map(|prefix| prefix.to_string()),
            Some("64:ff9b::/96".into())
        );
    }

    #[test]
    fn an_answer_without_the_known_addresses_is_no_prefix() {
        assert_eq!(Prefix::discover(&[]), None);
        assert_eq!(
            Prefix::discover(&[v6("2001:db8::1"), v6("64:ff9b::192.0.2.1")]),
            None
        );
        // The byte that must be zero is not.
        assert_eq!(Prefix::discover(&[v6("2001:db8:122:344:1c0:0:aa00::")]), None);
    }

    #[test]
    fn an_address_of_another_prefix_holds_nothing() {
        let prefix = Prefix::cut(v6("64:ff9b::"), 96);
        assert_eq!(prefix.extract(v6("2001:db8::192.0.2.1")), None);
    }
}
