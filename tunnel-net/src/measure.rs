//! Measuring the way to a server, for a person who wants to know what is wrong with it.
//!
//! Every number comes from connections on which both ends have proven who they are: their handshakes, their own count of
//! lost packets, and messages that the server answers one by one. Nobody else gets more out of the server by it. Nothing
//! is kept, and a control link that is up is left alone.

mod facts;
mod findings;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn::{RecvStream, SendStream};
use tunnel_certs::Peer;
use tunnel_proto::defaults;
use tunnel_proto::message::{FromAgent, FromServer, Ping, Probe, Probed};

use crate::addr::ServerAddr;
use crate::clock::Clock as _;
use crate::link::{self, AttemptError, Link, Try};
use crate::resolve::{self, nat64};
use crate::stream::{read_message, write_message};
use crate::tls::{self, Credentials, Ends};
use crate::{network, quic, websocket};

pub use facts::{Carried, Facts, ProxyFact, Reach};
pub use findings::{Finding, Level, findings};
use tunnel_proto::carrier::Carrier;

/// Addresses that are tried at most.
const ADDRESSES: usize = 6;

/// Round trips that are measured one after the other.
const ROUND_TRIPS: u64 = 15;

/// Probes that are sent at a steady pace, to count those that are lost: with 200, one lost packet is half a percent.
const PROBES: u64 = 200;

/// The pace of the probes: 200 of them in a second are some 20 kB each way.
const PACE: Duration = Duration::from_millis(5);

/// How long one answer may take: longer than the longest queue of a bad line.
const ANSWER: Duration = Duration::from_secs(4);

/// How long measuring one carrier may take. What has been measured by then counts.
const DEADLINE: Duration = Duration::from_secs(20);

/// Who measures, and what.
#[derive(Debug)]
pub struct Subject {
    /// The server.
    pub server: ServerAddr,
    /// Whom to trust.
    pub ends: Ends,
    /// What proves who asks.
    pub credentials: Credentials,
    /// Who asks.
    pub own: Peer,
    /// What names the proxy, if there is one.
    pub proxy_named_by: String,
}

impl Subject {
    fn link_tls(&self) -> quinn::ClientConfig {
        let tls = tls::link_client(&self.ends, &self.credentials);
        let mut config = quinn::ClientConfig::new(tls::quic_client(tls));
        config.transport_config(quic::probe_transport());
        config
    }

    fn websocket_tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::new(tls::api_client(&self.ends, None))
    }
}

/// Measures the way to the server, in some seconds.
pub async fn measure(subject: &Subject) -> Facts {
    let server = &subject.server;
    let last_good = server.proven.addresses();
    let dns = resolve::ask(&server.host).await;
    let addresses = addresses(server).await;
    // Before anything else takes the line: a WebSocket's transfer would sit in UDP's way.
    let tried = futures_util::future::join_all(addresses.iter().map(|&addr| reach(subject, addr))).await;
    let (addresses, talks): (Vec<_>, Vec<_>) = tried.into_iter().unzip();
    let udp = over_udp(subject, &addresses, talks).await;
    let websocket = over_websocket(subject).await;
    let translated = !server.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) && !has_way_for_ipv4();
    Facts {
        server: server.to_string(),
        host: server.host.clone(),
        dns,
        last_good,
        nat64: if translated {
            resolve::nat64_prefix()
                .await
                .as_ref()
                .map(nat64::Prefix::to_string)
        } else {
            None
        },
        proxy: server.proxy.as_ref().map(|proxy| ProxyFact {
            proxy: proxy.to_string(),
            named_by: subject.proxy_named_by.clone(),
        }),
        addresses,
        udp,
        websocket,
        own: subject.own.clone(),
        now: crate::clock::SystemClock.now().as_secs(),
    }
}

fn has_way_for_ipv4() -> bool {
    network::source(SocketAddr::new(IpAddr::from([192, 0, 0, 170]), 1)).is_some()
}

async fn addresses(server: &ServerAddr) -> Vec<IpAddr> {
    let mut search = server.search(server.udp_port);
    let mut found = Vec::new();
    while let Some(addr) = search.next().await {
        found.push(addr.ip());
        if found.len() == ADDRESSES {
            break;
        }
    }
    found
}

/// Tries one address over TCP and UDP; what is up over UDP is for measuring.
async fn reach(subject: &Subject, ip: IpAddr) -> (Reach, Option<Talk>) {
    let server = &subject.server;
    let tcp = async {
        if server.proxy.is_some() {
            return None;
        }
        let start = Instant::now();
        let addr = SocketAddr::new(ip, server.tcp_port);
        let stream = websocket::one_tls(server, addr, subject.websocket_tls()).await;
        Some(stream.map(|_| start.elapsed()))
    };
    let udp = async {
        let start = Instant::now();
        let addr = SocketAddr::new(ip, server.udp_port);
        let link = link::one_over_udp(server, addr, subject.link_tls());
        let link = tokio::time::timeout(defaults::CONNECT_DEADLINE, link).await;
        Ok(Talk::begin(link.unwrap_or(Err(AttemptError::Silence))?, start.elapsed()).await)
    };
    let (tcp, udp) = tokio::join!(tcp, udp);
    let (udp, talk) = match udp {
        Ok(talk) => (Ok(talk.took), Some(talk)),
        Err(error) => (Err(error), None),
    };
    (Reach { ip, tcp, udp }, talk)
}

async fn over_udp(
    subject: &Subject,
    addresses: &[Reach],
    talks: Vec<Option<Talk>>,
) -> Result<Carried, AttemptError> {
    let found = talks
        .into_iter()
        .zip(addresses)
        .find_map(|(talk, reach)| Some((talk?, reach.ip)));
    let Some((talk, ip)) = found else {
        return Err(no_udp(addresses));
    };
    let to = SocketAddr::new(ip, subject.server.udp_port);
    Ok(exchange(subject, talk, Some(to)).await)
}

/// Returns what stood against UDP: what a handshake said tells more than silence.
fn no_udp(addresses: &[Reach]) -> AttemptError {
    let said = addresses.iter().find_map(|reach| match &reach.udp {
        Err(AttemptError::Handshake(error)) => Some(error.clone()),
        _ => None,
    });
    match said {
        Some(error) => AttemptError::Handshake(error),
        None if addresses.is_empty() => AttemptError::Socket(std::io::ErrorKind::NotFound.into()),
        None => AttemptError::Silence,
    }
}

async fn over_websocket(subject: &Subject) -> Result<Carried, AttemptError> {
    let start = Instant::now();
    let only = Try::Only(Carrier::WebSocket);
    let link = link::connect(&subject.server, subject.link_tls(), subject.websocket_tls(), only).await;
    let link = link.map_err(|error| error.websocket)?;
    let to = link
        .server_ip
        .map(|ip| SocketAddr::new(ip, subject.server.tcp_port));
    Ok(exchange(subject, Talk::begin(link, start.elapsed()).await, to).await)
}

/// A conversation that the server knows to be about measuring.
struct Talk {
    link: Link,
    /// How long it took until the server was proven.
    took: Duration,
    streams: Option<(SendStream, RecvStream)>,
    said: Option<Probed>,
}

impl Talk {
    /// Says at once what the connection is for: the server waits for that a short time only.
    async fn begin(link: Link, took: Duration) -> Self {
        let begin = async {
            let mut streams = link.connection.open_bi().await.ok()?;
            let (said, _) = probe(&mut streams.0, &mut streams.1).await?;
            Some((streams, said))
        };
        let (streams, said) = begin.await.unzip();
        Self {
            link,
            took,
            streams,
            said,
        }
    }
}

/// Measures on a connection that is up.
async fn exchange(subject: &Subject, talk: Talk, to: Option<SocketAddr>) -> Carried {
    let now = subject.ends.clock.now();
    let Talk {
        link,
        took,
        streams,
        said,
    } = talk;
    let mut carried = Carried {
        connect: took,
        round_trips: Vec::new(),
        sent: 0,
        lost: 0,
        payload: 0,
        to,
        from: link.local_addr,
        skew_millis: None,
        said,
        server: tls::connection_peer(&link.connection, &subject.ends.trust, now).ok(),
    };
    if let Some((mut send, mut recv)) = streams {
        // What came until it broke off counts.
        let talk = converse(&mut send, &mut recv, &mut carried);
        let _ = tokio::time::timeout(DEADLINE, talk).await;
    }
    let path = link.connection.stats().path;
    if carried.round_trips.is_empty() {
        carried.round_trips.push(path.rtt);
    }
    carried.round_trips.sort_unstable();
    carried.sent = path.sent_packets;
    carried.lost = path.lost_packets;
    carried.payload = path.current_mtu;
    link.connection.close(0u32.into(), b"measured");
    let _ = tokio::time::timeout(ANSWER, link.endpoint.wait_idle()).await;
    carried
}

/// Takes round trips one by one, sends probes at a pace, and asks what the server has counted.
async fn converse(send: &mut SendStream, recv: &mut RecvStream, carried: &mut Carried) -> Option<()> {
    for seq in 0..ROUND_TRIPS {
        let start = Instant::now();
        write_message(send, &ping(seq)).await.ok()?;
        answer(recv).await?;
        carried.round_trips.push(start.elapsed());
    }
    // The server does not wait for us, so the answers come while the rest is sent.
    let all = async {
        for seq in 0..PROBES {
            write_message(send, &ping(ROUND_TRIPS + seq)).await.ok()?;
            tokio::time::sleep(PACE).await;
        }
        Some(())
    };
    let answers = async {
        for _ in 0..PROBES {
            answer(recv).await?;
        }
        Some(())
    };
    let (sent, answered) = tokio::join!(all, answers);
    sent.and(answered)?;
    let (said, took) = probe(send, recv).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    // The server looked at its clock half a round trip ago.
    let own = i64::try_from(now.saturating_sub(took / 2).as_millis()).ok()?;
    carried.skew_millis = i64::try_from(said.clock_millis).ok().map(|server| own - server);
    carried.said = Some(said);
    Some(())
}

fn ping(seq: u64) -> FromAgent {
    FromAgent::Ping(Ping {
        seq,
        proof: 0,
        next_secs: 0,
        rtt_millis: None,
        cost_bytes: None,
        echo_after_millis: None,
    })
}

async fn answer(recv: &mut RecvStream) -> Option<FromServer> {
    tokio::time::timeout(ANSWER, read_message(recv)).await.ok()?.ok()
}

async fn probe(send: &mut SendStream, recv: &mut RecvStream) -> Option<(Probed, Duration)> {
    let start = Instant::now();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    write_message(send, &FromAgent::Probe(Probe { version }))
        .await
        .ok()?;
    match answer(recv).await? {
        FromServer::Probed(said) => Some((said, start.elapsed())),
        _ => None,
    }
}
