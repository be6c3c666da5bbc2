//! Datagrams that go through tunnels without a pause, and when the last of each came through.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tunnel_e2e::bare::packet;

use super::{Crowd, Opened};

/// How often the sender looks what is due.
const TICK: Duration = Duration::from_micros(500);

/// A tunnel without a datagram for this long before the event was not alive.
const STALE: Duration = Duration::from_secs(1);

/// Bytes of a datagram: those of a keystroke.
const BYTES: usize = 100;

/// A running pulse.
#[derive(Debug)]
pub struct Pulse {
    begun: (Instant, SystemTime),
    /// For each tunnel, when its last datagram came through, in microseconds since the beginning.
    last: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
    receivers: JoinSet<()>,
}

impl Pulse {
    /// Sends a datagram through each tunnel every `interval`, at times that are spread evenly over it, and waits until one
    /// has come through each.
    ///
    /// # Errors
    /// Fails when one lets nothing through.
    pub fn start(crowd: &Crowd, tunnels: &[Opened], interval: Duration) -> Result<Self> {
        let begun = (Instant::now(), SystemTime::now());
        let last: Arc<Vec<AtomicU64>> = Arc::new(tunnels.iter().map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let mut receivers = JoinSet::new();
        for (at, tunnel) in tunnels.iter().enumerate() {
            let (socket, last) = (tunnel.destination.socket.try_clone()?, last.clone());
            socket.set_nonblocking(true)?;
            let runtime = crowd.runtime.handle().clone();
            let _inside = runtime.enter();
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            receivers.spawn_on(
                async move {
                    let mut buffer = [0; 2048];
                    while let Ok(length) = socket.recv(&mut buffer).await {
                        if length == BYTES {
                            last[at].store(micros(begun.0.elapsed()), Ordering::Relaxed);
                        }
                    }
                },
                &runtime,
            );
        }
        let sources = tunnels.iter().map(|tunnel| tunnel.source.socket.try_clone());
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let stopped = stop.clone();
        let sender = std::thread::spawn(move || send(&sources, interval, &stopped));
        let pulse = Self {
            begun,
            last,
            stop,
            sender: Some(sender),
            receivers,
        };
        pulse.wait("every tunnel to carry", |last| last.iter().all(|at| *at > 0))?;
        Ok(pulse)
    }

    /// Waits until nothing has come through any tunnel for a while; returns for each how long after `event` its last
    /// datagram came through.
    ///
    /// # Errors
    /// Fails when something still comes after all patience, and when a tunnel was silent before the event.
    pub fn settle(&self, event: SystemTime, quiet: Duration) -> Result<Vec<Duration>> {
        let newest = |last: &[u64]| last.iter().max().copied().unwrap_or_default();
        self.wait("nothing to come through", |last| {
            self.begun.0.elapsed() >= Duration::from_micros(newest(last)) + quiet
        })?;
        let last = self.last();
        let when = |micros| self.begun.1 + Duration::from_micros(micros);
        // One that carried nothing any more would look as if it were cut at once.
        let dead = last.iter().filter(|at| when(**at) + STALE < event).count();
        ensure!(dead == 0, "{dead} tunnels carried nothing long before the event");
        // What ended before the record was begun took no time.
        Ok(last
            .into_iter()
            .map(|micros| when(micros).duration_since(event).unwrap_or_default())
            .collect())
    }

    fn last(&self) -> Vec<u64> {
        self.last.iter().map(|at| at.load(Ordering::Relaxed)).collect()
    }

    fn wait(&self, what: &str, done: impl Fn(&[u64]) -> bool) -> Result<()> {
        let deadline = Instant::now() + super::PATIENCE;
        while !done(&self.last()) {
            (Instant::now() < deadline)
                .then_some(())
                .with_context(|| format!("waited in vain for {what}"))?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.receivers.abort_all();
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

/// Sends by the clock, so that a tunnel's turn does not depend on how long another one's took.
fn send(sockets: &[UdpSocket], interval: Duration, stop: &AtomicBool) {
    let (begun, gap) = (
        Instant::now(),
        interval / u32::try_from(sockets.len().max(1)).unwrap_or(u32::MAX),
    );
    let datagram = packet(1, BYTES);
    let mut sent: u128 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_nanos() / gap.as_nanos().max(1);
        while sent < due {
            let at = usize::try_from(sent % sockets.len() as u128).unwrap_or_default();
            // What the system has no room for is lost, as on any path.
            let _ = sockets[at].send(&datagram);
            sent += 1;
        }
        std::thread::sleep(TICK.min(interval));
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
