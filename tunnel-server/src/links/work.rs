//! What an agent says and the store has to know: done beside the reading, so that keepalives never wait for a disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tunnel_proto::bind::Role;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::message::{Attach, Attached, EndTunnel, FromAgent, FromServer, SessionEnded, TunnelEnded};
use tunnel_proto::outage::Outage;
use tunnel_proto::token::Presenter;
use tunnel_proto::{Code, DeviceId, TunnelId};

use super::renew::Renewals;
use super::{Link, report};
use crate::audit::Event;
use crate::control::Control;
use crate::control::sessions::Told;
use crate::store::StoreError;
use crate::store::outages::cleaned;
use crate::tunnels::reconsider::Touched;

/// Operations of one agent that are with the store at once; they share its commits.
const AT_ONCE: usize = 64;

/// How long an agent that is back has to say why tunnels of before have ended.
const TO_SAY_WHY: Duration = Duration::from_secs(5);

/// How often a device's report is taken in: each one that says something new has its tunnels weighed anew.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// When what a device says of itself is taken in: the newest, and not more often than once in [`REPORT_EVERY`]. Pure.
#[derive(Debug)]
struct Paced {
    waits: bool,
    free: Instant,
}

impl Paced {
    const fn new(now: Instant) -> Self {
        Self {
            waits: false,
            free: now,
        }
    }

    /// There is something that was not taken in.
    const fn handle_news(&mut self) {
        self.waits = true;
    }

    /// Returns when to take the newest in.
    fn due(&self) -> Option<Instant> {
        self.waits.then_some(self.free)
    }

    /// It is being taken in.
    fn handle_taken(&mut self, now: Instant) {
        *self = Self {
            waits: false,
            free: now + REPORT_EVERY,
        };
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Does one agent's work until its link has ended and nothing waits any more.
pub(super) async fn work(
    control: Arc<Control>,
    link: Arc<Link>,
    mut waiting: mpsc::Receiver<FromAgent>,
    replaced: bool,
) {
    let mut place = None;
    keep_place(&control, &link, &mut place).await;
    note_linked(&control, &link, replaced).await;
    let mut at_once = JoinSet::new();
    let mut renewals = Renewals::default();
    let (mut reports, mut moves) = (Paced::new(Instant::now()), Paced::new(Instant::now()));
    loop {
        let message = tokio::select! {
            message = waiting.recv() => message,
            () = until(reports.due()) => {
                reports.handle_taken(Instant::now());
                seen(&control, &link).await;
                continue;
            }
            () = until(moves.due()) => {
                moves.handle_taken(Instant::now());
                keep_place(&control, &link, &mut place).await;
                continue;
            }
            () = link.moved.notified() => {
                moves.handle_news();
                continue;
            }
        };
        let Some(message) = message else { break };
        while at_once.try_join_next().is_some() {}
        if at_once.len() >= AT_ONCE {
            at_once.join_next().await;
        }
        let (control, link) = (control.clone(), link.clone());
        match message {
            FromAgent::Attach(request) => drop(at_once.spawn(attach(control, link, request))),
            FromAgent::SessionEnded(session) => drop(at_once.spawn(session_ended(control, link, session))),
            FromAgent::TunnelEnded(ended) => {
                // The sessions of a tunnel are recorded before its end.
                while at_once.join_next().await.is_some() {}
                tunnel_ended(&control, &link, ended).await;
            }
            FromAgent::Renew(request) => renewals.answer(&control, &link, &request).await,
            FromAgent::Report(report) => {
                link.state().report = report::cleaned(report);
                reports.handle_news();
            }
            FromAgent::Outages(told) => keep_outages(&control, &link, told).await,
            // What the reader answers itself, and kinds of a newer release.
            _ => {}
        }
    }
    // A report that waits still is passed over: the next link begins with a newer one, which may be in the store by now.
    while at_once.join_next().await.is_some() {}
    forget_place(&control, &link, place).await;
}

/// Records that the link is up and what the device says of itself.
async fn note_linked(control: &Arc<Control>, link: &Link, replaced: bool) {
    seen(control, link).await;
    link.kept.send_replace(true);
    let (_, source) = control.relay.peer_of(link.connection.remote_address());
    let event = Event::DeviceLinked {
        device: link.device.clone(),
        carrier: link.carrier(control).as_str().to_owned(),
        source: source.ip().to_string(),
        version: link.version.clone(),
        replaced,
    };
    control.note_by(&link.peer.identity, event).await;
}

/// Keeps where the link is, so that the device can be told of a crash. Without that it finds out by itself, only later.
async fn keep_place(control: &Control, link: &Arc<Link>, kept: &mut Option<SocketAddr>) {
    let (carrier, source) = control.relay.peer_of(link.connection.remote_address());
    let place = (carrier == Carrier::Udp).then_some(source);
    // A link that was replaced says nothing more.
    if place == *kept || !control.links.is_current(link) {
        return;
    }
    match place {
        Some(place) => tell_failed(link, control.store.device_linked(&link.device, place).await),
        None => forget_place(control, link, *kept).await,
    }
    *kept = place;
}

/// Forgets where a link was, unless a newer one has written where it is.
async fn forget_place(control: &Control, link: &Link, kept: Option<SocketAddr>) {
    if let Some(place) = kept {
        tell_failed(link, control.store.device_left(&link.device, place).await);
    }
}

fn tell_failed(link: &Link, kept: Result<(), StoreError>) {
    if let Err(error) = kept {
        tracing::warn!(device = %link.device, %error, "where a link is could not be kept");
    }
}

/// Keeps what the device says, and weighs its tunnels anew if that is something else than before.
async fn seen(control: &Arc<Control>, link: &Link) {
    let (report, now) = (link.report(), control.now());
    let facts = report::facts(&report);
    let seen = control
        .store
        .device_seen(&link.device, &report, facts, &link.version, now)
        .await;
    match seen {
        Ok(true) => {
            // A device that has no tunnel changes nothing for others, however many come back at once.
            let touched = Touched::Devices([link.device.clone()].into());
            if control.tunnels.table().touched(&touched).is_empty() {
                return;
            }
            // A store that fails was logged; what was not looked at goes on, and is looked at with the next change.
            let _ = control.reconsider(&touched, "server").await;
        }
        Ok(false) => {}
        Err(error) => tracing::warn!(device = %link.device, %error, "a device's report could not be kept"),
    }
}

/// Keeps what a device tells of its outages, and says so: it tells them again until then.
async fn keep_outages(control: &Control, link: &Link, told: Vec<Outage>) {
    let now = control.now();
    let outages = cleaned(told, now);
    let ids = outages.iter().map(|outage| outage.id).collect();
    match control.store.keep_outages(&link.device, outages, now).await {
        Ok(()) => link.send(FromServer::OutagesKept(ids)),
        Err(error) => tracing::warn!(device = %link.device, %error, "a device's outages could not be kept"),
    }
}

/// Redeems the token of a device's leg.
async fn attach(control: Arc<Control>, link: Arc<Link>, request: Attach) {
    let Attach { tunnel, token } = request;
    let by = Presenter {
        identity: &link.peer.identity,
        key: link.peer.key,
        tunnel,
        role: Role::Destination,
    };
    let answer = match control.redeem(&token, &by).await {
        Ok((circuit, key)) => FromServer::Attached(Attached {
            tunnel,
            circuit,
            leg_key: key.secret().clone(),
            udp_port: control.ports.udp,
            websocket_port: control.ports.tcp,
        }),
        Err(code) => FromServer::AttachRefused(EndTunnel {
            tunnel,
            reason: code.into(),
        }),
    };
    link.send(answer);
}

/// Records a session that has ended or was refused.
async fn session_ended(control: Arc<Control>, link: Arc<Link>, session: SessionEnded) {
    // Looked up first: one that is forgotten by now has its end in the store.
    let live = control.tunnels.get(session.tunnel);
    let traffic = live.and_then(|live| {
        let forwarded = control.relay.traffic(live.facts.circuit);
        forwarded.or_else(|| live.carried.get().cloned())
    });
    let device = link.device.clone();
    control
        .session_told(Told {
            device,
            session,
            traffic,
        })
        .await;
}

/// Ends a tunnel that the device has ended. For one that was cut this is the device's confirmation.
async fn tunnel_ended(control: &Arc<Control>, link: &Link, ended: TunnelEnded) {
    let Some(live) = control.tunnels.get(ended.tunnel) else {
        return;
    };
    if live.facts.device == link.device {
        // A record that fails was logged and is tried again.
        let _ = control
            .end_at_device(ended.tunnel, ended.reason, &link.device)
            .await;
    }
}

/// Ends the tunnels that an agent no longer has: it was started anew, or ended them while it was not linked. In the second
/// case it says why, and has a moment to do so.
pub(super) async fn end_missing(control: Arc<Control>, device: DeviceId, missing: Vec<TunnelId>) {
    tokio::select! {
        () = tokio::time::sleep(TO_SAY_WHY) => {
            control.end_tunnels(missing, Code::TunnelLost, &format!("device/{device}")).await;
        }
        // They are asked for again when the server is back.
        () = control.stopping() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_is_taken_in_at_once_and_of_many_the_newest_a_second_later() {
        let start = Instant::now();
        let mut reports = Paced::new(start);
        assert_eq!(reports.due(), None);
        reports.handle_news();
        assert_eq!(reports.due(), Some(start));
        reports.handle_taken(start);
        assert_eq!(reports.due(), None);
        for _ in 0..1000 {
            reports.handle_news();
        }
        assert_eq!(reports.due(), Some(start + REPORT_EVERY));
        reports.handle_taken(start + REPORT_EVERY);
        assert_eq!(reports.due(), None);
    }
}
