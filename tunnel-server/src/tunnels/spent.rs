//! What tunnels have spent of the bytes that policy allows them, kept over restarts.
//!
//! While a tunnel lives, a step of its limit is kept as spent in advance: a crash costs it at most that step, and gives
//! nothing back as long as the disk is faster than half a step. A server that stops in good order keeps it exactly.

use crate::control::Control;
use crate::relay::byte_step;

use super::table::Live;

impl Control {
    /// Keeps what a tunnel has spent, and the next step.
    pub(super) async fn keep_spent(&self, live: &Live) {
        let facts = &live.facts;
        let (Some(max), Some(spent)) = (facts.limits.bytes, self.relay.spent(facts.circuit)) else {
            return;
        };
        let ahead = spent.saturating_add(byte_step(max)).min(max);
        if let Err(error) = self.store.tunnel_spends(facts.id, ahead).await {
            tracing::warn!(tunnel = %facts.id.fmt_short(), %error, "what a tunnel has spent could not be kept");
        }
    }

    /// Keeps exactly what every tunnel has spent. To be called when the relay forwards nothing more.
    pub(crate) async fn keep_all_spent(&self) {
        let live = self.tunnels.table().live();
        let spent = live
            .iter()
            .filter_map(|live| Some((live.facts.id, self.relay.spent(live.facts.circuit)?)));
        if let Err(error) = self.store.tunnels_have_spent(spent.collect()).await {
            tracing::warn!(%error, "what the tunnels have spent could not be kept");
        }
    }
}
