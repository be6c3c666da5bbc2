//! Connecting TCP to a name: its addresses in turn, the first that answers (RFC 8305).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tunnel_proto::defaults;

/// How long one address may take before the next is tried beside it (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Looks up the addresses of a name, IPv6 and IPv4 in turn (RFC 8305 section 4).
pub(crate) async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if found.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("`{host}` has no address"),
        ));
    }
    let (mut v6, mut v4): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv6);
    v6.dedup();
    v4.dedup();
    let mut order = Vec::with_capacity(v6.len() + v4.len());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    loop {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            return Ok(order);
        }
        order.extend(pair.into_iter().flatten());
    }
}

/// Connects to the first address that answers, without Nagle's delay.
pub(crate) async fn tcp(addrs: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = tokio::task::JoinSet::new();
    let mut left = addrs.into_iter();
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    // The next address is tried when one fails, or has not answered for a while.
    loop {
        if let Some(addr) = left.next() {
            attempts.spawn(tokio::time::timeout(
                defaults::CONNECT_DEADLINE,
                TcpStream::connect(addr),
            ));
        } else if attempts.is_empty() {
            return Err(last);
        }
        let wait = if left.len() > 0 {
            STAGGER
        } else {
            defaults::CONNECT_DEADLINE
        };
        match tokio::time::timeout(wait, attempts.join_next()).await {
            Ok(Some(Ok(Ok(Ok(stream))))) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Some(Ok(Ok(Err(error))))) => last = error,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Writes a host and a port as one text, an IPv6 address in brackets.
pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}
