//! Packets with any source address, on loopback, as somebody on the path or a spoofer sends them. Needs the rights of root.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};

/// Bytes of an IPv4 header without options.
const IP: usize = 20;
/// Protocol number of ICMP.
const ICMP: u8 = 1;
/// Protocol number of UDP.
const UDP: u8 = 17;
/// Another fragment follows this one.
const MORE_FRAGMENTS: u16 = 0x2000;

/// A socket that writes the IP header by itself.
#[derive(Debug)]
pub struct Raw(OwnedFd);

impl Raw {
    /// Opens it.
    ///
    /// # Panics
    /// Without the rights of root.
    pub fn open() -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW));
        Self(socket.expect("the rights of root"))
    }

    /// Sends a UDP datagram that says it comes from `from`.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn udp(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        self.ip(from, to, UDP, 0, &udp(from, to, payload));
    }

    /// Sends a UDP datagram in fragments: each says where it begins, in bytes, what it holds, and whether more follow.
    ///
    /// # Panics
    /// When the system refuses, or a fragment begins elsewhere than at a multiple of eight.
    pub fn fragments(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        id: u16,
        parts: impl IntoIterator<Item = (usize, Vec<u8>, bool)>,
    ) {
        for (offset, part, more) in parts {
            assert_eq!(offset % 8, 0, "fragments begin at multiples of eight");
            let place = u16::try_from(offset / 8).expect("a place in a datagram");
            let field = place | if more { MORE_FRAGMENTS } else { 0 };
            self.packet(from, to, UDP, id, field, &part);
        }
    }

    /// Tells `to` that its packet to `of` was too large for a path that carries `mtu` bytes.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn too_big(&self, of: SocketAddrV4, to: SocketAddrV4, mtu: u16) {
        self.unreachable(of, to, 4, mtu);
    }

    /// Tells `to` that nobody listens on the port of `of`.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn no_port(&self, of: SocketAddrV4, to: SocketAddrV4) {
        self.unreachable(of, to, 3, 0);
    }

    fn unreachable(&self, of: SocketAddrV4, to: SocketAddrV4, code: u8, mtu: u16) {
        let mut message = vec![3, code, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        // What it complains of: the header of the packet that `to` would have sent, and eight bytes more.
        message.extend(header(to, of, UDP, 1, 0, 1200));
        message.extend(&udp(to, of, &[0; 8])[..8]);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.ip(of, to, ICMP, 0, &message);
    }

    fn ip(&self, from: SocketAddrV4, to: SocketAddrV4, protocol: u8, id: u16, content: &[u8]) {
        self.packet(from, to, protocol, id, 0, content);
    }

    fn packet(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        protocol: u8,
        id: u16,
        fragment: u16,
        content: &[u8],
    ) {
        let mut packet = header(from, to, protocol, id, fragment, content.len()).to_vec();
        packet.extend_from_slice(content);
        rustix::net::sendto(&self.0, &packet, SendFlags::empty(), &to).expect("the system sends it");
    }
}

/// Writes a UDP datagram without a checksum.
pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(payload.len() + 8);
    for field in [from.port(), to.port(), length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    datagram
}

fn header(
    from: SocketAddrV4,
    to: SocketAddrV4,
    protocol: u8,
    id: u16,
    fragment: u16,
    content: usize,
) -> [u8; IP] {
    let mut header = [0; IP];
    header[0] = 0x45;
    let length = u16::try_from(IP + content).unwrap_or(u16::MAX);
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.ip().octets());
    header[16..20].copy_from_slice(&to.ip().octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The checksum of IP and ICMP (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}
