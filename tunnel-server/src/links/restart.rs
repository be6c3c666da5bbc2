//! What devices are told after a crash.
//!
//! An idle device learns that its server is a new one from the answer to its next keepalive, and until then nobody can reach
//! it. So it is told: a datagram to where its link was makes it ask at once. It is told at the rate at which devices may come
//! back. What a server that stops in good order told its devices before stays as it is: none of them listens there any more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tunnel_proto::DeviceId;

use crate::control::Control;

/// How often a device is told that does not come: datagrams get lost.
const TIMES: usize = 3;

/// How long one that was told has to come before it is told again.
const PAUSE: Duration = Duration::from_secs(3);

/// Tells the devices that had a link when the server ended, until they are back, or were told often enough, or the server
/// stops.
pub(crate) async fn tell(control: Arc<Control>, linked: Vec<(DeviceId, SocketAddr)>) {
    tokio::select! {
        () = tell_all(&control, linked) => {}
        () = control.stopping() => {}
    }
}

async fn tell_all(control: &Control, mut away: Vec<(DeviceId, SocketAddr)>) {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / control.returns_per_sec.max(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..TIMES {
        for (device, from) in &away {
            if control.links.get(device).is_none() {
                pace.tick().await;
                control.relay.tell_restarted(*from);
            }
        }
        if away.is_empty() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        away.retain(|(device, _)| control.links.get(device).is_none());
    }
}
