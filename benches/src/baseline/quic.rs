//! Hop-by-hop QUIC with TLS from end to end inside: each end has a QUIC connection to the relay, and the relay copies bytes
//! from stream to stream. It is what most tunnels over QUIC do, and ours does not. Windows are those of our own programs.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::TaskTracker;

use super::splice::BUFFER;
use super::{identity, ready};

const NEAR: &[u8] = b"bench-near";
const FAR: &[u8] = b"bench-far";

/// Bytes that the relay takes from a stream at once.
const CHUNK: usize = 256 * 1024;

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(512))
        .stream_receive_window(VarInt::from_u32(4 * 1024 * 1024))
        .receive_window(VarInt::from_u32(16 * 1024 * 1024))
        .send_window(4 * 1024 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(10)));
    Arc::new(config)
}

/// Accepts both ends; streams of near ends go to the far end that came last.
pub(super) async fn relay(directory: &Path, listen: SocketAddr) -> Result<()> {
    let tls = QuicServerConfig::try_from(identity::server(directory, &[NEAR, FAR])?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, listen)?;
    ready(endpoint.local_addr()?)?;
    let (far_in, far) = watch::channel(None);
    let far_in = Arc::new(far_in);
    let connections = TaskTracker::new();
    while let Some(incoming) = endpoint.accept().await {
        let (far_in, far, streams) = (Arc::clone(&far_in), far.clone(), connections.clone());
        connections.spawn(async move {
            let Ok(connection) = incoming.await else { return };
            if is_far(&connection) {
                far_in.send_replace(Some(connection.clone()));
                connection.closed().await;
            } else {
                // Ends with the connection.
                let _ = relay_near(&connection, far, &streams).await;
            }
        });
    }
    Ok(())
}

fn is_far(connection: &Connection) -> bool {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    data.and_then(|data| data.protocol)
        .is_some_and(|name| name == FAR)
}

async fn relay_near(
    connection: &Connection,
    mut far: watch::Receiver<Option<Connection>>,
    streams: &TaskTracker,
) -> Result<()> {
    loop {
        let (near_send, near_recv) = connection.accept_bi().await?;
        let far = far
            .wait_for(Option::is_some)
            .await?
            .clone()
            .context("it was just there")?;
        streams.spawn(async move {
            let Ok((far_send, far_recv)) = far.open_bi().await else {
                return;
            };
            tokio::join!(copy(near_recv, far_send), copy(far_recv, near_send));
        });
    }
}

/// Hands chunks from stream to stream as they are, without a copy of their bytes.
async fn copy(mut from: RecvStream, mut to: SendStream) {
    loop {
        match from.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => {
                if to.write_chunk(chunk.bytes).await.is_err() {
                    let _ = from.stop(VarInt::from_u32(1));
                    return;
                }
            }
            Ok(None) => {
                let _ = to.finish();
                return;
            }
            Err(_) => {
                let _ = to.reset(VarInt::from_u32(1));
                return;
            }
        }
    }
}

async fn connect(directory: &Path, relay: SocketAddr, alpn: &[u8]) -> Result<Connection> {
    let tls = QuicClientConfig::try_from(identity::client(directory, &[alpn])?)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport());
    let any: SocketAddr = match relay {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::client(any)?;
    Ok(endpoint.connect_with(config, relay, identity::NAME)?.await?)
}

/// Takes streams from the relay, ends their TLS and carries them to the target.
pub(super) async fn far(directory: &Path, relay: SocketAddr, target: SocketAddr) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(identity::server(directory, &[])?));
    let connection = connect(directory, relay, FAR).await?;
    ready(target)?;
    let sessions = TaskTracker::new();
    loop {
        let (send, recv) = connection.accept_bi().await.context("the relay is gone")?;
        let acceptor = acceptor.clone();
        sessions.spawn(async move {
            // A session that breaks is the usual end of a measurement.
            let _ = far_session(&acceptor, join(recv, send), target).await;
        });
    }
}

async fn far_session<S>(acceptor: &TlsAcceptor, stream: S, target: SocketAddr) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut inner = acceptor.accept(stream).await?;
    let mut local = TcpStream::connect(target).await?;
    local.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut inner, &mut local, BUFFER, BUFFER).await?;
    Ok(())
}

/// Carries each connection to the far end, in a stream of its own with TLS inside.
pub(super) async fn near(directory: &Path, relay: SocketAddr, listen: SocketAddr) -> Result<()> {
    let connector = TlsConnector::from(Arc::new(identity::client(directory, &[])?));
    let connection = connect(directory, relay, NEAR).await?;
    let listener = TcpListener::bind(listen).await?;
    ready(listener.local_addr()?)?;
    let sessions = TaskTracker::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (connector, connection) = (connector.clone(), connection.clone());
                let (local, _) = accepted?;
                sessions.spawn(async move {
                    let _ = near_session(&connector, &connection, local).await;
                });
            }
            error = connection.closed() => bail!("the relay is gone: {error}"),
        }
    }
}

async fn near_session(connector: &TlsConnector, connection: &Connection, mut local: TcpStream) -> Result<()> {
    local.set_nodelay(true)?;
    let (send, recv) = connection.open_bi().await?;
    let mut inner = connector
        .connect(identity::server_name()?, join(recv, send))
        .await?;
    copy_bidirectional_with_sizes(&mut inner, &mut local, BUFFER, BUFFER).await?;
    Ok(())
}
