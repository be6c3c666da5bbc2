//! A blind TCP relay without any cryptography: three of them in a row are two ends and a relay.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// Bytes that are copied at once.
pub(super) const BUFFER: usize = 64 * 1024;

pub(super) async fn run(listen: SocketAddr, target: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    super::ready(listener.local_addr()?)?;
    let connections = TaskTracker::new();
    loop {
        let (near, _) = listener.accept().await?;
        connections.spawn(async move {
            // A connection that breaks is the usual end of a measurement.
            let _ = splice(near, target).await;
        });
    }
}

async fn splice(mut near: TcpStream, target: SocketAddr) -> std::io::Result<()> {
    let mut far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await?;
    Ok(())
}
