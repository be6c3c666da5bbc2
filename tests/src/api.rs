//! The server's API without the CLI: for what the CLI would refuse to send.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use tunnel_certs::Trust;
use tunnel_net::clock::SystemClock;
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_proto::defaults::SERVER_NAME;

/// A client of the API with credentials of its own.
#[derive(Clone, Debug)]
pub struct Api {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

/// An answer: the HTTP status and the body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; `null` if there is none.
    pub body: Value,
}

impl Api {
    /// Reads `root.pem`, `chain.pem` and `key.pem` of a state directory.
    ///
    /// # Panics
    /// When there are none.
    pub fn of(address: SocketAddr, directory: &Path) -> Self {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Self::with(
            address,
            &read("root.pem"),
            Some((&read("chain.pem"), &read("key.pem"))),
        )
    }

    /// Takes a root, and a chain with its key if there is to be a client certificate.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn with(address: SocketAddr, root: &str, credentials: Option<(&str, &str)>) -> Self {
        let trust = Arc::new(Trust::from_pem(root).expect("a root certificate"));
        let ends = Ends::new(trust, Arc::new(SystemClock));
        let credentials =
            credentials.map(|(chain, key)| Credentials::load(chain, key).expect("a chain and its key"));
        Self {
            address,
            config: Arc::new(tls::api_client(&ends, credentials.as_ref())),
        }
    }

    /// Sends one request on a connection of its own.
    ///
    /// # Errors
    /// Tells what the connection failed with: TLS refuses a client there.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Answer> {
        let name = SERVER_NAME.try_into().expect("a name");
        let client = ClientConnection::new(Arc::clone(&self.config), name).map_err(std::io::Error::other)?;
        let socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut stream = StreamOwned::new(client, socket);
        let body = body.map(Value::to_string).unwrap_or_default();
        let sent = write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = Vec::new();
        let read = sent.and_then(|()| stream.read_to_end(&mut answer));
        match read {
            // Some servers leave without the last word of TLS; the length of the body tells whether all is there.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && !answer.is_empty() => {}
            Err(error) => return Err(alert(&mut stream).unwrap_or(error)),
            Ok(_) => {}
        }
        parse(&String::from_utf8_lossy(&answer))
    }
}

/// Why nothing more could be sent stands in what was received before: the alert of a refusal.
fn alert(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Option<std::io::Error> {
    while stream
        .conn
        .read_tls(&mut stream.sock)
        .is_ok_and(|length| length > 0)
    {
        if let Err(error) = stream.conn.process_new_packets() {
            return Some(std::io::Error::new(ErrorKind::InvalidData, error));
        }
    }
    None
}

fn parse(text: &str) -> std::io::Result<Answer> {
    let bad = || std::io::Error::other(format!("not an answer: {text}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(bad)?;
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(body).map_err(|_| bad())?
    };
    Ok(Answer { status, body })
}
