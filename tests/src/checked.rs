//! Bytes that tell by themselves whether they arrived as they were sent: one that was lost, doubled, changed or swapped is
//! found, and where.
//!
//! Each direction is a row of records. A record holds a payload whose every byte follows from a seed and its position; the
//! position at which it was sent; the running checksum of all bytes before it; and the position and checksum of what its
//! sender has received the other way. So both ends compare both directions as long as the session lives:
//!
//! ```text
//! byte 0-3     length of the payload, big-endian
//! byte 4-11    position of this record in its direction
//! byte 12-19   checksum of all bytes before this record
//! byte 20-27   position up to which the other direction was received, a border of two records
//! byte 28-35   checksum of what was received up to there
//! byte 36-     payload
//! ```

use std::collections::VecDeque;

use ring::digest::{Context, SHA256};

use crate::bytes;

/// Bytes of a record before its payload.
pub const HEADER: usize = 36;

/// Longest payload of a record.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// How far around a wrong byte is searched for where its like belongs.
const SEARCH: u64 = 256 * 1024;

/// How many bytes in a row tell which position they belong to.
const TELLING: usize = 12;

/// What is wrong with the bytes that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// Position of the first byte that is known to be wrong, in its direction.
    pub position: u64,
    /// What is wrong with it.
    pub what: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at byte {}: {}", self.position, self.what)
    }
}

/// A running checksum with the position it stands at.
#[derive(Clone)]
struct Running {
    position: u64,
    sum: Context,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x} at {}", self.now(), self.position)
    }
}

impl Running {
    fn new() -> Self {
        Self {
            position: 0,
            sum: Context::new(&SHA256),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        self.sum.update(bytes);
    }

    fn now(&self) -> u64 {
        let digest = self.sum.clone().finish();
        number(&digest.as_ref()[..8])
    }
}

/// One end of a session: makes what it sends, and checks what it receives.
#[derive(Debug)]
pub struct End {
    seeds: [u64; 2],
    sent: Running,
    payload_sent: u64,
    /// Borders of the records that the other end has not yet confirmed, with the checksum there.
    unconfirmed: VecDeque<(u64, u64)>,
    received: Running,
    payload_received: u64,
    /// Up to where whole records were received, and the checksum there.
    confirmed: (u64, u64),
    header: Vec<u8>,
    /// Bytes of the payload that are still to come.
    rest: usize,
}

impl End {
    /// Makes the end that opens the session.
    pub fn client(seed: u64) -> Self {
        Self::new([seed, !seed])
    }

    /// Makes the other end.
    pub fn service(seed: u64) -> Self {
        Self::new([!seed, seed])
    }

    fn new(seeds: [u64; 2]) -> Self {
        let empty = (0, Running::new().now());
        Self {
            seeds,
            sent: Running::new(),
            payload_sent: 0,
            unconfirmed: VecDeque::from([empty]),
            received: Running::new(),
            payload_received: 0,
            confirmed: empty,
            header: Vec::with_capacity(HEADER),
            rest: 0,
        }
    }

    /// Makes the next record, with a payload of this length. All records go out, in this order.
    pub fn record(&mut self, length: usize) -> Vec<u8> {
        let length = length.min(MAX_PAYLOAD);
        let mut record = Vec::with_capacity(HEADER + length);
        record.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        for number in [
            self.sent.position,
            self.sent.now(),
            self.confirmed.0,
            self.confirmed.1,
        ] {
            record.extend_from_slice(&number.to_be_bytes());
        }
        record.extend(noise_at(self.seeds[0], self.payload_sent, length));
        self.payload_sent += length as u64;
        self.sent.add(&record);
        self.unconfirmed.push_back((self.sent.position, self.sent.now()));
        record
    }

    /// Checks what was received. Says how many records became whole by it.
    ///
    /// # Errors
    /// Tells the first byte that is not what was sent.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<usize, Wrong> {
        let mut records = 0;
        while !bytes.is_empty() {
            if self.rest == 0 {
                let (start, others) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
                self.header.extend_from_slice(start);
                bytes = others;
                if self.header.len() < HEADER {
                    break;
                }
                self.check_header()?;
            }
            let (payload, others) = bytes.split_at(bytes.len().min(self.rest));
            self.check_payload(payload)?;
            bytes = others;
            if self.rest == 0 {
                self.confirmed = (self.received.position, self.received.now());
                records += 1;
            }
        }
        Ok(records)
    }

    /// Says whether all that was sent is known to have arrived, and nothing is half received.
    ///
    /// # Errors
    /// Tells up to where it is known.
    pub fn check_end(&self) -> Result<(), Wrong> {
        let wrong = |position, what: &str| {
            Err(Wrong {
                position,
                what: what.to_owned(),
            })
        };
        if self.rest > 0 || !self.header.is_empty() {
            return wrong(self.received.position, "the end came in the middle of a record");
        }
        match self.unconfirmed.front() {
            Some(&(position, _)) if position == self.sent.position => Ok(()),
            front => wrong(
                front.map_or(0, |front| front.0),
                "the other end has not confirmed what was sent after this",
            ),
        }
    }

    /// Returns how many bytes were received and found right.
    pub fn compared(&self) -> u64 {
        self.received.position
    }

    fn check_header(&mut self) -> Result<(), Wrong> {
        let header = std::mem::take(&mut self.header);
        let here = self.received.position;
        let wrong = |what: String| Err(Wrong { position: here, what });
        let (length, position) = (number(&header[..4]) as usize, number(&header[4..12]));
        if length > MAX_PAYLOAD || position != here {
            return wrong(format!(
                "a record is due that begins here, and what came says {position}, {length} bytes long"
            ));
        }
        let (says, is) = (number(&header[12..20]), self.received.now());
        if says != is {
            return wrong(format!(
                "the checksum of all before is {is:016x}, and was {says:016x} when it was sent"
            ));
        }
        let (position, sum) = (number(&header[20..28]), number(&header[28..36]));
        if !self.confirm(position, sum) {
            return wrong(format!(
                "the other end has received {sum:016x} up to its byte {position}, which was not sent"
            ));
        }
        self.rest = length;
        self.received.add(&header);
        if length == 0 {
            self.confirmed = (self.received.position, self.received.now());
        }
        Ok(())
    }

    /// The other end says what it has received of what was sent from here. Says whether that can be.
    fn confirm(&mut self, position: u64, sum: u64) -> bool {
        while self
            .unconfirmed
            .front()
            .is_some_and(|&(border, _)| border < position)
        {
            self.unconfirmed.pop_front();
        }
        self.unconfirmed.front() == Some(&(position, sum))
    }

    fn check_payload(&mut self, payload: &[u8]) -> Result<(), Wrong> {
        let due = noise_at(self.seeds[1], self.payload_received, payload.len());
        if let Some(at) = due.iter().zip(payload).position(|(due, came)| due != came) {
            let position = self.received.position + at as u64;
            let due_at = self.payload_received + at as u64;
            let what = match self.belongs(&payload[at..], due_at) {
                Some(is) if is > due_at => format!("{} bytes are missing", is - due_at),
                Some(is) => format!("bytes come again that are {} older", due_at - is),
                None => format!("it is {:02x} and was sent as {:02x}", payload[at], due[at]),
            };
            return Err(Wrong { position, what });
        }
        self.payload_received += payload.len() as u64;
        self.received.add(payload);
        self.rest -= payload.len();
        Ok(())
    }

    /// Finds where bytes belong that came in the wrong place.
    fn belongs(&self, bytes: &[u8], near: u64) -> Option<u64> {
        let bytes = bytes.get(..TELLING)?;
        let from = near.saturating_sub(SEARCH);
        let around = noise_at(self.seeds[1], from, 2 * SEARCH as usize);
        let at = around.windows(TELLING).position(|window| window == bytes)?;
        Some(from + at as u64).filter(|&at| at != near)
    }
}

/// Returns bytes of [`bytes::noise`] from a position on.
fn noise_at(seed: u64, position: u64, length: usize) -> Vec<u8> {
    let (word, skip) = (position / 8, (position % 8) as usize);
    let seed = seed.wrapping_add(word.wrapping_mul(bytes::STEP));
    let mut noise = bytes::noise(skip + length, seed);
    noise.drain(..skip);
    noise
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some records of a client, as one row of bytes.
    fn sent() -> Vec<u8> {
        let mut client = End::client(7);
        [1000, 1, 0, 5000, 333]
            .iter()
            .flat_map(|&length| client.record(length))
            .collect()
    }

    fn take(bytes: &[u8]) -> Result<usize, Wrong> {
        let mut service = End::service(7);
        let mut records = 0;
        for piece in bytes.chunks(700) {
            records += service.take(piece)?;
        }
        // What is missing at the very end shows when the next record comes, or at the end of the session.
        service.check_end().map(|()| records)
    }

    #[test]
    fn noise_can_begin_anywhere() {
        let all = bytes::noise(1000, 42);
        for position in [0usize, 1, 7, 8, 9, 500] {
            assert_eq!(noise_at(42, position as u64, 100), all[position..position + 100]);
        }
    }

    #[test]
    fn what_arrives_as_it_was_sent_is_right() {
        assert_eq!(take(&sent()), Ok(5));
        let mut service = End::service(7);
        for byte in sent() {
            service.take(&[byte]).unwrap();
        }
        assert_eq!(service.compared(), sent().len() as u64);
    }

    #[test]
    fn every_changed_byte_is_found_where_it_is() {
        let good = sent();
        let headers = [0, 1036, 1073, 1109, 6145];
        for at in 0..good.len() {
            let in_header = headers.iter().any(|&start| (start..start + HEADER).contains(&at));
            if !in_header && at % 37 > 0 {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 1;
            let wrong = take(&bad).unwrap_err();
            if in_header {
                // A false length shows where the next record is looked for.
                assert!(wrong.position <= good.len() as u64, "{at}: {wrong}");
            } else {
                assert_eq!(wrong.position, at as u64, "{wrong}");
            }
        }
    }

    #[test]
    fn every_lost_and_every_doubled_byte_is_found() {
        let good = sent();
        for at in (0..good.len()).step_by(11) {
            let mut lost = good.clone();
            let byte = lost.remove(at);
            assert!(take(&lost).is_err(), "byte {at} is lost");
            let mut doubled = good.clone();
            doubled.insert(at, byte);
            assert!(take(&doubled).is_err(), "byte {at} is doubled");
        }
    }

    #[test]
    fn it_says_how_much_is_missing_or_comes_again() {
        let mut lost = sent();
        lost.drain(2000..2100);
        let wrong = take(&lost).unwrap_err();
        assert_eq!(
            (wrong.position, wrong.what.as_str()),
            (2000, "100 bytes are missing")
        );
        let mut doubled = sent();
        let again = doubled[2000..2100].to_vec();
        doubled.splice(2100..2100, again);
        let wrong = take(&doubled).unwrap_err();
        assert_eq!(wrong.position, 2100);
        assert!(wrong.what.contains("come again"), "{wrong}");
    }

    #[test]
    fn records_that_change_places_are_found() {
        let mut client = End::client(7);
        let (first, second) = (client.record(100), client.record(100));
        let wrong = take(&[second, first].concat()).unwrap_err();
        assert_eq!(wrong.position, 0);
    }

    #[test]
    fn each_end_learns_what_the_other_has_received() {
        let (mut client, mut service) = (End::client(7), End::service(7));
        for _ in 0..10 {
            service.take(&client.record(50)).unwrap();
            assert!(client.check_end().is_err(), "nothing is confirmed yet");
            client.take(&service.record(50)).unwrap();
            assert_eq!(client.check_end(), Ok(()));
        }
        // An end that has received something else than was sent says so, and is found out.
        let mut other = End::client(7);
        let mut stranger = End::service(7);
        stranger.take(&other.record(60)).unwrap();
        assert!(End::client(7).take(&stranger.record(50)).is_err());
    }
}
