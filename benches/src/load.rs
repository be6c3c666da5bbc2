//! A load on a TCP path, between two ends of its own.
//!
//! Blocking sockets and threads: they cost less than what is measured, and a runtime of ours would be a part of it.

pub mod client;
pub mod pulse;
pub mod server;

/// What client and server say to each other: the client's first byte says what a connection is for, and the server answers
/// with the same byte. A path that accepts before its far end is there gains nothing by it.
mod purpose {
    /// Everything comes back as it was sent.
    pub(super) const ECHO: u8 = b'E';
    /// The server sends without end.
    pub(super) const SOURCE: u8 = b'S';
    /// The client sends without end; the server counts.
    pub(super) const SINK: u8 = b'D';
}

/// Bytes that are written or read at once in a bulk transfer.
const CHUNK: usize = 128 * 1024;

/// Stack of a thread of the load.
const STACK: usize = 256 * 1024;

/// Which way a bulk transfer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the far end to the near end: a download of the operator.
    Down,
    /// From the near end to the far end.
    Up,
}

impl Way {
    /// Both ways.
    pub const BOTH: [Self; 2] = [Self::Down, Self::Up];

    /// Returns the way in a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}
