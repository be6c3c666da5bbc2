//! What the network itself says to a sender whose packet is too large.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The addresses from which the network speaks (RFC 5737, RFC 3849).
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

/// Length of the header of IPv6.
const HEADER_V6: usize = 40;
/// The protocol number of ICMP for IPv6.
const ICMP_V6: u8 = 58;
/// How much of a packet of IPv6 is quoted: what fits beside the headers into the smallest MTU.
const QUOTE_V6: usize = 1280 - HEADER_V6 - 8;

/// Writes the ICMP message "too large, this would pass" about `packet`; the length of the message.
pub fn too_big(packet: &[u8], mtu: u16, buffer: &mut [u8]) -> usize {
    if packet[0] >> 4 == 6 {
        too_big_v6(packet, mtu, buffer)
    } else {
        too_big_v4(packet, mtu, buffer)
    }
}

fn too_big_v4(packet: &[u8], mtu: u16, buffer: &mut [u8]) -> usize {
    let header = usize::from(packet[0] & 0xf) * 4;
    let quoted = &packet[..packet.len().min(header + 8)];
    let length = 28 + quoted.len();
    let message = &mut buffer[..length];
    message.fill(0);

    message[0] = 0x45;
    message[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    message[8] = 64; // time to live
    message[9] = 1; // ICMP
    message[12..16].copy_from_slice(&ROUTER.octets());
    message[16..20].copy_from_slice(&packet[12..16]);
    let sum = finish(add(0, &message[..20]));
    message[10..12].copy_from_slice(&sum.to_be_bytes());

    message[20] = 3; // destination unreachable
    message[21] = 4; // fragmentation needed
    message[26..28].copy_from_slice(&mtu.to_be_bytes());
    message[28..].copy_from_slice(quoted);
    let sum = finish(add(0, &message[20..]));
    message[22..24].copy_from_slice(&sum.to_be_bytes());
    length
}

/// RFC 4443 section 3.2.
fn too_big_v6(packet: &[u8], mtu: u16, buffer: &mut [u8]) -> usize {
    let quoted = &packet[..packet.len().min(QUOTE_V6)];
    let payload = 8 + quoted.len();
    let message = &mut buffer[..HEADER_V6 + payload];
    message.fill(0);

    message[0] = 0x60;
    message[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    message[6] = ICMP_V6;
    message[7] = 64; // hop limit
    message[8..24].copy_from_slice(&ROUTER_V6.octets());
    message[24..40].copy_from_slice(&packet[8..24]);

    message[40] = 2; // packet too big
    message[44..48].copy_from_slice(&u32::from(mtu).to_be_bytes());
    message[48..].copy_from_slice(quoted);
    let sum = checksum_v6(message);
    message[42..44].copy_from_slice(&sum.to_be_bytes());
    HEADER_V6 + payload
}

/// The checksum of an ICMP message for IPv6, which covers the addresses too (RFC 8200 section 8.1).
fn checksum_v6(message: &[u8]) -> u16 {
    let payload = message.len() - HEADER_V6;
    let pseudo = add(payload as u32 + u32::from(ICMP_V6), &message[8..40]);
    finish(add(pseudo, &message[HEADER_V6..]))
}

/// Adds bytes to the sum of RFC 1071.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    sum + words.sum::<u32>()
}

fn finish(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_icmp_message_quotes_the_packet_and_has_good_checksums() {
        let mut packet = vec![0u8; 1500];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&[203, 0, 113, 7]);
        packet[20..28].copy_from_slice(b"12345678");
        let mut buffer = vec![0xff; 200];
        let length = too_big(&packet, 1280, &mut buffer);
        assert_eq!(length, 56);
        assert_eq!(finish(add(0, &buffer[..20])), 0);
        assert_eq!(finish(add(0, &buffer[20..length])), 0);
        assert_eq!(&buffer[16..20], [203, 0, 113, 7]);
        assert_eq!(&buffer[26..28], 1280u16.to_be_bytes());
        assert_eq!(&buffer[48..56], b"12345678");
    }

    #[test]
    fn the_message_for_ipv6_fits_the_smallest_mtu_and_has_a_good_checksum() {
        let mut packet = vec![7u8; 1500];
        packet[0] = 0x60;
        let mut buffer = vec![0xff; 2000];
        let length = too_big(&packet, 1300, &mut buffer);
        assert_eq!(length, 1280);
        assert_eq!(checksum_v6(&buffer[..length]), 0);
        assert_eq!(&buffer[24..40], [7; 16]);
        assert_eq!(&buffer[44..48], 1300u32.to_be_bytes());
        assert_eq!(&buffer[48..1280], &packet[..1232]);
    }
}
