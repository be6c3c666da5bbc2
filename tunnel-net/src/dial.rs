//! Trying the addresses of a host: each a moment after the one before, the first that works (RFC 8305).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tunnel_proto::defaults;

use crate::resolve::Search;

/// How long one address may take before the next is tried beside it (RFC 8305 section 5).
pub(crate) const STAGGER: Duration = Duration::from_millis(250);

/// Bytes of a TCP segment, in both directions: a packet of IPv6's smallest MTU, 1,280 bytes, holds it with its headers
/// (RFC 8200 section 5, RFC 6691). Where larger packets vanish without a word, TCP would stand still for ever.
const SEGMENT: u32 = 1220;

/// Why no address worked.
#[derive(Debug)]
pub(crate) enum Missed<E> {
    /// There was none to try.
    NoAddress(io::Error),
    /// What stood against each, in the order in which they failed.
    Failed(Vec<E>),
}

/// Makes an attempt at each address that a search gives, until one works: the next is made when one fails, or has not
/// worked for a moment. What is still under way then is dropped.
pub(crate) async fn race<T, E, F>(
    mut search: Search,
    mut attempt: impl FnMut(SocketAddr) -> F,
) -> Result<T, Missed<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut attempts = FuturesUnordered::new();
    let mut errors = Vec::new();
    let mut due = Some(Instant::now());
    loop {
        let next = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
            search.next().await
        };
        // Both branches are cancel-safe: a search loses nothing, and the attempts stay where they are.
        tokio::select! {
            Some(result) = attempts.next(), if !attempts.is_empty() => match result {
                Ok(done) => return Ok(done),
                Err(error) => {
                    errors.push(error);
                    due = due.map(|_| Instant::now());
                }
            },
            found = next => match found {
                Some(addr) => {
                    attempts.push(attempt(addr));
                    due = Some(Instant::now() + STAGGER);
                }
                None => due = None,
            },
        }
        if due.is_none() && attempts.is_empty() {
            return Err(if errors.is_empty() {
                Missed::NoAddress(search.into_error())
            } else {
                Missed::Failed(errors)
            });
        }
    }
}

/// Connects to one address, without Nagle's delay.
pub(crate) async fn one_tcp(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv6() {
        TcpSocket::new_v6()
    } else {
        TcpSocket::new_v4()
    }?;
    if let Err(error) = socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT) {
        tracing::debug!(%error, "the kernel chooses the size of segments");
    }
    let stream = tokio::time::timeout(defaults::CONNECT_DEADLINE, socket.connect(addr)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Writes a host and a port as one text, an IPv6 address in brackets.
pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(addresses: &[&str]) -> Search {
        let mut ips = addresses.iter().map(|ip| ip.parse().unwrap());
        let first: IpAddr = ips.next().unwrap();
        Search::new(&first.to_string(), 7, ips.collect())
    }

    /// Works for one address, fails for `127.0.0.9`, and is silent for the rest.
    async fn only(good: &str, addr: SocketAddr) -> Result<IpAddr, &'static str> {
        match addr.ip().to_string() {
            ip if ip == good => Ok(addr.ip()),
            ip if ip == "127.0.0.9" => Err("refused"),
            _ => std::future::pending().await,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_costs_one_stagger_and_one_that_fails_nothing() {
        for (addresses, cost) in [
            (["127.0.0.1", "::1"], Duration::ZERO),
            (["::1", "127.0.0.1"], STAGGER),
            (["127.0.0.9", "127.0.0.1"], Duration::ZERO),
        ] {
            let start = Instant::now();
            let found = race(search(&addresses), |addr| only("127.0.0.1", addr)).await;
            assert_eq!(found.unwrap().to_string(), "127.0.0.1");
            // Timers of tokio count whole milliseconds.
            let late = start.elapsed().saturating_sub(cost);
            assert!(
                start.elapsed() >= cost && late <= Duration::from_millis(5),
                "{late:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_error_is_told() {
        let missed = race(search(&["127.0.0.9"]), |addr| only("", addr)).await;
        assert!(matches!(missed, Err(Missed::Failed(errors)) if errors == ["refused"]));
        let nobody = Search::new("relay.invalid", 7, vec![]);
        let missed = race(nobody, |addr| only("", addr)).await;
        assert!(matches!(missed, Err(Missed::NoAddress(_))));
    }
}
