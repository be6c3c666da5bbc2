//! What stood against a link, for the black box: errors sorted into causes.

use std::error::Error;
use std::io;

use quinn::ConnectionError;
use tunnel_net::link::{AttemptError, LinkError};
use tunnel_net::proxy::Refusal;
use tunnel_net::tls;
use tunnel_net::websocket::WebSocketError;
use tunnel_proto::Code;
use tunnel_proto::outage::Cause;

/// A cause with its particulars.
pub type Found = (Cause, String);

/// Returns what stood against each carrier of a link that did not come up.
pub fn of_attempts(error: &LinkError) -> Vec<Found> {
    let mut found = vec![of_udp(&error.udp), of_tcp(&error.websocket)];
    // A name that cannot be looked up stands against both, and counts once.
    found.dedup_by_key(|(cause, _)| *cause);
    found
}

/// Returns why a link that was up has ended.
pub fn of_end(error: &ConnectionError) -> Found {
    let cause = match error {
        ConnectionError::TimedOut | ConnectionError::Reset => Cause::LinkSilent,
        other => tls::connection_refusal(other).map_or(Cause::LinkBroken, of_code),
    };
    (cause, error.to_string())
}

fn of_udp(error: &AttemptError) -> Found {
    let cause = match error {
        AttemptError::Socket(error) => of_lookup(error),
        AttemptError::Handshake(ConnectionError::TimedOut) | AttemptError::Silence => Cause::UdpSilent,
        AttemptError::Handshake(error) => tls::connection_refusal(error).map_or(Cause::UdpSilent, of_code),
        _ => Cause::Other,
    };
    (cause, text(error))
}

fn of_tcp(error: &AttemptError) -> Found {
    let cause = match error {
        AttemptError::Socket(error) => of_lookup(error),
        AttemptError::WebSocket(error) => of_websocket(error),
        AttemptError::Silence | AttemptError::Handshake(ConnectionError::TimedOut) => Cause::TcpSilent,
        AttemptError::Handshake(error) => tls::connection_refusal(error).map_or(Cause::TcpSilent, of_code),
        _ => Cause::Other,
    };
    (cause, text(error))
}

fn of_websocket(error: &WebSocketError) -> Cause {
    match error {
        WebSocketError::Resolve(_, error) => of_lookup(error),
        WebSocketError::Connect(_, error) => of_connect(error),
        WebSocketError::Proxy(error) => of_proxy(&error.refusal),
        WebSocketError::Foreign { .. } => Cause::ForeignTls,
        WebSocketError::NoTls { .. } => Cause::CaptivePortal,
        WebSocketError::Tls(_, error) => tls::io_refusal(error).map_or_else(|| of_connect(error), of_code),
        _ => Cause::Other,
    }
}

fn of_proxy(refusal: &Refusal) -> Cause {
    match refusal {
        Refusal::Resolve(error) => of_lookup(error),
        Refusal::LoginWanted { .. } | Refusal::LoginRefused { .. } => Cause::ProxyLogin,
        Refusal::CaptivePortal(_) => Cause::CaptivePortal,
        _ => Cause::Proxy,
    }
}

fn of_code(code: Code) -> Cause {
    match code {
        Code::CertExpired | Code::CertNotYet => Cause::Clock,
        Code::CertUnknownCa => Cause::ForeignTls,
        _ => Cause::Refused,
    }
}

fn of_connect(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Cause::TcpRefused,
        _ if is_no_route(error) => Cause::NoRoute,
        _ => Cause::TcpSilent,
    }
}

/// What fails before a packet was sent is the way, and else the name.
fn of_lookup(error: &io::Error) -> Cause {
    if is_no_route(error) {
        Cause::NoRoute
    } else {
        Cause::Dns
    }
}

fn is_no_route(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable
    )
}

/// Writes an error with its causes in one line.
fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }

    #[test]
    fn each_carrier_has_its_cause() {
        let name = || "relay.example".to_owned();
        let websockets = [
            (
                WebSocketError::Resolve(name(), io::Error::other("no such name")),
                Cause::Dns,
            ),
            (
                WebSocketError::Connect(name(), io(io::ErrorKind::ConnectionRefused)),
                Cause::TcpRefused,
            ),
            (
                WebSocketError::Connect(name(), io(io::ErrorKind::TimedOut)),
                Cause::TcpSilent,
            ),
            (
                WebSocketError::Connect(name(), io(io::ErrorKind::NetworkUnreachable)),
                Cause::NoRoute,
            ),
            (
                WebSocketError::NoTls {
                    server: name(),
                    source: io::Error::other("plain text"),
                },
                Cause::CaptivePortal,
            ),
            (
                WebSocketError::Foreign {
                    server: name(),
                    issuer: "Corp Proxy".into(),
                    source: io::Error::other("unknown issuer"),
                },
                Cause::ForeignTls,
            ),
        ];
        for (error, cause) in websockets {
            let (found, text) = of_tcp(&AttemptError::WebSocket(error));
            assert_eq!(found, cause, "{text}");
        }
        assert_eq!(of_udp(&AttemptError::Silence).0, Cause::UdpSilent);
        let no_route = AttemptError::Socket(io(io::ErrorKind::NetworkUnreachable));
        assert_eq!(of_udp(&no_route).0, Cause::NoRoute);
        assert_eq!(of_udp(&AttemptError::Socket(io::Error::other("?"))).0, Cause::Dns);
    }

    #[test]
    fn an_issuer_is_named() {
        let error = WebSocketError::Foreign {
            server: "relay.example".into(),
            issuer: "Corp Proxy".into(),
            source: io::Error::other("unknown issuer"),
        };
        let (_, text) = of_tcp(&AttemptError::WebSocket(error));
        assert!(text.contains("Corp Proxy"), "{text}");
    }
}
