//! The TCP side: TLS handshakes with a limit and a deadline, then HTTP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel_certs::{CertError, Peer};

use super::gate::{Gate, HANDSHAKES, PER_SOURCE, Pass};
use crate::api::caller::Conn;
use crate::control::Control;

/// How long a TLS handshake may take, and then the head of each request (THREATS part 5).
const DEADLINE: Duration = Duration::from_secs(5);
/// Largest head of a request, in bytes (THREATS part 5).
const MAX_HEAD: usize = 16 * 1024;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// Connections in all, and of one source: a site may have many agents that only get out by the web.
const CONNECTIONS: usize = 32_768;
const CONNECTIONS_PER_SOURCE: usize = 8_192;
/// How long to wait after `accept` failed for want of descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers in progress have after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves the API and the WebSocket carrier on one listener.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) control: Arc<Control>,
    pub(crate) router: Router,
    /// Replaced when the server's certificate is renewed.
    pub(crate) tls: Arc<ArcSwap<ServerConfig>>,
    pub(crate) stop: CancellationToken,
}

impl Front {
    /// Accepts connections until the server stops.
    pub(crate) async fn accept(self, listener: TcpListener) {
        let (handshakes, connections) = (Gate::new(HANDSHAKES), Gate::new(CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            let source = from.ip();
            let Some(place) = connections.enter(source, CONNECTIONS_PER_SOURCE) else {
                continue;
            };
            let Some(handshake) = handshakes.enter(source, PER_SOURCE) else {
                continue;
            };
            let front = self.clone();
            tasks.spawn(async move {
                front.serve(stream, from, handshake, Arc::new(place)).await;
            });
        }
        drop(listener);
        tasks.close();
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    }

    /// Serves one connection to its end.
    async fn serve(self, stream: TcpStream, from: SocketAddr, handshake: Pass, place: Arc<Pass>) {
        let _ = stream.set_nodelay(true);
        tunnel_net::websocket::keep_little_unsent(&stream);
        let acceptor = TlsAcceptor::from(self.tls.load_full());
        let Ok(Ok(tls)) = tokio::time::timeout(DEADLINE, acceptor.accept(stream)).await else {
            return;
        };
        drop(handshake);
        let Ok(peer) = self.peer(&tls) else { return };
        let source = SocketAddr::new(canonical(from.ip()), from.port());
        self.serve_http(
            tls,
            Conn {
                source,
                peer: peer.map(Arc::new),
                place,
            },
        )
        .await;
    }

    /// Says who the other end has proved to be.
    fn peer(&self, tls: &TlsStream<TcpStream>) -> Result<Option<Peer>, CertError> {
        let chain = tls.get_ref().1.peer_certificates();
        chain
            .map(|chain| tunnel_net::tls::peer(&self.control.trust, chain, self.control.now()))
            .transpose()
    }

    async fn serve_http(self, tls: TlsStream<TcpStream>, conn: Conn) {
        let router = TowerToHyperService::new(self.router);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(conn.clone());
            router.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(DEADLINE)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(tls), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        // A connection that breaks is its peer's affair; there is nobody to tell.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(DRAIN, connection).await;
            }
        }
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Front(..)")
    }
}

/// Returns an IPv4 address as such, also where a dual-stack socket writes it as IPv6.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Waits where going on at once would fail at once; a connection that broke before it was accepted is no cause to.
async fn pause_after(error: &io::Error) {
    let lost = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    );
    if !lost {
        tracing::warn!(%error, "connections cannot be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
