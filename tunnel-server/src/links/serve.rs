//! One control link from its first message to its end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::stream::{MessageError, read_message, write_message};
use tunnel_proto::defaults::LINK_IDLE_TIMEOUT;
use tunnel_proto::frame::FrameError;
use tunnel_proto::message::{FromAgent, FromServer, Goodbye, Ping, Pong, Welcome};
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, DeviceId, Refusal, TunnelId};

use super::accept::DEADLINE;
use super::presence::Presence;
use super::receipts::Receipts;
use super::{Link, OUTBOX, State, probe, report, work};
use crate::audit::Event;
use crate::control::Control;
use crate::run::gate::Pass;

/// Messages of one agent that wait for the store. When they are many, the agent waits too.
const LANE: usize = 256;

/// Serves one connection of an agent.
pub(super) async fn serve(control: Arc<Control>, connection: Connection, handshake: Pass) {
    let Ok(peer) = tunnel_net::tls::connection_peer(&connection, &control.trust, control.now()) else {
        return;
    };
    let first = tokio::time::timeout(DEADLINE, first_message(&connection)).await;
    let (send, recv, device, hello) = match (first, peer.identity.subject.clone()) {
        (Ok(Some((send, recv, FromAgent::Hello(hello)))), Subject::Device(device)) => {
            (send, recv, device, hello)
        }
        (Ok(Some((send, recv, FromAgent::Probe(_)))), _) => {
            drop(handshake);
            return probe::serve(&control, &connection, (send, recv), &peer).await;
        }
        (first, _) => {
            let code = match first {
                // Others of the fleet may measure, and do not link (THREATS CRT-04).
                Ok(Some((_, _, FromAgent::Hello(_)))) => Code::CertUsage,
                _ => Code::Protocol,
            };
            connection.close(quinn::VarInt::from_u32(code as u32), code.as_str().as_bytes());
            return;
        }
    };
    drop(handshake);
    // Who carries live tunnels does not wait: what is decided about them has to reach it.
    let has_live = hello
        .tunnels
        .iter()
        .any(|id| control.tunnels.is_live_at(*id, &device));
    if !has_live && let Err(after) = control.admit_link(&device, Instant::now()) {
        shed(&control, &connection, send, after).await;
        return;
    }
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let report = report::cleaned(hello.report);
    let presence = Presence::new(Instant::now(), control.now(), connection.rtt(), hello.clock);
    let link = Arc::new(Link {
        device,
        peer,
        nonce: hello.nonce,
        version: report::word(&hello.version),
        connection,
        outbox,
        kept: watch::Sender::new(false),
        receipts: Receipts::default(),
        moved: Notify::new(),
        state: Mutex::new(State {
            presence,
            report,
            told: None,
            echo: None,
            offers: Default::default(),
        }),
    });
    // Asked before anything can be offered over this link.
    let missing = control.tunnels.missing_at(&link.peer.identity, &hello.tunnels);
    let replaced = control.links.insert(&link);
    if let Some(older) = &replaced {
        older.close(Code::TunnelLost);
    }
    // INVARIANT: trust may have been taken away between the handshake and here. Whoever takes it away does so first and
    // then goes through the links, so either that meets this link or this check does (THREATS I6).
    if control.revoked.holds(&link.peer) {
        link.close(Code::Revoked);
    }
    // What was cut while it was away it is asked to confirm, with the reason.
    control.ask_again(&link, &hello.tunnels);
    control.rotate_again(&link);
    // A tunnel that is cut from here on is told over this link; one that was cut before is on this list.
    let ended = unknown_tunnels(&control, &link.device, &hello.tunnels);
    if !missing.is_empty() {
        control.spawn(work::end_missing(control.clone(), link.device.clone(), missing));
    }
    attend(
        &control,
        &link,
        Streams { send, recv, messages },
        ended,
        replaced.is_some(),
    )
    .await;
}

/// Waits for the peer's stream and its first message.
async fn first_message(connection: &Connection) -> Option<(SendStream, RecvStream, FromAgent)> {
    let (send, mut recv) = connection.accept_bi().await.ok()?;
    let first = read_message(&mut recv).await.ok()?;
    Some((send, recv, first))
}

/// Returns which of the agent's tunnels this server does not have.
fn unknown_tunnels(control: &Control, device: &DeviceId, tunnels: &[TunnelId]) -> Vec<TunnelId> {
    let is_live = |id: &TunnelId| {
        control.tunnels.is_live_at(*id, device) || control.tunnels.unconfirmed().is_pending(*id)
    };
    tunnels.iter().copied().filter(|id| !is_live(id)).collect()
}

struct Streams {
    send: SendStream,
    recv: RecvStream,
    messages: mpsc::Receiver<FromServer>,
}

/// Runs the tasks of a link until it ends, and notes its beginning and its end.
async fn attend(
    control: &Arc<Control>,
    link: &Arc<Link>,
    streams: Streams,
    ended: Vec<TunnelId>,
    replaced: bool,
) {
    let up = Instant::now();
    let welcome = Welcome {
        node: control.node.clone(),
        clock: control.now(),
        grant_key: control.keys.grant_key.verifying_key(),
        ended,
        keeps_sessions: true,
    };
    let (lane, waiting) = mpsc::channel(LANE);
    let mut tasks = JoinSet::new();
    let writer = tasks.spawn(write(link.clone(), streams.send, welcome, streams.messages));
    tasks.spawn(work::work(control.clone(), link.clone(), waiting, replaced));
    if control.evidence.is_paused() {
        link.send(FromServer::Recording(false));
    }
    tracing::info!(device = %link.device, carrier = %link.carrier(control), "device linked");

    let why = read(control, link, streams.recv, lane).await;
    link.connection.close(quinn::VarInt::from_u32(0), b"");
    control.links.remove(link);
    link.abandon_offers();
    writer.abort();
    // The lane's sender is gone, so the worker ends when it has done what waits.
    while tasks.join_next().await.is_some() {}
    tracing::info!(device = %link.device, why, "device unlinked");
    if !control.is_stopping() {
        let linked_secs = up.elapsed().as_secs();
        let event = Event::DeviceUnlinked {
            device: link.device.clone(),
            why: why.to_owned(),
            linked_secs,
        };
        control.note_by(&link.peer.identity, event).await;
    }
}

/// Writes what is for the agent, until the link ends.
async fn write(
    link: Arc<Link>,
    mut send: SendStream,
    welcome: Welcome,
    mut messages: mpsc::Receiver<FromServer>,
) {
    if write_message(&mut send, &FromServer::Welcome(welcome))
        .await
        .is_err()
    {
        return;
    }
    loop {
        // Both are cancel-safe.
        let message = tokio::select! {
            message = messages.recv() => message,
            keys = link.receipts.next() => Some(FromServer::SessionsKept(keys)),
        };
        let Some(message) = message else { return };
        let is_last = matches!(message, FromServer::Goodbye(_));
        if write_message(&mut send, &message).await.is_err() {
            return;
        }
        if is_last {
            let _ = send.finish();
            // The agent has all of it, or is gone.
            let _ = send.stopped().await;
            link.connection.close(quinn::VarInt::from_u32(0), b"");
            return;
        }
    }
}

/// Reads what the agent says until the link ends, and returns why it did.
async fn read(
    control: &Arc<Control>,
    link: &Link,
    mut recv: RecvStream,
    lane: mpsc::Sender<FromAgent>,
) -> &'static str {
    loop {
        let message = match read_message(&mut recv).await {
            Ok(message) => message,
            // A kind that this release does not know; the frame has been read whole.
            Err(MessageError::Frame(FrameError::Content(error))) if error.is_unknown_variant() => continue,
            Err(error) => return why(link, &error),
        };
        match message {
            FromAgent::Ping(ping) => answer_ping(control, link, &ping),
            FromAgent::OfferAnswer(answer) => link.handle_answer(answer),
            FromAgent::TunnelEnded(ended) => {
                control.confirm_cut(ended.tunnel, &link.device);
                if lane.send(FromAgent::TunnelEnded(ended)).await.is_err() {
                    return "internal";
                }
            }
            FromAgent::Hello(_) => return "protocol",
            other => {
                if lane.send(other).await.is_err() {
                    return "internal";
                }
            }
        }
    }
}

fn answer_ping(control: &Control, link: &Link, ping: &Ping) {
    let proof = u32::from_be_bytes(control.random()).into();
    let (_, seen_as) = control.relay.peer_of(link.connection.remote_address());
    let mut state = link.state();
    state.presence.handle_ping(Instant::now(), ping, proof);
    state.echo = ping.echo_after_millis.map(|millis| {
        let (outbox, echo) = (link.outbox.clone(), FromServer::Echo(ping.seq));
        let after = Duration::from_millis(millis.into()).min(LINK_IDLE_TIMEOUT);
        AbortOnDropHandle::new(tokio::task::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = outbox.try_send(echo);
        }))
    });
    let told = state.told.replace(seen_as);
    let news = told != Some(seen_as);
    drop(state);
    if news && told.is_some() {
        link.moved.notify_one();
    }
    let pong = Pong {
        seq: ping.seq,
        proof,
        seen_as: news.then(|| seen_as.to_string()),
        clock: control.now(),
    };
    link.send(FromServer::Pong(pong));
}

/// Says in a word why a link ended.
fn why(link: &Link, error: &MessageError) -> &'static str {
    match (error, link.connection.close_reason()) {
        (_, Some(ConnectionError::LocallyClosed)) => "cut",
        (_, Some(ConnectionError::TimedOut)) => "lost",
        (_, Some(ConnectionError::ApplicationClosed(_))) | (MessageError::Ended, _) => "left",
        (MessageError::Frame(_), _) => "protocol",
        _ => "broken",
    }
}

/// Asks an agent to come back later, since the server stops.
pub(super) fn say_goodbye(link: &Link, after: Duration) {
    link.send(FromServer::Goodbye(goodbye(
        Code::Unavailable,
        "the server stops",
        after,
    )));
}

fn goodbye(code: Code, words: &str, after: Duration) -> Goodbye {
    Goodbye {
        reason: Refusal::new(code, words),
        after_millis: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Sends an agent away for a while, before it has cost more than its handshake.
async fn shed(control: &Control, connection: &Connection, mut send: SendStream, after: Duration) {
    control.shed.fetch_add(1, Ordering::Relaxed);
    let message = FromServer::Goodbye(goodbye(Code::Busy, "many agents come at once", after));
    let told = async {
        if write_message(&mut send, &message).await.is_ok() {
            let _ = send.finish();
            let _ = send.stopped().await;
        }
    };
    let _ = tokio::time::timeout(DEADLINE, told).await;
    connection.close(quinn::VarInt::from_u32(0), b"");
}
