//! Where a service is reached on the device.
//!
//! Pure. A target is written by the owner and by nobody else; there are no names to resolve in it, so that nobody else
//! can point it elsewhere (THREATS AGT-02, AGT-03).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::commands::Commands;

/// Longest path of a Unix socket: what the kernel's address holds, without its last zero.
const MAX_SOCKET_PATH: usize = 107;

/// The target of a service that runs commands.
const COMMANDS: &str = "exec:";

/// Where a service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
    /// Nowhere: the agent runs commands itself.
    Commands(Commands),
}

/// Tells why a text is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// None of the forms.
    #[error("a target is `tcp:ADDRESS:PORT`, `unix:/PATH` or `exec:`")]
    Form,
    /// The address is not an IP address.
    #[error("the address of a target is an IP address or `localhost`, with a port, as `tcp:127.0.0.1:22`")]
    Address,
    /// The address or port can never be a service.
    #[error("no service can be at an unspecified, multicast or broadcast address, or at port 0")]
    Forbidden,
    /// The path is not absolute, or too long.
    #[error("the path of a Unix socket is absolute and has at most 107 bytes")]
    Path,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text == COMMANDS {
            return Ok(Self::Commands(Commands::default()));
        }
        if let Some(address) = text.strip_prefix("tcp:") {
            return tcp(address).map(Self::Tcp);
        }
        let path = text.strip_prefix("unix:").ok_or(TargetError::Form)?;
        let plain = !path.split('/').any(|part| part == "..") && !path.contains('\0');
        if path.starts_with('/') && path.len() <= MAX_SOCKET_PATH && plain {
            Ok(Self::Unix(path.into()))
        } else {
            Err(TargetError::Path)
        }
    }
}

fn tcp(text: &str) -> Result<SocketAddr, TargetError> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => {
            let port = port.parse().map_err(|_| TargetError::Address)?;
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
        }
        None => text.parse().map_err(|_| TargetError::Address)?,
    };
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || broadcast || address.port() == 0 {
        return Err(TargetError::Forbidden);
    }
    Ok(SocketAddr::new(ip, address.port()))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Commands(_) => f.write_str(COMMANDS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back() {
        for text in [
            "tcp:127.0.0.1:22",
            "tcp:[::1]:22",
            "tcp:192.168.0.9:502",
            "unix:/run/app.sock",
            "exec:",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!(
            "tcp:localhost:22".parse::<Target>().unwrap().to_string(),
            "tcp:127.0.0.1:22"
        );
        assert_eq!(
            "tcp:[::ffff:10.0.0.1]:22".parse::<Target>().unwrap().to_string(),
            "tcp:10.0.0.1:22"
        );
    }

    // AGT-02
    #[test]
    fn what_can_be_no_service_is_refused() {
        use TargetError::{Address, Forbidden, Form, Path};
        for (text, why) in [
            ("127.0.0.1:22", Form),
            ("udp:127.0.0.1:22", Form),
            ("", Form),
            ("exec:/bin/sh", Form),
            ("tcp:127.0.0.1", Address),
            ("tcp:127.0.0.1:65536", Address),
            ("tcp:example.com:22", Address),
            ("tcp:2130706433:22", Address),
            ("tcp:0x7f.1:22", Address),
            ("tcp:0177.0.0.1:22", Address),
            ("tcp:user@127.0.0.1:22", Address),
            ("tcp:127.0.0.1:0", Forbidden),
            ("tcp:0.0.0.0:22", Forbidden),
            ("tcp:[::]:22", Forbidden),
            ("tcp:[::ffff:0.0.0.0]:22", Forbidden),
            ("tcp:224.0.0.1:22", Forbidden),
            ("tcp:255.255.255.255:22", Forbidden),
            ("tcp:[ff02::1]:22", Forbidden),
            ("unix:run/app.sock", Path),
            ("unix:/run/../etc/app.sock", Path),
            ("unix:", Path),
        ] {
            assert_eq!(text.parse::<Target>(), Err(why), "{text}");
        }
        assert!(format!("unix:/{}", "a".repeat(106)).parse::<Target>().is_ok());
        assert!(format!("unix:/{}", "a".repeat(107)).parse::<Target>().is_err());
    }
}
