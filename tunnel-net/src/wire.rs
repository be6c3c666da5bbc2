//! The socket that quinn sees: one peer address for ever, whatever carries its datagrams underneath.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::sync::{Notify, mpsc};
use tunnel_proto::bind;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::leg::Activity;

use crate::websocket::{Pipe, lock};

/// The peer's address as quinn sees it (discard-only prefix, RFC 6666): it never appears on a network.
pub(crate) const PEER: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)), 1);
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2)), 1);

/// Buffer that is asked of the kernel for each direction; it may give less.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Control datagrams that wait for the leg's task at most; the relay repeats nothing, but the leg asks again.
const CONTROL_QUEUE: usize = 16;

/// A UDP socket that talks to one address.
#[derive(Debug)]
pub(crate) struct Udp {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    peer: SocketAddr,
    heard: Notify,
}

impl Udp {
    /// Opens a socket of the peer's family on a port of the kernel's choice.
    pub(crate) async fn connect(peer: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if peer.is_ipv6() {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let io = tokio::net::UdpSocket::bind((any, 0)).await?;
        io.connect(peer).await?;
        // Until the runtime has seen that it can be written to, `try_send` would refuse the first bind.
        io.writable().await?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        for set in [
            UdpSocketState::set_send_buffer_size,
            UdpSocketState::set_recv_buffer_size,
        ] {
            if let Err(error) = set(&state, UdpSockRef::from(&io), SOCKET_BUFFER) {
                tracing::debug!(%error, "the kernel gives smaller socket buffers");
            }
        }
        Ok(Self {
            io,
            state,
            peer,
            heard: Notify::new(),
        })
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Waits until something has come from the peer.
    pub(crate) async fn heard(&self) {
        self.heard.notified().await;
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.peer,
            src_ip: None,
            ..transmit.clone()
        };
        self.io.try_io(Interest::WRITABLE, || {
            self.state.try_send(UdpSockRef::from(&self.io), &transmit)
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.io.poll_recv_ready(cx))?;
            let read = self.io.try_io(Interest::READABLE, || {
                self.state.recv(UdpSockRef::from(&self.io), bufs, meta)
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    if read.is_ok() {
                        self.heard.notify_one();
                    }
                    return Poll::Ready(read);
                }
            }
        }
    }
}

/// A socket over up to two carriers, of which one is used for sending.
#[derive(Debug)]
pub(crate) struct Wire {
    carriers: Mutex<Carriers>,
    control: mpsc::Sender<Control>,
    activity: ActivityClock,
    /// Carriers on which sending or receiving failed.
    broken: mpsc::Sender<Carrier>,
}

/// A control datagram and what brought it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Control {
    pub(crate) carrier: Carrier,
    /// The address that it came from, over UDP.
    pub(crate) from: Option<SocketAddr>,
    pub(crate) datagram: [u8; bind::SIZE],
}

#[derive(Debug, Default)]
struct Carriers {
    udp: Option<Arc<Udp>>,
    /// Sockets to other addresses of the same relay, until one address has answered.
    others: Vec<Arc<Udp>>,
    websocket: Option<Arc<Pipe>>,
    active: Option<Carrier>,
    reader: Option<Waker>,
    writers: Vec<Waker>,
}

impl Wire {
    /// Makes a socket without carriers; what comes of control datagrams and of broken carriers is told by the channels.
    pub(crate) fn new() -> (Arc<Self>, mpsc::Receiver<Control>, mpsc::Receiver<Carrier>) {
        let (control, controls) = mpsc::channel(CONTROL_QUEUE);
        let (broken, breaks) = mpsc::channel(CONTROL_QUEUE);
        let wire = Self {
            carriers: Mutex::default(),
            control,
            activity: ActivityClock::new(),
            broken,
        };
        (Arc::new(wire), controls, breaks)
    }

    pub(crate) fn set_udp(&self, udp: Option<Arc<Udp>>) {
        self.change(|carriers| {
            carriers.udp = udp;
            carriers.others.clear();
        });
    }

    /// Adds a socket to another address of the relay: control datagrams go to it too.
    pub(crate) fn add_udp(&self, udp: Arc<Udp>) {
        self.change(|carriers| carriers.others.push(udp));
    }

    /// Keeps the socket to one address, and gives those to the others up.
    pub(crate) fn keep_udp(&self, peer: SocketAddr) {
        self.change(|carriers| {
            let kept = carriers.others.drain(..).find(|udp| udp.peer == peer);
            if kept.is_some() {
                carriers.udp = kept;
            }
        });
    }

    pub(crate) fn set_websocket(&self, pipe: Option<Arc<Pipe>>) {
        self.change(|carriers| carriers.websocket = pipe);
    }

    pub(crate) fn set_active(&self, carrier: Carrier) {
        self.change(|carriers| carriers.active = Some(carrier));
    }

    /// Keeps whoever sends waiting until a carrier is in use again: what would be sent before would be lost.
    pub(crate) fn hold(&self) {
        self.change(|carriers| carriers.active = None);
    }

    /// Changes the carriers and wakes whoever waits for one of them.
    fn change(&self, change: impl FnOnce(&mut Carriers)) {
        let mut carriers = lock(&self.carriers);
        change(&mut carriers);
        let mut wakers = std::mem::take(&mut carriers.writers);
        wakers.extend(carriers.reader.take());
        drop(carriers);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Sends a control datagram, whichever carrier is in use; one that cannot go now is lost, and repeated by the leg.
    pub(crate) fn send_control(&self, carrier: Carrier, datagram: &[u8]) {
        let carriers = lock(&self.carriers);
        match carrier {
            Carrier::Udp => {
                for udp in carriers.udp.iter().chain(&carriers.others) {
                    let _ = udp.io.try_send(datagram);
                }
            }
            Carrier::WebSocket => {
                if let Some(pipe) = &carriers.websocket {
                    let _ = pipe.try_send(std::iter::once(datagram));
                }
            }
        }
    }

    pub(crate) fn activity(&self) -> Activity {
        self.activity.read()
    }

    /// Returns what tells that data has begun to wait for an answer, or that it no longer does.
    pub(crate) fn activity_changed(&self) -> &Notify {
        &self.activity.began
    }

    fn broke(&self, carrier: Carrier, error: &io::Error) {
        tracing::debug!(%carrier, %error, "carrier broke");
        let _ = self.broken.try_send(carrier);
    }

    /// Takes control datagrams out of what was received over UDP and tells how many buffers hold data.
    fn sort(
        &self,
        from: SocketAddr,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        filled: usize,
    ) -> usize {
        let mut kept = 0;
        for at in 0..filled {
            meta[at].addr = PEER;
            meta[at].dst_ip = None;
            let (length, stride) = (meta[at].len, meta[at].stride.max(1));
            let data = &mut bufs[at][..length];
            if data.chunks(stride).any(bind::is_control) {
                meta[at].len = self.take_controls(from, data, stride);
            }
            if meta[at].len > 0 {
                if kept != at {
                    let moved = meta[at];
                    let (before, after) = bufs.split_at_mut(at);
                    before[kept][..moved.len].copy_from_slice(&after[0][..moved.len]);
                    meta[kept] = moved;
                }
                kept += 1;
            }
        }
        kept
    }

    /// Moves the data datagrams of a train together and hands the control datagrams on; returns the bytes of data.
    fn take_controls(&self, from: SocketAddr, data: &mut [u8], stride: usize) -> usize {
        let (mut read, mut write) = (0, 0);
        while read < data.len() {
            let end = (read + stride).min(data.len());
            if bind::is_control(&data[read..end]) {
                if let Some(control) = bind::unpadded(&data[read..end]) {
                    self.hand_on(Carrier::Udp, Some(from), control);
                }
            } else {
                data.copy_within(read..end, write);
                write += end - read;
            }
            read = end;
        }
        write
    }

    /// Hands a control datagram on, unless too many wait already.
    fn hand_on(&self, carrier: Carrier, from: Option<SocketAddr>, datagram: &[u8; bind::SIZE]) {
        let _ = self.control.try_send(Control {
            carrier,
            from,
            datagram: *datagram,
        });
    }

    fn poll_udp(
        &self,
        udp: &Udp,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        loop {
            match udp.poll_recv(cx, bufs, meta) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(filled)) => {
                    let kept = self.sort(udp.peer, bufs, meta, filled);
                    if kept > 0 {
                        return Poll::Ready(kept);
                    }
                }
                Poll::Ready(Err(error)) => {
                    // An ICMP answer: the relay is not there at the moment. The leg decides what that means.
                    self.broke(Carrier::Udp, &error);
                }
            }
        }
    }

    fn poll_websocket(
        &self,
        pipe: &Pipe,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        let mut filled = 0;
        let polled = pipe.poll_recv(cx, |datagram| {
            if bind::is_control(datagram) {
                if let Some(control) = bind::unpadded(datagram) {
                    self.hand_on(Carrier::WebSocket, None, control);
                }
                return true;
            }
            let Some(buf) = bufs.get_mut(filled).filter(|_| filled < meta.len()) else {
                return false;
            };
            let length = datagram.len().min(buf.len());
            buf[..length].copy_from_slice(&datagram[..length]);
            meta[filled] = RecvMeta {
                addr: PEER,
                len: length,
                stride: length,
                ecn: None,
                dst_ip: None,
            };
            filled += 1;
            true
        });
        match polled {
            Poll::Ready(()) if filled > 0 => Poll::Ready(filled),
            Poll::Ready(()) => {
                // Only control datagrams came; what wakes is already spent, so ask again.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { wire: self })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let carriers = lock(&self.carriers);
        let sent = match carriers.active {
            None => return Err(io::ErrorKind::WouldBlock.into()),
            Some(Carrier::Udp) => carriers.udp.as_ref().map_or(Ok(()), |udp| udp.try_send(transmit)),
            Some(Carrier::WebSocket) => carriers.websocket.as_ref().map_or(Ok(()), |pipe| {
                let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
                pipe.try_send(transmit.contents.chunks(size))
            }),
        };
        let active = carriers.active;
        drop(carriers);
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // A probe of the path's MTU that is too large is lost like any other.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {}
            Err(error) => {
                if let Some(active) = active {
                    self.broke(active, &error);
                }
            }
            Ok(()) => {}
        }
        self.activity.sent();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (udp, others, pipe) = {
            let mut carriers = lock(&self.carriers);
            if !carriers
                .reader
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                carriers.reader = Some(cx.waker().clone());
            }
            (
                carriers.udp.clone(),
                carriers.others.clone(),
                carriers.websocket.clone(),
            )
        };
        for udp in udp.iter().chain(&others) {
            if let Poll::Ready(count) = self.poll_udp(udp, cx, bufs, meta) {
                self.activity.received();
                return Poll::Ready(Ok(count));
            }
        }
        if let Some(pipe) = pipe
            && let Poll::Ready(count) = self.poll_websocket(&pipe, cx, bufs, meta)
        {
            self.activity.received();
            return Poll::Ready(Ok(count));
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOCAL)
    }

    fn max_transmit_segments(&self) -> usize {
        let carriers = lock(&self.carriers);
        match (&carriers.udp, carriers.active) {
            (Some(udp), Some(Carrier::Udp)) => udp.state.max_gso_segments(),
            (_, Some(Carrier::WebSocket)) => WEBSOCKET_SEGMENTS,
            _ => 1,
        }
    }

    fn max_receive_segments(&self) -> usize {
        MAX_GRO_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// What Linux joins at most into one received train (`UDP_GRO_CNT_MAX`).
const MAX_GRO_SEGMENTS: usize = 64;

/// Datagrams that are handed to a WebSocket at once: there they share one message.
const WEBSOCKET_SEGMENTS: usize = 32;

/// Wakes one task when a carrier can take datagrams again.
#[derive(Debug)]
struct Poller {
    wire: Arc<Wire>,
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut carriers = lock(&self.wire.carriers);
        if !carriers.writers.iter().any(|waker| waker.will_wake(cx.waker())) {
            carriers.writers.push(cx.waker().clone());
        }
        match carriers.active {
            None => Poll::Pending,
            Some(Carrier::Udp) => match &carriers.udp {
                Some(udp) => udp.io.poll_send_ready(cx),
                None => Poll::Ready(Ok(())),
            },
            Some(Carrier::WebSocket) => match &carriers.websocket {
                Some(pipe) => pipe.poll_writable(cx),
                None => Poll::Ready(Ok(())),
            },
        }
    }
}

/// When data was sent and received, in a form that costs next to nothing for each packet.
#[derive(Debug)]
struct ActivityClock {
    start: Instant,
    /// Microseconds since `start`; 0 is never.
    received: AtomicU64,
    waiting_since: AtomicU64,
    began: Notify,
}

impl ActivityClock {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            received: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            began: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    fn sent(&self) {
        if self.waiting_since.load(Ordering::Relaxed) == 0 {
            let now = self.now();
            let quiet = now.saturating_sub(self.received.load(Ordering::Relaxed)) > WAKE_AFTER;
            self.waiting_since.store(now, Ordering::Relaxed);
            if quiet {
                self.began.notify_one();
            }
        }
    }

    fn received(&self) {
        let now = self.now();
        self.received.store(now, Ordering::Relaxed);
        let since = self.waiting_since.load(Ordering::Relaxed);
        if since > 0 {
            self.waiting_since.store(0, Ordering::Relaxed);
            if now.saturating_sub(since) > OUTAGE {
                self.began.notify_one();
            }
        }
    }

    fn read(&self) -> Activity {
        let at = |micros: u64| (micros > 0).then(|| self.start + Duration::from_micros(micros));
        Activity {
            received: at(self.received.load(Ordering::Relaxed)),
            waiting_since: at(self.waiting_since.load(Ordering::Relaxed)),
        }
    }
}

/// After which wait for data the leg's task is woken by its end, in microseconds.
const OUTAGE: u64 = tunnel_proto::leg::OUTAGE.as_micros() as u64;

/// How long a leg must have been quiet before its task is woken by the next sending, in microseconds; until then the task
/// looks by itself.
const WAKE_AFTER: u64 = 300_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(len: usize, stride: usize) -> RecvMeta {
        RecvMeta {
            addr: "192.0.2.1:1".parse().unwrap(),
            len,
            stride,
            ecn: None,
            dst_ip: None,
        }
    }

    #[test]
    fn control_datagrams_are_taken_out_of_trains() {
        let (wire, mut controls, _breaks) = Wire::new();
        let control = [1u8; bind::SIZE];
        let data = [0x40u8; bind::SIZE];
        let mut train = [data, control, data].concat();
        let mut alone = control.to_vec();
        let mut last = [0xc0u8; 20].to_vec();
        let mut metas = [meta(150, 50), meta(50, 50), meta(20, 20)];
        let mut bufs = [
            IoSliceMut::new(&mut train),
            IoSliceMut::new(&mut alone),
            IoSliceMut::new(&mut last),
        ];
        let from = "192.0.2.1:1".parse().unwrap();
        let kept = wire.sort(from, &mut bufs, &mut metas, 3);
        assert_eq!(kept, 2);
        assert_eq!((metas[0].len, metas[0].stride, metas[0].addr), (100, 50, PEER));
        assert_eq!(bufs[0][..100], [data, data].concat());
        assert_eq!((metas[1].len, metas[1].addr), (20, PEER));
        assert_eq!(bufs[1][..20], [0xc0; 20]);
        let expected = Control {
            carrier: Carrier::Udp,
            from: Some(from),
            datagram: control,
        };
        assert_eq!(controls.try_recv().unwrap(), expected);
        assert_eq!(controls.try_recv().unwrap(), expected);
        assert!(controls.try_recv().is_err());
    }

    #[test]
    fn nothing_is_sent_before_a_carrier_is_confirmed() {
        let (wire, _controls, _breaks) = Wire::new();
        let transmit = Transmit {
            destination: PEER,
            ecn: None,
            contents: &[0x40],
            segment_size: None,
            src_ip: None,
        };
        assert_eq!(
            wire.try_send(&transmit).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        wire.set_websocket(Some(Pipe::new()));
        wire.set_active(Carrier::WebSocket);
        assert!(wire.try_send(&transmit).is_ok());
        assert!(wire.activity().waiting_since.is_some());
    }

    /// The leg's task sleeps while nothing comes; that the outage is over must not wait until it looks.
    #[tokio::test]
    async fn the_end_of_an_outage_wakes_the_leg_and_that_of_a_round_trip_does_not() {
        for (waited, wakes) in [(OUTAGE / 2, false), (OUTAGE * 2, true)] {
            let clock = ActivityClock {
                start: Instant::now() - Duration::from_micros(waited),
                ..ActivityClock::new()
            };
            clock.waiting_since.store(1, Ordering::Relaxed);
            clock.received();
            assert!(clock.read().waiting_since.is_none());
            let woken = tokio::time::timeout(Duration::ZERO, clock.began.notified()).await;
            assert_eq!(woken.is_ok(), wakes, "after {waited} us");
        }
    }
}
