//! The relay's own endpoint: control links over both carriers.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{RecvMeta, Transmit};
use tunnel_certs::{Authority, CertificateRequest, KeyPair};
use tunnel_net::clock::SystemClock;
use tunnel_net::tls::{self, Credentials, Ends, NoRevocations};
use tunnel_proto::Identity;

use super::*;

/// A root, a server and a device of it.
pub(super) struct Fleet {
    ends: Ends,
    server: Credentials,
    device: Credentials,
}

impl Fleet {
    pub(super) fn new() -> Self {
        let clock = Arc::new(SystemClock);
        let now = tunnel_net::clock::Clock::now(&*clock);
        let new = Authority::create(&"fleet.example".parse().unwrap(), now, &SystemRandom::new()).unwrap();
        let authority = Authority::load(&new.issuing_pem, &new.issuing_key_pem, &new.root_pem).unwrap();
        let issue = |path: &str, serial| {
            let key = KeyPair::generate().unwrap();
            let request = CertificateRequest::from_pem(&tunnel_certs::request(&key).unwrap()).unwrap();
            let identity: Identity = format!("spiffe://fleet.example/{path}").parse().unwrap();
            let life = Duration::from_secs(3600);
            let issued = authority
                .issue(&request, &identity, now, life, [serial; 16])
                .unwrap();
            Credentials::load(&issued.chain_pem, &key.to_pem()).unwrap()
        };
        let ends = Ends::new(Arc::new(authority.trust().clone()), clock);
        Self {
            ends,
            server: issue("server/one", 1),
            device: issue("device/pump-17", 2),
        }
    }

    pub(super) fn server(&self) -> quinn::ServerConfig {
        let tls = tls::link_server(&self.ends, &self.server, Arc::new(NoRevocations));
        quinn::ServerConfig::with_crypto(tls::quic_server(tls))
    }

    fn client(&self) -> quinn::ClientConfig {
        quinn::ClientConfig::new(tls::quic_client(tls::link_client(&self.ends, &self.device)))
    }

    /// Connects over UDP, exchanges a message, and closes.
    pub(super) async fn handshake(&self, bed: &Bed) {
        let local = if bed.relay.local_addr().is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let endpoint = quinn::Endpoint::client(local.parse().unwrap()).unwrap();
        let address = self.exchange(bed, &endpoint, bed.relay.local_addr()).await;
        assert_eq!(
            bed.relay.peer_of(address),
            (Carrier::Udp, endpoint.local_addr().unwrap())
        );
    }

    /// Has a client and the relay's endpoint exchange a message. Returns the client's address as the endpoint sees it.
    async fn exchange(&self, bed: &Bed, endpoint: &quinn::Endpoint, relay: SocketAddr) -> SocketAddr {
        let connecting = endpoint
            .connect_with(self.client(), relay, defaults::SERVER_NAME)
            .unwrap();
        let server = async {
            let connection = bed.endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            let message = receive.read_to_end(100_000).await.unwrap();
            send.write_all(&message).await.unwrap();
            send.finish().unwrap();
            let _ = send.stopped().await;
            connection.remote_address()
        };
        let client = async {
            let connection = connecting.await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            send.write_all(&[7; 50_000]).await.unwrap();
            send.finish().unwrap();
            assert_eq!(receive.read_to_end(100_000).await.unwrap(), [7; 50_000]);
        };
        in_time("a link", async { tokio::join!(server, client).0 }).await
    }
}

#[tokio::test]
async fn a_link_comes_over_udp() {
    let bed = bed();
    bed.fleet.handshake(&bed).await;
}

#[tokio::test]
async fn links_come_over_both_address_families() {
    let bed = bed_with("[::]:0", |_| {});
    let port = bed.relay.local_addr().port();
    for (local, relay) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let endpoint = quinn::Endpoint::client(local.parse().unwrap()).unwrap();
        let relay = SocketAddr::new(relay.parse().unwrap(), port);
        let address = bed.fleet.exchange(&bed, &endpoint, relay).await;
        assert_eq!(
            bed.relay.peer_of(address),
            (Carrier::Udp, endpoint.local_addr().unwrap())
        );
    }
}

#[tokio::test]
async fn a_link_comes_over_websocket() {
    let mut bed = bed();
    let websocket = bed.websocket().await;
    let peer = websocket.get_ref().local_addr().unwrap();
    let (socket, carry) = pipe(websocket, bed.relay.local_addr());
    bed.tasks.spawn(carry);
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        tunnel_net::quic::endpoint_config(),
        None,
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .unwrap();
    let relay = bed.relay.local_addr();
    let address = bed.fleet.exchange(&bed, &endpoint, relay).await;
    assert_eq!(bed.relay.peer_of(address), (Carrier::WebSocket, peer));
}

/// After a restart the old link is told at once, and does not wait for its keepalive.
#[tokio::test]
async fn a_link_of_before_a_restart_is_reset() {
    let before = bed();
    let after = bed_with("127.0.0.1:0", |_| {});
    // The client's packets go to whichever relay is in place, as they would to one port.
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    let (place, relay) = tokio::sync::watch::channel(before.relay.local_addr());
    let mut tasks = JoinSet::new();
    tasks.spawn(forward_to(Arc::clone(&front), relay));

    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint
        .connect_with(before.fleet.client(), address, defaults::SERVER_NAME)
        .unwrap();
    let server = async { before.endpoint.accept().await.unwrap().await.unwrap() };
    let (server, client) = in_time("a link", async { tokio::join!(server, connecting) }).await;
    let client = client.unwrap();
    place.send(after.relay.local_addr()).unwrap();
    let (mut send, _) = client.open_bi().await.unwrap();
    send.write_all(&[1; 100]).await.unwrap();
    let end = in_time("the reset", client.closed()).await;
    assert!(matches!(end, quinn::ConnectionError::Reset), "{end}");
    drop(server);
}

async fn forward_to(front: Arc<UdpSocket>, relay: tokio::sync::watch::Receiver<SocketAddr>) {
    let mut client = None;
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = front.recv_from(&mut buffer).await.unwrap();
        let place = *relay.borrow();
        let to = if from.port() == place.port() {
            client
        } else {
            client = Some(from);
            Some(place)
        };
        if let Some(to) = to {
            front.send_to(&buffer[..length], to).await.unwrap();
        }
    }
}

/// A socket for quinn whose datagrams travel in a WebSocket.
#[derive(Debug)]
struct Piped {
    relay: SocketAddr,
    out: mpsc::Sender<Vec<u8>>,
    inbox: Mutex<mpsc::Receiver<Vec<u8>>>,
}

fn pipe(mut socket: Client, relay: SocketAddr) -> (Arc<Piped>, impl Future<Output = ()>) {
    let (out, mut to_send) = mpsc::channel::<Vec<u8>>(1000);
    let (received, inbox) = mpsc::channel(1000);
    let carry = async move {
        loop {
            tokio::select! {
                datagram = to_send.recv() => {
                    let Some(datagram) = datagram else { return };
                    socket.send(message_of(&[&datagram])).await.unwrap();
                }
                message = socket.next() => {
                    let Some(Ok(message)) = message else { return };
                    for datagram in message::datagrams(&message.into_data()) {
                        let _ = received.try_send(datagram.to_vec());
                    }
                }
            }
        }
    };
    (
        Arc::new(Piped {
            relay,
            out,
            inbox: Mutex::new(inbox),
        }),
        carry,
    )
}

impl AsyncUdpSocket for Piped {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Ready)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let _ = self.out.try_send(transmit.contents.to_vec());
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(datagram) = self.inbox.lock().unwrap().poll_recv(cx) else {
            return Poll::Pending;
        };
        let datagram = datagram.ok_or(io::ErrorKind::ConnectionReset)?;
        buffers[0][..datagram.len()].copy_from_slice(&datagram);
        metas[0] = RecvMeta {
            addr: self.relay,
            len: datagram.len(),
            stride: datagram.len(),
            ..RecvMeta::default()
        };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok("127.0.0.1:1".parse().unwrap())
    }
}

#[derive(Debug)]
struct Ready;

impl UdpPoller for Ready {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
