//! The server's port through proxies as they are in use, and through those who stand in the way.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::fleet::Fleet;
use support::{in_time, skip};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::websocket::{self, WebSocketError};
use tunnel_net::{Proxy, ServerAddr, proxy::Refusal};
use tunnel_proto::Code;

/// Answers each client over TLS with one byte of what it sends.
async fn serve(config: Arc<rustls::ServerConfig>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = AbortOnDropHandle::new(tokio::task::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = TlsAcceptor::from(config.clone()).accept(stream).await {
                let byte = stream.read_u8().await.unwrap();
                stream.write_all(&[byte]).await.unwrap();
            }
        }
    }));
    (addr, task)
}

/// A proxy that runs as a program of its own; it ends with this value.
struct Program {
    child: Child,
    addr: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Program {
    /// Starts a proxy on a free port, which `command` is told.
    async fn start(command: impl Fn(&std::path::Path, u16) -> Command) -> Self {
        loop {
            // Somebody else may take the port before the program does; then it ends, and the next one is tried.
            let addr = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let directory = tempfile::tempdir().unwrap();
            let mut command = command(directory.path(), addr.port());
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut program = Self {
                child: command.spawn().unwrap(),
                addr,
                _directory: directory,
            };
            if program.is_up().await {
                return program;
            }
        }
    }

    /// Waits until it accepts connections; says whether it still lives.
    async fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.addr).await.is_err() {
            assert!(Instant::now() < deadline, "the proxy does not listen");
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.child.try_wait().unwrap().is_none()
    }

    fn proxy(&self, scheme: &str, login: &str) -> Proxy {
        format!("{scheme}://{login}{}", self.addr).parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tinyproxy(login: &'static str) -> impl Fn(&std::path::Path, u16) -> Command {
    move |directory, port| {
        let file = directory.join("tinyproxy.conf");
        let text =
            format!("Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients 20\nTimeout 30\n{login}\n");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(file);
        command
    }
}

fn microsocks(login: &'static [&'static str]) -> impl Fn(&std::path::Path, u16) -> Command {
    move |_, port| {
        let mut command = Command::new("microsocks");
        command
            .args(["-i", "127.0.0.1", "-p", &port.to_string()])
            .args(login);
        command
    }
}

/// Sends a byte to the server through a proxy and gets it back. The proxy looks the name up.
async fn exchange(fleet: &Fleet, server: SocketAddr, proxy: Proxy) -> Result<(), WebSocketError> {
    let server: ServerAddr = format!("localhost:{}", server.port()).parse().unwrap();
    let server = server.with_proxy(Some(Arc::new(proxy)));
    let mut stream = in_time("an answer", websocket::connect_tls(&server, fleet.api_client())).await?;
    assert_eq!(
        websocket::server_ip(&server, stream.get_ref().0),
        None,
        "this is the proxy's address"
    );
    stream.write_all(&[7]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 7);
    Ok(())
}

fn refusal(result: Result<(), WebSocketError>) -> Refusal {
    match result.unwrap_err() {
        WebSocketError::Proxy(error) => error.refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_real_http_proxy_lets_the_server_be_reached() {
    if skip::without_program(
        "a_real_http_proxy_lets_the_server_be_reached",
        "tinyproxy",
        "tinyproxy",
    ) {
        return;
    }
    let fleet = Fleet::new();
    let (server, _task) = serve(fleet.api_server()).await;
    let open = Program::start(tinyproxy("")).await;
    exchange(&fleet, server, open.proxy("http", "")).await.unwrap();

    let closed = Program::start(tinyproxy("BasicAuth ana secret")).await;
    exchange(&fleet, server, closed.proxy("http", "ana:secret@"))
        .await
        .unwrap();
    let wanted = refusal(exchange(&fleet, server, closed.proxy("http", "")).await);
    assert!(matches!(wanted, Refusal::LoginWanted { offers } if offers.0 == ["Basic"]));
    let refused = refusal(exchange(&fleet, server, closed.proxy("http", "ana:wrong@")).await);
    assert!(
        matches!(refused, Refusal::LoginRefused { .. } | Refusal::Refused(_)),
        "{refused:?}"
    );

    let narrow = Program::start(tinyproxy("ConnectPort 443")).await;
    let refused = refusal(exchange(&fleet, server, narrow.proxy("http", "")).await);
    assert!(
        matches!(&refused, Refusal::Refused(words) if words.starts_with("403")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_real_socks_proxy_lets_the_server_be_reached() {
    if skip::without_program(
        "a_real_socks_proxy_lets_the_server_be_reached",
        "microsocks",
        "microsocks",
    ) {
        return;
    }
    let fleet = Fleet::new();
    let (server, _task) = serve(fleet.api_server()).await;
    let open = Program::start(microsocks(&[])).await;
    exchange(&fleet, server, open.proxy("socks5", "")).await.unwrap();

    let closed = Program::start(microsocks(&["-u", "ana", "-P", "secret"])).await;
    exchange(&fleet, server, closed.proxy("socks5h", "ana:secret@"))
        .await
        .unwrap();
    let wanted = refusal(exchange(&fleet, server, closed.proxy("socks5", "")).await);
    assert!(matches!(wanted, Refusal::LoginWanted { .. }), "{wanted:?}");
    let refused = refusal(exchange(&fleet, server, closed.proxy("socks5", "ana:wrong@")).await);
    assert!(matches!(refused, Refusal::LoginRefused { .. }), "{refused:?}");
    let nowhere = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let unreached = refusal(exchange(&fleet, nowhere, open.proxy("socks5", "")).await);
    assert!(
        matches!(&unreached, Refusal::Unreached(words) if words == "connection refused"),
        "{unreached:?}"
    );
}

/// A server's set-up with a certificate by an authority of this name, of a kind that no fleet has.
fn intercepting(issuer: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Arc<rustls::ServerConfig> {
    let authority_key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, issuer);
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(tunnel_net::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key);
    Arc::new(config.unwrap())
}

async fn connect_to(fleet: &Fleet, addr: SocketAddr) -> WebSocketError {
    let server = addr.to_string().parse().unwrap();
    match in_time("an answer", websocket::connect_tls(&server, fleet.api_client())).await {
        Ok(_) => panic!("trusted"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn who_intercepts_tls_is_named_and_not_trusted() {
    let fleet = Fleet::new();
    let (good, _task) = serve(fleet.api_server()).await;
    websocket::connect_tls(&good.to_string().parse().unwrap(), fleet.api_client())
        .await
        .unwrap();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let (addr, _task) = serve(intercepting("Corp Web \u{1b}Gateway", algorithm)).await;
        let error = connect_to(&fleet, addr).await;
        let WebSocketError::Foreign { issuer, source, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(issuer, "Corp Web ?Gateway");
        assert_eq!(tunnel_net::tls::io_refusal(source), Some(Code::CertUnknownCa));
        assert!(error.to_string().contains("intercepts TLS"), "{error}");
    }
    // Another fleet's server is as foreign as any other.
    let (addr, _task) = serve(Fleet::new().api_server()).await;
    assert!(matches!(
        connect_to(&fleet, addr).await,
        WebSocketError::Foreign { .. }
    ));
}

#[tokio::test]
async fn a_captive_portal_in_the_place_of_the_server_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let _portal = AbortOnDropHandle::new(tokio::task::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n")
            .await
            .unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }));
    let error = connect_to(&Fleet::new(), addr).await;
    assert!(matches!(error, WebSocketError::NoTls { .. }), "{error:?}");
    assert!(error.to_string().contains("captive portal"), "{error}");
}
