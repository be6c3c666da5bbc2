//! Sessions that outlive half an hour and more without a packet, in time that is only told: the real settings of both
//! ends over a wire in memory.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, UdpPoller};
use support::fleet::Fleet;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::quic;
use tunnel_net::wake::Wake;

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 1);

/// How long a datagram is under way.
const DELAY: Duration = Duration::from_millis(20);

/// One direction of the wire.
#[derive(Debug, Default)]
struct Way(Mutex<UnderWay>);

#[derive(Debug, Default)]
struct UnderWay {
    datagrams: VecDeque<(Instant, Vec<u8>)>,
    receiver: Option<Waker>,
    arrival: Option<Pin<Box<Sleep>>>,
}

/// One end of the wire. While it is cut, what is sent is lost and nobody is told.
#[derive(Debug)]
struct Socket {
    outwards: Arc<Way>,
    inwards: Arc<Way>,
    cut: Arc<AtomicBool>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !self.cut.load(Ordering::Relaxed) {
            let mut way = self.outwards.0.lock().unwrap();
            way.datagrams
                .push_back((Instant::now() + DELAY, transmit.contents.to_vec()));
            way.receiver.take().into_iter().for_each(Waker::wake);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut way = self.inwards.0.lock().unwrap();
        way.receiver = Some(cx.waker().clone());
        let Some(arrives) = way.datagrams.front().map(|(at, _)| *at) else {
            return Poll::Pending;
        };
        let arrival = way.arrival.insert(Box::pin(tokio::time::sleep_until(arrives)));
        std::task::ready!(arrival.as_mut().poll(cx));
        let Some((_, datagram)) = way.datagrams.pop_front() else {
            return Poll::Pending;
        };
        let len = datagram.len();
        bufs[0][..len].copy_from_slice(&datagram);
        meta[0] = RecvMeta {
            addr: PEER,
            len,
            stride: len,
            ecn: None,
            dst_ip: None,
        };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(PEER)
    }
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// One end with a connection on which bytes go both ways without end.
struct End {
    connection: quinn::Connection,
    endpoint: Endpoint,
    socket: Arc<Socket>,
    wake: Wake,
    received: Arc<AtomicU64>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl End {
    fn new(
        connection: quinn::Connection,
        endpoint: Endpoint,
        socket: Arc<Socket>,
        wake: Wake,
        (mut send, mut recv): (quinn::SendStream, quinn::RecvStream),
    ) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let write = async move { while send.write_all(&[7; 4096]).await.is_ok() {} };
        let read = async move {
            let mut buffer = [0; 4096];
            while let Ok(Some(bytes)) = recv.read(&mut buffer).await {
                count.fetch_add(bytes as u64, Ordering::Relaxed);
                // Time goes on, also where a wire takes none.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let tasks = [
            AbortOnDropHandle::new(tokio::task::spawn(write)),
            AbortOnDropHandle::new(tokio::task::spawn(read)),
        ];
        Self {
            connection,
            endpoint,
            socket,
            wake,
            received,
            _tasks: tasks,
        }
    }

    /// What a leg does that has found the relay again.
    fn nudge(&self) {
        self.wake.call();
        self.endpoint.rebind_abstract(self.socket.clone()).unwrap();
    }

    async fn receives(&self, bytes: u64) {
        let goal = self.received.load(Ordering::Relaxed) + bytes;
        let start = Instant::now();
        while self.received.load(Ordering::Relaxed) < goal {
            let waited = start.elapsed();
            let (sent, got) = (self.connection.stats().udp_tx, self.connection.stats().udp_rx);
            assert!(
                waited < Duration::from_secs(10),
                "no bytes: sent {sent:?}, received {got:?}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn connected() -> (End, End, Arc<AtomicBool>) {
    let fleet = Fleet::new();
    let cut = Arc::new(AtomicBool::new(false));
    let ways = [Arc::new(Way::default()), Arc::new(Way::default())];
    let socket = |out: usize| {
        Arc::new(Socket {
            outwards: ways[out].clone(),
            inwards: ways[1 - out].clone(),
            cut: cut.clone(),
        })
    };
    let (near, far) = (socket(0), socket(1));
    let (near_wake, far_wake) = (Wake::default(), Wake::default());
    let endpoint = |socket: &Arc<Socket>, config| {
        let runtime = Arc::new(quinn::TokioRuntime);
        Endpoint::new_with_abstract_socket(quic::endpoint_config(), config, socket.clone(), runtime).unwrap()
    };
    let operator = endpoint(&near, None);
    let device = endpoint(&far, Some(fleet.tunnel_server(&far_wake)));
    let connecting = operator
        .connect_with(fleet.tunnel_client(&near_wake), PEER, "device.tunnel.internal")
        .unwrap();
    let (at_operator, at_device) = tokio::join!(async { connecting.await.unwrap() }, async {
        device.accept().await.unwrap().await.unwrap()
    });
    let mut stream = at_operator.open_bi().await.unwrap();
    stream.0.write_all(b"begin").await.unwrap();
    let accepted = at_device.accept_bi().await.unwrap();
    (
        End::new(at_operator, operator, near, near_wake, stream),
        End::new(at_device, device, far, far_wake, accepted),
        cut,
    )
}

/// Both windows are full when the wire is cut, which is the worst case: nothing may be sent before something is acknowledged.
async fn goes_on_after(outage: Duration) {
    let (operator, device, cut) = connected().await;
    tokio::join!(operator.receives(300_000), device.receives(300_000));
    cut.store(true, Ordering::Relaxed);
    tokio::time::sleep(outage).await;
    assert_eq!(operator.connection.close_reason(), None);
    assert_eq!(device.connection.close_reason(), None);
    cut.store(false, Ordering::Relaxed);
    let back = Instant::now();
    // Each leg finds the relay again, and then hears the other end after a long wait: both make it nudge its connection.
    for _ in 0..2 {
        operator.nudge();
        device.nudge();
        tokio::time::sleep(DELAY + Duration::from_millis(2)).await;
    }
    tokio::join!(operator.receives(200_000), device.receives(200_000));
    assert!(
        back.elapsed() < Duration::from_secs(2),
        "after {outage:?} it took {:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_at_once_after_half_an_hour() {
    goes_on_after(Duration::from_secs(30 * 60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_at_once_after_a_night() {
    goes_on_after(Duration::from_secs(9 * 3600)).await;
}

/// The other side of it: without a word from anybody an end does not outlive the right to the tunnel by much.
#[tokio::test(start_paused = true)]
async fn silence_ends_when_the_right_has_ended() {
    let (operator, device, cut) = connected().await;
    tokio::join!(operator.receives(10_000), device.receives(10_000));
    cut.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(12 * 3600 + 120)).await;
    for end in [&operator, &device] {
        assert_eq!(
            end.connection.close_reason(),
            Some(quinn::ConnectionError::TimedOut)
        );
    }
}
