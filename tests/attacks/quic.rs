//! A QUIC client that says whatever it is told: a handshake as it must be, then frames of the test's choice (RFC 9000).
//!
//! It repeats nothing and keeps no timers: on loopback nothing is lost, and a peer that waits is what tests wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::quic::{ClientConnection, KeyChange, Keys, Version};
use tunnel_e2e::bare;
use tunnel_e2e::bytes::noise;
use tunnel_e2e::wait::SOON;

/// Length of a connection id of ours.
const ID: usize = 8;
/// Bytes of a packet number; always all four.
const NUMBER: usize = 4;
/// Bytes of a packet's tag.
const TAG: usize = 16;
/// Room of one packet's frames.
const FRAMES: usize = 1000;

/// Length of the id that a link's first packet has, as quinn makes it.
pub(crate) const LINK_ID: usize = 20;
/// Length of the id that a tunnel's first packet has.
pub(crate) const TUNNEL_ID: usize = 12;

/// The server has no room.
pub(crate) const CONNECTION_REFUSED: u64 = 0x02;
/// The peer broke a rule of QUIC.
pub(crate) const PROTOCOL_VIOLATION: u64 = 0x0a;
/// A frame cannot be read.
pub(crate) const FRAME_ENCODING: u64 = 0x07;
/// There are more streams than allowed.
pub(crate) const STREAM_LIMIT: u64 = 0x04;
/// More was sent than allowed.
pub(crate) const FLOW_CONTROL: u64 = 0x03;
/// There are more connection ids than allowed.
pub(crate) const CONNECTION_ID_LIMIT: u64 = 0x09;
/// The transport parameters cannot be used.
pub(crate) const TRANSPORT_PARAMETER: u64 = 0x08;

/// One connection.
pub(crate) struct Bare {
    pub(crate) socket: UdpSocket,
    tls: ClientConnection,
    ours: [u8; ID],
    theirs: Vec<u8>,
    token: Vec<u8>,
    levels: [Level; 3],
    /// The level at which TLS writes.
    writes: usize,
    /// The peer asked for a proof of the address.
    pub(crate) retried: bool,
    /// The code that the peer has closed the connection with.
    pub(crate) closed: Option<u64>,
    /// Bytes of streams that came.
    pub(crate) streams: Vec<(u64, Vec<u8>)>,
    /// How many packets came.
    pub(crate) packets: u64,
}

#[derive(Default)]
struct Level {
    keys: Option<Keys>,
    next: u32,
    seen: BTreeSet<u64>,
    must_ack: bool,
    /// What TLS wrote first, in case it must be sent again.
    hello: Vec<u8>,
    to_send: Vec<u8>,
    sent: u64,
    came: BTreeMap<u64, Vec<u8>>,
    read: u64,
}

/// What a client says of itself in the handshake.
pub(crate) fn parameters(window: u64) -> Vec<(u64, Vec<u8>)> {
    let number = |id: u64, value: u64| (id, varint(value));
    vec![
        number(0x01, 60_000),
        number(0x04, window),
        number(0x05, window),
        number(0x06, window),
        number(0x08, 100),
    ]
}

impl Bare {
    /// Begins a connection without sending anything.
    pub(crate) fn new(
        socket: UdpSocket,
        config: ClientConfig,
        id: usize,
        seed: u64,
        parameters: &[(u64, Vec<u8>)],
    ) -> Self {
        let ours: [u8; ID] = noise(ID, seed).try_into().unwrap();
        let mut encoded = Vec::new();
        let own = (0x0f, ours.to_vec());
        for (id, value) in parameters.iter().chain([&own]) {
            encoded.extend(varint(*id));
            encoded.extend(varint(value.len() as u64));
            encoded.extend(value);
        }
        let name = "server.tunnel.internal".try_into().unwrap();
        let tls = ClientConnection::new(Arc::new(config), Version::V1, name, encoded).unwrap();
        let mut bare = Self {
            socket,
            tls,
            ours,
            theirs: noise(id, seed + 1),
            token: Vec::new(),
            levels: Default::default(),
            writes: 0,
            retried: false,
            closed: None,
            streams: Vec::new(),
            packets: 0,
        };
        bare.take_initial_keys();
        bare.write_tls();
        bare.levels[0].hello = bare.levels[0].to_send.clone();
        bare
    }

    /// Connects.
    pub(crate) fn connect(
        socket: UdpSocket,
        config: ClientConfig,
        id: usize,
        parameters: &[(u64, Vec<u8>)],
    ) -> Self {
        let mut bare = Self::new(socket, config, id, u64::from_be_bytes(seed()), parameters);
        bare.flush();
        let connected = bare.run(Duration::from_secs(20), |bare| {
            bare.closed.is_some() || bare.levels[2].keys.is_some() && !bare.tls.is_handshaking()
        });
        assert!(connected, "no handshake in time");
        bare
    }

    /// Returns the first packet, as it would be sent.
    pub(crate) fn first(&mut self) -> Vec<u8> {
        let hello = std::mem::take(&mut self.levels[0].to_send);
        let frame = crypto(0, &hello);
        self.packet(0, &frame)
    }

    /// Returns a first packet with other frames than TLS's.
    pub(crate) fn first_with(&mut self, frames: &[u8]) -> Vec<u8> {
        self.packet(0, frames)
    }

    /// Proves the address, as the server asks for.
    pub(crate) fn prove(&mut self) {
        self.read_one();
        assert!(self.retried, "the server did not ask for a proof");
        self.flush();
    }

    /// Reads the next datagram and answers nothing.
    pub(crate) fn read_one(&mut self) {
        let datagram = bare::receive(&self.socket, SOON);
        self.read(datagram.expect("an answer"));
    }

    /// Sends frames in a packet of the established connection.
    pub(crate) fn send(&mut self, frames: &[u8]) {
        let packet = self.protect(frames);
        let _ = self.socket.send(&packet);
    }

    /// Makes a packet of the established connection.
    pub(crate) fn protect(&mut self, frames: &[u8]) -> Vec<u8> {
        self.packet(2, frames)
    }

    /// Makes the acknowledgement of packets that were never received.
    pub(crate) fn false_ack(&self, beyond: u64) -> Vec<u8> {
        let largest = self.levels[2].seen.last().copied().unwrap_or_default() + beyond;
        [vec![0x02], varint(largest), varint(0), varint(0), varint(largest)].concat()
    }

    /// Receives and acknowledges until there is an end to it; says whether there was one in time.
    pub(crate) fn run(&mut self, patience: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = Instant::now() + patience;
        while !done(self) {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return false;
            };
            let left = left.clamp(Duration::from_millis(1), Duration::from_millis(200));
            if let Some(datagram) = bare::receive(&self.socket, left)
                && !tunnel_proto::bind::is_control(&datagram)
            {
                self.read(datagram);
                self.flush();
            }
        }
        true
    }

    /// Receives until the peer has closed the connection; the code.
    #[track_caller]
    pub(crate) fn end(&mut self) -> u64 {
        let ended = self.run(Duration::from_secs(20), |bare| bare.closed.is_some());
        assert!(ended, "the peer does not close the connection");
        self.closed.unwrap()
    }

    /// Says whether the connection still answers: its peer acknowledges a ping.
    pub(crate) fn lives(&mut self) -> bool {
        let before = self.packets;
        self.send(&[0x01, 0, 0, 0]);
        self.run(Duration::from_secs(10), |bare| {
            bare.closed.is_some() || bare.packets > before
        }) && self.closed.is_none()
    }

    /// Ends the connection.
    pub(crate) fn close(&mut self) {
        self.send(&[0x1d, 0, 0]);
    }

    fn take_initial_keys(&mut self) {
        let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
        let suite = suite.tls13().and_then(|suite| suite.quic_suite()).unwrap();
        self.levels[0].keys = Some(suite.keys(&self.theirs, rustls::Side::Client, Version::V1));
    }

    /// Lets TLS write what it has to.
    fn write_tls(&mut self) {
        loop {
            let mut bytes = Vec::new();
            let change = self.tls.write_hs(&mut bytes);
            let idle = bytes.is_empty() && change.is_none();
            self.levels[self.writes].to_send.append(&mut bytes);
            match change {
                Some(KeyChange::Handshake { keys }) => {
                    self.writes = 1;
                    self.levels[1].keys = Some(keys);
                }
                Some(KeyChange::OneRtt { keys, .. }) => {
                    self.writes = 2;
                    self.levels[2].keys = Some(keys);
                }
                None => {}
            }
            if idle {
                return;
            }
        }
    }

    /// Sends what TLS has written, and acknowledgements.
    fn flush(&mut self) {
        for level in 0..3 {
            if self.levels[level].keys.is_none() {
                continue;
            }
            let bytes = std::mem::take(&mut self.levels[level].to_send);
            let mut frames = self.ack(level);
            for part in bytes.chunks(FRAMES) {
                frames.extend(crypto(self.levels[level].sent, part));
                self.levels[level].sent += part.len() as u64;
                let packet = self.packet(level, &std::mem::take(&mut frames));
                let _ = self.socket.send(&packet);
            }
            if !frames.is_empty() {
                let packet = self.packet(level, &frames);
                let _ = self.socket.send(&packet);
            }
        }
    }

    /// Makes the acknowledgement of all that came, if anything new did: the last ranges of it.
    fn ack(&mut self, level: usize) -> Vec<u8> {
        let level = &mut self.levels[level];
        if !std::mem::take(&mut level.must_ack) {
            return Vec::new();
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for &number in level.seen.iter().rev() {
            let full = ranges.len() == 30;
            match ranges.last_mut() {
                Some((low, _)) if *low == number + 1 => *low = number,
                _ if full => break,
                _ => ranges.push((number, number)),
            }
        }
        let Some(&(low, high)) = ranges.first() else {
            return Vec::new();
        };
        let mut frame = vec![0x02];
        for value in [high, 0, ranges.len() as u64 - 1, high - low] {
            frame.extend(varint(value));
        }
        for pair in ranges.windows(2) {
            frame.extend(varint(pair[0].0 - pair[1].1 - 2));
            frame.extend(varint(pair[1].1 - pair[1].0));
        }
        frame
    }

    fn packet(&mut self, level: usize, frames: &[u8]) -> Vec<u8> {
        let number = self.levels[level].next;
        self.levels[level].next += 1;
        let mut payload = frames.to_vec();
        // The sample of the header's protection must lie within.
        payload.resize(payload.len().max(4), 0);
        let mut packet = match level {
            2 => [&[0x43], self.theirs.as_slice()].concat(),
            _ => {
                let kind = if level == 0 { 0xc3 } else { 0xe3 };
                let mut header = vec![kind, 0, 0, 0, 1];
                for id in [self.theirs.as_slice(), &self.ours] {
                    header.push(u8::try_from(id.len()).unwrap());
                    header.extend(id);
                }
                if level == 0 {
                    header.extend(varint(self.token.len() as u64));
                    header.extend(&self.token);
                    let room = 1200usize.saturating_sub(header.len() + 2 + NUMBER + TAG);
                    payload.resize(payload.len().max(room), 0);
                }
                let length = u16::try_from(NUMBER + payload.len() + TAG).unwrap() | 0x4000;
                header.extend(length.to_be_bytes());
                header
            }
        };
        let at = packet.len();
        packet.extend(number.to_be_bytes());
        let keys = &self.levels[level].keys.as_ref().unwrap().local;
        let tag = keys
            .packet
            .encrypt_in_place(number.into(), &packet, &mut payload)
            .unwrap();
        packet.append(&mut payload);
        packet.extend(tag.as_ref());
        let (header, body) = packet.split_at_mut(at + NUMBER);
        let (first, rest) = header.split_at_mut(1);
        let sample = &body[..keys.header.sample_len()];
        keys.header
            .encrypt_in_place(sample, &mut first[0], &mut rest[at - 1..])
            .unwrap();
        packet
    }

    fn read(&mut self, mut datagram: Vec<u8>) {
        while !datagram.is_empty() {
            let Some((level, at, length)) = self.find(&datagram) else {
                return;
            };
            let rest = datagram.split_off(length);
            if let Some(payload) = self.open(level, at, &mut datagram) {
                self.packets += 1;
                self.frames(level, &payload);
            }
            datagram = rest;
        }
    }

    /// Finds the level of the first packet, where its number stands, and where it ends; does what a Retry asks for.
    fn find(&mut self, datagram: &[u8]) -> Option<(usize, usize, usize)> {
        if datagram[0] & 0x80 == 0 {
            return Some((2, 1 + ID, datagram.len()));
        }
        let mut reader = Reader(datagram.get(5..)?);
        let theirs = {
            let length = reader.byte()?;
            reader.take(length.into())?;
            let length = reader.byte()?;
            reader.take(length.into())?.to_vec()
        };
        match datagram[0] >> 4 & 3 {
            3 => {
                self.retried = true;
                self.theirs = theirs;
                self.token = reader.0[..reader.0.len().checked_sub(TAG)?].to_vec();
                // The hello is sent again, with the token.
                let hello = self.levels[0].hello.clone();
                self.levels[0].sent = 0;
                self.levels[0].to_send = hello;
                self.take_initial_keys();
                return None;
            }
            0 => {
                let length = reader.number()?;
                reader.take(usize::try_from(length).ok()?)?;
            }
            _ => {}
        }
        self.theirs = theirs;
        let length = usize::try_from(reader.number()?).ok()?;
        let at = datagram.len() - reader.0.len();
        let level = if datagram[0] >> 4 & 3 == 0 { 0 } else { 1 };
        Some((level, at, (at + length).min(datagram.len())))
    }

    /// Takes the protection off a packet.
    fn open(&mut self, level: usize, at: usize, packet: &mut [u8]) -> Option<Vec<u8>> {
        let level = &mut self.levels[level];
        let keys = &level.keys.as_ref()?.remote;
        let sample = packet.get(at + 4..at + 4 + keys.header.sample_len())?.to_vec();
        let (first, rest) = packet.split_at_mut(1);
        let number = &mut rest[at - 1..at + 3];
        keys.header
            .decrypt_in_place(&sample, &mut first[0], number)
            .ok()?;
        let bytes = usize::from(first[0] & 3) + 1;
        let short = number[..bytes]
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let window = 1u64 << (8 * bytes);
        let expected = level.seen.last().map_or(0, |largest| largest + 1);
        let mut full = expected & !(window - 1) | short;
        if full + window / 2 <= expected {
            full += window;
        } else if full > expected + window / 2 && full >= window {
            full -= window;
        }
        let (header, body) = packet.split_at_mut(at + bytes);
        let payload = keys.packet.decrypt_in_place(full, header, body).ok()?.to_vec();
        level.seen.insert(full);
        level.must_ack = true;
        Some(payload)
    }

    fn frames(&mut self, level: usize, payload: &[u8]) {
        let mut reader = Reader(payload);
        while let Some(kind) = reader.number() {
            if self.frame(level, kind, &mut reader).is_none() {
                return;
            }
        }
    }

    fn frame(&mut self, level: usize, kind: u64, reader: &mut Reader<'_>) -> Option<()> {
        match kind {
            0x00 | 0x01 | 0x1e => {}
            0x02 | 0x03 => {
                reader.number()?;
                reader.number()?;
                let ranges = reader.number()?;
                let more = if kind == 0x03 { 3 } else { 0 };
                reader.numbers(1 + 2 * ranges + more)?;
            }
            0x06 => {
                let (offset, length) = (reader.number()?, reader.number()?);
                let bytes = reader.take(usize::try_from(length).ok()?)?;
                self.levels[level].came.insert(offset, bytes.to_vec());
                self.read_tls(level);
            }
            0x07 => {
                let length = reader.number()?;
                reader.take(usize::try_from(length).ok()?)?;
            }
            0x08..=0x0f => {
                let id = reader.number()?;
                if kind & 4 != 0 {
                    reader.number()?;
                }
                let length = if kind & 2 != 0 {
                    usize::try_from(reader.number()?).ok()?
                } else {
                    reader.0.len()
                };
                let bytes = reader.take(length)?;
                self.streams.push((id, bytes.to_vec()));
            }
            0x04 => reader.numbers(3)?,
            0x05 | 0x11 | 0x15 => reader.numbers(2)?,
            0x10 | 0x12 | 0x13 | 0x14 | 0x16 | 0x17 | 0x19 => reader.numbers(1)?,
            0x18 => {
                reader.numbers(2)?;
                let length = reader.byte()?;
                reader.take(usize::from(length) + 16)?;
            }
            0x1a | 0x1b => {
                reader.take(8)?;
            }
            0x1c | 0x1d => {
                self.closed = Some(reader.number()?);
                return None;
            }
            other => panic!("the peer sent a frame of kind {other:#x}"),
        }
        Some(())
    }

    /// Hands TLS what came in order.
    fn read_tls(&mut self, level: usize) {
        while let Some((offset, bytes)) = self.levels[level].came.pop_first() {
            let read = self.levels[level].read;
            if offset > read {
                self.levels[level].came.insert(offset, bytes);
                break;
            }
            let known = usize::try_from(read - offset).unwrap();
            if let Some(new) = bytes.get(known..) {
                self.levels[level].read += new.len() as u64;
                if self.tls.read_hs(new).is_err() {
                    self.closed.get_or_insert(u64::MAX);
                }
            }
        }
        self.write_tls();
    }
}

/// Makes a frame with bytes of a stream.
pub(crate) fn stream(id: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u64;
    [
        &[0x0e],
        varint(id).as_slice(),
        &varint(offset),
        &varint(length),
        bytes,
    ]
    .concat()
}

/// Makes a frame that breaks a stream off.
pub(crate) fn reset(id: u64, size: u64) -> Vec<u8> {
    [vec![0x04], varint(id), varint(0), varint(size)].concat()
}

fn crypto(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [
        &[0x06],
        varint(offset).as_slice(),
        &varint(bytes.len() as u64),
        bytes,
    ]
    .concat()
}

/// A number as QUIC writes it (RFC 9000 section 16).
pub(crate) fn varint(value: u64) -> Vec<u8> {
    match value {
        0..0x40 => vec![value as u8],
        0x40..0x4000 => (value as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

fn seed() -> [u8; 8] {
    let mut seed = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed).unwrap();
    seed[0] = 0;
    seed
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let length = 1usize << (self.0.first()? >> 6);
        let bytes = self.take(length)?;
        let value = bytes.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
        Some(value & (u64::MAX >> (64 - 8 * length + 2)))
    }

    fn numbers(&mut self, count: u64) -> Option<()> {
        (0..count).try_for_each(|_| self.number().map(|_| ()))
    }
}
