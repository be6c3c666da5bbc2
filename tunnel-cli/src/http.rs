//! One TLS connection to the server's API, and one request after the other on it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::websocket::{self, WebSocketError};
use tunnel_net::{ServerAddr, tls};
use tunnel_proto::api::ErrorBody;
use tunnel_proto::code::Exit;
use tunnel_proto::{Code, defaults};

use crate::failure::Failure;

/// Largest answer that is about one thing, in bytes (THREATS CLI-09).
pub const ONE: usize = 64 * 1024;

/// Largest answer that is a list, in bytes: 10,000 devices with their host keys.
pub const LIST: usize = 32 * 1024 * 1024;

/// How long an answer may take (THREATS CLI-09).
pub const ANSWER: Duration = Duration::from_secs(30);

/// Why a request has no good answer, before a command says what it was for.
#[derive(Debug)]
pub enum HttpError {
    /// The server answered, and refused.
    Refused(ErrorBody),
    /// The request did not come through.
    Failed {
        /// The code.
        code: Code,
        /// The particulars.
        detail: Option<String>,
    },
}

impl HttpError {
    /// Returns the code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Refused(body) => body.code,
            Self::Failed { code, .. } => *code,
        }
    }

    /// Says whether the same may be answered a little later: nobody refused it.
    pub fn may_pass(&self) -> bool {
        matches!(self.code().exit(), Exit::Unreachable | Exit::Deadline) || self.code() == Code::Busy
    }

    /// Makes the failure of a command; `what` says what failed.
    pub fn into_failure(self, what: impl Into<String>) -> Failure {
        match self {
            Self::Refused(body) => {
                // A code of a newer server reads as a fault; its own words say more.
                let failure = Failure::new(body.code, what).why(body.why).next(body.next);
                match body.detail {
                    Some(detail) => failure.detail(detail),
                    None => failure,
                }
            }
            Self::Failed { code, detail } => {
                let failure = Failure::new(code, what);
                match detail {
                    Some(detail) => failure.detail(detail),
                    None => failure,
                }
            }
        }
    }

    fn failed(code: Code, detail: impl Into<String>) -> Self {
        Self::Failed {
            code,
            detail: Some(detail.into()),
        }
    }
}

/// A connection to the API.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    server_ip: Option<IpAddr>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Connects TCP and TLS.
    ///
    /// # Errors
    /// Tells whether the server does not answer, or is not the right one.
    pub async fn open(server: &ServerAddr, config: Arc<rustls::ClientConfig>) -> Result<Self, HttpError> {
        let stream = websocket::connect_tls(server, config)
            .await
            .map_err(|error| connect_error(&error))?;
        let server_ip = websocket::server_ip(server, stream.get_ref().0);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| request_error(&error))?;
        let driver = AbortOnDropHandle::new(tokio::task::spawn(async move {
            // The error reaches whoever waits for an answer.
            let _ = connection.await;
        }));
        Ok(Self {
            sender,
            server_ip,
            _driver: driver,
        })
    }

    /// Returns the server's address that answered; a proxy hides it.
    pub const fn server_ip(&self) -> Option<IpAddr> {
        self.server_ip
    }

    /// Says whether another request can be sent.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and returns the body of a good answer.
    ///
    /// # Errors
    /// Tells what the server refused, or why no answer came.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Bytes, HttpError> {
        self.sender.ready().await.map_err(|error| request_error(&error))?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", defaults::SERVER_NAME)
            .header("user-agent", concat!("tunnel/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| HttpError::failed(Code::Internal, error.to_string()))?;
        let answer = self
            .sender
            .send_request(request)
            .await
            .map_err(|error| request_error(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), limit)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    HttpError::failed(
                        Code::Protocol,
                        format!("the server's answer is longer than {limit} bytes"),
                    )
                } else {
                    HttpError::failed(Code::ServerUnreachable, "the answer broke off")
                }
            })?;
        let body = body.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(refusal(status, &body))
        }
    }
}

/// Reads the body of a refusal; what is none comes from something that is not our server, or from its HTTP layer.
fn refusal(status: StatusCode, body: &[u8]) -> HttpError {
    match serde_json::from_slice(body) {
        Ok(body) => HttpError::Refused(body),
        Err(_) => {
            let code = match status.as_u16() {
                404 | 405 => Code::Protocol,
                413 | 431 => Code::TooLarge,
                408 | 504 => Code::Deadline,
                429 | 503 => Code::Busy,
                400..=499 => Code::BadRequest,
                _ => Code::Internal,
            };
            HttpError::failed(
                code,
                format!("the server answered with status {}", status.as_u16()),
            )
        }
    }
}

/// Turns a failed connection into what a person can act on.
fn connect_error(error: &WebSocketError) -> HttpError {
    let code = find_tls(error)
        .and_then(tls::refusal)
        .unwrap_or(Code::ServerUnreachable);
    HttpError::failed(code, chain_text(error))
}

fn request_error(error: &hyper::Error) -> HttpError {
    let code = find_tls(error)
        .and_then(tls::refusal)
        .unwrap_or(Code::ServerUnreachable);
    HttpError::failed(code, chain_text(error))
}

/// Writes an error with its causes, each once.
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Finds what TLS said among the causes of an error. An I/O error hands on the causes of what it holds, not itself.
fn find_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tls_says_is_found_below_an_io_error() {
        let error = io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked),
        );
        let error = WebSocketError::Tls("s".into(), error);
        let HttpError::Failed { code, .. } = connect_error(&error) else {
            panic!("refused")
        };
        assert_eq!(code, Code::Revoked);
    }

    #[test]
    fn an_answer_that_is_not_ours_is_no_refusal_of_ours() {
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>").code(), Code::Internal);
        let body = br#"{"code":"E_POLICY_DENY","why":"a","next":"b"}"#;
        assert_eq!(refusal(StatusCode::FORBIDDEN, body).code(), Code::PolicyDeny);
    }
}
