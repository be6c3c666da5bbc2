//! A service of the fleet's owner: real HTTPS on loopback, with a certificate of an authority of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use ring::hmac;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tunnel_server::webhook::Target;

/// The key of both sides, in base64.
const KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

/// What the service does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// Answers with a status and a body.
    Says(u16, String),
    /// Sends the caller elsewhere.
    Redirects(String),
    /// Takes the request and never answers.
    Hangs,
    /// Answers with a body that does not end.
    Pours,
    /// Answers with more headers than anybody needs.
    Babbles,
    /// Ends the connection instead of an answer.
    HangsUp,
}

/// One request that came.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Says whether the signature is that of the key that both sides have.
    pub(crate) fn is_signed(&self) -> bool {
        let signed = [
            self.header("webhook-id"),
            self.header("webhook-timestamp"),
            std::str::from_utf8(&self.body).unwrap(),
        ]
        .join(".");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(KEY).unwrap());
        let signature = self.header("webhook-signature").strip_prefix("v1,").unwrap();
        hmac::verify(&key, signed.as_bytes(), &STANDARD.decode(signature).unwrap()).is_ok()
    }
}

#[derive(Debug)]
struct State {
    manner: Mutex<Manner>,
    got: Mutex<Vec<Got>>,
    connections: AtomicUsize,
}

/// The service. It ends with this value.
#[derive(Debug)]
pub(crate) struct Hook {
    address: SocketAddr,
    directory: TempDir,
    state: Arc<State>,
    _accepting: JoinSet<()>,
}

impl Hook {
    pub(crate) async fn start(manner: Manner) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut about = rcgen::CertificateParams::new(Vec::new()).unwrap();
        about.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = about.self_signed(&authority).unwrap();
        std::fs::write(directory.path().join("ca.pem"), root.pem()).unwrap();
        write_private(directory.path().join("hook.key"), &format!("whsec_{KEY}\n"));
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = rcgen::CertificateParams::new(names).unwrap();
        let issuer = rcgen::Issuer::new(about, authority);
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.path().join("cert.pem"), leaf.pem()).unwrap();
        write_private(directory.path().join("cert.key"), &key.serialize_pem());
        let config = rustls::ServerConfig::builder_with_provider(tunnel_net::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            manner: Mutex::new(manner),
            got: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            state.clone(),
        ));
        Self {
            address,
            directory,
            state,
            _accepting: accepting,
        }
    }

    /// Describes the service as the configuration does, with leave to be on loopback.
    pub(crate) fn target(&self) -> Target {
        Target {
            url: self.url("127.0.0.1").parse().unwrap(),
            key: self.file("hook.key"),
            ca: Some(self.file("ca.pem")),
            allow: vec!["127.0.0.1".parse().unwrap()],
        }
    }

    pub(crate) fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/hook?a=b", self.address.port())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn now(&self, manner: Manner) {
        *self.state.manner.lock().unwrap() = manner;
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.state.got.lock().unwrap().clone()
    }

    /// Returns how many connections came, with or without a request in them.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

pub(crate) fn write_private(path: PathBuf, text: &str) {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    let mut serving = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        state.connections.fetch_add(1, Ordering::SeqCst);
        serving.spawn(serve(stream, tls.clone(), state.clone()));
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, state: Arc<State>) {
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let service = service_fn(|request| answer(request, &state));
    let _ = hyper::server::conn::http1::Builder::new()
        .max_buf_size(1 << 20)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    state: &State,
) -> Result<Response<BoxBody<Bytes, std::io::Error>>, std::io::Error> {
    let headers = request.headers().clone();
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(std::io::Error::other)?;
    let body = body.to_bytes();
    state.got.lock().unwrap().push(Got { headers, body });
    let manner = state.manner.lock().unwrap().clone();
    let full = |text: String| {
        http_body_util::Full::from(text)
            .map_err(|never| match never {})
            .boxed()
    };
    let response = Response::builder();
    let response = match manner {
        Manner::Says(status, text) => response.status(status).body(full(text)),
        Manner::Redirects(to) => response
            .status(307)
            .header("location", to)
            .body(full(String::new())),
        Manner::Hangs => std::future::pending().await,
        Manner::Pours => response.body(Endless.boxed()),
        Manner::Babbles => (0..50)
            .fold(response, |response, at| {
                response.header(format!("x-{at}"), "x".repeat(4096))
            })
            .body(full(r#"{"decision":"allow"}"#.into())),
        Manner::HangsUp => return Err(std::io::ErrorKind::ConnectionReset.into()),
    };
    Ok(response.unwrap())
}

/// A body without an end, that begins as a good answer would.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 4096])))))
    }
}
