//! A session that never rests: small messages by the clock, and when their answers come.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::client::Target;
use super::{STACK, purpose};

/// Time from one message to the next.
const INTERVAL: Duration = Duration::from_millis(5);

/// Bytes of a message: the number of nanoseconds since the start, and a copy of it.
const SIZE: usize = 16;

/// How often a state is looked at that somebody waits for.
const LOOK: Duration = Duration::from_millis(1);

/// One session. It ends with this value.
#[derive(Debug)]
pub struct Pulse {
    stream: TcpStream,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    ended: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When the last answered message was sent, and when its answer came.
    sent: Instant,
    came: Instant,
    /// The longest time between two answers since the last mark.
    longest: Duration,
    /// Whether an answer was not what was sent.
    wrong: bool,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Opens a session and begins to send.
    ///
    /// # Errors
    /// Fails when the path does.
    pub fn start(target: &Target) -> io::Result<Self> {
        let stream = target.open(purpose::ECHO)?;
        stream.set_read_timeout(None)?;
        let start = Instant::now();
        let shared = Arc::new(Shared {
            start,
            ended: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                sent: start,
                came: start,
                longest: Duration::ZERO,
                wrong: false,
            }),
        });
        for work in [send, receive] {
            let (stream, shared) = (stream.try_clone()?, Arc::clone(&shared));
            thread::Builder::new().stack_size(STACK).spawn(move || {
                // What it ends with is what the session ended with.
                let _ = work(stream, &shared);
                shared.ended.store(true, Ordering::Relaxed);
            })?;
        }
        Ok(Self { stream, shared })
    }

    /// Begins to look for the longest pause anew.
    pub fn mark(&self) {
        self.shared.seen().longest = Duration::ZERO;
    }

    /// Waits until something that was sent after `event` has come back; the longest pause since the mark. None if the
    /// session has not gone on in time, or not with what was sent.
    pub fn resumed(&self, event: Instant, patience: Duration) -> Option<Duration> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = *self.shared.seen();
            if seen.sent > event && !seen.wrong {
                return Some(seen.longest);
            }
            if Instant::now() > deadline || seen.wrong || self.shared.ended.load(Ordering::Relaxed) {
                return None;
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn send(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    for number in 1.. {
        thread::sleep((INTERVAL * number).saturating_sub(shared.start.elapsed()));
        let stamp = u64::try_from(shared.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let stamp = stamp.to_le_bytes();
        stream.write_all(&[stamp, stamp].concat())?;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut answer = [0; SIZE];
    let mut last = 0;
    loop {
        stream.read_exact(&mut answer)?;
        let now = Instant::now();
        let (stamp, copy) = answer.split_at(SIZE / 2);
        let nanos = stamp.try_into().map_or(0, u64::from_le_bytes);
        let mut seen = shared.seen();
        seen.wrong |= stamp != copy || nanos <= last;
        seen.longest = seen.longest.max(now - seen.came);
        seen.came = now;
        seen.sent = shared.start + Duration::from_nanos(nanos);
        last = nanos;
    }
}
