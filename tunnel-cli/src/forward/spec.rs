//! What `tunnel forward` is told for each service: `[LOCAL:]SERVICE`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use tunnel_proto::ServiceName;

/// A service and the local address that leads to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Where to listen; port 0 is any free one.
    pub listen: SocketAddr,
    /// The service.
    pub service: ServiceName,
}

/// Tells that a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The part before the last colon is no address.
    #[error("`{0}` is neither a port nor `address:port`; an IPv6 address needs brackets")]
    Local(String),
    /// The part after it is no service.
    #[error(transparent)]
    Service(#[from] tunnel_proto::names::NameError),
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (local, service) = match text.rsplit_once(':') {
            Some((local, service)) => (Some(local), service),
            None => (None, text),
        };
        let listen = match local {
            None => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            Some(local) => {
                parse_local(local).ok_or_else(|| SpecError::Local(local.chars().take(80).collect()))?
            }
        };
        Ok(Self {
            listen,
            service: service.parse()?,
        })
    }
}

/// Reads a port, or an address and a port.
fn parse_local(local: &str) -> Option<SocketAddr> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if digits(local) {
        return Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), local.parse().ok()?));
    }
    let (ip, port) = local.rsplit_once(':')?;
    let ip: IpAddr = match ip.strip_prefix('[') {
        Some(inner) => IpAddr::V6(inner.strip_suffix(']')?.parse().ok()?),
        None if ip == "localhost" => Ipv4Addr::LOCALHOST.into(),
        None => IpAddr::V4(ip.parse().ok()?),
    };
    if !digits(port) {
        return None;
    }
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_on_the_loopback_unless_told() {
        for (text, listen) in [
            ("web", "127.0.0.1:0"),
            ("8080:web", "127.0.0.1:8080"),
            ("localhost:8080:web", "127.0.0.1:8080"),
            ("0.0.0.0:80:web", "0.0.0.0:80"),
            ("[::1]:80:web", "[::1]:80"),
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(
                (spec.listen.to_string().as_str(), spec.service.as_str()),
                (listen, "web"),
                "{text}"
            );
        }
        for text in [
            "",
            ":web",
            "65536:web",
            "+1:web",
            "::1:80:web",
            "a:80:web",
            "80:",
            "80:WEB",
            "[1.2.3.4]:1:web",
            "web:80",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
