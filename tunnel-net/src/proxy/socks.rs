//! SOCKS5's CONNECT (RFC 1928) with user and password (RFC 1929).
//!
//! By hand, because the crate `fast-socks5` brings a second version each of `socket2` and `thiserror`, and our part of
//! the protocol is this page.

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::Login;
use super::refusal::{Offers, Refusal};

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const NO_LOGIN: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NONE_FITS: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Asks for a connection. Afterwards the stream is one to the target.
pub(super) async fn ask<S>(
    stream: &mut S,
    host: &str,
    port: u16,
    login: Option<&Login>,
) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let greeting: &[u8] = match login {
        Some(_) => &[VERSION, 2, NO_LOGIN, USER_AND_PASSWORD],
        None => &[VERSION, 1, NO_LOGIN],
    };
    send(stream, greeting).await?;
    match (read(stream).await?, login) {
        ([VERSION, NO_LOGIN], _) => {}
        ([VERSION, USER_AND_PASSWORD], Some(login)) => log_in(stream, login).await?,
        ([VERSION, NONE_FITS], Some(_)) => {
            return Err(Refusal::LoginRefused {
                offers: Offers::default(),
            });
        }
        ([VERSION, NONE_FITS], None) => {
            return Err(Refusal::LoginWanted {
                offers: Offers::default(),
            });
        }
        _ => return Err(not_a_proxy()),
    }
    send(stream, &request(host, port)?).await?;
    let [version, reply, _, kind] = read(stream).await?;
    if version != VERSION {
        return Err(not_a_proxy());
    }
    judge(reply)?;
    // The address that the proxy uses means nothing here, but it stands before the server's bytes.
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(read::<1, _>(stream).await?[0]),
        _ => return Err(not_a_proxy()),
    };
    let mut bound = [0; 255 + 2];
    stream
        .read_exact(&mut bound[..length + 2])
        .await
        .map_err(broken)?;
    Ok(())
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, login: &Login) -> Result<(), Refusal> {
    let mut message = Zeroizing::new(vec![LOGIN_VERSION]);
    for part in [&login.user, &login.password] {
        message.push(length_of(part.as_bytes())?);
        message.extend_from_slice(part.as_bytes());
    }
    send(stream, &message).await?;
    match read(stream).await? {
        [_, 0] => Ok(()),
        _ => Err(Refusal::LoginRefused {
            offers: Offers::default(),
        }),
    }
}

fn request(host: &str, port: u16) -> Result<Vec<u8>, Refusal> {
    let mut message = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(ip)) => {
            message.push(IPV4);
            message.extend_from_slice(&ip.octets());
        }
        Ok(IpAddr::V6(ip)) => {
            message.push(IPV6);
            message.extend_from_slice(&ip.octets());
        }
        Err(_) => {
            message.extend_from_slice(&[NAME, length_of(host.as_bytes())?]);
            message.extend_from_slice(host.as_bytes());
        }
    }
    message.extend_from_slice(&port.to_be_bytes());
    Ok(message)
}

/// Reads the reply field (RFC 1928 section 6).
fn judge(reply: u8) -> Result<(), Refusal> {
    Err(match reply {
        0 => return Ok(()),
        1 => Refusal::Unreached("general failure".into()),
        2 => Refusal::Refused("not allowed by ruleset".into()),
        3 => Refusal::Unreached("network unreachable".into()),
        4 => Refusal::Unreached("host unreachable".into()),
        5 => Refusal::Unreached("connection refused".into()),
        6 => Refusal::Unreached("TTL expired".into()),
        7 => Refusal::Refused("command not supported".into()),
        8 => Refusal::Refused("address type not supported".into()),
        other => Refusal::Refused(format!("reply {other}")),
    })
}

fn length_of(bytes: &[u8]) -> Result<u8, Refusal> {
    u8::try_from(bytes.len()).map_err(|_| Refusal::Refused("a name or login of more than 255 bytes".into()))
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), Refusal> {
    stream.write_all(message).await.map_err(Refusal::Broken)
}

async fn read<const N: usize, S: AsyncRead + Unpin>(stream: &mut S) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(broken)?;
    Ok(bytes)
}

fn broken(error: std::io::Error) -> Refusal {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        Refusal::Closed
    } else {
        Refusal::Broken(error)
    }
}

fn not_a_proxy() -> Refusal {
    Refusal::NotAProxy {
        expected: "SOCKS5",
        got: "it answers in another protocol".into(),
    }
}
