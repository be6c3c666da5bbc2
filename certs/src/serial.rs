//! Serial numbers.

use std::fmt;

use tunnel_proto::ids::hex;

/// Longest serial number, in bytes (RFC 5280 section 4.1.2.2).
const MAX: usize = 20;

/// The serial number of a certificate: a positive number of 20 bytes at most, without leading zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial {
    bytes: [u8; MAX],
    length: u8,
}

impl Serial {
    /// Makes a serial number from 16 random bytes; two bits are set so that it is positive and always as long.
    pub const fn from_random(random: [u8; 16]) -> Self {
        let mut bytes = [0; MAX];
        let mut at = 0;
        while at < random.len() {
            bytes[at] = random[at];
            at += 1;
        }
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self { bytes, length: 16 }
    }

    /// Reads the content of a DER integer; `None` if it is negative, zero, or too long.
    pub fn from_der_content(content: &[u8]) -> Option<Self> {
        if content.first().is_none_or(|first| first & 0x80 != 0) {
            return None;
        }
        let zeros = content.iter().take_while(|&&byte| byte == 0).count();
        let number = &content[zeros..];
        if number.is_empty() || number.len() > MAX {
            return None;
        }
        let mut bytes = [0; MAX];
        bytes[..number.len()].copy_from_slice(number);
        Some(Self {
            bytes,
            length: u8::try_from(number.len()).ok()?,
        })
    }

    /// Returns the number, most significant byte first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.as_bytes()))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_serials_are_positive_and_of_one_length() {
        for fill in [0x00, 0x7f, 0x80, 0xff] {
            let serial = Serial::from_random([fill; 16]);
            assert_eq!(serial.as_bytes().len(), 16);
            assert_eq!(Serial::from_der_content(serial.as_bytes()), Some(serial));
        }
    }

    #[test]
    fn a_serial_has_one_form() {
        assert_eq!(
            Serial::from_der_content(&[0, 0x80]),
            Serial::from_der_content(&[0, 0, 0x80])
        );
        assert_eq!(Serial::from_der_content(&[0, 0x80]).unwrap().to_string(), "80");
        for bad in [&[][..], &[0], &[0x80], &[1; 21]] {
            assert_eq!(Serial::from_der_content(bad), None);
        }
        assert!(Serial::from_der_content(&[1; 20]).is_some());
    }
}
