//! The end of tunnels: at the relay first, then at the agent and at whoever waits, then in the record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tunnel_proto::api::Traffic;
use tunnel_proto::backoff::Backoff;
use tunnel_proto::message::{EndTunnel, FromServer};
use tunnel_proto::{Code, DeviceId, TunnelId};

use super::table::{Live, Phase};
use crate::control::Control;
use crate::store::StoreError;

/// How long the end of a tunnel that is still being decided may take to be recorded: longer than the store's own patience.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// A tunnel that carries nothing any more, and whose end is still to be written down.
#[derive(Debug)]
pub(crate) struct Cut {
    live: Arc<Live>,
    before: Phase,
    why: Code,
    traffic: Option<Traffic>,
}

impl Control {
    /// Stops a tunnel at once: when this returns, the relay forwards nothing more of it, and the agent, the long polls and
    /// both legs have been told. Returns `None` if the tunnel is not alive.
    pub(crate) fn cut(&self, id: TunnelId, why: Code) -> Option<Cut> {
        let cut = self.stop_tunnel(id, why)?;
        self.tell_device(&cut);
        Some(cut)
    }

    /// Stops many tunnels as [`Control::cut`] does: none is told of before the relay has stopped all, since telling is work
    /// for the same cores.
    pub(crate) fn cut_all(&self, ids: impl Iterator<Item = TunnelId>, why: Code) -> Vec<Cut> {
        let cuts: Vec<_> = ids.filter_map(|id| self.stop_tunnel(id, why)).collect();
        for cut in &cuts {
            self.tell_device(cut);
        }
        cuts
    }

    fn tell_device(&self, cut: &Cut) {
        if cut.why.is_cut() {
            // Before the device is told, and before its link is looked up: one that links meanwhile finds it.
            self.await_confirmation(&cut.live, cut.why);
        }
        if let Some(link) = self.links.get(&cut.live.facts.device) {
            link.send(FromServer::EndTunnel(EndTunnel {
                tunnel: cut.live.facts.id,
                reason: cut.why.into(),
            }));
        }
    }

    /// Stops a tunnel as [`Control::cut`] does, but for the agent, which knows.
    fn stop_tunnel(&self, id: TunnelId, why: Code) -> Option<Cut> {
        let begun = Instant::now();
        let (live, before) = self.tunnels.table().end(id, why)?;
        let traffic = self.relay.close(live.facts.circuit, why);
        if let Some(traffic) = &traffic {
            let _ = live.carried.set(traffic.clone());
        }
        self.tunnels.count_end(why, traffic.as_ref());
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(tunnel = %id.fmt_short(), why = why.as_str(), micros, "tunnel ended");
        Some(Cut {
            live,
            before,
            why,
            traffic,
        })
    }

    /// Writes an end down. Until that has worked it is tried again, since a tunnel without an end would be taken for a
    /// live one after a restart.
    ///
    /// # Errors
    /// Returns the code of the first failure; the tunnel has ended all the same.
    pub(crate) async fn record_end(self: &Arc<Self>, cut: Cut, by: &str) -> Result<(), Code> {
        if cut.before == Phase::Deciding {
            // Whoever decides sees the end when the decision is durable, and records both. What is acknowledged is durable,
            // so that is waited for.
            let recorded = tokio::time::timeout(RECORD_DEADLINE, cut.live.gone()).await;
            return recorded.map_err(|_| Code::AuditUnavailable);
        }
        let id = cut.live.facts.id;
        match self.write_end(&cut, by).await {
            Ok(()) => {
                self.tunnels.table().forget(id);
                Ok(())
            }
            Err(error) => {
                tracing::error!(tunnel = %id.fmt_short(), %error, "a tunnel's end could not be recorded");
                let (control, by) = (self.clone(), by.to_owned());
                self.spawn(async move { control.record_end_later(cut, by).await });
                Err(error.code())
            }
        }
    }

    /// Writes down the end of a tunnel that was cut while its decision was on its way to the disk. Whoever cut it found
    /// neither circuit nor record.
    pub(super) async fn record_cut_at_birth(self: &Arc<Self>, live: &Arc<Live>, why: Code) {
        let cut = Cut {
            live: live.clone(),
            before: Phase::Opening,
            why,
            traffic: None,
        };
        // What cannot be written now is tried again later, and was logged.
        let _ = self.record_end(cut, "server").await;
    }

    async fn write_end(&self, cut: &Cut, by: &str) -> Result<(), StoreError> {
        self.store
            .end_tunnel(cut.live.facts.id, cut.why, by, cut.traffic.clone(), self.now())
            .await
            .map(|_| ())
    }

    async fn record_end_later(self: Arc<Self>, cut: Cut, by: String) {
        let mut backoff = Backoff::default();
        while !self.is_stopping() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100) + backoff.failed(fastrand::u64(..))) => {}
                () = self.stopping() => {}
            }
            if self.write_end(&cut, &by).await.is_ok() {
                self.tunnels.table().forget(cut.live.facts.id);
                return;
            }
        }
    }

    /// Ends one tunnel and writes it down; says whether it was alive.
    ///
    /// # Errors
    /// Returns the code of a record that could not be written; the tunnel has ended all the same.
    pub(crate) async fn end_tunnel(
        self: &Arc<Self>,
        id: TunnelId,
        why: Code,
        by: &str,
    ) -> Result<bool, Code> {
        match self.cut(id, why) {
            Some(cut) => self.record_end(cut, by).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Ends a tunnel that its device has ended, or does not take.
    ///
    /// # Errors
    /// Returns the code of a record that could not be written; the tunnel has ended all the same.
    pub(crate) async fn end_at_device(
        self: &Arc<Self>,
        id: TunnelId,
        why: Code,
        device: &DeviceId,
    ) -> Result<(), Code> {
        match self.stop_tunnel(id, why) {
            Some(cut) => self.record_end(cut, &format!("device/{device}")).await,
            None => Ok(()),
        }
    }

    /// Ends many tunnels: all are cut before the first is told of or written down. Returns how many were alive.
    pub(crate) async fn end_tunnels(
        self: &Arc<Self>,
        ids: impl IntoIterator<Item = TunnelId>,
        why: Code,
        by: &str,
    ) -> u64 {
        let cuts = self.cut_all(ids.into_iter(), why);
        let count = cuts.len() as u64;
        self.record_ends(cuts, by).await;
        count
    }

    /// Writes down the ends of many tunnels, together.
    pub(crate) async fn record_ends(self: &Arc<Self>, cuts: Vec<Cut>, by: &str) {
        let mut records = JoinSet::new();
        for cut in cuts {
            let (control, by) = (self.clone(), by.to_owned());
            // What cannot be written now is tried again later, and was logged.
            records.spawn(async move {
                let _ = control.record_end(cut, &by).await;
            });
        }
        while records.join_next().await.is_some() {}
    }
}
