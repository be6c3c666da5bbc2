//! The WebSocket carrier at the relay: one task for each connection, which reads messages and writes what waits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, protocol::CloseFrame};
use tunnel_proto::defaults::MAX_WS_MESSAGE;
use tunnel_proto::{bind, carrier};

use super::connection::Connection;
use super::shared::{Shared, Via};
use super::train::{Gatherer, Train};

/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Bytes that are read at once.
const READ_BUFFER: usize = 8 * 1024;

/// Returns the settings that a connection must have for the relay (THREATS part 5).
///
/// A message is written as soon as it is there, and one is held back at most.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_WS_MESSAGE))
        .max_frame_size(Some(MAX_WS_MESSAGE))
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_WS_MESSAGE)
}

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It broke.
    Closed,
    /// The peer said farewell.
    Left,
    /// It said something that is not of the carrier.
    Protocol,
    /// A message is larger than it may be.
    TooLarge,
    /// It was of no use, or nothing travelled.
    Idle,
    /// The relay stops.
    Stopped,
}

/// Forgets the connection when its task ends, however it ends.
struct Entry<'a> {
    shared: &'a Shared,
    connection: Arc<Connection>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.shared.handle_gone(&self.connection);
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve<S>(shared: &Shared, mut socket: WebSocketStream<S>, peer: std::net::SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Some(connection) = shared.connections().enter(peer) else {
        return farewell(&mut socket, CloseCode::Again).await;
    };
    let entry = Entry { shared, connection };
    let mut pump = Pump {
        shared,
        connection: &entry.connection,
        socket,
        unflushed: false,
        travelled: Instant::now(),
    };
    let end = pump.run().await;
    let code = match end {
        End::Closed => return,
        End::Left => CloseCode::Normal,
        End::Protocol => CloseCode::Unsupported,
        End::TooLarge => CloseCode::Size,
        End::Idle => CloseCode::Policy,
        End::Stopped => CloseCode::Restart,
    };
    farewell(&mut pump.socket, code).await;
}

async fn farewell<S>(socket: &mut WebSocketStream<S>, code: CloseCode)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let close = socket.close(Some(CloseFrame {
        code,
        reason: "".into(),
    }));
    // Who does not listen does not hear why.
    let _ = tokio::time::timeout(FAREWELL, close).await;
}

struct Pump<'a, S> {
    shared: &'a Shared,
    connection: &'a Arc<Connection>,
    socket: WebSocketStream<S>,
    /// Something was written that may not have left yet.
    unflushed: bool,
    /// When a message travelled last.
    travelled: Instant,
}

impl<S> Pump<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    async fn run(&mut self) -> End {
        let stop = self.shared.stop().cancelled();
        let (useless, idle) = self.shared.websocket_patience();
        let born = self.travelled;
        let alarm = tokio::time::sleep_until(born + useless.min(idle));
        tokio::pin!(stop, alarm);
        loop {
            tokio::select! {
                end = std::future::poll_fn(|cx| self.poll(cx)) => return end,
                () = &mut stop => return End::Stopped,
                () = &mut alarm => {
                    let used = self.connection.is_used();
                    let due = if used { self.travelled + idle } else { born + useless };
                    if due <= Instant::now() {
                        return End::Idle;
                    }
                    alarm.as_mut().reset(due);
                }
            }
        }
    }

    /// Reads and writes as long as either goes on.
    ///
    /// The two do not wait for each other: a peer that does not read is still heard, and its queue drops what is too much.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let wrote = match self.poll_write(cx) {
                Ok(wrote) => wrote,
                Err(end) => return Poll::Ready(end),
            };
            match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    if let Some(end) = self.handle(message) {
                        return Poll::Ready(end);
                    }
                }
                Poll::Ready(Some(Err(Error::Capacity(_)))) => return Poll::Ready(End::TooLarge),
                Poll::Ready(Some(Err(Error::Protocol(_) | Error::Utf8(_)))) => {
                    return Poll::Ready(End::Protocol);
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(End::Closed),
                Poll::Pending if wrote => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Writes the next message that waits, and pushes out what was written. Says whether a message was taken.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut socket = Pin::new(&mut self.socket);
        match socket.as_mut().poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Err(End::Closed),
            Poll::Pending => return Ok(false),
        }
        if let Poll::Ready(message) = self.connection.queue().poll_message(cx) {
            self.unflushed = true;
            self.travelled = Instant::now();
            let written = socket.start_send(Message::Binary(Bytes::from(message)));
            return written.map(|()| true).map_err(|_| End::Closed);
        }
        if self.unflushed {
            match socket.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Err(End::Closed),
                Poll::Pending => {}
            }
        }
        Ok(false)
    }

    fn handle(&mut self, message: Message) -> Option<End> {
        self.travelled = Instant::now();
        match message {
            Message::Binary(message) => {
                self.handle_datagrams(&message);
                None
            }
            // The answer to a ping waits in the socket; a flush sends it.
            Message::Ping(_) => {
                self.unflushed = true;
                None
            }
            Message::Pong(_) => None,
            Message::Text(_) => Some(End::Protocol),
            Message::Close(_) | Message::Frame(_) => Some(End::Left),
        }
    }

    fn handle_datagrams(&self, message: &[u8]) {
        thread_local! {
            /// Trains are put together here: one buffer for each thread of the runtime, not for each connection.
            static GATHERER: std::cell::RefCell<Gatherer> = std::cell::RefCell::default();
        }
        GATHERER.with_borrow_mut(|gatherer| {
            for datagram in carrier::datagrams(message).filter(|datagram| !datagram.is_empty()) {
                if bind::is_control(datagram) {
                    gatherer.finish(|train| self.forward(train));
                    let socket = self.shared.socket_of(self.connection);
                    self.shared
                        .handle_control(Via::WebSocket(self.connection), socket, datagram);
                } else {
                    gatherer.push(datagram, |train| self.forward(train));
                }
            }
            gatherer.finish(|train| self.forward(train));
        });
    }

    fn forward(&self, train: Train<'_>) {
        match self.connection.route() {
            Some(route) => self
                .shared
                .forward(&route, train, self.shared.socket_of(self.connection)),
            None => self.shared.handle_unbound(self.connection, train),
        }
    }
}
