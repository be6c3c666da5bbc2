//! What the facts mean: for each thing that was looked at, what it is, why it matters, and what to do. Pure.

use std::net::IpAddr;
use std::time::Duration;

use tunnel_certs::Peer;
use tunnel_proto::{Code, UnixTime};

use super::facts::{Carried, Facts, Reach};
use crate::link::AttemptError;
use crate::proxy::Refusal;
use crate::tls;
use crate::websocket::WebSocketError;

/// How one thing stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It works, and should be looked at.
    Warning,
    /// Access does not work because of it.
    Failed,
}

/// What was found of one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The thing, in a word that scripts can rely on.
    pub name: &'static str,
    /// How it stands.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: Option<&'static str>,
    /// What to do.
    pub next: Option<&'static str>,
    /// The stable code, where access does not work.
    pub code: Option<Code>,
}

/// From which share on lost packets are worth a word, in percent.
const LOSS: f64 = 2.0;

/// The IP packets that most ways carry, in bytes; below, something on the way is a tunnel itself.
const USUAL_MTU: u32 = 1400;

/// From when on the resolver is slow.
const SLOW_DNS: Duration = Duration::from_secs(1);

/// From when on a line is long, or its queues are.
const SLOW_LINE: Duration = Duration::from_millis(800);

/// From when on clocks differ: beyond it, grants are refused.
const SKEW_MILLIS: u64 = 60_000;

/// How long before its end a certificate is worth a word, as a part of its life.
const LAST_PART: u32 = 10;

/// Says what the facts mean, the most basic things first.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(dns(facts));
    found.extend(lies(facts));
    found.extend(families(facts));
    found.extend(proxy(facts));
    found.extend(in_between(facts));
    found.push(udp(facts));
    found.push(websocket(facts));
    if let Ok(udp) = &facts.udp {
        found.push(loss(udp));
        found.push(mtu(udp));
    }
    found.extend(nat(facts));
    found.extend(keepalive(facts));
    found.extend(clock(facts));
    found.extend(certificates(facts));
    found.extend(server(facts));
    found
}

/// Says whether access works over at least one carrier.
fn works(facts: &Facts) -> bool {
    facts.udp.is_ok() || facts.websocket.is_ok()
}

fn ok(name: &'static str, what: impl Into<String>) -> Finding {
    Finding {
        name,
        level: Level::Ok,
        what: what.into(),
        why: None,
        next: None,
        code: None,
    }
}

fn warning(name: &'static str, what: impl Into<String>, why: &'static str, next: &'static str) -> Finding {
    Finding {
        level: Level::Warning,
        why: Some(why),
        next: Some(next),
        ..ok(name, what)
    }
}

impl Finding {
    /// Makes it the cause that nothing works, if nothing does.
    fn unless(mut self, works: bool, code: Code) -> Self {
        if !works {
            (self.level, self.code) = (Level::Failed, Some(code));
        }
        self
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(|ip| format!("`{ip}`")).collect();
    texts.join(", ")
}

fn millis(span: Duration) -> String {
    match span.as_micros() {
        0..10_000 => format!("{:.1} ms", span.as_secs_f64() * 1000.0),
        _ => format!("{} ms", span.as_millis()),
    }
}

fn dns(facts: &Facts) -> Option<Finding> {
    let host = &facts.host;
    if host.parse::<IpAddr>().is_ok() {
        return Some(ok(
            "dns",
            format!("not needed: the server is named by its address `{host}`"),
        ));
    }
    let took = millis(facts.dns.took);
    Some(match &facts.dns.found {
        Ok(found) if facts.dns.took > SLOW_DNS => warning(
            "dns",
            format!("`{host}` is {}, which took {took} to look up", list(found)),
            "each new connection waits for it, unless an address that worked before is known",
            "check the DNS servers of this machine",
        ),
        Ok(found) => ok("dns", format!("`{host}` is {}, looked up in {took}", list(found))),
        Err(error) => {
            let rest = match facts.last_good.is_empty() {
                true => "no address that worked before is known".to_owned(),
                false => format!("addresses that worked before: {}", list(&facts.last_good)),
            };
            warning(
                "dns",
                format!("`{host}` could not be looked up in {took}: {error}; {rest}"),
                "without DNS only addresses that worked before can be tried",
                "check the DNS servers of this machine, and that they know the name",
            )
            .unless(works(facts), Code::ServerUnreachable)
        }
    })
}

/// The resolver lies when the server is nowhere where it says, and is where it does not say. If nothing is known of where
/// it is, a private address is a sign.
fn lies(facts: &Facts) -> Option<Finding> {
    let fresh = facts.dns.found.as_ref().ok()?;
    let at = |ip: &IpAddr| facts.addresses.iter().find(|reach| reach.ip == ip.to_canonical());
    if facts.host.parse::<IpAddr>().is_ok()
        || facts.proxy.is_some()
        || fresh.iter().filter_map(at).any(Reach::is_proven)
    {
        return None;
    }
    let elsewhere = facts
        .addresses
        .iter()
        .find(|reach| reach.is_proven() && !fresh.contains(&reach.ip));
    let what = match elsewhere {
        Some(reach) => format!(
            "nobody proves to be the server at {}, where DNS says that it is; it is at `{}`, where it was before",
            list(fresh),
            reach.ip
        ),
        None if fresh.iter().any(is_private) => format!(
            "DNS says that the server is at {}, an address that means nothing outside of this network, and nobody there proves \
             to be the server",
            list(fresh)
        ),
        None => return None,
    };
    let finding = warning(
        "dns-lies",
        what,
        "what answers in the server's place is not trusted; who has no address from before cannot connect",
        "log in to this network if it has a captive portal, or use DNS servers that tell the truth",
    );
    Some(finding.unless(works(facts), Code::ServerUnreachable))
}

fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// IPv6 and IPv4, each if the server has an address of it.
fn families(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, other, v6) in [("ipv6", "IPv4", true), ("ipv4", "IPv6", false)] {
        let title = if v6 { "IPv6" } else { "IPv4" };
        let tried: Vec<_> = facts
            .addresses
            .iter()
            .filter(|reach| reach.ip.is_ipv6() == v6)
            .collect();
        let works = tried.iter().any(|reach| reach.is_proven());
        let other_works = facts
            .addresses
            .iter()
            .any(|reach| reach.ip.is_ipv6() != v6 && reach.is_proven());
        if works {
            found.push(ok(name, format!("the server answers over {title}")));
        } else if !tried.is_empty() && other_works {
            let translated = !v6 && facts.nat64.is_some();
            if translated {
                continue;
            }
            found.push(Finding {
                level: Level::Warning,
                why: Some("each new connection may lose a quarter of a second to it"),
                next: Some("mend it, or take its address or its default route away"),
                ..ok(
                    name,
                    format!("the server has {title} and does not answer over it; {other} works"),
                )
            });
        }
    }
    if let Some(prefix) = &facts.nat64 {
        found.push(ok(
            "nat64",
            format!("this network has IPv6 only, and translates IPv4 under `{prefix}`"),
        ));
    }
    found
}

fn proxy(facts: &Facts) -> Option<Finding> {
    let proxy = facts.proxy.as_ref()?;
    let text = format!(
        "TCP goes through `{}`, named by {}; UDP does not",
        proxy.proxy, proxy.named_by
    );
    Some(match refusal(facts) {
        Some(Refusal::CaptivePortal(_)) | None => ok("proxy", text),
        Some(refusal) => Finding {
            next: Some("do what the text says; without the proxy only UDP is left"),
            ..warning(
                "proxy",
                format!("{text}: {refusal}"),
                "no TCP connection comes up",
                "",
            )
        }
        .unless(works(facts), Code::ServerUnreachable),
    })
}

fn refusal(facts: &Facts) -> Option<&Refusal> {
    match &facts.websocket {
        Err(AttemptError::WebSocket(WebSocketError::Proxy(error))) => Some(&error.refusal),
        _ => None,
    }
}

/// What stands between: a captive portal, or somebody who intercepts TLS.
fn in_between(facts: &Facts) -> Option<Finding> {
    let seen = facts
        .addresses
        .iter()
        .filter_map(|reach| reach.tcp.as_ref()?.as_ref().err());
    let told = match &facts.websocket {
        Err(AttemptError::WebSocket(error)) => Some(error),
        _ => None,
    };
    // What was seen at an address that DNS gave falsely counts too, but says nothing of the way to the server.
    let errors: Vec<_> = told.into_iter().chain(seen).collect();
    let issuer = errors.iter().find_map(|error| match error {
        WebSocketError::Foreign { issuer, .. } => Some(issuer),
        _ => None,
    });
    let portal = matches!(refusal(facts), Some(Refusal::CaptivePortal(_)))
        || errors
            .iter()
            .any(|error| matches!(error, WebSocketError::NoTls { .. }));
    let works = works(facts);
    if let Some(issuer) = issuer {
        let what = format!(
            "TLS is intercepted, or somebody else answers: the certificate that is shown is by `{issuer}`"
        );
        let finding = warning(
            "tls-interception",
            what,
            "it is never trusted, so nothing goes that way; it would see what others send",
            "ask the network's owner to let this server pass untouched",
        );
        return Some(finding.unless(works, Code::CertUnknownCa));
    }
    portal.then(|| {
        warning(
            "captive-portal",
            "something that does not speak TLS answers in the server's place, as a captive portal does",
            "until somebody logs in to this network, it lets nothing through",
            "open a web page in a browser and log in to this network",
        )
        .unless(works, Code::ServerUnreachable)
    })
}

/// Returns the code of what stood against a carrier.
fn code_of(error: &AttemptError) -> Code {
    let code = match error {
        AttemptError::Handshake(error) => tls::connection_refusal(error),
        AttemptError::WebSocket(WebSocketError::Tls(_, source) | WebSocketError::Foreign { source, .. }) => {
            tls::io_refusal(source)
        }
        _ => None,
    };
    code.unwrap_or(Code::ServerUnreachable)
}

fn udp(facts: &Facts) -> Finding {
    match &facts.udp {
        Ok(carried) => carrier("udp", carried),
        Err(error) => warning(
            "udp",
            format!("does not work: {error}; it is blocked, or packets of 1,228 bytes do not pass, which look the same"),
            "a WebSocket over TCP is slower on a bad line, and one lost packet holds up everything behind it",
            "let UDP to the server's port pass, in packets of up to 1,228 bytes",
        )
        .unless(works(facts), code_of(error)),
    }
}

fn websocket(facts: &Facts) -> Finding {
    match &facts.websocket {
        Ok(carried) => carrier("websocket", carried),
        Err(error) => warning(
            "websocket",
            format!("does not work: {error}"),
            "commands need TCP to ask the server for a tunnel, and where UDP stops working there is nothing to fall back to",
            "let TCP to the server's port pass",
        )
        .unless(works(facts), code_of(error)),
    }
}

fn carrier(name: &'static str, carried: &Carried) -> Finding {
    let what = format!(
        "works: round trip {} in the middle of {}, {} at most; {} to connect",
        millis(carried.median()),
        carried.round_trips.len(),
        millis(carried.longest()),
        millis(carried.connect)
    );
    if carried.median() < SLOW_LINE {
        return ok(name, what);
    }
    warning(
        name,
        what,
        "every keystroke takes as long",
        "look for a transfer that fills the line, or for a router with long queues",
    )
}

fn loss(udp: &Carried) -> Finding {
    let (there, back) = udp.loss_percent();
    let what = format!(
        "of {} packets to the server {there:.1} % were lost, and {back:.1} % of those back (lost, or much too late)",
        udp.sent
    );
    if there < LOSS && back < LOSS {
        return ok("loss", what);
    }
    warning(
        "loss",
        what,
        "transfers slow down, and keystrokes wait for repetitions",
        "look at the radio signal or the cable on this side first",
    )
}

fn mtu(udp: &Carried) -> Finding {
    let mtu = udp.mtu();
    let what = format!("IP packets of {mtu} bytes pass to the server");
    if mtu >= USUAL_MTU {
        return ok("mtu", what);
    }
    warning(
        "mtu",
        format!("{what}, and none that are much larger"),
        "below 1,228 bytes UDP does not work at all; that much is left",
        "look for a tunnel or a PPP line on the way; nothing has to be done for us",
    )
}

/// What one port of one server can tell of a NAT, and what it cannot.
fn nat(facts: &Facts) -> Option<Finding> {
    let udp = facts.udp.as_ref().ok();
    let (from, seen) = (udp?.from?, udp?.seen_as()?);
    let tcp = facts.websocket.as_ref().ok().and_then(Carried::seen_as);
    let unknown = "whether other servers would see another port cannot be told from one port of one server";
    let what = if from.ip().to_canonical() == seen.ip() && from.port() == seen.port() {
        format!("none: the server sees this machine's own address `{seen}`")
    } else if from.port() == seen.port() {
        format!("yes, and it keeps the port: `{from}` is `{seen}` to the server; {unknown}")
    } else {
        format!("yes, and it changes the port: `{from}` is `{seen}` to the server; {unknown}")
    };
    Some(match tcp.filter(|tcp| tcp.ip() != seen.ip()) {
        Some(tcp) if facts.proxy.is_none() => warning(
            "nat",
            format!("{what}; over TCP it is `{}`", tcp.ip()),
            "TCP and UDP leave this network by different ways, of which one may fail alone",
            "if it is not meant so, look at the routers of this network",
        ),
        Some(tcp) => ok(
            "nat",
            format!("{what}; over TCP, by the proxy, it is `{}`", tcp.ip()),
        ),
        None => ok("nat", what),
    })
}

fn keepalive(facts: &Facts) -> Option<Finding> {
    let said = [&facts.udp, &facts.websocket]
        .into_iter()
        .flatten()
        .find_map(|carried| carried.said.as_ref())?;
    let link = said.link.as_ref()?;
    Some(ok(
        "link",
        format!(
            "this device's own link is up over {}, proven {} s ago; it proves itself within {} s, which the NAT on the way has \
             borne so far",
            link.carrier,
            link.proven_millis_ago / 1000,
            link.proof_within_secs
        ),
    ))
}

fn clock(facts: &Facts) -> Option<Finding> {
    let skew = [&facts.udp, &facts.websocket]
        .into_iter()
        .flatten()
        .find_map(|carried| carried.skew_millis)?;
    let way = if skew < 0 { "behind" } else { "ahead of" };
    let what = format!(
        "this machine is {:.3} s {way} the server",
        skew.unsigned_abs() as f64 / 1000.0
    );
    Some(if skew.unsigned_abs() <= SKEW_MILLIS {
        ok("clock", what)
    } else {
        warning(
            "clock",
            what,
            "certificates and grants have a beginning and an end; with a wrong clock good ones look bad",
            "set the clock, as by `timedatectl set-ntp true`",
        )
    })
}

fn certificates(facts: &Facts) -> Vec<Finding> {
    let now = UnixTime::from_secs(facts.now);
    let server = [&facts.udp, &facts.websocket]
        .into_iter()
        .flatten()
        .find_map(|carried| carried.server.as_ref());
    let own = certificate("own-certificate", &facts.own, now);
    let servers = server.map(|server| certificate("server-certificate", server, now));
    [own].into_iter().chain(servers).collect()
}

fn certificate(name: &'static str, peer: &Peer, now: UnixTime) -> Finding {
    let (age, left) = (now.since(peer.not_before), peer.not_after.since(now));
    let what = format!("`{}`, {} old, ends in {}", peer.identity, words(age), words(left));
    if left >= (age + left) / LAST_PART {
        return ok(name, what);
    }
    let next = match (name, &peer.identity.subject) {
        ("server-certificate", _) => "tell the server's owner: it should have been renewed",
        (_, tunnel_proto::names::Subject::Operator(_)) => "log in again with a fresh code before it ends",
        _ => "let the agent run and reach its server, so that it renews it",
    };
    warning(name, what, "after its end nothing works any more", next)
}

/// Writes a span of time as people say it.
fn words(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    }
}

fn server(facts: &Facts) -> Option<Finding> {
    let carried = [&facts.udp, &facts.websocket].into_iter().flatten().next()?;
    let own = env!("CARGO_PKG_VERSION");
    Some(match &carried.said {
        Some(said) => ok(
            "server",
            format!("`{}`, version {}; this program is {own}", said.node, said.version),
        ),
        None => warning(
            "server",
            "it does not answer probes: it is older than this program, or busy",
            "loss, NAT and clock could not be measured",
            "try again, or ask its owner to upgrade it",
        ),
    })
}
