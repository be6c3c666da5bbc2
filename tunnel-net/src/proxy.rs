//! Proxies on the way to a server: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928).
//!
//! A proxy is asked for the server by its name, which it looks up itself: behind a proxy there is often no DNS of the
//! world outside. Of HTTP's logins only Basic is spoken: the crate that has NTLM and is maintained (`sspi`) brings RSA
//! and Kerberos with it.

mod choice;
mod environment;
mod http;
mod refusal;
mod socks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::str::FromStr;

use tokio::net::TcpStream;
use tunnel_proto::defaults;
use zeroize::Zeroizing;

use crate::addr::is_host;
use crate::dial::{self, Missed};
use crate::resolve::Search;

pub use choice::ProxyChoice;
pub use environment::ProxyVariableError;
pub(crate) use refusal::plain;
pub use refusal::{Offers, ProxyError, Refusal};

/// A proxy, read from `http://`, `socks5://` or `socks5h://`, with `user:password@` where it wants a login.
///
/// Without a scheme it is `http`. Without a port it is 80, and 1080 for SOCKS. Its texts never show the login.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    protocol: Protocol,
    host: String,
    port: u16,
    login: Option<Login>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Socks5,
}

#[derive(Clone, PartialEq, Eq)]
struct Login {
    user: Zeroizing<String>,
    password: Zeroizing<String>,
}

/// Tells why a text is no proxy. It does not repeat the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyTextError {
    /// The text is not of the form of a proxy's address.
    #[error("it is not of the form `http://host:port` or `socks5://host:port`")]
    Malformed,
    /// The scheme is none that is spoken.
    #[error("the scheme is none of `http`, `socks5` and `socks5h`")]
    Scheme,
    /// The user or the password cannot be sent.
    #[error("the user or the password is not percent-encoded text of 1 to 255 bytes")]
    Login,
}

impl Proxy {
    /// Connects to a host by way of the proxy.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, ProxyError> {
        self.open(host, port).await.map_err(|refusal| ProxyError {
            proxy: self.to_string(),
            target: dial::authority(host, port),
            refusal,
        })
    }

    async fn open(&self, host: &str, port: u16) -> Result<TcpStream, Refusal> {
        let search = Search::new(&self.host, self.port, Vec::new());
        let mut stream = dial::race(search, dial::one_tcp)
            .await
            .map_err(|missed| match missed {
                Missed::NoAddress(error) => Refusal::Resolve(error),
                Missed::Failed(mut errors) => {
                    Refusal::Connect(errors.pop().unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
                }
            })?;
        let login = self.login.as_ref();
        let ask = async {
            match self.protocol {
                Protocol::Http => http::ask(&mut stream, host, port, login).await,
                Protocol::Socks5 => socks::ask(&mut stream, host, port, login).await,
            }
        };
        tokio::time::timeout(defaults::CONNECT_DEADLINE, ask)
            .await
            .map_err(|_| Refusal::Silent)??;
        Ok(stream)
    }
}

impl FromStr for Proxy {
    type Err = ProxyTextError;

    fn from_str(text: &str) -> Result<Self, ProxyTextError> {
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
        let (protocol, usual_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Protocol::Http, 80),
            "socks5" | "socks5h" => (Protocol::Socks5, 1080),
            _ => return Err(ProxyTextError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(read_login(login)?), address),
            None => (None, rest),
        };
        let (host, port) = split_address(address).ok_or(ProxyTextError::Malformed)?;
        let port = match port {
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or(ProxyTextError::Malformed)?,
            None => usual_port,
        };
        Ok(Self {
            protocol,
            host: host.to_owned(),
            port,
            login,
        })
    }
}

/// Takes `host`, `host:port` or either with an IPv6 address in brackets apart.
fn split_address(address: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match rest {
            "" => Some((host, None)),
            _ => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    let (host, port) = match address.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    is_host(host).then_some((host, port))
}

fn read_login(text: &str) -> Result<Login, ProxyTextError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let read = |part: &str| {
        decode(part)
            .filter(|part| part.len() <= 255)
            .ok_or(ProxyTextError::Login)
    };
    let login = Login {
        user: read(user)?,
        password: read(password)?,
    };
    // A colon in the user would move the border between the two (RFC 7617 section 2).
    let fits = !login.user.is_empty() && !login.user.contains(':');
    if fits {
        Ok(login)
    } else {
        Err(ProxyTextError::Login)
    }
}

/// Resolves percent-encoding (RFC 3986 section 2.1). Control characters have no place in a login.
fn decode(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let digit = |byte: u8| {
                char::from(byte)
                    .to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
            };
            digit(rest.next()?)? << 4 | digit(rest.next()?)?
        } else {
            byte
        };
        bytes.push(byte);
    }
    let text = std::str::from_utf8(&bytes).ok()?;
    (!text.chars().any(char::is_control)).then(|| Zeroizing::new(text.to_owned()))
}

/// Shows the proxy without its login.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Socks5 => "socks5",
        };
        let login = if self.login.is_some() { "***@" } else { "" };
        write!(f, "{scheme}://{login}{}", dial::authority(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}
