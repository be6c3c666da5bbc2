//! The service at the device that checks what it gets, and sends what the other end can check.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::checked::End;
use crate::place::Place;
use crate::service::Service;

/// Bytes with which a client says what it wants.
const GREETING: usize = 16;

/// Bytes of payload in a record of a bulk session.
pub const BULK_RECORD: usize = 8 * 1024;

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// What both ends' bytes follow from.
    pub seed: u64,
    /// Payload bytes each second that the service sends by itself; 0 for an answer to each record instead.
    pub rate: u32,
}

impl Wish {
    /// Returns the bytes that say it.
    pub fn greeting(self) -> [u8; GREETING] {
        let mut bytes = *b"chk1............";
        bytes[4..8].copy_from_slice(&self.rate.to_be_bytes());
        bytes[8..].copy_from_slice(&self.seed.to_be_bytes());
        bytes
    }

    fn read(bytes: [u8; GREETING]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (rate, seed) = rest.split_first_chunk::<4>()?;
        (magic == b"chk1").then_some(Self {
            seed: u64::from_be_bytes(seed.try_into().ok()?),
            rate: u32::from_be_bytes(*rate),
        })
    }
}

/// What services have found wrong, and how much they have compared.
#[derive(Clone, Debug, Default)]
pub struct Findings(Arc<Found>);

#[derive(Debug, Default)]
struct Found {
    wrong: Mutex<Vec<String>>,
    compared: AtomicU64,
}

impl Findings {
    /// Notes something.
    pub fn note(&self, what: String) {
        hold(&self.0.wrong).push(what);
    }

    /// Counts bytes that were right.
    pub fn count(&self, bytes: u64) {
        self.0.compared.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns what is wrong.
    pub fn wrong(&self) -> Vec<String> {
        hold(&self.0.wrong).clone()
    }

    /// Takes one of the things that are wrong away.
    pub fn take_wrong(&self) -> Option<String> {
        hold(&self.0.wrong).pop()
    }

    /// Returns how many bytes were compared.
    pub fn compared(&self) -> u64 {
        self.0.compared.load(Ordering::Relaxed)
    }
}

/// Takes a lock, also one that a thread held when it panicked.
pub fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the service.
pub fn start(place: &Place, findings: &Findings) -> Service {
    let findings = findings.clone();
    Service::start(place, move |stream, _| serve(stream, &findings))
}

/// Serves one client. A connection that breaks is for the client to notice: it knows whether it wanted that.
fn serve(mut stream: TcpStream, findings: &Findings) {
    let mut greeting = [0; GREETING];
    let _ = stream.set_nodelay(true);
    if stream.read_exact(&mut greeting).is_err() {
        return;
    }
    let Some(wish) = Wish::read(greeting) else {
        findings.note("the service got a greeting that nobody sent".to_owned());
        return;
    };
    let end = Mutex::new(End::service(wish.seed));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if wish.rate > 0 {
            scope.spawn(|| pour(&stream, &end, wish.rate, &stop));
        }
        if let Err(wrong) = read(&stream, &end, wish.rate == 0, findings) {
            findings.note(format!("from client to service, seed {:x}, {wrong}", wish.seed));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The last record confirms all that came.
    let last = hold(&end).record(0);
    let _ = stream
        .write_all(&last)
        .and_then(|()| stream.shutdown(Shutdown::Write));
}

/// Reads to the end and checks; with `answers`, each record is answered with one.
fn read(
    mut stream: &TcpStream,
    end: &Mutex<End>,
    answers: bool,
    findings: &Findings,
) -> Result<(), crate::checked::Wrong> {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let mut end = hold(end);
        let records = end.take(&buffer[..length])?;
        findings.count(length as u64);
        let answers: Vec<u8> = (0..if answers { records } else { 0 })
            .flat_map(|_| end.record(1))
            .collect();
        drop(end);
        if stream.write_all(&answers).is_err() {
            break;
        }
    }
    Ok(())
}

/// Sends records at a rate until it is told to stop, or cannot.
pub fn pour(mut stream: impl Write, end: &Mutex<End>, rate: u32, stop: &AtomicBool) {
    let pause = Duration::from_secs_f64(BULK_RECORD as f64 / f64::from(rate));
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let record = hold(end).record(BULK_RECORD);
        if stream.write_all(&record).and_then(|()| stream.flush()).is_err() {
            return;
        }
        // What was held up is not made up for: the pace is that of a program, not of a bucket.
        due = (due + pause).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
