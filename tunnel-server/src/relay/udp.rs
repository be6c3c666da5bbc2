//! The relay's UDP sockets: one port, one socket for each forwarding thread.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Type};

use super::train::{MAX_BYTES, MAX_SEGMENTS, Sent, Train};

/// Bytes that a socket buffers where the kernel allows it: some 10 ms at 3 Gbit/s.
const BUFFER: usize = 4 * 1024 * 1024;

/// How long a socket sends single datagrams after the kernel refused a train. A refusal may come from the path of one
/// receiver alone, and quinn-udp would never send a train again.
const PAUSE: Duration = Duration::from_secs(10);

/// Where datagrams go, and from which of our addresses: the one that the peer knows us by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    /// The receiver.
    pub(super) to: SocketAddr,
    /// Our address, where it is known.
    pub(super) from: Option<IpAddr>,
}

/// A UDP socket that sends and receives trains and never blocks.
#[derive(Debug)]
pub(super) struct Socket {
    io: UdpSocket,
    state: ArcSwap<UdpSocketState>,
    start: Instant,
    /// When trains are tried again, in milliseconds from `start`; 0 while they work or were never possible.
    retry: AtomicU64,
}

/// Opens `count` sockets on one port. The kernel gives each peer to one of them by the peer's address.
///
/// # Errors
/// Fails when the port is taken. The first socket is bound without `SO_REUSEPORT`, so that a second server on the same
/// machine fails here and does not take half of the first one's packets.
pub(super) fn open(listen: SocketAddr, count: usize) -> io::Result<Vec<Arc<Socket>>> {
    let first = bind(listen, false)?;
    let listen = first
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    first.set_reuse_port(true)?;
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(bind(listen, true)?);
    }
    sockets
        .into_iter()
        .map(|socket| Socket::new(socket).map(Arc::new))
        .collect()
}

fn bind(listen: SocketAddr, shared: bool) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket)
}

/// Enlarges the buffers of a socket as far as this process may. Returns what it got for receiving.
fn enlarge(socket: &socket2::Socket) -> io::Result<usize> {
    // With the right to (CAP_NET_ADMIN) past the system's bound, else up to it.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if rustix::net::sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    socket.recv_buffer_size()
}

impl Socket {
    fn new(socket: socket2::Socket) -> io::Result<Self> {
        let got = enlarge(&socket)?;
        if got < BUFFER {
            tracing::warn!(
                wanted_bytes = BUFFER,
                got_bytes = got,
                "socket buffers are smaller than wanted; raise net.core.rmem_max and net.core.wmem_max"
            );
        }
        let io = UdpSocket::from(socket);
        let state = ArcSwap::from_pointee(UdpSocketState::new((&io).into())?);
        Ok(Self {
            io,
            state,
            start: Instant::now(),
            retry: AtomicU64::new(0),
        })
    }

    /// Returns the address that the socket is bound to.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Returns the socket itself, to wait for it.
    pub(super) const fn io(&self) -> &UdpSocket {
        &self.io
    }

    /// Returns how many datagrams one call can send.
    pub(super) fn max_segments(&self) -> usize {
        self.state.load().max_gso_segments().min(MAX_SEGMENTS)
    }

    /// Says whether datagrams might be fragmented on the way.
    pub(super) fn may_fragment(&self) -> bool {
        self.state.load().may_fragment()
    }

    /// Receives what is there; `WouldBlock` if nothing is.
    pub(super) fn recv(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.load().recv((&self.io).into(), buffers, metas)
    }

    /// Sends a train. What the kernel does not take at once is dropped: a queue here would only make it late.
    pub(super) fn send(&self, target: Target, train: Train<'_>) -> Sent {
        self.recover();
        let mut sent = Sent::default();
        let mut rest = train.bytes;
        while !rest.is_empty() {
            let state = self.state.load();
            let fits = state
                .max_gso_segments()
                .min(MAX_SEGMENTS)
                .min(MAX_BYTES / train.stride)
                .max(1);
            let (part, behind) = rest.split_at(rest.len().min(fits * train.stride));
            let transmit = Transmit {
                destination: target.to,
                ecn: train.ecn,
                contents: part,
                segment_size: (part.len() > train.stride).then_some(train.stride),
                src_ip: target.from,
            };
            match state.try_send((&self.io).into(), &transmit) {
                Ok(()) => {
                    sent += Sent {
                        datagrams: part.len().div_ceil(train.stride),
                        bytes: part.len(),
                    };
                }
                // The kernel takes no trains to there: this one again, in single datagrams.
                Err(_) if transmit.segment_size.is_some() && state.max_gso_segments() == 1 => {
                    self.pause();
                    continue;
                }
                Err(_) => {}
            }
            rest = behind;
        }
        sent
    }

    /// Notes that trains were refused.
    fn pause(&self) {
        let at = (self.start.elapsed() + PAUSE).as_millis();
        self.retry
            .store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Tries trains again when the pause is over.
    fn recover(&self) {
        let at = self.retry.load(Ordering::Relaxed);
        if at == 0 || self.start.elapsed().as_millis() < u128::from(at) {
            return;
        }
        if self
            .retry
            .compare_exchange(at, 0, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            && let Ok(state) = UdpSocketState::new((&self.io).into())
        {
            self.state.store(Arc::new(state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_share_a_port_and_nobody_else_gets_it() {
        let sockets = open("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let local = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == local));
        assert_eq!(open(local, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_train_arrives_as_its_datagrams() {
        let sockets = open("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let bytes: Vec<u8> = (0..10_050).map(|n| (n / 1000) as u8).collect();
        let target = Target {
            to: peer.local_addr().unwrap(),
            from: None,
        };
        let sent = sockets[0].send(target, Train::new(&bytes, 1000, None).unwrap());
        assert_eq!(
            sent,
            Sent {
                datagrams: 11,
                bytes: 10_050
            }
        );
        let mut buffer = [0; 2000];
        for number in 0..11 {
            let length = peer.recv(&mut buffer).unwrap();
            assert_eq!(
                (length, buffer[0]),
                (if number == 10 { 50 } else { 1000 }, number)
            );
        }
    }

    #[test]
    fn a_train_that_no_path_takes_is_dropped_and_trains_go_on() {
        let sockets = open("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let target = Target {
            to: "127.0.0.1:9".parse().unwrap(),
            from: Some("192.0.2.1".parse().unwrap()),
        };
        let sent = sockets[0].send(target, Train::new(&[0x40; 3000], 1000, None).unwrap());
        assert_eq!(sent, Sent::default());
        sockets[0].retry.store(1, Ordering::Relaxed);
        std::thread::yield_now();
        while sockets[0].start.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        sockets[0].recover();
        assert!(sockets[0].max_segments() > 1 || cfg!(not(target_os = "linux")));
    }
}
