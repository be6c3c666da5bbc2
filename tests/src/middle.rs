//! A man in the middle on loopback: the programs take it for the relay, and what it does with their packets is the test's
//! choice.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Which way a datagram goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From an end to the relay.
    In,
    /// From the relay to an end.
    Out,
}

/// A datagram that is under way.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Which way.
    pub way: Way,
    /// The end that it is from or for, numbered in the order in which they came.
    pub end: usize,
    /// The datagram.
    pub bytes: &'a [u8],
}

/// What becomes of a datagram: what is sent on in its place, after a while each, to the same end or another.
pub type Fate = Vec<(Duration, usize, Vec<u8>)>;

/// Decides what becomes of each datagram.
pub type Rule = Box<dyn FnMut(&Passing<'_>) -> Fate + Send>;

/// Passes everything on as it is.
pub fn pass(passing: &Passing<'_>) -> Fate {
    vec![(Duration::ZERO, passing.end, passing.bytes.to_vec())]
}

/// A running man in the middle.
#[derive(Debug)]
pub struct Middle {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    /// What the ends talk to.
    front: UdpSocket,
    rule: Mutex<Rule>,
    ends: Mutex<Ends>,
    later: mpsc::Sender<Later>,
    relay: Mutex<Option<SocketAddr>>,
    web: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
    seen: AtomicU64,
}

#[derive(Default)]
struct Ends {
    numbers: HashMap<SocketAddr, usize>,
    /// Where each end is, and the socket that stands for it at the relay.
    known: Vec<(SocketAddr, Arc<UdpSocket>)>,
}

struct Later {
    at: Instant,
    way: Way,
    end: usize,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inner(..)")
    }
}

impl Middle {
    /// Takes one port for UDP and TCP; where it leads is told by [`Middle::lead_to`].
    ///
    /// # Panics
    /// When no port is free.
    pub fn new() -> Self {
        let (listener, front) = (0..100)
            .find_map(|_| {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
                let front = UdpSocket::bind(listener.local_addr().ok()?).ok()?;
                Some((listener, front))
            })
            .expect("a port is free");
        let address = front.local_addr().expect("a socket has an address");
        front.set_read_timeout(Some(TICK)).expect("a time");
        let (later, queue) = mpsc::channel();
        let inner = Arc::new(Inner {
            front,
            rule: Mutex::new(Box::new(pass)),
            ends: Mutex::default(),
            later,
            relay: Mutex::default(),
            web: AtomicBool::new(true),
            streams: Mutex::default(),
            stopped: AtomicBool::new(false),
            seen: AtomicU64::new(0),
        });
        let (receiving, accepting, sending) = (Arc::clone(&inner), Arc::clone(&inner), Arc::clone(&inner));
        std::thread::spawn(move || receiving.receive());
        listener.set_nonblocking(true).expect("a listener can be asked");
        std::thread::spawn(move || accepting.accept(&listener));
        std::thread::spawn(move || sending.send_later(&queue));
        Self { address, inner }
    }

    /// Returns where the ends are to find the relay.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says where the relay is.
    pub fn lead_to(&self, relay: SocketAddr) {
        *lock(&self.inner.relay) = Some(relay);
    }

    /// Takes another rule.
    pub fn rule(&self, rule: impl FnMut(&Passing<'_>) -> Fate + Send + 'static) {
        *lock(&self.inner.rule) = Box::new(rule);
    }

    /// Sends a datagram to an end, or to the relay in an end's place.
    pub fn send(&self, way: Way, end: usize, bytes: &[u8]) {
        self.inner.send(way, end, bytes);
    }

    /// Lets TCP through, or breaks every connection and lets none come up.
    pub fn web(&self, open: bool) {
        self.inner.web.store(open, Ordering::Relaxed);
        if !open {
            for stream in lock(&self.inner.streams).drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Returns how many datagrams have come so far.
    pub fn seen(&self) -> u64 {
        self.inner.seen.load(Ordering::Relaxed)
    }
}

impl Default for Middle {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
        self.web(false);
    }
}

/// How long a thread looks away from the order to stop.
const TICK: Duration = Duration::from_millis(200);

impl Inner {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Takes what the ends send.
    fn receive(self: &Arc<Self>) {
        let mut buffer = vec![0; 65_536];
        while !self.is_stopped() {
            let Ok((length, from)) = self.front.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(end) = self.number(from) {
                self.handle(Way::In, end, &buffer[..length]);
            }
        }
    }

    /// Returns the number of an end; a new one gets a socket of its own towards the relay.
    fn number(self: &Arc<Self>, from: SocketAddr) -> Option<usize> {
        let relay = (*lock(&self.relay))?;
        let mut ends = lock(&self.ends);
        if let Some(&number) = ends.numbers.get(&from) {
            return Some(number);
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        socket.connect(relay).ok()?;
        socket.set_read_timeout(Some(TICK)).ok()?;
        let (number, socket) = (ends.known.len(), Arc::new(socket));
        ends.numbers.insert(from, number);
        ends.known.push((from, Arc::clone(&socket)));
        let inner = Arc::clone(self);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !inner.is_stopped() {
                if let Ok(length) = socket.recv(&mut buffer) {
                    inner.handle(Way::Out, number, &buffer[..length]);
                }
            }
        });
        Some(number)
    }

    fn handle(&self, way: Way, end: usize, bytes: &[u8]) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let fate = lock(&self.rule)(&Passing { way, end, bytes });
        for (after, end, bytes) in fate {
            if after.is_zero() {
                self.send(way, end, &bytes);
            } else {
                let at = Instant::now() + after;
                let _ = self.later.send(Later { at, way, end, bytes });
            }
        }
    }

    fn send(&self, way: Way, end: usize, bytes: &[u8]) {
        let known = lock(&self.ends).known.get(end).cloned();
        let Some((address, socket)) = known else { return };
        // What cannot be sent is lost, as on any path.
        let _ = match way {
            Way::In => socket.send(bytes),
            Way::Out => self.front.send_to(bytes, address),
        };
    }

    fn send_later(&self, queue: &mpsc::Receiver<Later>) {
        let mut waiting = BTreeMap::new();
        let mut count = 0u64;
        while !self.is_stopped() {
            let next = waiting
                .first_key_value()
                .map(|((at, _), _): (&(Instant, u64), &Later)| *at);
            let patience = next.map_or(TICK, |at| at.saturating_duration_since(Instant::now()).min(TICK));
            match queue.recv_timeout(patience) {
                Ok(later) => {
                    count += 1;
                    waiting.insert((later.at, count), later);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Some(entry) = waiting.first_entry()
                && entry.key().0 <= Instant::now()
            {
                let later = entry.remove();
                self.send(later.way, later.end, &later.bytes);
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.is_stopped() {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let relay = *lock(&self.relay);
            let open = self.web.load(Ordering::Relaxed);
            let Some(relay) = relay.filter(|_| open) else {
                continue;
            };
            let Ok(out) = TcpStream::connect(relay) else {
                continue;
            };
            let _ = stream.set_nonblocking(false);
            for (from, to) in [(&stream, &out), (&out, &stream)] {
                if let (Ok(from), Ok(to), Ok(kept)) = (from.try_clone(), to.try_clone(), from.try_clone()) {
                    let _ = from.set_nodelay(true);
                    lock(&self.streams).push(kept);
                    std::thread::spawn(move || copy(from, to));
                }
            }
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
