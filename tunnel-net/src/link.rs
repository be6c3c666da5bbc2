//! The control link's way to the server: QUIC over UDP, or by itself over WebSocket where UDP does not pass.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use quinn::{ClientConfig as QuicConfig, ConnectError, ConnectionError, Endpoint};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tunnel_proto::bind;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::defaults;

use crate::addr::ServerAddr;
use crate::dial::{self, Missed};
use crate::network::{self, Changes};
use crate::quic;
use crate::websocket::{self, Pipe, WebSocketError};
use crate::wire::{Control, PEER, Udp, Wire};

/// A control link that is up. Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    /// The connection; its peer is proven to be a server of the fleet.
    pub connection: quinn::Connection,
    /// How it travels. A link that had to take WebSocket goes back to UDP when that passes.
    pub carrier: watch::Receiver<Carrier>,
    /// The server's address, where UDP showed which one works.
    pub server_ip: Option<IpAddr>,
    /// How often the server has said that it was started anew. It may not know this link any more.
    pub restarts: watch::Receiver<u64>,
    /// The own address of its first socket.
    pub local_addr: Option<SocketAddr>,
    /// The endpoint, to wait for its last packets.
    pub endpoint: Endpoint,
    _attendant: AbortOnDropHandle<()>,
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

impl AttemptError {
    /// Says how much it tells: of several addresses, the one that said most is reported.
    const fn weight(&self) -> u8 {
        match self {
            Self::Socket(_) => 0,
            Self::Silence => 1,
            Self::Config(_) | Self::WebSocket(_) => 2,
            Self::Handshake(_) => 3,
        }
    }
}

/// Writes an error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
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
        let climbs = which == Try::Both;
        in_time(over_websocket(server, link_tls.clone(), websocket_tls, climbs)).await
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

/// Tries the server's addresses over UDP, each a moment after the one before.
async fn over_udp(server: &ServerAddr, config: QuicConfig) -> Result<Link, AttemptError> {
    let attempt = |addr| {
        let attempt = one_over_udp(server, addr, config.clone());
        let attempt = tokio::time::timeout(defaults::CONNECT_DEADLINE, attempt);
        attempt.map(|done| done.unwrap_or(Err(AttemptError::Silence)))
    };
    dial::race(server.search(server.udp_port), attempt)
        .await
        .map_err(|missed| match missed {
            Missed::NoAddress(error) => error.into(),
            Missed::Failed(errors) => errors
                .into_iter()
                .max_by_key(AttemptError::weight)
                .unwrap_or(AttemptError::Silence),
        })
}

/// Connects to one address over UDP, and notes that the server has proven to be there.
pub(crate) async fn one_over_udp(
    server: &ServerAddr,
    addr: SocketAddr,
    config: QuicConfig,
) -> Result<Link, AttemptError> {
    // A connected socket: it takes datagrams from the server alone, and the kernel lists no listener.
    let (wire, controls, _) = Wire::new();
    let udp = Udp::connect(addr).await?;
    let local_addr = udp.local_addr().ok();
    wire.set_udp(Some(Arc::new(udp)));
    wire.set_active(Carrier::Udp);
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(quic::endpoint_config(), None, wire.clone(), runtime)?;
    let connection = endpoint
        .connect_with(config, PEER, defaults::SERVER_NAME)?
        .await?;
    server.proven.note(addr.ip());
    let follower = follow(server.clone(), addr, endpoint.clone(), Some(wire));
    let (counter, restarts) = watch::channel(0);
    let attendant = async {
        tokio::select! {
            () = follower => {}
            () = count_restarts(controls, counter) => {}
        }
    };
    Ok(Link {
        connection,
        carrier: watch::channel(Carrier::Udp).1,
        restarts,
        server_ip: Some(addr.ip()),
        local_addr,
        endpoint,
        _attendant: AbortOnDropHandle::new(tokio::task::spawn(attendant)),
    })
}

/// Counts how often the server says that it was started anew, for as long as the link lives.
async fn count_restarts(mut controls: mpsc::Receiver<Control>, counter: watch::Sender<u64>) {
    while let Some(control) = controls.recv().await {
        if control.datagram == bind::RESTARTED {
            counter.send_modify(|count| *count += 1);
        }
    }
}

/// Takes a link along when this machine gets another address: without that it would be dead until the next keepalive, and
/// nobody could reach the device. A WebSocket cannot move, and neither can a link to an address of the other family, so it
/// is ended, and the agent makes a new link at once.
async fn follow(server: ServerAddr, to: SocketAddr, endpoint: Endpoint, udp: Option<Arc<Wire>>) {
    let mut changes = Changes::listen();
    let mut from = network::source(to);
    loop {
        changes.changed().await;
        let now = network::source(to);
        if now == from {
            continue;
        }
        // While there is no way at all, the old one may come back.
        if now.is_none() && !has_other_way(&server, to).await {
            continue;
        }
        from = now;
        tracing::debug!("the way to the server has changed");
        let Some(wire) = udp.as_ref().filter(|_| now.is_some()) else {
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
}

/// Says whether this machine has a way to another address of the server.
async fn has_other_way(server: &ServerAddr, lost: SocketAddr) -> bool {
    let mut search = server.search(lost.port());
    while let Some(addr) = search.next().await {
        if network::source(addr).is_some() {
            return true;
        }
    }
    false
}

async fn over_websocket(
    server: &ServerAddr,
    config: QuicConfig,
    tls: Arc<ClientConfig>,
    climbs: bool,
) -> Result<Link, AttemptError> {
    let stream = websocket::connect(server, tls).await?;
    let tcp = stream.get_ref().get_ref().0;
    let (server_ip, next_hop) = (websocket::server_ip(server, tcp), tcp.peer_addr()?);
    let local_addr = tcp.local_addr().ok();
    let (wire, controls, _) = Wire::new();
    let pipe = Pipe::new();
    wire.set_websocket(Some(pipe.clone()));
    wire.set_active(Carrier::WebSocket);
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(quic::endpoint_config(), None, wire.clone(), runtime)?;
    let watched = endpoint.clone();
    let websocket = AbortOnDropHandle::new(tokio::task::spawn(async move {
        if let Err(error) = pipe.run(stream).await {
            tracing::debug!(%error, "WebSocket ended");
        }
        // Without its only carrier the link is dead at once, not after its idle time.
        watched.close(0u32.into(), b"carrier ended");
    }));
    let connection = endpoint
        .connect_with(config.clone(), PEER, defaults::SERVER_NAME)?
        .await?;
    let (carrier_out, carrier) = watch::channel(Carrier::WebSocket);
    let (counter, restarts) = watch::channel(0);
    let (server, end) = (server.clone(), endpoint.clone());
    let attendant = async move {
        let followed = follow(server.clone(), next_hop, end.clone(), None);
        let climbed = async {
            match climbs {
                true => climb(&server, &config, &end, &wire).await,
                false => std::future::pending().await,
            }
        };
        let to = tokio::select! {
            () = followed => return,
            to = climbed => to,
        };
        drop(websocket);
        wire.set_websocket(None);
        carrier_out.send_replace(Carrier::Udp);
        tokio::select! {
            () = follow(server, to, end, Some(wire)) => {}
            () = count_restarts(controls, counter) => {}
        }
    };
    Ok(Link {
        connection,
        carrier,
        restarts,
        server_ip,
        local_addr,
        endpoint,
        _attendant: AbortOnDropHandle::new(tokio::task::spawn(attendant)),
    })
}

/// First pause before UDP is tried again under a link that had to take WebSocket, doubled up to [`CLIMB_MAX`].
const CLIMB_FIRST: Duration = Duration::from_secs(15);

/// Longest pause: where UDP never passes, some 6 kB for each try are to stay a tenth of what an idle day may cost.
const CLIMB_MAX: Duration = Duration::from_secs(2 * 3600);

/// How long the server may take to answer over UDP before the link goes back to its WebSocket.
const CLIMB_PATIENCE: Duration = Duration::from_secs(3);

/// Brings a link from WebSocket to UDP once that passes, and returns where the server is. Nothing is given up before: the
/// same connection goes on, so neither its stream nor the server's word for the device has a gap.
async fn climb(
    server: &ServerAddr,
    config: &QuicConfig,
    endpoint: &Endpoint,
    wire: &Arc<Wire>,
) -> SocketAddr {
    let mut pause = CLIMB_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(CLIMB_MAX);
        // A whole handshake, so that it is our server that answers, and in packets as long as those that follow.
        let Ok(probe) = in_time(over_udp(server, config.clone())).await else {
            continue;
        };
        probe.connection.close(0u32.into(), b"UDP passes");
        let Some(to) = probe.server_ip.map(|ip| SocketAddr::new(ip, server.udp_port)) else {
            continue;
        };
        if move_to_udp(to, endpoint, wire).await.unwrap_or(false) {
            tracing::info!("UDP passes again, and carries the link");
            return to;
        }
    }
}

/// Moves a link to UDP, and back if the server does not answer there.
async fn move_to_udp(to: SocketAddr, endpoint: &Endpoint, wire: &Arc<Wire>) -> io::Result<bool> {
    let udp = Arc::new(Udp::connect(to).await?);
    wire.set_udp(Some(udp.clone()));
    wire.set_active(Carrier::Udp);
    endpoint.rebind_abstract(wire.clone())?;
    if tokio::time::timeout(CLIMB_PATIENCE, udp.heard()).await.is_ok() {
        return Ok(true);
    }
    wire.set_active(Carrier::WebSocket);
    wire.set_udp(None);
    endpoint.rebind_abstract(wire.clone())?;
    Ok(false)
}
