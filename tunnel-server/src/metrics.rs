//! Figures for monitoring, in the text format of Prometheus, on a listener of their own.
//!
//! The listener is off unless the configuration names an address, which has to be of this machine alone: figures of a fleet
//! are nobody else's affair, and whoever reads them is not asked who they are (THREATS SRV-19). Labels are codes and words
//! of ours, never names of devices or operators, so their number is bounded.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tunnel_proto::Code;

use crate::control::Control;
use crate::tunnels::table::Phase;

/// How long a request may take to come.
const DEADLINE: Duration = Duration::from_secs(5);
/// Readers at once.
const READERS: usize = 8;
/// How long to wait after `accept` failed, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers whoever asks, until the server stops.
pub(crate) async fn serve(control: Arc<Control>, listener: Option<TcpListener>) {
    let Some(listener) = listener else {
        control.stopping().await;
        return;
    };
    let mut readers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if readers.len() < READERS => accepted,
            Some(_) = readers.join_next() => continue,
            () = control.stopping() => return,
        };
        match accepted {
            Ok((stream, _)) => drop(readers.spawn(answer(control.clone(), stream))),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn answer(control: Arc<Control>, stream: TcpStream) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = match (request.method().as_str(), request.uri().path()) {
            ("GET", "/metrics") => Response::builder()
                .header("content-type", "text/plain; version=0.0.4; charset=utf-8")
                .body(text(&control)),
            _ => Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(String::new()),
        };
        std::future::ready(Ok::<_, Infallible>(answer.unwrap_or_default()))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A reader that breaks off is nobody's loss.
    let _ = tokio::time::timeout(DEADLINE * 2, connection).await;
}

/// Opens the listener.
///
/// # Errors
/// Returns what the operating system says.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Writes all figures.
fn text(control: &Control) -> String {
    let mut page = Page::default();
    let (links, live, relay) = (
        control.links.all(),
        control.tunnels.table().live(),
        control.relay.stats(),
    );
    let overdue = links
        .iter()
        .filter(|link| link.link_state(control).overdue)
        .count();
    page.one(
        "tunnel_links",
        "gauge",
        "Control links of devices that are up.",
        links.len() as u64,
    );
    page.one(
        "tunnel_links_overdue",
        "gauge",
        "Links of which a proof is overdue.",
        overdue as u64,
    );
    let shed = control.shed.load(std::sync::atomic::Ordering::Relaxed);
    page.one(
        "tunnel_links_shed_total",
        "counter",
        "Agents that were told to come back later.",
        shed,
    );
    let opening = live.iter().filter(|live| live.phase() == Phase::Opening).count();
    let open = live.iter().filter(|live| live.phase() == Phase::Open).count();
    page.family("tunnel_tunnels", "gauge", "Live tunnels.");
    page.value("tunnel_tunnels", Some(("state", "opening")), opening as u64);
    page.value("tunnel_tunnels", Some(("state", "open")), open as u64);
    page.family(
        "tunnel_tunnels_ended_total",
        "counter",
        "Tunnels that ended since the start, by code.",
    );
    for (code, count) in control.tunnels.ended() {
        page.value("tunnel_tunnels_ended_total", Some(("code", code.as_str())), count);
    }
    page.one(
        "tunnel_circuits",
        "gauge",
        "Open circuits of the relay.",
        relay.circuits as u64,
    );
    page.one(
        "tunnel_websocket_connections",
        "gauge",
        "Open WebSocket connections.",
        relay.connections as u64,
    );
    let (ended_bytes, open_bytes) = (control.tunnels.carried(), open_bytes(control));
    page.one(
        "tunnel_forwarded_bytes_total",
        "counter",
        "Bytes that the relay forwarded since the start, as UDP payload.",
        ended_bytes.saturating_add(open_bytes),
    );
    page.family(
        "tunnel_binds_refused_total",
        "counter",
        "Binds that were refused, by cause.",
    );
    let refused = relay.refused;
    for (cause, count) in [
        ("malformed", refused.malformed),
        ("wrong_key", refused.wrong_key),
        ("old_counter", refused.old_counter),
        ("unknown_circuit", refused.unknown_circuit),
        ("ended_tunnel", refused.ended_tunnel),
        ("both_ends", refused.both_ends),
    ] {
        page.value("tunnel_binds_refused_total", Some(("cause", cause)), count);
    }
    let mut costs: Vec<_> = links
        .iter()
        .filter_map(|link| link.link_state(control).cost_bytes_per_day)
        .collect();
    costs.sort_unstable();
    if let (Some(most), Some(median)) = (costs.last(), costs.get(costs.len() / 2)) {
        page.family(
            "tunnel_link_day_bytes",
            "gauge",
            "What an idle link costs in a day at its rate so far, headers included, as agents count it.",
        );
        page.value("tunnel_link_day_bytes", Some(("quantile", "0.5")), *median);
        page.value("tunnel_link_day_bytes", Some(("quantile", "1")), *most);
    }
    page.one(
        "tunnel_uptime_seconds",
        "gauge",
        "Time since the server's start.",
        control.started.elapsed().as_secs(),
    );
    page.text
}

fn open_bytes(control: &Control) -> u64 {
    let live = control.tunnels.table().live();
    let traffic = live
        .iter()
        .filter_map(|live| control.relay.traffic(live.facts.circuit));
    traffic
        .map(|traffic| traffic.bytes_in.saturating_add(traffic.bytes_out))
        .sum()
}

/// What is being written.
#[derive(Debug, Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, name: &str, label: Option<(&str, &str)>, value: u64) {
        let _ = match label {
            Some((label, word)) => writeln!(self.text, "{name}{{{label}=\"{word}\"}} {value}"),
            None => writeln!(self.text, "{name} {value}"),
        };
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.value(name, None, value);
    }
}

/// Ends of tunnels since the start, by code: the codes are ours, so there is a bounded number of them.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    by_code: std::collections::BTreeMap<Code, u64>,
    bytes: u64,
}

impl Ended {
    /// Counts one.
    pub(crate) fn count(&mut self, why: Code, bytes: u64) {
        *self.by_code.entry(why).or_default() += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Returns the counts.
    pub(crate) fn by_code(&self) -> Vec<(Code, u64)> {
        self.by_code.iter().map(|(code, count)| (*code, *count)).collect()
    }

    /// Returns what they have carried.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}
