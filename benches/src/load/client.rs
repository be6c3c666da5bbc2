//! The near end of the load: what it measures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tunnel_e2e::bytes::noise;
use tunnel_e2e::place::Place;

use super::{CHUNK, STACK, Way, purpose};
use crate::stats::Times;

/// Longest wait for the answer to a single byte before a measurement is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two attempts at a path that does not work yet.
const RETRY: Duration = Duration::from_millis(2);

/// How long messages that were sent may still come back.
const STRAGGLERS: Duration = Duration::from_secs(5);

/// Where a client sends its load, and from where.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where the client is.
    pub place: Place,
    /// Where it connects to.
    pub address: SocketAddr,
    /// What has arrived at the far end behind it in bulk transfers.
    pub received: Arc<AtomicU64>,
}

impl Target {
    /// Opens a connection and waits until the far end has answered.
    pub(super) fn open(&self, asked: u8) -> io::Result<TcpStream> {
        let mut stream = self
            .place
            .on(|| TcpStream::connect_timeout(&self.address, PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[asked])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer[0] != asked {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "the far end is not that of the load",
            ));
        }
        Ok(stream)
    }
}

/// Measures the time until the first byte comes back, with as many attempts as it needs.
///
/// # Errors
/// Fails when nothing has come back after half a minute.
pub fn first_byte(target: &Target) -> io::Result<Duration> {
    let start = Instant::now();
    loop {
        match target.open(purpose::ECHO) {
            Ok(_) => return Ok(start.elapsed()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(RETRY),
        }
    }
}

/// Measures from opening a connection to its first byte, one connection after another.
///
/// # Errors
/// Fails when the path does.
pub fn connects(target: &Target, count: usize) -> io::Result<Times> {
    let mut times = Times::default();
    for _ in 0..count {
        let start = Instant::now();
        let _stream = target.open(purpose::ECHO)?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Measures round trips of messages on one connection.
///
/// # Errors
/// Fails when the path does.
pub fn echoes(target: &Target, count: usize, size: usize) -> io::Result<Times> {
    let mut stream = target.open(purpose::ECHO)?;
    let (message, mut answer) = (noise(size, 2), vec![0; size]);
    let mut times = Times::default();
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Bulk transfers that run until they are dropped, and what has arrived of them.
#[derive(Debug)]
pub struct Bulk {
    streams: Vec<TcpStream>,
    arrived: Arc<AtomicU64>,
}

impl Bulk {
    /// Opens some connections and fills them.
    ///
    /// # Errors
    /// Fails when the path does.
    pub fn start(target: &Target, way: Way, count: usize) -> io::Result<Self> {
        let mut bulk = Self {
            streams: Vec::new(),
            arrived: Arc::default(),
        };
        if way == Way::Up {
            bulk.arrived = Arc::clone(&target.received);
        }
        for _ in 0..count {
            let asked = if way == Way::Down {
                purpose::SOURCE
            } else {
                purpose::SINK
            };
            let stream = target.open(asked)?;
            let (own, arrived) = (stream.try_clone()?, Arc::clone(&bulk.arrived));
            match way {
                Way::Down => spawn(move || count_bytes(own, &arrived))?,
                Way::Up => spawn(move || pour(own))?,
            };
            bulk.streams.push(stream);
        }
        Ok(bulk)
    }

    /// Returns a count that grows by what arrives at the receivers.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().stack_size(STACK).spawn(work)
}

fn count_bytes(mut stream: TcpStream, arrived: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        arrived.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn pour(mut stream: TcpStream) {
    let data = noise(CHUNK, 3);
    while stream.write_all(&data).is_ok() {}
}

/// What a keystroke meets.
#[derive(Clone, Copy, Debug)]
pub struct Typing {
    /// Keystrokes.
    pub count: usize,
    /// Bytes of each.
    pub size: usize,
    /// Time from one to the next.
    pub interval: Duration,
}

/// Measures round trips of messages that are sent by the clock, whether or not earlier ones have come back: a stall is seen
/// by every message that it concerns. A message that never comes back counts as the whole wait for it.
///
/// # Errors
/// Fails when the path does.
pub fn keystrokes(target: &Target, typing: Typing) -> io::Result<Times> {
    let mut stream = target.open(purpose::ECHO)?;
    let reader = stream.try_clone()?;
    let start = Instant::now();
    let typing = Typing {
        size: typing.size.max(8),
        ..typing
    };
    let answers = thread::Builder::new().spawn(move || read_answers(reader, start, typing))?;
    let mut message = noise(typing.size, 4);
    for at in 0..typing.count {
        let due = typing.interval * u32::try_from(at).unwrap_or(u32::MAX);
        thread::sleep(due.saturating_sub(start.elapsed()));
        let stamp = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        message[..8].copy_from_slice(&stamp.to_le_bytes());
        stream.write_all(&message)?;
    }
    let mut times = answers
        .join()
        .map_err(|_| io::Error::other("the reader of answers panicked"))?;
    while times.len() < typing.count {
        times.push(STRAGGLERS);
    }
    Ok(times)
}

fn read_answers(mut stream: TcpStream, start: Instant, typing: Typing) -> Times {
    let mut times = Times::default();
    let mut answer = vec![0; typing.size];
    let _ = stream.set_read_timeout(Some(STRAGGLERS + typing.interval));
    while times.len() < typing.count && stream.read_exact(&mut answer).is_ok() {
        if let Ok(stamp) = answer[..8].try_into() {
            times.push(
                start
                    .elapsed()
                    .saturating_sub(Duration::from_nanos(u64::from_le_bytes(stamp))),
            );
        }
    }
    times
}
