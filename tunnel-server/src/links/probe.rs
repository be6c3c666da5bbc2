//! Connections that only measure the way: they are answered, and change nothing. A device's control link stays as it is.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tunnel_certs::Peer;
use tunnel_net::stream::{MessageError, read_message, write_message};
use tunnel_proto::Code;
use tunnel_proto::message::{FromAgent, FromServer, Pong, Probed, ProbedLink};
use tunnel_proto::names::Subject;

use crate::control::Control;
use crate::run::gate::PROBES_OF_ONE;

/// How long measuring may take: a few hundred round trips of a slow line.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long the peer may say nothing in between: one that tries several addresses is waited for until it has.
const IDLE: Duration = Duration::from_secs(15);

/// Messages that one connection may send: a few hundred probes, and what goes with them.
const MESSAGES: usize = 1024;

/// Answers one connection until its peer has measured enough. Each answer is caused by one message of a proven member of
/// the fleet, and of about its size.
pub(super) async fn serve(
    control: &Control,
    connection: &Connection,
    mut streams: (SendStream, RecvStream),
    peer: &Peer,
) {
    let hang_up = |code: Code| {
        connection.close(VarInt::from_u32(code as u32), code.as_str().as_bytes());
    };
    if let Some(why) = control.fallen(peer) {
        return hang_up(why);
    }
    let Some(_place) = control.probes.enter_as(peer.identity.clone(), PROBES_OF_ONE) else {
        return hang_up(Code::Busy);
    };
    let answering = answer_all(control, connection, &mut streams, &peer.identity.subject);
    // A peer that breaks off has measured enough.
    let _ = tokio::time::timeout(DEADLINE, answering).await;
    connection.close(VarInt::from_u32(0), b"measured");
}

async fn answer_all(
    control: &Control,
    connection: &Connection,
    (send, recv): &mut (SendStream, RecvStream),
    who: &Subject,
) -> Result<(), MessageError> {
    let mut answer = FromServer::Probed(probed(control, connection, who));
    for _ in 0..MESSAGES {
        write_message(send, &answer).await?;
        let Ok(message) = tokio::time::timeout(IDLE, read_message(recv)).await else {
            break;
        };
        answer = match message? {
            FromAgent::Probe(_) => FromServer::Probed(probed(control, connection, who)),
            FromAgent::Ping(ping) => FromServer::Pong(Pong {
                seq: ping.seq,
                proof: 0,
                seen_as: Some(seen_as(control, connection)),
                clock: control.now(),
            }),
            _ => break,
        };
    }
    Ok(())
}

fn seen_as(control: &Control, connection: &Connection) -> String {
    control.relay.peer_of(connection.remote_address()).1.to_string()
}

fn probed(control: &Control, connection: &Connection, who: &Subject) -> Probed {
    let path = connection.stats().path;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let link = match who {
        Subject::Device(device) => control.links.get(device),
        _ => None,
    };
    Probed {
        node: control.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock_millis: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        seen_as: seen_as(control, connection),
        sent: path.sent_packets,
        lost: path.lost_packets,
        link: link.map(|link| {
            let state = link.link_state(control);
            ProbedLink {
                carrier: state.carrier,
                proven_millis_ago: state.proven_millis_ago.unwrap_or(0),
                proof_within_secs: state.proof_within_secs,
            }
        }),
    }
}
