//! HTTP CONNECT (RFC 9110 section 9.3.6) with the Basic login (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Header, Response, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::Login;
use super::refusal::{Offers, Refusal, plain};
use crate::dial;

/// Largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Most fields in the head of an answer.
const MAX_FIELDS: usize = 100;

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
    let request = request(&dial::authority(host, port), login);
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(Refusal::Broken)?;
    let mut bytes = Vec::with_capacity(1024);
    loop {
        // Never more than the head may have, whatever comes.
        let room = MAX_HEAD - bytes.len();
        let read = (&mut *stream)
            .take(room as u64)
            .read_buf(&mut bytes)
            .await
            .map_err(Refusal::Broken)?;
        if let Some(verdict) = judge(&bytes, login.is_some())? {
            return verdict;
        }
        if bytes.len() == MAX_HEAD {
            return Err(not_a_proxy("the head of its answer has no end"));
        }
        if read == 0 {
            return Err(Refusal::Closed);
        }
    }
}

fn request(target: &str, login: Option<&Login>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
    if let Some(Login { user, password }) = login {
        let pair = Zeroizing::new(format!("{}:{}", user.as_str(), password.as_str()));
        let coded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        text.push_str("Proxy-Authorization: Basic ");
        text.push_str(&coded);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

fn not_a_proxy(got: impl Into<String>) -> Refusal {
    Refusal::NotAProxy {
        expected: "HTTP",
        got: got.into(),
    }
}

/// Reads what came so far: `None` while the head is not whole.
fn judge(bytes: &[u8], with_login: bool) -> Result<Option<Result<(), Refusal>>, Refusal> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut answer = Response::new(&mut fields);
    let length = match answer.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(not_a_proxy("it does not speak HTTP")),
    };
    let status = answer.code.unwrap_or_default();
    let words = plain(&format!("{status} {}", answer.reason.unwrap_or_default()));
    let fields = &*answer.headers;
    Ok(Some(match status {
        200..=299 if bytes.len() > length || is_page(fields) => Err(Refusal::CaptivePortal(None)),
        200..=299 => Ok(()),
        407 if with_login => Err(Refusal::LoginRefused {
            offers: offers(fields),
        }),
        407 => Err(Refusal::LoginWanted {
            offers: offers(fields),
        }),
        300..=399 | 511 => Err(Refusal::CaptivePortal(portal(fields))),
        404 | 405 | 501 => Err(not_a_proxy(format!("it answered CONNECT with `{words}`"))),
        502..=504 => Err(Refusal::Unreached(words)),
        _ => Err(Refusal::Refused(words)),
    }))
}

/// Says whether a page follows. After a true success the server's bytes follow, and a TLS server is silent at first.
fn is_page(fields: &[Header<'_>]) -> bool {
    let html = field(fields, "content-type").any(|kind| kind.to_ascii_lowercase().starts_with("text/html"));
    let empty = field(fields, "content-length").any(|length| length.trim() == "0");
    let framed = field(fields, "content-length")
        .chain(field(fields, "transfer-encoding"))
        .next()
        .is_some();
    html && framed && !empty
}

/// Returns the host that a redirection leads to.
fn portal(fields: &[Header<'_>]) -> Option<String> {
    let location = field(fields, "location").next()?;
    let (_, rest) = location.split_once("//")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    Some(plain(host)).filter(|host| !host.is_empty())
}

/// Returns the names of the logins that are offered, each once. One field may offer several.
fn offers(fields: &[Header<'_>]) -> Offers {
    const MOST: usize = 8;
    let mut schemes: Vec<String> = Vec::new();
    for value in field(fields, "proxy-authenticate") {
        for item in outside_quotes(value) {
            let mut words = item.split_ascii_whitespace();
            let Some(scheme) = words.next().filter(|word| !word.contains('=')) else {
                continue;
            };
            let scheme = plain(scheme);
            if schemes.len() < MOST && !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
    }
    Offers(schemes)
}

/// Splits a list at its commas, but not at those in quoted strings.
fn outside_quotes(list: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    list.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    })
}

fn field<'f>(fields: &'f [Header<'f>], name: &'static str) -> impl Iterator<Item = &'f str> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .filter_map(|field| std::str::from_utf8(field.value).ok())
}
