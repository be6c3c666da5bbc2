//! A caller of the API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tunnel_proto::api::{AttachedTunnel, OpenedTunnel, Tunnel};
use tunnel_proto::defaults::SERVER_NAME;
use tunnel_proto::{Code, TunnelId};

/// Longest time that any answer may take.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A caller with TLS settings of its own.
#[derive(Clone)]
pub(crate) struct Api {
    server: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// Reads a good answer.
    #[track_caller]
    pub(crate) fn good<T: DeserializeOwned>(self) -> T {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_value(self.body).unwrap()
    }

    /// Reads the code of a refusal.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        assert_ne!(self.status, 200, "{}", self.body);
        for field in ["why", "next"] {
            assert!(self.body[field].is_string(), "{}", self.body);
        }
        self.body["code"].as_str().unwrap().to_owned()
    }

    /// Checks the code of a refusal.
    #[track_caller]
    pub(crate) fn refused(&self, code: Code) {
        assert_eq!(self.code(), code.as_str(), "{}", self.body);
    }
}

impl Api {
    pub(crate) fn new(server: SocketAddr, tls: rustls::ClientConfig) -> Self {
        Self {
            server,
            tls: Arc::new(tls),
        }
    }

    /// Connects TCP and TLS.
    pub(crate) async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.server).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(self.tls.clone())
            .connect(SERVER_NAME.try_into().unwrap(), stream)
            .await
    }

    /// Sends one request on a connection of its own; the error is that of the connection.
    pub(crate) async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let stream = self.connect().await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| format!("{e:?}"))?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        ask(&mut sender, request).await
    }

    /// Posts the same again and again over one connection, as fast as it is answered, until an answer is the wanted one.
    pub(crate) async fn post_until(
        &self,
        path: &str,
        body: &Value,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let stream = TokioIo::new(self.connect().await.unwrap());
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let asked = async {
            loop {
                sender.ready().await.unwrap();
                let answer = ask(&mut sender, request(Method::POST, path, Some(body)))
                    .await
                    .unwrap();
                if wanted(&answer) {
                    return answer;
                }
            }
        };
        tokio::time::timeout(3 * SOON, asked)
            .await
            .expect("the wanted answer in time")
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.try_send(request(method, path, body)).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Asks for a tunnel to the `ssh` service of a device.
    pub(crate) async fn open(&self, device: &str) -> Answer {
        self.post(
            "/v1/tunnels",
            &serde_json::json!({ "device": device, "services": ["ssh"] }),
        )
        .await
    }

    pub(crate) async fn attach(&self, id: TunnelId, token: &str) -> Answer {
        self.post(
            &format!("/v1/tunnels/{id}/attach"),
            &serde_json::json!({ "token": token }),
        )
        .await
    }

    /// Redeems the source token of an opened tunnel.
    pub(crate) async fn attach_to(&self, opened: &OpenedTunnel) -> AttachedTunnel {
        self.attach(opened.tunnel, &opened.token).await.good()
    }

    pub(crate) async fn tunnel(&self, id: TunnelId) -> Tunnel {
        self.get(&format!("/v1/tunnels/{id}")).await.good()
    }

    /// Waits for a tunnel's end and returns why it ended.
    pub(crate) async fn end_of(&self, id: TunnelId) -> String {
        let tunnel: Tunnel = self.get(&format!("/v1/tunnels/{id}/end")).await.good();
        assert_eq!(tunnel.state, "ended");
        assert!(tunnel.ended_at.is_some());
        tunnel.end_reason.unwrap()
    }

    pub(crate) async fn close(&self, id: TunnelId) -> Answer {
        self.send(Method::DELETE, &format!("/v1/tunnels/{id}"), None)
            .await
    }

    /// Reads the whole audit chain, verifies it, and returns each record's kind and content.
    pub(crate) async fn audit(&self) -> Vec<(String, Value)> {
        use tunnel_proto::api::AuditPage;
        use tunnel_proto::audit::{Head, verify};
        let (mut head, mut records) = (Head::START, Vec::new());
        loop {
            let page: AuditPage = self
                .get(&format!("/v1/audit?after={}&limit=500", head.seq))
                .await
                .good();
            if page.records.is_empty() {
                return records;
            }
            head = verify(head, &page.records).unwrap();
            let read = |text: &str| serde_json::from_str(text).unwrap();
            records.extend(
                page.records
                    .into_iter()
                    .map(|record| (record.kind, read(&record.body))),
            );
        }
    }
}

pub(crate) fn request(method: Method, path: &str, body: Option<&Value>) -> Request<Full<Bytes>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", SERVER_NAME);
    match body {
        Some(body) => request
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap(),
        None => request.body(Full::default()).unwrap(),
    }
}

/// Sends one request and reads its answer.
async fn ask(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let answer = tokio::time::timeout(SOON, sender.send_request(request))
        .await
        .expect("an answer in time");
    let answer = answer.map_err(|error| format!("{error:?}"))?;
    let status = answer.status().as_u16();
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|error| format!("{error:?}"))?
        .to_bytes();
    Ok(Answer {
        status,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}
