//! A device that is linked: it accepts what it is offered, redeems its tokens, and confirms every end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::quic;
use tunnel_net::stream::{read_message, write_message};
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_proto::defaults::{KEEPALIVE_MAX, SERVER_NAME};
use tunnel_proto::message::{Attach, FromAgent, FromServer, Hello, OfferAnswer, Ping, Report, TunnelEnded};

use super::{Admitted, PATIENCE, SERVICE, admit};

/// Devices that share a socket: as many come from behind one NAT. A socket for each would cost more than the link.
pub(super) const PER_SOCKET: usize = 50;

/// A link that is up.
pub(super) struct Link {
    send: SendStream,
    recv: RecvStream,
    _connection: Connection,
}

/// Opens a socket for some devices.
pub(super) fn endpoint() -> Result<Endpoint> {
    Ok(Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?)
}

/// Links a device, and comes again at the moment that the server names when too many come at once.
pub(super) async fn link(
    endpoint: &Endpoint,
    server: SocketAddr,
    ends: &Ends,
    credentials: &Credentials,
    room: &Semaphore,
) -> Result<Link> {
    loop {
        let place = room.acquire().await?;
        match try_link(endpoint, server, ends, credentials).await? {
            Ok(link) => return Ok(link),
            Err(after) => {
                drop(place);
                tokio::time::sleep(after).await;
            }
        }
    }
}

/// Links a device, or says after which time it is to come again.
async fn try_link(
    endpoint: &Endpoint,
    server: SocketAddr,
    ends: &Ends,
    credentials: &Credentials,
) -> Result<Result<Link, Duration>> {
    let tls = tls::quic_client(tls::link_client(ends, credentials));
    let mut config = quinn::ClientConfig::new(tls);
    config.transport_config(quic::link_transport());
    let connection = endpoint.connect_with(config, server, SERVER_NAME)?.await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    let hello = FromAgent::Hello(Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nonce: *b"one of very many",
        clock: SystemClock.now(),
        report: Report {
            services: vec![SERVICE.parse()?],
            access: true,
            ..Report::default()
        },
        tunnels: Vec::new(),
    });
    write_message(&mut send, &hello).await?;
    match tokio::time::timeout(PATIENCE, read_message(&mut recv)).await?? {
        FromServer::Welcome(_) => Ok(Ok(Link {
            send,
            recv,
            _connection: connection,
        })),
        FromServer::Goodbye(goodbye) => Ok(Err(Duration::from_millis(goodbye.after_millis))),
        other => bail!("{other:?} is no welcome"),
    }
}

impl Link {
    /// Does as an agent does until the link ends.
    pub(super) async fn serve(mut self, admitted: Admitted) {
        let mut keepalive = tokio::time::interval(KEEPALIVE_MAX - Duration::from_secs(30));
        let (mut seq, mut proof) = (0, 0);
        let (told, mut tells) = tokio::sync::mpsc::channel(1);
        let mut recv = self.recv;
        // Reading a message is not cancel-safe.
        let _reader = AbortOnDropHandle::new(tokio::task::spawn(async move {
            while let Ok(message) = read_message::<FromServer>(&mut recv).await {
                if told.send(message).await.is_err() {
                    return;
                }
            }
        }));
        loop {
            let answers = tokio::select! {
                _ = keepalive.tick() => {
                    seq += 1;
                    vec![FromAgent::Ping(ping(seq - 1, proof))]
                }
                message = tells.recv() => match message {
                    None => return,
                    Some(FromServer::Pong(pong)) => {
                        proof = pong.proof;
                        continue;
                    }
                    Some(message) => answers(message, &admitted),
                },
            };
            for answer in answers {
                if write_message(&mut self.send, &answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn answers(message: FromServer, admitted: &Admitted) -> Vec<FromAgent> {
    match message {
        FromServer::Offer(offer) => {
            let (tunnel, refused) = (offer.tunnel, None);
            vec![
                FromAgent::OfferAnswer(OfferAnswer { tunnel, refused }),
                FromAgent::Attach(Attach {
                    tunnel,
                    token: offer.token,
                }),
            ]
        }
        FromServer::Attached(attached) => {
            admit(admitted, attached);
            Vec::new()
        }
        FromServer::EndTunnel(end) => vec![FromAgent::TunnelEnded(TunnelEnded {
            tunnel: end.tunnel,
            reason: end.reason.code,
            sessions: 1,
        })],
        _ => Vec::new(),
    }
}

fn ping(seq: u64, proof: u64) -> Ping {
    Ping {
        seq,
        proof,
        next_secs: u32::try_from(KEEPALIVE_MAX.as_secs()).unwrap_or(u32::MAX),
        rtt_millis: None,
        cost_bytes: None,
        echo_after_millis: None,
    }
}
