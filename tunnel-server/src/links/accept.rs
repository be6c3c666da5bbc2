//! The QUIC side of control links: handshakes with limits and a deadline.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, Incoming};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel_proto::carrier::Carrier;

use super::{returns, serve};
use crate::control::Control;
use crate::run::gate::{Gate, HANDSHAKES, PER_PROVEN_SOURCE, Pass};

/// How long a handshake may take, and then the agent's first message (THREATS part 5).
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// How long links have to end in good order when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Accepts control links until the server stops, and then says goodbye to them.
pub(crate) async fn accept(control: Arc<Control>, endpoint: Endpoint, stop: CancellationToken) {
    let gate = Gate::new(HANDSHAKES);
    let tasks = TaskTracker::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stop.cancelled() => None,
        };
        let Some(incoming) = incoming else { break };
        let Some((incoming, place)) = admit(&control, &gate, incoming) else {
            continue;
        };
        let control = control.clone();
        tasks.spawn(async move {
            let Ok(accepting) = incoming.accept() else { return };
            let Ok(Ok(connection)) = tokio::time::timeout(DEADLINE, accepting).await else {
                return;
            };
            serve::serve(control, connection, place).await;
        });
    }
    let links = control.links.all();
    for (number, link) in links.iter().enumerate() {
        let after = returns::moment(number, links.len(), control.returns_per_sec, fastrand::u64(..));
        serve::say_goodbye(link, after);
    }
    tasks.close();
    let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    endpoint.close(quinn::VarInt::from_u32(0), b"");
}

/// Lets a handshake begin, or asks its sender to prove its address first, or sends it away.
///
/// A WebSocket's address is proven by TCP, and everybody else proves it with a Retry: nothing is kept of a handshake before
/// that, and no more is sent than came. What QUIC itself allows is three times as much, and quinn a packet on top of that
/// (THREATS DAT-08, DAT-12).
fn admit(control: &Control, gate: &Gate, incoming: Incoming) -> Option<(Incoming, Pass)> {
    let (carrier, source) = control.relay.peer_of(incoming.remote_address());
    if !incoming.remote_address_validated() && carrier != Carrier::WebSocket {
        // It fails only where the address is proven.
        let _ = incoming.retry();
        return None;
    }
    match gate.enter(source.ip(), PER_PROVEN_SOURCE) {
        Some(place) => Some((incoming, place)),
        None => {
            incoming.refuse();
            None
        }
    }
}
