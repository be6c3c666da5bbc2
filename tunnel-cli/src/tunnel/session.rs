//! One use of a service inside a tunnel: one stream.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tunnel_net::stream::{self, MessageError};
use tunnel_proto::message::{OpenSession, SessionAnswer};
use tunnel_proto::{Code, Refusal, ServiceName};

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

/// Bytes that a session has carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// From here to the service.
    pub sent: u64,
    /// From the service to here.
    pub received: u64,
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
) -> Result<Carried, SessionError>
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
    let (mut sent, mut received) = (0, 0);
    let taken = send.stopped();
    let outwards = async {
        match stream::outwards(send, reader, &mut sent).await {
            // What was sent has arrived only when the peer says so; the connection must not be closed before.
            Ok(()) => taken.await.map(drop).map_err(|_| SessionError::Tunnel),
            // The service wants no more; what it says is still to come.
            Err(error) if is_stopped(&error) => Ok(()),
            Err(error) => Err(classify(connection, error)),
        }
    };
    let inwards = async {
        match stream::read_message::<SessionAnswer>(&mut recv).await {
            Ok(SessionAnswer { refused: None }) => {}
            Ok(SessionAnswer {
                refused: Some(refusal),
            }) => return Err(SessionError::Refused(refusal)),
            Err(MessageError::Frame(_)) => return Err(SessionError::Refused(Code::Protocol.into())),
            Err(MessageError::Ended) => return Err(SessionError::Broken),
            Err(MessageError::Stream(error)) => return Err(classify(connection, error)),
        }
        stream::inwards(recv, writer, &mut received)
            .await
            .map_err(|error| classify(connection, error))
    };
    tokio::try_join!(outwards, inwards)?;
    Ok(Carried { sent, received })
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
