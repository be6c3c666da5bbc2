//! A file that keeps a copy of packets, in the form that `tcpdump -r` and Wireshark read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::link::MAX_MTU;

/// The start of a capture file: magic number with microseconds, version 2.4.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// The link type of packets that start with their IP header.
const RAW: u32 = 101;

/// A capture file that is being written. Dropping it writes what is still in memory.
pub struct Capture(BufWriter<File>);

impl Capture {
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&MAGIC.to_ne_bytes())?;
        VERSION
            .iter()
            .try_for_each(|part| file.write_all(&part.to_ne_bytes()))?;
        for field in [0, 0, MAX_MTU as u32, RAW] {
            file.write_all(&field.to_ne_bytes())?;
        }
        Ok(Capture(file))
    }

    /// Appends one packet. One that cannot be written is missing; the network goes on.
    pub fn keep(&mut self, packet: &[u8]) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let length = packet.len() as u32;
        let mut header = [0; 16];
        let fields = [time.as_secs() as u32, time.subsec_micros(), length, length];
        for (place, field) in header.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        let _ = self.0.write_all(&header).and_then(|()| self.0.write_all(packet));
    }
}
