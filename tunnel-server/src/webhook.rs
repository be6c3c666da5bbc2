//! Requests to HTTPS services of the fleet's owner: signed, bounded in time and size, and only to where they may go
//! (THREATS SRV-15).
//!
//! It knows nothing of tunnels or records: bytes go out, a status and bytes come back.

mod address;
mod connection;
mod signature;
mod target;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tunnel_net::files::{FileError, read_private_text};
use tunnel_proto::UnixTime;

use self::connection::Connection;
use self::signature::{Key, KeyError};

pub use self::address::Net;
pub use self::target::{Target, Url, UrlError};

/// Largest answer that is read, in bytes.
pub(crate) const MAX_ANSWER: usize = 16 * 1024;
/// Connections that are kept for the next request.
const MAX_KEPT: usize = 8;
/// How long an unused connection is kept: less than servers wait, who close theirs after a minute or so.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Where systems keep the roots that everybody trusts.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why there can be no requests to a service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The key's file cannot be read.
    #[error("the key for `{0}`")]
    KeyFile(String, #[source] FileError),
    /// The key is of another form.
    #[error("the key for `{0}`")]
    Key(String, #[source] KeyError),
    /// The roots cannot be read.
    #[error("could not read the certificate authorities in `{0}`")]
    Roots(String, #[source] rustls::pki_types::pem::Error),
    /// There is no root in the file.
    #[error("there is no certificate authority in `{0}`; `ca` names a file of certificates in PEM")]
    NoRoots(String),
    /// TLS cannot be had.
    #[error("could not set TLS up")]
    Tls(#[source] rustls::Error),
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("the name could not be resolved ({0})")]
    Resolve(io::Error),
    #[error("the name leads to {0}, which is no public address and not in `allow`")]
    NotAllowed(IpAddr),
    #[error("could not connect ({0})")]
    Connect(io::Error),
    #[error("could not agree on TLS ({0})")]
    Tls(io::Error),
    #[error("the exchange failed ({0})")]
    Http(#[from] hyper::Error),
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLarge,
    #[error("the answer is a redirect ({0}), which is not followed")]
    Redirect(StatusCode),
    #[error("the answer's status is {0}")]
    Status(StatusCode),
}

/// One message. Its id stays the same however often it is sent, so that its receiver knows it again.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) body: Bytes,
}

/// Sends messages to one service, over connections that it keeps.
pub(crate) struct Client {
    target: Target,
    key: Key,
    name: ServerName<'static>,
    tls: TlsConnector,
    kept: Mutex<Vec<(Connection, Instant)>>,
}

impl Client {
    /// Reads key and roots. Relative paths begin at the data directory.
    ///
    /// # Errors
    /// Returns what is wrong with them.
    pub(crate) fn new(target: &Target, data: &Path) -> Result<Self, TargetError> {
        let text = read_private_text(&data.join(&target.key));
        let text = text.map_err(|error| TargetError::KeyFile(target.url.to_string(), error))?;
        let key = Key::parse(&text).map_err(|error| TargetError::Key(target.url.to_string(), error))?;
        let file = target.ca.as_ref().map(|ca| data.join(ca));
        let file = file.unwrap_or_else(|| {
            let found = SYSTEM_ROOTS.iter().find(|path| Path::new(path).exists());
            found.unwrap_or(&SYSTEM_ROOTS[0]).into()
        });
        let config = ClientConfig::builder_with_provider(tunnel_net::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TargetError::Tls)?
            .with_root_certificates(roots(&file)?)
            .with_no_client_auth();
        Ok(Self {
            name: target.url.server_name(),
            target: target.clone(),
            key,
            tls: TlsConnector::from(Arc::new(config)),
            kept: Mutex::default(),
        })
    }

    /// Sends a message and returns the body of an answer with a status of success.
    ///
    /// # Errors
    /// Returns why there is none, at the latest after the deadline. The receiver may have the message all the same.
    pub(crate) async fn send(
        &self,
        message: &Message,
        now: UnixTime,
        deadline: Duration,
    ) -> Result<Bytes, SendError> {
        let exchange = tokio::time::timeout(deadline, self.exchange(message, now)).await;
        let (status, body) = exchange.map_err(|_| SendError::Deadline(deadline))??;
        match status {
            status if status.is_success() => Ok(body),
            status if status.is_redirection() => Err(SendError::Redirect(status)),
            status => Err(SendError::Status(status)),
        }
    }

    async fn exchange(&self, message: &Message, now: UnixTime) -> Result<(StatusCode, Bytes), SendError> {
        // The other side may be closing a connection that was kept: then a fresh one is tried, once.
        if let Some(mut kept) = self.take() {
            match kept.exchange(self.request(message, now)).await {
                Err(SendError::Http(error)) => {
                    tracing::debug!(%error, "a connection that was kept has ended")
                }
                answer => return self.keep(kept, answer),
            }
        }
        let mut fresh = Connection::open(&self.target, self.name.clone(), &self.tls).await?;
        let answer = fresh.exchange(self.request(message, now)).await;
        self.keep(fresh, answer)
    }

    fn take(&self) -> Option<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(connection, since)| since.elapsed() < KEPT_FOR && connection.is_open());
        kept.pop().map(|(connection, _)| connection)
    }

    /// Keeps a connection whose last exchange is complete.
    fn keep<T>(&self, connection: Connection, answer: Result<T, SendError>) -> Result<T, SendError> {
        if answer.is_ok() {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < MAX_KEPT {
                kept.push((connection, Instant::now()));
            }
        }
        answer
    }

    fn request(&self, message: &Message, now: UnixTime) -> Request<http_body_util::Full<Bytes>> {
        let url = &self.target.url;
        let mut request = Request::new(http_body_util::Full::new(message.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.path().clone();
        let headers = request.headers_mut();
        let mut insert = |name, value: &str| insert(headers, name, value);
        insert(HOST, url.authority());
        insert(CONTENT_TYPE, "application/json");
        insert(USER_AGENT, concat!("tunnel-server/", env!("CARGO_PKG_VERSION")));
        for (name, value) in self.key.headers(message, now) {
            insert(hyper::header::HeaderName::from_static(name), &value);
        }
        request
    }
}

/// Adds a header. All of ours are plain text: ids, numbers, base64 and a checked host.
fn insert(headers: &mut HeaderMap, name: hyper::header::HeaderName, value: &str) {
    if let Ok(value) = value.parse() {
        headers.insert(name, value);
    }
}

/// Writes a time as messages do.
pub(crate) fn rfc3339(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.unwrap_or_default().to_string()
}

fn roots(file: &Path) -> Result<RootCertStore, TargetError> {
    let shown = || file.display().to_string();
    let failed = |error| TargetError::Roots(shown(), error);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(failed)? {
        // A system's bundle may hold a root that is not understood here: it is not trusted, and the others are.
        if let Err(error) = roots.add(certificate.map_err(failed)?) {
            tracing::debug!(%error, file = shown(), "a certificate authority is not used");
        }
    }
    if roots.is_empty() {
        return Err(TargetError::NoRoots(shown()));
    }
    Ok(roots)
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}
