//! What ends tunnels by itself: their time, silence, and what the relay tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tunnel_proto::defaults::{BIND_DEADLINE, TUNNEL_IDLE};
use tunnel_proto::{CircuitId, Code, TunnelId};

use super::table::{Live, Phase};
use crate::control::Control;
use crate::relay::RelayEvent;

/// How often the circuits are asked whether anything still passes.
const LISTEN_EVERY: Duration = Duration::from_secs(30);

/// How long a circuit may be without a single datagram. The agent ends a tunnel that has no session, so this is for
/// tunnels whose both ends are gone; a live one, however quiet, has its keepalives.
const SILENCE: Duration = TUNNEL_IDLE;

/// Who ends what nobody asked to end.
const BY: &str = "server";

/// Ends each tunnel when its time is over.
pub(crate) async fn deadlines(control: Arc<Control>) {
    while !control.is_stopping() {
        let changed = control.tunnels.deadline_changed.notified();
        let (now, expired, next) = {
            let (now, table) = (Instant::now(), control.tunnels.table());
            (now, table.expired(now), table.next_deadline())
        };
        if !expired.is_empty() {
            let ended = expired.into_iter();
            let cuts: Vec<_> = ended
                .filter_map(|id| control.cut(id, Code::TunnelExpired))
                .collect();
            // The next one's time does not wait for a disk.
            let owner = control.clone();
            control.spawn(async move { owner.record_ends(cuts, BY).await });
            continue;
        }
        let wait = next.map_or(LISTEN_EVERY, |next| next.saturating_duration_since(now));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed => {}
            () = control.stopping() => {}
        }
    }
}

/// Ends each tunnel whose circuit has been silent for too long.
pub(crate) async fn silence(control: Arc<Control>) {
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(LISTEN_EVERY) => {}
            () = control.stopping() => return,
        }
        let silent = silent(&control, Instant::now());
        control.end_tunnels(silent, Code::TunnelLost, BY).await;
    }
}

fn silent(control: &Control, now: Instant) -> Vec<TunnelId> {
    let live = control.tunnels.table().live();
    let is_silent = |live: &Live| {
        let patience = match live.phase() {
            Phase::Open => SILENCE,
            // One that was opening when the server stopped; of others the relay tells.
            Phase::Opening => 2 * BIND_DEADLINE,
            Phase::Deciding | Phase::Ended(_) => return false,
        };
        let traffic = control.relay.traffic(live.facts.circuit).unwrap_or_default();
        let datagrams = traffic.datagrams_in.wrapping_add(traffic.datagrams_out);
        let since = control.tunnels.table().heard(live.facts.id, datagrams, now);
        since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    };
    live.iter()
        .filter(|live| is_silent(live))
        .map(|live| live.facts.id)
        .collect()
}

/// Takes in what the relay tells, until the server stops.
pub(crate) async fn relay_events(control: Arc<Control>, mut events: mpsc::Receiver<RelayEvent>) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = control.stopping() => None,
        };
        let Some(event) = event else { return };
        match event {
            RelayEvent::Bound {
                circuit,
                role,
                carrier,
            } => {
                let opened = control.tunnels.table().bound(circuit, role);
                tracing::debug!(?circuit, role = role.as_str(), %carrier, "leg bound");
                if let Some(tunnel) = opened {
                    let owner = control.clone();
                    control.spawn(async move { owner.connected(tunnel).await });
                }
            }
            RelayEvent::ByteLimit { circuit } => end(&control, circuit, Code::ByteLimit),
            RelayEvent::NeverBound { circuit } => end(&control, circuit, Code::TunnelLost),
        }
    }
}

/// Cuts at once, and leaves the writing to a task of its own: the relay does not wait for a disk.
fn end(control: &Arc<Control>, circuit: CircuitId, why: Code) {
    let tunnel = control.tunnels.table().of_circuit(circuit);
    let Some(cut) = tunnel.and_then(|tunnel| control.cut(tunnel.facts.id, why)) else {
        return;
    };
    let owner = control.clone();
    // A record that fails was logged and is tried again; there is nobody to tell.
    control.spawn(async move {
        let _ = owner.record_end(cut, BY).await;
    });
}

impl Control {
    /// Writes down that both legs of a tunnel are bound.
    async fn connected(&self, tunnel: TunnelId) {
        if let Err(error) = self.store.tunnel_open(tunnel).await {
            tracing::warn!(tunnel = %tunnel.fmt_short(), %error, "a tunnel's opening could not be recorded");
        }
    }

    /// Tells the task that ends tunnels that there is a new one.
    pub(super) fn deadline_changed(&self) {
        self.tunnels.deadline_changed.notify_one();
    }
}
