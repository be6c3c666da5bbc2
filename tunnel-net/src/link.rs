//! The control link's way to the server: QUIC over UDP, or by itself over WebSocket where UDP does not pass.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn::{ClientConfig as QuicConfig, ConnectError, ConnectionError, Endpoint};
use rustls::ClientConfig;
use tokio_util::task::AbortOnDropHandle;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::defaults;

use crate::addr::ServerAddr;
use crate::network::{self, Changes};
use crate::quic;
use crate::websocket::{self, Pipe, WebSocketError};
use crate::wire::{PEER, Udp, Wire};

/// A control link that is up. Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    /// The connection; its peer is proven to be a server of the fleet.
    pub connection: quinn::Connection,
    /// How it travels.
    pub carrier: Carrier,
    /// The server's address, where UDP showed which one works.
    pub server_ip: Option<IpAddr>,
    /// The endpoint, to wait for its last packets.
    pub endpoint: Endpoint,
    _websocket: Option<AbortOnDropHandle<()>>,
    _follower: AbortOnDropHandle<()>,
}

/// Tells why no control link came up: both carriers were tried.
#[derive(Debug, thiserror::Error)]
#[error("could not reach `{server}`: over UDP, {udp}; over WebSocket, {websocket}")]
pub struct LinkError {
    server: String,
    /// What stood against UDP.
    pub udp: AttemptError,
    /// What stood against WebSocket.
    pub websocket: AttemptError,
}

/// Tells why one carrier gave no link.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The name has no address, or no socket could be opened.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The configuration does not fit.
    #[error("{0}")]
    Config(#[from] ConnectError),
    /// The handshake failed, which may mean that either side does not trust the other.
    #[error("{0}")]
    Handshake(#[from] ConnectionError),
    /// The WebSocket did not come up.
    #[error("{}", chain(.0))]
    WebSocket(#[from] WebSocketError),
    /// Nothing came back in time.
    #[error("no answer in time")]
    Silence,
}

/// Writes an error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Which carriers are tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Try {
    /// UDP, and after its head start WebSocket beside it; the first that works.
    #[default]
    Both,
    /// One carrier alone, to find out whether it works.
    Only(Carrier),
}

impl Try {
    /// Returns the only carrier, if there is no choice.
    pub const fn only(self) -> Option<Carrier> {
        match self {
            Self::Both => None,
            Self::Only(carrier) => Some(carrier),
        }
    }
}

/// Reads `udp`, `websocket` or `auto`, as the variable `TUNNEL_CARRIER` has it.
impl std::str::FromStr for Try {
    type Err = TryError;

    fn from_str(text: &str) -> Result<Self, TryError> {
        match text {
            "auto" => Ok(Self::Both),
            "udp" => Ok(Self::Only(Carrier::Udp)),
            "websocket" => Ok(Self::Only(Carrier::WebSocket)),
            _ => Err(TryError),
        }
    }
}

/// Tells that a text is no choice of carriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a carrier is `udp`, `websocket` or `auto`")]
pub struct TryError;

/// Connects to the server's control link.
///
/// # Errors
/// Tells for each carrier why it gave no link. A certificate that the server refuses shows only at the first message.
pub async fn connect(
    server: &ServerAddr,
    link_tls: quinn::ClientConfig,
    websocket_tls: Arc<ClientConfig>,
    which: Try,
) -> Result<Link, LinkError> {
    let udp = async {
        if which == Try::Only(Carrier::WebSocket) {
            return Err(AttemptError::Silence);
        }
        in_time(over_udp(server, link_tls.clone())).await
    };
    let websocket = async {
        match which {
            Try::Only(Carrier::Udp) => return Err(AttemptError::Silence),
            Try::Only(Carrier::WebSocket) => {}
            // A link lives long, so UDP gets more time than for a tunnel's leg.
            Try::Both => tokio::time::sleep(defaults::UDP_HEAD_START * 4).await,
        }
        in_time(over_websocket(server, link_tls.clone(), websocket_tls)).await
    };
    tokio::pin!(udp, websocket);
    let (mut no_udp, mut no_websocket) = (None, None);
    loop {
        tokio::select! {
            result = &mut udp, if no_udp.is_none() => match result {
                Ok(link) => return Ok(link),
                Err(error) => no_udp = Some(error),
            },
            result = &mut websocket, if no_websocket.is_none() => match result {
                Ok(link) => return Ok(link),
                Err(error) => no_websocket = Some(error),
            },
        }
        if let (Some(_), Some(_)) = (&no_udp, &no_websocket) {
            return Err(LinkError {
                server: server.to_string(),
                udp: no_udp.unwrap_or(AttemptError::Silence),
                websocket: no_websocket.unwrap_or(AttemptError::Silence),
            });
        }
    }
}

async fn in_time(attempt: impl Future<Output = Result<Link, AttemptError>>) -> Result<Link, AttemptError> {
    let deadline = defaults::CONNECT_DEADLINE * 2;
    tokio::time::timeout(deadline, attempt)
        .await
        .unwrap_or(Err(AttemptError::Silence))
}

/// Tries the server's addresses one after the other over UDP.
async fn over_udp(server: &ServerAddr, config: QuicConfig) -> Result<Link, AttemptError> {
    let mut last = AttemptError::Silence;
    for addr in server.resolve(server.udp_port).await? {
        match tokio::time::timeout(defaults::CONNECT_DEADLINE, one_over_udp(addr, config.clone())).await {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => last = error,
            Err(_) => last = AttemptError::Silence,
        }
    }
    Err(last)
}

async fn one_over_udp(addr: SocketAddr, config: QuicConfig) -> Result<Link, AttemptError> {
    // A connected socket: it takes datagrams from the server alone, and the kernel lists no listener.
    let (wire, _, _) = Wire::new();
    wire.set_udp(Some(Arc::new(Udp::connect(addr).await?)));
    wire.set_active(Carrier::Udp);
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(quic::endpoint_config(), None, wire.clone(), runtime)?;
    let follower = follow(addr, endpoint.clone(), Some(wire));
    let connection = endpoint
        .connect_with(config, PEER, defaults::SERVER_NAME)?
        .await?;
    Ok(Link {
        connection,
        carrier: Carrier::Udp,
        server_ip: Some(addr.ip()),
        endpoint,
        _websocket: None,
        _follower: follower,
    })
}

/// Takes a link along when this machine gets another address: without that it would be dead until the next keepalive, and
/// nobody could reach the device. A WebSocket cannot move, so it is ended, and the agent makes a new link at once.
fn follow(to: SocketAddr, endpoint: Endpoint, udp: Option<Arc<Wire>>) -> AbortOnDropHandle<()> {
    let mut changes = Changes::listen();
    let mut from = network::source(to);
    AbortOnDropHandle::new(tokio::task::spawn(async move {
        loop {
            changes.changed().await;
            let now = network::source(to);
            // While there is no way at all, the old one may come back.
            if now.is_none() || now == from {
                continue;
            }
            from = now;
            tracing::debug!("the way to the server has changed");
            let Some(wire) = &udp else {
                endpoint.close(0u32.into(), b"address changed");
                return;
            };
            let moved = match Udp::connect(to).await {
                Ok(udp) => {
                    wire.set_udp(Some(Arc::new(udp)));
                    endpoint.rebind_abstract(wire.clone())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = moved {
                tracing::debug!(%error, "no socket at the new address");
                from = None;
            }
        }
    }))
}

async fn over_websocket(
    server: &ServerAddr,
    config: QuicConfig,
    tls: Arc<ClientConfig>,
) -> Result<Link, AttemptError> {
    let stream = websocket::connect(server, tls).await?;
    let tcp = stream.get_ref().get_ref().0;
    let (server_ip, next_hop) = (websocket::server_ip(server, tcp), tcp.peer_addr()?);
    let (wire, _, _) = Wire::new();
    let pipe = Pipe::new();
    wire.set_websocket(Some(pipe.clone()));
    wire.set_active(Carrier::WebSocket);
    let endpoint = Endpoint::new_with_abstract_socket(
        quic::endpoint_config(),
        None,
        wire,
        Arc::new(quinn::TokioRuntime),
    )?;
    let watched = endpoint.clone();
    let task = AbortOnDropHandle::new(tokio::task::spawn(async move {
        if let Err(error) = pipe.run(stream).await {
            tracing::debug!(%error, "WebSocket ended");
        }
        // Without its only carrier the link is dead at once, not after its idle time.
        watched.close(0u32.into(), b"carrier ended");
    }));
    let connection = endpoint
        .connect_with(config, PEER, defaults::SERVER_NAME)?
        .await?;
    Ok(Link {
        connection,
        carrier: Carrier::WebSocket,
        server_ip,
        _follower: follow(next_hop, endpoint.clone(), None),
        endpoint,
        _websocket: Some(task),
    })
}
