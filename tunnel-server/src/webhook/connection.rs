//! One connection to a service.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::address::may_go_to;
use super::{MAX_ANSWER, SendError, Target};

/// Room for the head of an answer, in bytes.
const HEAD: usize = 16 * 1024;

/// An open connection. It ends when this is dropped.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    pub(super) async fn open(
        target: &Target,
        name: ServerName<'static>,
        tls: &TlsConnector,
    ) -> Result<Self, SendError> {
        let stream = connect(target).await?;
        let stream = tls.connect(name, stream).await.map_err(SendError::Tls)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        // What it ends with is told to the request that waits for it.
        let task = AbortOnDropHandle::new(tokio::task::spawn(async { drop(connection.await) }));
        Ok(Self { sender, _task: task })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), SendError> {
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => SendError::Http(*error),
            Err(error) if error.is::<LengthLimitError>() => SendError::TooLarge,
            Err(error) => SendError::Connect(io::Error::other(error)),
        })?;
        Ok((status, body.to_bytes()))
    }
}

/// Connects to the first address of a service that answers. The addresses are looked up and judged once, and those that
/// were judged are connected to: a name that leads elsewhere a moment later leads nowhere (THREATS SRV-15).
async fn connect(target: &Target) -> Result<TcpStream, SendError> {
    let addresses: Vec<SocketAddr> = match target.url.ip() {
        Some(ip) => vec![SocketAddr::new(ip, target.url.host().1)],
        None => {
            let found = tokio::net::lookup_host(target.url.host()).await;
            found.map_err(SendError::Resolve)?.collect()
        }
    };
    let mut error = SendError::Resolve(io::ErrorKind::NotFound.into());
    for address in addresses {
        if !may_go_to(address.ip(), &target.allow) {
            error = SendError::NotAllowed(address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(SendError::Connect)?;
                return Ok(stream);
            }
            Err(failed) => error = SendError::Connect(failed),
        }
    }
    Err(error)
}
