//! The WebSocket carrier: datagrams in messages over TLS, for where only the web passes.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tunnel_proto::carrier::{self, Batch};
use tunnel_proto::defaults;

use crate::addr::ServerAddr;
use crate::dial::{self, Missed};
use crate::proxy::ProxyError;
use crate::tls;

/// Bytes that wait to be sent at most; then the sender is told to wait (THREATS part 5).
///
/// What waits here goes out in its own order: a keystroke stands behind all of it. More of it makes no transfer faster.
const QUEUE_BYTES: usize = 64 * 1024;

/// Bytes that the kernel takes beyond what TCP may send at the moment, for the same reason. Its own bound is megabytes.
const UNSENT_BYTES: u32 = 32 * 1024;

/// Messages that wait to be read at most; then TCP pushes back.
const INBOX_MESSAGES: usize = 4;

/// Returns the bounds of a WebSocket that carries datagrams: the library's own allow megabytes for each connection.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(defaults::MAX_WS_MESSAGE))
        .max_frame_size(Some(defaults::MAX_WS_MESSAGE))
}

/// Keeps the kernel from taking more than TCP can soon send: what is taken can no longer be overtaken.
pub fn keep_little_unsent(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
        tracing::debug!(%error, "the kernel bounds unsent bytes by itself");
    }
}

/// Tells why no WebSocket came up.
#[derive(Debug, thiserror::Error)]
pub enum WebSocketError {
    /// The name has no address.
    #[error("could not look up `{0}`")]
    Resolve(String, #[source] io::Error),
    /// No address answers on the port.
    #[error("could not connect to `{0}`")]
    Connect(String, #[source] io::Error),
    /// The proxy gave no connection.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The other side is not our server, or somebody stands between.
    #[error("could not agree on TLS with `{0}`")]
    Tls(String, #[source] io::Error),
    /// The certificate that was shown is of somebody else. Nothing was sent.
    #[error(
        "what answers as `{server}` has a certificate by `{issuer}`, not by this fleet: something on the way intercepts \
         TLS, or the address is of another server; ask the network's owner to let this server pass untouched"
    )]
    Foreign {
        /// The server that was meant.
        server: String,
        /// Who has issued the certificate that was shown, as it says itself.
        issuer: String,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// What answers does not speak TLS.
    #[error(
        "what answers as `{server}` does not speak TLS: a captive portal stands on the way, or the port is of another \
         service; open a web page in a browser, and check the port"
    )]
    NoTls {
        /// The server that was meant.
        server: String,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// What answers is no carrier of ours.
    #[error("`{0}` did not accept the WebSocket")]
    Upgrade(String, #[source] Box<tokio_tungstenite::tungstenite::Error>),
}

impl WebSocketError {
    /// Says how much it tells: of several addresses, the one that said most is reported.
    const fn weight(&self) -> u8 {
        match self {
            Self::Resolve(..) => 0,
            Self::Connect(..) => 1,
            Self::Proxy(_) | Self::Upgrade(..) => 2,
            Self::Tls(..) => 3,
            Self::NoTls { .. } => 4,
            Self::Foreign { .. } => 5,
        }
    }
}

/// Returns the server's own address, which a connection through a proxy does not show.
pub fn server_ip(server: &ServerAddr, stream: &TcpStream) -> Option<IpAddr> {
    match server.proxy {
        Some(_) => None,
        None => stream.peer_addr().ok().map(|addr| addr.ip()),
    }
}

/// A TLS connection to a server.
pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Connects TCP and TLS to the server's port, through its proxy if it has one, without Nagle's delay.
///
/// Where several addresses are known, one at which somebody else answers counts as one that does not answer.
///
/// # Errors
/// Tells whether the name, the connection, the proxy or TLS failed.
pub async fn connect_tls(
    server: &ServerAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream, WebSocketError> {
    if let Some(proxy) = &server.proxy {
        let tcp = proxy.connect(&server.host, server.tcp_port).await?;
        return handshake(server, tcp, config).await;
    }
    let attempt = |addr| one_tls(server, addr, config.clone());
    let missed = match dial::race(server.search(server.tcp_port), attempt).await {
        Ok(stream) => return Ok(stream),
        Err(missed) => missed,
    };
    Err(match missed {
        Missed::NoAddress(error) => WebSocketError::Resolve(server.to_string(), error),
        Missed::Failed(errors) => errors
            .into_iter()
            .max_by_key(WebSocketError::weight)
            .unwrap_or_else(|| WebSocketError::Connect(server.to_string(), io::ErrorKind::TimedOut.into())),
    })
}

/// Connects TCP and TLS to one address, and notes that the server has proven to be there.
pub(crate) async fn one_tls(
    server: &ServerAddr,
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream, WebSocketError> {
    let tcp = dial::one_tcp(addr).await;
    let tcp = tcp.map_err(|error| WebSocketError::Connect(server.to_string(), error))?;
    let stream = handshake(server, tcp, config).await?;
    server.proven.note(addr.ip());
    Ok(stream)
}

async fn handshake(
    server: &ServerAddr,
    tcp: TcpStream,
    config: Arc<ClientConfig>,
) -> Result<TlsStream, WebSocketError> {
    let name = ServerName::try_from(defaults::SERVER_NAME)
        .map_err(|_| WebSocketError::Tls(server.to_string(), io::ErrorKind::InvalidInput.into()))?;
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
    let (result, foreign) = tls::watch(tokio::time::timeout(defaults::CONNECT_DEADLINE, handshake)).await;
    let error = match result {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => error,
        Err(_) => io::ErrorKind::TimedOut.into(),
    };
    let server = server.to_string();
    Err(match foreign {
        Some(issuer) => WebSocketError::Foreign {
            server,
            issuer,
            source: error,
        },
        None if tls::is_plain_text(&error) => WebSocketError::NoTls {
            server,
            source: error,
        },
        None => WebSocketError::Tls(server, error),
    })
}

/// Sets a WebSocket up with the server's carrier path.
///
/// # Errors
/// Tells which step failed.
pub async fn connect(
    server: &ServerAddr,
    tls: Arc<ClientConfig>,
) -> Result<WebSocketStream<TlsStream>, WebSocketError> {
    let refused = |error| WebSocketError::Upgrade(server.to_string(), Box::new(error));
    let stream = connect_tls(server, tls).await?;
    keep_little_unsent(stream.get_ref().0);
    let uri = format!("wss://{}{}", defaults::SERVER_NAME, defaults::CARRIER_PATH);
    let mut request = uri.into_client_request().map_err(refused)?;
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        HeaderValue::from_static(defaults::CARRIER_PROTOCOL),
    );
    let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config()));
    match tokio::time::timeout(defaults::CONNECT_DEADLINE, upgrade).await {
        Ok(result) => result.map(|(stream, _)| stream).map_err(refused),
        Err(_) => Err(refused(tokio_tungstenite::tungstenite::Error::Io(
            io::ErrorKind::TimedOut.into(),
        ))),
    }
}

/// The side of a WebSocket that quinn's socket writes to and reads from; [`Pipe::run`] is the other.
#[derive(Debug)]
pub(crate) struct Pipe {
    queue: Mutex<Queue>,
    queued: Notify,
    inbox: Mutex<Inbox>,
    arrived: mpsc::Sender<Bytes>,
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    batch: Batch,
    waiting: Vec<Waker>,
}

#[derive(Debug)]
struct Inbox {
    messages: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Pipe {
    pub(crate) fn new() -> Arc<Self> {
        let (arrived, messages) = mpsc::channel(INBOX_MESSAGES);
        Arc::new(Self {
            queue: Mutex::new(Queue {
                messages: VecDeque::new(),
                bytes: 0,
                batch: Batch::new(Instant::now()),
                waiting: Vec::new(),
            }),
            queued: Notify::new(),
            inbox: Mutex::new(Inbox {
                messages,
                current: Bytes::new(),
            }),
            arrived,
        })
    }

    /// Queues datagrams, or none of them if there is no room.
    pub(crate) fn try_send<'d>(&self, datagrams: impl Iterator<Item = &'d [u8]>) -> io::Result<()> {
        let mut queue = lock(&self.queue);
        if queue.bytes >= QUEUE_BYTES {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (now, mut added) = (Instant::now(), 0);
        for datagram in datagrams {
            let length = datagram.len() + carrier::PREFIX;
            let last = queue.messages.back().map_or(0, Vec::len);
            if last == 0 || !queue.batch.takes(last, length) {
                queue.messages.push_back(Vec::new());
            }
            if let Some(message) = queue.messages.back_mut() {
                carrier::push(message, datagram);
            }
            added += length;
        }
        queue.bytes += added;
        queue.batch.add(now, added);
        drop(queue);
        self.queued.notify_one();
        Ok(())
    }

    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut queue = lock(&self.queue);
        if queue.bytes < QUEUE_BYTES {
            return Poll::Ready(Ok(()));
        }
        if !queue.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            queue.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Hands datagrams to `take` until it declines one or there are no more; says whether any was taken.
    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>, mut take: impl FnMut(&[u8]) -> bool) -> Poll<()> {
        let mut inbox = lock(&self.inbox);
        let mut any = false;
        loop {
            while let Some((datagram, length)) = first_datagram(&inbox.current) {
                if !take(&inbox.current[datagram]) {
                    return Poll::Ready(());
                }
                any = true;
                let _ = inbox.current.split_to(length);
            }
            match inbox.messages.poll_recv(cx) {
                Poll::Ready(Some(message)) => inbox.current = message,
                Poll::Ready(None) | Poll::Pending => {
                    return if any { Poll::Ready(()) } else { Poll::Pending };
                }
            }
        }
    }

    /// Carries messages both ways until the WebSocket ends or breaks.
    pub(crate) async fn run<S>(&self, stream: WebSocketStream<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut sink, mut source) = stream.split();
        let write = async {
            loop {
                let Some(message) = self.next_message() else {
                    self.queued.notified().await;
                    continue;
                };
                sink.send(Message::Binary(message.into()))
                    .await
                    .map_err(io::Error::other)?;
            }
        };
        let read = async {
            while let Some(message) = source.next().await {
                match message.map_err(io::Error::other)? {
                    Message::Binary(message) => {
                        if self.arrived.send(message).await.is_err() {
                            break;
                        }
                    }
                    Message::Close(_) => break,
                    // Pings are answered by the library; text means nothing here.
                    Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_) => {}
                }
            }
            Ok(())
        };
        tokio::select! {
            result = write => result,
            result = read => result,
        }
    }

    fn next_message(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        let message = queue.messages.pop_front()?;
        queue.bytes -= message.len();
        for waker in queue.waiting.drain(..) {
            waker.wake();
        }
        Some(message)
    }
}

/// Returns where the first datagram of a message stands, and how many bytes it takes with its prefix.
fn first_datagram(message: &[u8]) -> Option<(std::ops::Range<usize>, usize)> {
    let datagram = carrier::datagrams(message).next()?;
    let end = carrier::PREFIX + datagram.len();
    Some((carrier::PREFIX..end, end))
}

/// Takes a lock; the data behind ours is whole also when a holder has panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(pipe: &Pipe, most: usize) -> Vec<Vec<u8>> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut got = Vec::new();
        let _ = pipe.poll_recv(&mut cx, |datagram| {
            if got.len() == most {
                return false;
            }
            got.push(datagram.to_vec());
            true
        });
        got
    }

    #[test]
    fn a_full_queue_makes_the_sender_wait_and_keeps_the_messages_bounded() {
        let pipe = Pipe::new();
        let datagram = [7u8; 1200];
        let mut sent = 0;
        while pipe.try_send(std::iter::once(&datagram[..])).is_ok() {
            sent += 1;
        }
        assert!(
            sent * datagram.len() >= QUEUE_BYTES - 2 * datagram.len() && sent < 300,
            "{sent}"
        );
        let cx = Context::from_waker(Waker::noop());
        assert!(pipe.poll_writable(&cx).is_pending());
        let message = pipe.next_message().unwrap();
        assert!(message.len() <= carrier::FULL);
        assert!(pipe.poll_writable(&cx).is_ready());
        assert!(pipe.try_send(std::iter::once(&datagram[..])).is_ok());
    }

    #[test]
    fn datagrams_that_find_no_room_stay_for_the_next_read() {
        let pipe = Pipe::new();
        let mut message = Vec::new();
        for byte in 0..5u8 {
            carrier::push(&mut message, &[byte; 3]);
        }
        pipe.arrived.try_send(message.into()).unwrap();
        assert_eq!(collect(&pipe, 2), [[0; 3], [1; 3]]);
        assert_eq!(collect(&pipe, 9), [[2; 3], [3; 3], [4; 3]]);
        assert!(collect(&pipe, 9).is_empty());
    }

    #[test]
    fn a_damaged_message_is_passed_over() {
        let pipe = Pipe::new();
        pipe.arrived.try_send(Bytes::from_static(&[0, 9, 1])).unwrap();
        let mut good = Vec::new();
        carrier::push(&mut good, b"good");
        pipe.arrived.try_send(good.into()).unwrap();
        assert_eq!(collect(&pipe, 9), [b"good"]);
    }
}
