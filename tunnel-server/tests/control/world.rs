//! A server with its fleet, and how operators and devices come into it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use tunnel_certs::{KeyPair, Trust, request};
use tunnel_net::clock::SystemClock;
use tunnel_net::tls::{Credentials, Ends, enrol_client};
use tunnel_proto::api::{EnrolAnswer, MadeEnrolCode};
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::ids::hex;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::{Identity, TrustDomain, UnixTime};
use tunnel_server::config::{Config, DataDir};
use tunnel_server::init;
use tunnel_server::run::Server;

use crate::api::{Answer, Api};

/// A running server, its directory, and its first operator.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) config: Config,
    pub(crate) server: Server,
    pub(crate) ends: Ends,
    pub(crate) admin: Member,
}

/// Somebody who was enrolled.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) credentials: Credentials,
    pub(crate) key: KeyHash,
}

pub(crate) fn data(directory: &TempDir) -> DataDir {
    DataDir::new(directory.path().join("data"))
}

pub(crate) fn now() -> UnixTime {
    use tunnel_net::clock::Clock;
    SystemClock.now()
}

impl World {
    /// Makes a server and enrols its first operator, `root`, who may do everything.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// As [`World::new`], with other settings.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            node: "n1".parse().unwrap(),
            trust_domain: "fleet.test".parse().unwrap(),
            address: "127.0.0.1:8443".parse().unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics: Some("127.0.0.1:0".parse().unwrap()),
            returns_per_sec: 200,
            audit_keep_days: None,
            audit_strict: false,
            authoriser: None,
            notify: Vec::new(),
        };
        change(&mut config);
        let data = data(&directory);
        let made = init::init(&data, &config, &"root".parse().unwrap(), now())
            .await
            .unwrap();
        let server = Server::start(&data, config.clone()).await.unwrap();
        let root = std::fs::read_to_string(data.root()).unwrap();
        let ends = Ends::new(Arc::new(Trust::from_pem(&root).unwrap()), Arc::new(SystemClock));
        let admin = enrol(server.tcp_addr(), &made.invite, None).await.unwrap();
        Self {
            directory,
            config,
            server,
            ends,
            admin,
        }
    }

    /// Stops the server in good order and starts it again on the same directory.
    pub(crate) async fn restart(self) -> Self {
        let Self {
            directory,
            config,
            server,
            ends,
            admin,
        } = self;
        server.shutdown().await;
        let server = Server::start(&data(&directory), config.clone()).await.unwrap();
        Self {
            directory,
            config,
            server,
            ends,
            admin,
        }
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    /// Returns the API as a member calls it.
    pub(crate) fn api(&self, member: &Member) -> Api {
        Api::new(
            self.server.tcp_addr(),
            tunnel_net::tls::api_client(&self.ends, Some(&member.credentials)),
        )
    }

    /// Returns the API as somebody without a certificate calls it.
    pub(crate) fn api_of_nobody(&self) -> Api {
        Api::new(
            self.server.tcp_addr(),
            tunnel_net::tls::api_client(&self.ends, None),
        )
    }

    /// Makes a code as the first operator.
    pub(crate) async fn code(&self, order: serde_json::Value) -> String {
        let made: MadeEnrolCode = self.api(&self.admin).post("/v1/enrol-codes", &order).await.good();
        made.code
    }

    /// Enrols an operator into a group.
    pub(crate) async fn operator(&self, name: &str, group: &str) -> Member {
        let code = self
            .code(json!({ "kind": "operator", "ids": [name], "group": group }))
            .await;
        enrol(self.server.tcp_addr(), &code, None).await.unwrap()
    }

    /// Enrols a device.
    pub(crate) async fn device(&self, id: &str) -> Member {
        let code = self.code(json!({ "kind": "device", "ids": [id] })).await;
        enrol(self.server.tcp_addr(), &code, None).await.unwrap()
    }
}

/// Enrols with a new key.
pub(crate) async fn enrol(server: SocketAddr, code: &str, id: Option<&str>) -> Result<Member, String> {
    enrol_with(server, code, id, &KeyPair::generate().unwrap()).await
}

/// Enrols with a key; the error is the code of the refusal.
pub(crate) async fn enrol_with(
    server: SocketAddr,
    code: &str,
    id: Option<&str>,
    key: &KeyPair,
) -> Result<Member, String> {
    let answer = ask_to_enrol(server, code, id, &request(key).unwrap()).await;
    if answer.status != 200 {
        return Err(answer.code());
    }
    let answer: EnrolAnswer = answer.good();
    let credentials = Credentials::load(&answer.chain, &key.to_pem()).unwrap();
    Ok(Member {
        identity: answer.identity.parse().unwrap(),
        credentials,
        key: key.key_hash(),
    })
}

/// Sends a request for enrolment as a newcomer does: with no more trust than the code gives.
pub(crate) async fn ask_to_enrol(server: SocketAddr, code: &str, id: Option<&str>, csr: &str) -> Answer {
    let code = EnrolCode::from_text(code).unwrap();
    let api = Api::new(server, enrol_client(code.root_fingerprint, Arc::new(SystemClock)));
    let mut body = json!({ "secret": hex(code.secret.expose()), "csr": csr });
    if let Some(id) = id {
        body["id"] = id.into();
    }
    api.post("/v1/enrol", &body).await
}
