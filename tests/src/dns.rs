//! A DNS server on a host of an emulated network: it tells the truth, lies, fails or says nothing, as the test wants.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::place::Place;

/// How the server behaves; shared by the servers of all hosts.
#[derive(Clone, Debug, Default)]
pub struct Zone(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    names: BTreeMap<String, Vec<IpAddr>>,
    mood: Mood,
}

/// What becomes of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mood {
    /// It is answered from the zone.
    #[default]
    Answers,
    /// It is answered with `SERVFAIL`.
    Fails,
    /// It is not answered.
    Hangs,
}

impl Zone {
    /// Sets the addresses of a name.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|ip| ip.parse().expect("an address"));
        self.records().names.insert(name.to_owned(), addresses.collect());
    }

    /// Sets what becomes of questions.
    pub fn mood(&self, mood: Mood) {
        self.records().mood = mood;
    }

    fn records(&self) -> std::sync::MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a question; `None` for silence, and for what is no question.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        const HEADER: usize = 12;
        let records = self.records();
        let (name, length) = read_name(question.get(HEADER..)?)?;
        let end = HEADER + length + 4;
        let kind = u16::from_be_bytes([*question.get(end - 4)?, *question.get(end - 3)?]);
        let known = records.names.get(&name.to_ascii_lowercase());
        let flags: u16 = match (records.mood, known) {
            (Mood::Hangs, _) => return None,
            (Mood::Fails, _) => 0x8182,
            (Mood::Answers, None) => 0x8183,
            (Mood::Answers, Some(_)) => 0x8180,
        };
        let wanted = |ip: &&IpAddr| kind == if ip.is_ipv6() { 28 } else { 1 };
        let found: Vec<_> = match flags {
            0x8180 => known.into_iter().flatten().filter(wanted).collect(),
            _ => Vec::new(),
        };
        let mut answer = question.get(..2)?.to_vec();
        answer.extend(flags.to_be_bytes());
        answer.extend([0, 1, 0, u8::try_from(found.len()).ok()?, 0, 0, 0, 0]);
        answer.extend(question.get(HEADER..end)?);
        for ip in found {
            let bytes = match ip {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            // The name is the question's; class IN; not to be kept.
            answer.extend([0xc0, 0x0c]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 0, 0, u8::try_from(bytes.len()).ok()?]);
            answer.extend(bytes);
        }
        Some(answer)
    }
}

/// Reads a name in labels, and how many bytes it takes.
fn read_name(mut bytes: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut length) = (Vec::new(), 1);
    loop {
        let (&size, rest) = bytes.split_first()?;
        if size == 0 {
            return Some((labels.join("."), length));
        }
        let (label, rest) = rest.split_at_checked(size.into())?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        (bytes, length) = (rest, length + 1 + usize::from(size));
    }
}

/// A running server on the loopback of one host; it ends with this value.
#[derive(Debug)]
pub struct Dns {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts to answer on a host from a zone.
    ///
    /// # Panics
    /// When the host's port is taken.
    pub fn start(place: &Place, zone: &Zone) -> Self {
        // The network is this test's alone, so the port of the protocol is free.
        let socket =
            place.on(|| UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 53))).expect("the port is free"));
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a socket has timeouts");
        let (stop, zone) = (Arc::new(AtomicBool::new(false)), zone.clone());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some(answer) = zone.answer(&buffer[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
