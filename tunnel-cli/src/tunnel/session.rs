//! One use of a service inside a tunnel: one stream.

use std::io;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel_net::stream::{self, MessageError};
use tunnel_proto::message::{OpenSession, SessionAnswer};
use tunnel_proto::{Code, Refusal, ServiceName};

/// How long the device may take to answer before something is said: its service may be slow, or somebody there may have to
/// say yes first.
pub(super) const SLOW: Duration = Duration::from_secs(3);

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
/// The first bytes go out together with the request; the answer is read as it comes. Each direction ends by itself. `slow`
/// is called if the answer takes a while.
///
/// # Errors
/// Tells who ended it early. A refusal is returned at once, whatever the local side does.
pub async fn run<R, W>(
    connection: &quinn::Connection,
    service: &ServiceName,
    reader: R,
    writer: W,
    slow: impl FnOnce(),
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
    let outwards = outwards(connection, send, reader);
    let inwards = async {
        {
            let answer = std::pin::pin!(answer(connection, &mut recv));
            patiently(answer, SLOW, slow).await?;
        }
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
            // When it failed, what was sent is dropped and so reset: the service must not take a part for the whole.
            result?;
            outwards.await?;
        }
    }
    Ok(())
}

/// Waits for an answer, and says so if it takes a while.
pub(super) async fn patiently<T>(
    mut answer: std::pin::Pin<&mut impl Future<Output = T>>,
    patience: Duration,
    slow: impl FnOnce(),
) -> T {
    if let Ok(answer) = tokio::time::timeout(patience, answer.as_mut()).await {
        return answer;
    }
    slow();
    answer.await
}

/// Tells that a device takes its time.
pub fn slow_text(service: &ServiceName) -> String {
    format!("`{service}` has not answered yet; somebody at the device may have to allow it there first")
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
pub(super) async fn answer(
    connection: &quinn::Connection,
    recv: &mut RecvStream,
) -> Result<(), SessionError> {
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

/// Says whether the peer wants no more bytes.
fn is_stopped(error: &io::Error) -> bool {
    let stopped = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<quinn::WriteError>());
    error.kind() == io::ErrorKind::BrokenPipe || matches!(stopped, Some(quinn::WriteError::Stopped(_)))
}

/// Tells apart what ended a direction: the tunnel, the service, or the local side.
pub(super) fn classify(connection: &quinn::Connection, error: io::Error) -> SessionError {
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
