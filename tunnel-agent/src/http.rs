//! The little of HTTP/1.1 that an agent speaks: one request, one bounded answer, over TLS (RFC 9112).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tunnel_net::websocket::WebSocketError;
use tunnel_net::{ServerAddr, tls};
use tunnel_proto::{Code, UnixTime};

use crate::defaults::MAX_ANSWER_BYTES;

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The server's clock as its `Date` field says it.
    pub date: Option<UnixTime>,
    /// The body.
    pub body: Vec<u8>,
}

/// Tells why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There is no connection to the server, or what answers is not the server.
    #[error(transparent)]
    Connect(#[from] WebSocketError),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Broken(#[source] io::Error),
    /// What came is no answer of the expected form, or too large.
    #[error("the server's answer could not be read")]
    Answer,
}

impl HttpError {
    /// Returns the code that tells what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Connect(error) => connect_code(error),
            // A certificate that the server refuses shows only here.
            Self::Broken(error) => tls::io_refusal(error).unwrap_or(Code::ServerUnreachable),
            Self::Answer => Code::Protocol,
        }
    }
}

/// Returns the code of a connection that did not come up; a matter of trust says more than silence.
pub fn connect_code(error: &WebSocketError) -> Code {
    match error {
        WebSocketError::Tls(_, source) | WebSocketError::Foreign { source, .. } => {
            tls::io_refusal(source).unwrap_or(Code::ServerUnreachable)
        }
        _ => Code::ServerUnreachable,
    }
}

/// Sends a request and reads the answer.
///
/// # Errors
/// Tells whether the connection broke or the answer is none.
pub async fn exchange(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> Result<Answer, HttpError> {
    stream.write_all(request).await.map_err(HttpError::Broken)?;
    stream.flush().await.map_err(HttpError::Broken)?;
    read(stream).await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Answer, HttpError> {
    let mut bytes = Vec::new();
    loop {
        let read = stream.read_buf(&mut bytes).await.map_err(HttpError::Broken)?;
        if let Some(answer) = parse(&bytes)? {
            return Ok(answer);
        }
        if read == 0 {
            return Err(HttpError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(HttpError::Answer);
        }
    }
}

/// Writes a request with a JSON body.
pub fn post(server: &ServerAddr, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {server}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         accept: application/json\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Writes a request to open the WebSocket carrier (RFC 6455 section 4.1).
pub fn upgrade(server: &ServerAddr, path: &str, protocol: &str) -> Vec<u8> {
    // The key of the RFC's example: it is no secret, and nothing is said on this connection.
    format!(
        "GET {path} HTTP/1.1\r\nhost: {server}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: {protocol}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads an answer; `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, HttpError> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| HttpError::Answer)?;
    let mut lines = head.split("\r\n");
    let status = status(lines.next().unwrap_or_default()).ok_or(HttpError::Answer)?;
    let (mut length, mut date) = (None, None);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(HttpError::Answer)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let number: usize = value.parse().map_err(|_| HttpError::Answer)?;
            if number > MAX_ANSWER_BYTES || length.replace(number).is_some() {
                return Err(HttpError::Answer);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::Answer);
        } else if name.eq_ignore_ascii_case("date") {
            date = imf_date(value);
        }
    }
    let body = &bytes[end + 4..];
    let length = match (status, length) {
        (100..=199 | 204, _) => 0,
        (_, Some(length)) => length,
        (_, None) => return Err(HttpError::Answer),
    };
    Ok(body.get(..length).map(|body| Answer {
        status,
        date,
        body: body.to_vec(),
    }))
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ")?;
    let digits = rest.get(..3)?;
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

/// Reads a date as HTTP writes it, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
fn imf_date(text: &str) -> Option<UnixTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|&name| name == month)? as u64 + 1;
    let year: u64 = words
        .next()?
        .parse()
        .ok()
        .filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words
        .next()?
        .split(':')
        .map(|part| part.parse::<u64>().ok().filter(|&part| part <= 60));
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    // Days from civil date: years start in March, so that the leap day is the last of its year.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some(UnixTime::from_secs(
        days * 86_400 + hours * 3600 + minutes * 60 + seconds,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nhello";

    #[test]
    fn a_whole_answer_is_read() {
        let answer = parse(OK).unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hello"[..]));
        assert_eq!(answer.date, Some(UnixTime::from_secs(784_111_777)));
        let upgrade = parse(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(upgrade.status, 101);
    }

    #[test]
    fn every_part_of_an_answer_waits_for_the_rest() {
        for length in 0..OK.len() {
            assert_eq!(parse(&OK[..length]).unwrap(), None, "{length}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bytes in [
            &b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n1",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"\xff\xff\r\n\r\n",
        ] {
            assert!(parse(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    // CLI-09, AGT-15
    #[tokio::test]
    async fn an_endless_answer_is_cut_off() {
        let mut endless = tokio::io::repeat(b'a');
        assert!(matches!(read(&mut endless).await, Err(HttpError::Answer)));
        let mut short = &b"HTTP/1.1 200 OK\r\n"[..];
        assert!(matches!(read(&mut short).await, Err(HttpError::Broken(_))));
    }

    #[test]
    fn dates_are_read() {
        for (text, secs) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Sun, 22 Nov 2026 20:23:31 GMT", Some(1_795_379_011)),
            ("yesterday", None),
            ("Sun, 99 Nov 2026 20:23:31 GMT", None),
            ("Sun, 22 Foo 2026 20:23:31 GMT", None),
        ] {
            assert_eq!(imf_date(text).map(UnixTime::as_secs), secs, "{text}");
        }
    }
}
