//! What was measured of the way to a server: numbers and errors, without an opinion.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tunnel_certs::Peer;
use tunnel_proto::message::Probed;

use crate::link::{AttemptError, chain};
use crate::resolve::Answer;
use crate::websocket::WebSocketError;

/// Everything that was measured.
#[derive(Debug)]
#[non_exhaustive]
pub struct Facts {
    /// The server, as `host:port`.
    pub server: String,
    /// Its host: a name, or an address.
    pub host: String,
    /// What the resolver says of it.
    pub dns: Answer,
    /// Where the server has proven to be itself before this.
    pub last_good: Vec<IpAddr>,
    /// The prefix of the network's translator of IPv4, where IPv6 is all that there is.
    pub nat64: Option<String>,
    /// The proxy for TCP, and what names it.
    pub proxy: Option<ProxyFact>,
    /// Each address that was tried.
    pub addresses: Vec<Reach>,
    /// What UDP carries.
    pub udp: Result<Carried, AttemptError>,
    /// What a WebSocket carries.
    pub websocket: Result<Carried, AttemptError>,
    /// Who asks, as its own certificate says.
    pub own: Peer,
    /// The time by this machine's clock, in seconds since 1970.
    pub now: u64,
}

/// A proxy on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyFact {
    /// The proxy, without its login.
    pub proxy: String,
    /// What names it.
    pub named_by: String,
}

/// What one address gave.
#[derive(Debug)]
pub struct Reach {
    /// The address.
    pub ip: IpAddr,
    /// TCP and TLS: how long it took, or what stood against it. `None` where a proxy does it.
    pub tcp: Option<Result<Duration, WebSocketError>>,
    /// The handshake over UDP.
    pub udp: Result<Duration, AttemptError>,
}

impl Reach {
    /// Says whether the server has proven to be there.
    pub fn is_proven(&self) -> bool {
        self.udp.is_ok() || matches!(self.tcp, Some(Ok(_)))
    }
}

/// What a carrier carried.
#[derive(Debug)]
pub struct Carried {
    /// How long it took until the server was proven.
    pub connect: Duration,
    /// Round trips, sorted.
    pub round_trips: Vec<Duration>,
    /// Packets sent, and those of them that were lost.
    pub sent: u64,
    /// How many of them were lost.
    pub lost: u64,
    /// Largest UDP payload that came through, in bytes, and whether larger ones were tried in vain.
    pub payload: u16,
    /// Where the packets went.
    pub to: Option<SocketAddr>,
    /// The socket's own address.
    pub from: Option<SocketAddr>,
    /// How far this machine's clock is ahead of the server's, in milliseconds.
    pub skew_millis: Option<i64>,
    /// What the server says; `None` from a server that cannot measure.
    pub said: Option<Probed>,
    /// Who the server is, as its certificate says.
    pub server: Option<Peer>,
}

impl Carried {
    /// Returns the round trip in the middle.
    pub fn median(&self) -> Duration {
        let middle = self.round_trips.len() / 2;
        self.round_trips.get(middle).copied().unwrap_or(self.connect)
    }

    /// Returns the longest round trip.
    pub fn longest(&self) -> Duration {
        self.round_trips.last().copied().unwrap_or(self.connect)
    }

    /// Returns the address from which the server hears this machine.
    pub fn seen_as(&self) -> Option<SocketAddr> {
        self.said.as_ref()?.seen_as.parse().ok()
    }

    /// Returns the size of an IP packet that came through, in bytes.
    pub fn mtu(&self) -> u32 {
        let headers = if self.to.is_some_and(|to| to.is_ipv6()) {
            48
        } else {
            28
        };
        u32::from(self.payload) + headers
    }

    /// Returns the share of packets that were lost, to the server and back, in percent.
    pub fn loss_percent(&self) -> (f64, f64) {
        let share = |lost: u64, sent: u64| 100.0 * lost as f64 / sent.max(1) as f64;
        let back = self.said.as_ref().map_or(0.0, |said| share(said.lost, said.sent));
        (share(self.lost, self.sent), back)
    }
}

impl Facts {
    /// Returns the facts for scripts.
    pub fn to_json(&self) -> Value {
        let found = self.dns.found.as_ref();
        json!({
            "server": self.server,
            "identity": self.own.identity.to_string(),
            "certificate": window(&self.own),
            "dns": {
                "answers": found.map_or_else(|_| Vec::new(), |found| texts(found)),
                "error": found.err().map(ToString::to_string),
                "took_millis": millis(self.dns.took),
                "last_good": texts(&self.last_good),
            },
            "nat64": self.nat64,
            "proxy": self.proxy.as_ref().map(|proxy| json!({ "proxy": proxy.proxy, "named_by": proxy.named_by })),
            "addresses": self.addresses.iter().map(reach).collect::<Vec<_>>(),
            "udp": outcome(&self.udp, true),
            "websocket": outcome(&self.websocket, false),
        })
    }
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}

fn window(peer: &Peer) -> Value {
    json!({ "since": peer.not_before.as_secs(), "until": peer.not_after.as_secs() })
}

fn reach(reach: &Reach) -> Value {
    json!({
        "address": reach.ip.to_string(),
        "tcp": reach.tcp.as_ref().map(|tcp| match tcp {
            Ok(took) => json!({ "millis": millis(*took) }),
            Err(error) => json!({ "error": chain(error) }),
        }),
        "udp": match &reach.udp {
            Ok(took) => json!({ "millis": millis(*took) }),
            Err(error) => json!({ "error": error.to_string() }),
        },
    })
}

fn outcome(outcome: &Result<Carried, AttemptError>, packets: bool) -> Value {
    let carried = match outcome {
        Ok(carried) => carried,
        Err(error) => return json!({ "works": false, "error": error.to_string() }),
    };
    let mut value = json!({
        "works": true,
        "connect_millis": millis(carried.connect),
        "rtt_millis": {
            "median": millis(carried.median()),
            "longest": millis(carried.longest()),
            "samples": carried.round_trips.len(),
        },
        "address": carried.to.map(|to| to.to_string()),
        "from": carried.from.map(|from| from.to_string()),
        "seen_as": carried.seen_as().map(|seen| seen.to_string()),
        "clock_ahead_millis": carried.skew_millis,
    });
    if packets && let Some(fields) = value.as_object_mut() {
        let (there, back) = carried.loss_percent();
        fields.insert("mtu".into(), json!(carried.mtu()));
        fields.insert("packets".into(), json!(carried.sent));
        fields.insert("lost_percent".into(), json!(there));
        fields.insert("lost_back_percent".into(), json!(back));
    }
    if let (Some(said), Some(fields)) = (&carried.said, value.as_object_mut()) {
        let link = said.link.as_ref().map(|link| {
            json!({
                "carrier": link.carrier,
                "proven_millis_ago": link.proven_millis_ago,
                "proof_within_secs": link.proof_within_secs,
            })
        });
        fields.insert("node".into(), json!(said.node.to_string()));
        fields.insert("version".into(), json!(said.version));
        fields.insert("link".into(), json!(link));
        fields.insert(
            "server_certificate".into(),
            json!(carried.server.as_ref().map(window)),
        );
    }
    value
}
