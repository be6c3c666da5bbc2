//! What ends tunnels by itself: their time, silence, and what the relay tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tunnel_proto::bind::Role;
use tunnel_proto::{CircuitId, Code, DeviceId, OperatorName, TunnelId};

use super::attendance::LISTEN_EVERY;
use super::reconsider::Touched;
use crate::control::Control;
use crate::relay::RelayEvent;

/// How long to sleep where no tunnel has a deadline.
const NO_DEADLINE: Duration = Duration::from_secs(30);

/// How often tunnels are weighed anew only because time has passed: rules speak of hours and minutes.
const WEIGH_EVERY: Duration = Duration::from_secs(60);

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
        let wait = next.map_or(NO_DEADLINE, |next| next.saturating_duration_since(now));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed => {}
            () = control.stopping() => {}
        }
    }
}

/// Ends each tunnel whose operator is gone.
pub(crate) async fn attendance(control: Arc<Control>) {
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(LISTEN_EVERY) => {}
            () = control.stopping() => return,
        }
        let abandoned = control.listen(Instant::now());
        control.end_tunnels(abandoned, Code::TunnelLost, BY).await;
    }
}

/// Weighs the live tunnels anew as time passes, if the policy in force asks for the time or for ages.
pub(crate) async fn time(control: Arc<Control>) {
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(WEIGH_EVERY) => {}
            () = control.stopping() => return,
        }
        if control.in_force().engine.depends_on_time() {
            // A store that fails was logged; the next round looks at all of them again.
            let _ = control.reconsider(&Touched::All, BY).await;
        }
    }
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
            RelayEvent::Rotated {
                circuit,
                role,
                rotations,
            } => control.leg_rotated(circuit, role, rotations),
            RelayEvent::BytesSpent { circuit } => {
                let tunnel = control.tunnels.table().of_circuit(circuit);
                if let Some(tunnel) = tunnel {
                    let owner = control.clone();
                    control.spawn(async move { owner.keep_spent(&tunnel).await });
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
    /// Listens to the operators' legs, and returns the tunnels that nobody is at any more.
    fn listen(&self, now: Instant) -> Vec<TunnelId> {
        let signs = self.relay.signs(Role::Source);
        let mut table = self.tunnels.table();
        table.listen(&signs, now);
        table.abandoned(now)
    }

    /// Makes room for one more tunnel, of which policy lets the operator have `most` to the device, where ghosts are in the
    /// way. Says whether any were.
    pub(super) async fn make_room(
        self: &Arc<Self>,
        operator: &OperatorName,
        device: &DeviceId,
        most: Option<u32>,
    ) -> bool {
        let now = Instant::now();
        let ghosts = self.tunnels.table().in_the_way(operator, device, most, now);
        for ghost in &ghosts {
            // A record that fails was logged and is tried again.
            let _ = self.end_tunnel(*ghost, Code::TunnelLost, BY).await;
        }
        !ghosts.is_empty()
    }

    /// Writes down that both legs of a tunnel are bound.
    async fn connected(&self, tunnel: TunnelId) {
        let circuit = self.tunnels.get(tunnel).map(|live| live.facts.circuit);
        let traffic = circuit.and_then(|circuit| self.relay.traffic(circuit));
        let paths = traffic.map(|traffic| traffic.paths).unwrap_or_default();
        if let Err(error) = self.store.tunnel_open(tunnel, paths).await {
            tracing::warn!(tunnel = %tunnel.fmt_short(), %error, "a tunnel's opening could not be recorded");
        }
    }

    /// Tells the task that ends tunnels that there is a new one.
    pub(super) fn deadline_changed(&self) {
        self.tunnels.deadline_changed.notify_one();
    }
}
