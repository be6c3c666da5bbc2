//! A stand-in for an agent: it speaks the control link and does what a test tells it.

use std::net::Ipv4Addr;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tunnel_net::stream::{MessageError, read_message, write_message};
use tunnel_net::{quic, tls};
use tunnel_proto::defaults::SERVER_NAME;
use tunnel_proto::message::{
    Attach, Attached, EndTunnel, FromAgent, FromServer, Hello, Offer, OfferAnswer, Report, TunnelEnded,
    Welcome,
};
use tunnel_proto::{Code, Refusal, TunnelId};

use crate::api::{Answer, Api, SOON};
use crate::world::{Member, World, now};

pub(crate) const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFoo";

/// Connects as a control link does.
pub(crate) async fn connect(world: &World, member: &Member) -> Result<(Endpoint, Connection), String> {
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut config = quinn::ClientConfig::new(tls::quic_client(tls::link_client(
        &world.ends,
        &member.credentials,
    )));
    config.transport_config(quic::link_transport());
    endpoint.set_default_client_config(config);
    let connecting = endpoint.connect(world.server.udp_addr(), SERVER_NAME).unwrap();
    let connection = connecting.await.map_err(|error| error.to_string())?;
    Ok((endpoint, connection))
}

/// A linked agent.
pub(crate) struct Agent {
    pub(crate) connection: Connection,
    pub(crate) welcome: Welcome,
    pub(crate) nonce: [u8; 16],
    send: SendStream,
    recv: RecvStream,
    _endpoint: Endpoint,
}

impl Agent {
    /// Links a device and waits for the welcome.
    pub(crate) async fn link(world: &World, device: &Member) -> Self {
        Self::link_with(world, device, &[]).await.unwrap()
    }

    /// Links a device that has tunnels from before; the error is that of the connection.
    pub(crate) async fn link_with(
        world: &World,
        device: &Member,
        tunnels: &[TunnelId],
    ) -> Result<Self, String> {
        let (endpoint, connection) = connect(world, device).await?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
        let nonce = fastrand::u128(..).to_be_bytes();
        let hello = Hello {
            version: "0.1.0".into(),
            nonce,
            clock: now(),
            report: Report {
                services: vec!["ssh".parse().unwrap()],
                ssh_host_keys: vec![HOST_KEY.into(), "no key\nat all".into()],
                access: true,
                platform: "linux/x86_64".into(),
                ..Report::default()
            },
            tunnels: tunnels.to_vec(),
        };
        write_message(&mut send, &FromAgent::Hello(hello))
            .await
            .map_err(|error| error.to_string())?;
        match read_message(&mut recv).await {
            Ok(FromServer::Welcome(welcome)) => Ok(Self {
                connection,
                welcome,
                nonce,
                send,
                recv,
                _endpoint: endpoint,
            }),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    /// Says something to the server.
    pub(crate) async fn say(&mut self, message: &FromAgent) {
        write_message(&mut self.send, message).await.unwrap();
    }

    /// Says something that may be no message at all.
    pub(crate) async fn say_raw(&mut self, content: &[u8]) {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        self.send.write_all(&[&length, content].concat()).await.unwrap();
    }

    /// Waits for the next message.
    pub(crate) async fn next(&mut self) -> FromServer {
        self.try_next().await.unwrap()
    }

    pub(crate) async fn try_next(&mut self) -> Result<FromServer, MessageError> {
        tokio::time::timeout(SOON, read_message(&mut self.recv))
            .await
            .expect("a message in time")
    }

    /// Waits for an offer.
    pub(crate) async fn offer(&mut self) -> Offer {
        match self.next().await {
            FromServer::Offer(offer) => offer,
            other => panic!("{other:?} is no offer"),
        }
    }

    pub(crate) async fn answer(&mut self, tunnel: TunnelId, refused: Option<Refusal>) {
        self.say(&FromAgent::OfferAnswer(OfferAnswer { tunnel, refused }))
            .await;
    }

    /// Waits for an offer and accepts it.
    pub(crate) async fn accept(&mut self) -> Offer {
        let offer = self.offer().await;
        self.answer(offer.tunnel, None).await;
        offer
    }

    /// Redeems the destination token.
    pub(crate) async fn attach(&mut self, offer: &Offer) -> Result<Attached, Code> {
        self.say(&FromAgent::Attach(Attach {
            tunnel: offer.tunnel,
            token: offer.token.clone(),
        }))
        .await;
        match self.next().await {
            FromServer::Attached(attached) => Ok(attached),
            FromServer::AttachRefused(refused) => Err(refused.reason.code),
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Waits to be told that a tunnel has ended, confirms it, and returns why.
    pub(crate) async fn ended(&mut self, tunnel: TunnelId) -> Code {
        match self.next().await {
            FromServer::EndTunnel(EndTunnel {
                tunnel: ended,
                reason,
            }) => {
                assert_eq!(ended, tunnel);
                self.end(tunnel, reason.code).await;
                reason.code
            }
            other => panic!("{other:?} is no end"),
        }
    }

    /// Says that a tunnel has ended here.
    pub(crate) async fn end(&mut self, tunnel: TunnelId, reason: Code) {
        self.say(&FromAgent::TunnelEnded(TunnelEnded {
            tunnel,
            reason,
            sessions: 0,
        }))
        .await;
    }

    /// Accepts and attaches whatever is offered, and confirms every end, until the link ends.
    pub(crate) async fn serve(mut self) {
        while let Ok(message) = read_message::<FromServer>(&mut self.recv).await {
            let answers = match message {
                FromServer::Offer(Offer { tunnel, token, .. }) => vec![
                    FromAgent::OfferAnswer(OfferAnswer {
                        tunnel,
                        refused: None,
                    }),
                    FromAgent::Attach(Attach { tunnel, token }),
                ],
                FromServer::EndTunnel(EndTunnel { tunnel, reason }) => {
                    vec![FromAgent::TunnelEnded(TunnelEnded {
                        tunnel,
                        reason: reason.code,
                        sessions: 0,
                    })]
                }
                _ => Vec::new(),
            };
            for answer in answers {
                if write_message(&mut self.send, &answer).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Has a tunnel asked for and accepts it.
    pub(crate) async fn opened(&mut self, api: &Api, device: &str) -> (Answer, Offer) {
        tokio::join!(api.open(device), self.accept())
    }
}
