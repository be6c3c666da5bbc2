//! Where a server is.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::dial;
use crate::proxy::Proxy;
use crate::resolve::{Proven, Search};

/// Address of a server: a host, the TCP port of its API and WebSocket carrier, and the UDP port of its relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerAddr {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// Port of the API and of the WebSocket carrier.
    pub tcp_port: u16,
    /// Port of the relay and of control links.
    pub udp_port: u16,
    /// The proxy through which TCP goes; UDP never takes one.
    pub proxy: Option<Arc<Proxy>>,
    /// Where it has proven to be itself, for when its name cannot be looked up.
    pub proven: Proven,
}

/// Tells that a text is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `host:port`; an IPv6 address needs brackets, as `[2001:db8::1]:8443`")]
pub struct AddrError(String);

impl ServerAddr {
    /// Replaces the UDP port.
    #[must_use]
    pub fn with_udp_port(mut self, port: u16) -> Self {
        self.udp_port = port;
        self
    }

    /// Sets the proxy through which TCP goes, or that there is none.
    #[must_use]
    pub fn with_proxy(mut self, proxy: Option<Arc<Proxy>>) -> Self {
        self.proxy = proxy;
        self
    }

    /// Keeps in a private file where the server proves to be itself, and takes what the file says already.
    #[must_use]
    pub fn remembered_in(mut self, file: &Path) -> Self {
        self.proven = Proven::kept_in(file, &self.host);
        self
    }

    /// Takes what a file says of where the server has proven to be itself, and writes nothing.
    #[must_use]
    pub fn recalled_from(mut self, file: &Path) -> Self {
        self.proven = Proven::read_from(file, &self.host);
        self
    }

    /// Starts to look for the addresses of a port.
    pub(crate) fn search(&self, port: u16) -> Search {
        Search::new(&self.host, port, self.proven.addresses())
    }
}

/// Reads `host:port`; the UDP port is the same number, and there is no proxy.
impl FromStr for ServerAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let wrong = || AddrError(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner
                .strip_suffix(']')
                .filter(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
            None => Some(host).filter(|host| is_host(host)),
        };
        let host = host.ok_or_else(wrong)?.to_owned();
        Ok(Self {
            host,
            tcp_port: port,
            udp_port: port,
            proxy: None,
            proven: Proven::default(),
        })
    }
}

/// Says whether a text is an IPv4 address or a DNS name (RFC 1123 section 2.1).
pub(crate) fn is_host(host: &str) -> bool {
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
                && !label.starts_with('-')
        })
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dial::authority(&self.host, self.tcp_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back() {
        for text in [
            "relay.example:8443",
            "198.51.100.1:1",
            "[2001:db8::1]:65535",
            "localhost:80",
        ] {
            assert_eq!(
                text.parse::<ServerAddr>().map(|a| a.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "relay",
            "relay:",
            "relay:70000",
            ":1",
            "2001:db8::1:1",
            "[x]:1",
            "a b:1",
            "-a:1",
            "http://a:1",
        ] {
            assert!(text.parse::<ServerAddr>().is_err(), "{text}");
        }
    }
}
