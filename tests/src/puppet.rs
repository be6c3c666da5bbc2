//! A device whose link is in the hands of a test: it was enrolled as any other, and does what it is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::runtime::Runtime;
use tunnel_certs::Trust;
use tunnel_net::clock::{Clock, SystemClock};
use tunnel_net::quic;
use tunnel_net::stream::{read_message, write_message};
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_proto::Code;
use tunnel_proto::defaults::SERVER_NAME;
use tunnel_proto::message::{Attach, Attached, FromAgent, FromServer, Hello, Offer, OfferAnswer, Report};

use crate::agent::Agent;
use crate::fleet::Fleet;
use crate::wait::SOON;

/// A linked device.
#[derive(Debug)]
pub struct Puppet {
    id: String,
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    _endpoint: Endpoint,
    runtime: Runtime,
}

impl Puppet {
    /// Enrols a device of a fleet and links it.
    ///
    /// # Panics
    /// When that does not work.
    #[track_caller]
    pub fn new(fleet: &Fleet, id: &str) -> Self {
        Self::link(fleet.server.address(), &fleet.enrol(fleet.device(id)))
    }

    /// Links a device that was enrolled and has not been started.
    ///
    /// # Panics
    /// When the server does not welcome it.
    #[track_caller]
    pub fn link(server: SocketAddr, agent: &Agent) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (ends, credentials) = credentials(&agent.state());
        let (endpoint, connection, send, recv) = runtime.block_on(async {
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
            let tls = tls::quic_client(tls::link_client(&ends, &credentials));
            let mut config = quinn::ClientConfig::new(tls);
            config.transport_config(quic::link_transport());
            let connecting = endpoint.connect_with(config, server, SERVER_NAME);
            let connection = connecting.expect("an address").await.expect("a link");
            let (send, recv) = connection.open_bi().await.expect("a stream");
            (endpoint, connection, send, recv)
        });
        let mut puppet = Self {
            id: agent.id().to_owned(),
            connection,
            send,
            recv,
            _endpoint: endpoint,
            runtime,
        };
        puppet.say(&FromAgent::Hello(Hello {
            version: "0.1.0".to_owned(),
            nonce: *b"a puppet's nonce",
            clock: SystemClock.now(),
            report: Report {
                services: vec!["echo".parse().expect("a name")],
                access: true,
                ..Report::default()
            },
            tunnels: Vec::new(),
        }));
        match puppet.hear() {
            FromServer::Welcome(_) => puppet,
            other => panic!("{other:?} is no welcome"),
        }
    }

    /// Returns the device id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Says something to the server.
    ///
    /// # Panics
    /// When the link is gone.
    #[track_caller]
    pub fn say(&mut self, message: &FromAgent) {
        let said = self.runtime.block_on(write_message(&mut self.send, message));
        said.expect("the link is up");
    }

    /// Waits for the next message.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn hear(&mut self) -> FromServer {
        let message = async { tokio::time::timeout(SOON, read_message(&mut self.recv)).await };
        let message = self.runtime.block_on(message).expect("a message in time");
        message.expect("the link is up")
    }

    /// Waits for an offer and accepts it; ends of other tunnels are passed over.
    #[track_caller]
    pub fn accept(&mut self) -> Offer {
        let offer = self.offered();
        self.take(&offer);
        offer
    }

    /// Waits for an offer, and leaves it without an answer.
    #[track_caller]
    pub fn offered(&mut self) -> Offer {
        loop {
            if let FromServer::Offer(offer) = self.hear() {
                return offer;
            }
        }
    }

    /// Accepts an offer.
    #[track_caller]
    pub fn take(&mut self, offer: &Offer) {
        let (tunnel, refused) = (offer.tunnel, None);
        self.say(&FromAgent::OfferAnswer(OfferAnswer { tunnel, refused }));
    }

    /// Redeems the token of an offer.
    ///
    /// # Panics
    /// When that is refused.
    #[track_caller]
    pub fn attach(&mut self, offer: &Offer) -> Attached {
        let attached = self.try_attach(offer);
        attached.unwrap_or_else(|code| panic!("the token is refused: {code}"))
    }

    /// Redeems the token of an offer.
    ///
    /// # Errors
    /// Returns the code of the refusal.
    #[track_caller]
    pub fn try_attach(&mut self, offer: &Offer) -> Result<Attached, Code> {
        let (tunnel, token) = (offer.tunnel, offer.token.clone());
        self.say(&FromAgent::Attach(Attach { tunnel, token }));
        loop {
            match self.hear() {
                FromServer::Attached(attached) => return Ok(attached),
                FromServer::AttachRefused(refused) => return Err(refused.reason.code),
                _ => {}
            }
        }
    }

    /// Says whether the link is still up.
    pub fn is_linked(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// Reads the credentials of a state directory, and whom they trust.
///
/// # Panics
/// When there are none.
pub fn credentials(directory: &Path) -> (Ends, Credentials) {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let trust = Trust::from_pem(&read("root.pem")).expect("a root certificate");
    let ends = Ends::new(Arc::new(trust), Arc::new(SystemClock));
    let credentials = Credentials::load(&read("chain.pem"), &read("key.pem"));
    (ends, credentials.expect("a chain and its key"))
}
