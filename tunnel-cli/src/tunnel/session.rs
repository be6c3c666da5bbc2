//! One use of a service inside a tunnel: one stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tunnel_net::stream::{self, MessageError};
use tunnel_proto::message::{OpenSession, SessionAnswer};
use tunnel_proto::{Code, Refusal, ServiceName};

/// How long breaking a direction off may take: it waits for nobody unless the peer takes no bytes.
const BREAK_OFF: Duration = Duration::from_millis(100);

/// How a session ended that did not end well.
#[derive(Debug)]
pub enum SessionError {
    /// The device refused it.
    Refused(Refusal),
    /// The tunnel is gone; it knows why.
    Tunnel,
    /// The service broke the connection off.
    Broken,
    /// The local side broke off.
    Local(io::Error),
}

/// Opens a session and joins it with a local byte stream until both directions have ended.
///
/// The first bytes go out together with the request; the answer is read as it comes. Each direction ends by itself.
///
/// # Errors
/// Tells who ended it early. A refusal is returned at once, whatever the local side does.
pub async fn run<R, W>(
    connection: &quinn::Connection,
    service: &ServiceName,
    reader: R,
    writer: W,
) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut send, mut recv) = connection.open_bi().await.map_err(|_| SessionError::Tunnel)?;
    let request = OpenSession {
        service: service.to_string(),
    };
    stream::write_message(&mut send, &request)
        .await
        .map_err(|_| SessionError::Tunnel)?;
    let (break_off, broken) = oneshot::channel();
    let reader = Breakable {
        reader,
        broken: Some(broken),
    };
    let outwards = outwards(connection, send, reader);
    let inwards = async {
        answer(connection, &mut recv).await?;
        stream::inwards(recv, writer, &mut 0)
            .await
            .map_err(|error| classify(connection, error))
    };
    tokio::pin!(outwards, inwards);
    tokio::select! {
        result = &mut outwards => {
            result?;
            inwards.await?;
        }
        result = &mut inwards => {
            if let Err(error) = result {
                // The service must not take what it has got for the whole.
                drop(break_off);
                let _ = tokio::time::timeout(BREAK_OFF, outwards).await;
                return Err(error);
            }
            outwards.await?;
        }
    }
    Ok(())
}

/// Carries bytes to the service, and waits until the device has them all: the connection must not be closed before.
async fn outwards<R: AsyncRead + Unpin>(
    connection: &quinn::Connection,
    send: SendStream,
    reader: R,
) -> Result<(), SessionError> {
    let taken = send.stopped();
    match stream::outwards(send, reader, &mut 0).await {
        Ok(()) => taken.await.map(drop).map_err(|_| SessionError::Tunnel),
        // The service wants no more; what it says is still to come.
        Err(error) if is_stopped(&error) => Ok(()),
        Err(error) => Err(classify(connection, error)),
    }
}

/// Reads whether there is a session.
async fn answer(connection: &quinn::Connection, recv: &mut RecvStream) -> Result<(), SessionError> {
    match stream::read_message::<SessionAnswer>(recv).await {
        Ok(SessionAnswer { refused: None }) => Ok(()),
        Ok(SessionAnswer {
            refused: Some(refusal),
        }) => Err(SessionError::Refused(refusal)),
        Err(MessageError::Frame(_)) => Err(SessionError::Refused(Code::Protocol.into())),
        Err(MessageError::Ended) => Err(SessionError::Broken),
        Err(MessageError::Stream(error)) => Err(classify(connection, error)),
    }
}

/// A reader that fails, instead of being dropped, when the other direction has failed: a stream that is dropped ends in
/// good order, and a half of a file would look like the whole.
struct Breakable<R> {
    reader: R,
    broken: Option<oneshot::Receiver<()>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Breakable<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(broken) = &mut self.broken
            && Pin::new(broken).poll(cx).is_ready()
        {
            self.broken = None;
        }
        if self.broken.is_none() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

/// Says whether the peer wants no more bytes.
fn is_stopped(error: &io::Error) -> bool {
    let stopped = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<quinn::WriteError>());
    error.kind() == io::ErrorKind::BrokenPipe || matches!(stopped, Some(quinn::WriteError::Stopped(_)))
}

/// Tells apart what ended a direction: the tunnel, the service, or the local side.
fn classify(connection: &quinn::Connection, error: io::Error) -> SessionError {
    if connection.close_reason().is_some() {
        return SessionError::Tunnel;
    }
    let of_stream = error.get_ref().is_some_and(|inner| {
        inner.is::<quinn::ReadError>()
            || inner.is::<quinn::WriteError>()
            || inner.is::<quinn::ReadExactError>()
    });
    if of_stream {
        SessionError::Broken
    } else {
        SessionError::Local(error)
    }
}

#[cfg(test)]
mod tests;
