//! What devices confirm of cuts: asked again when a device is back, an alarm when it does not come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tunnel_proto::message::{EndTunnel, FromServer};
use tunnel_proto::{Code, DeviceId, TunnelId};

use super::table::Live;
use super::unconfirmed::Pending;
use crate::control::Control;
use crate::links::Link;
use crate::store::UnconfirmedCut;

/// How long the record of a cut may take before its confirmation is recorded all the same.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// How long the link of a device that has lost its trust stays for its last confirmations.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the task that raises alarms sleeps at most.
const LONGEST: Duration = Duration::from_secs(60);

impl Control {
    /// Notes that a tunnel was cut and that its device has to confirm it.
    pub(super) fn await_confirmation(&self, live: &Live, why: Code) {
        let pending = Pending {
            device: live.facts.device.clone(),
            why,
            cut_at: Instant::now(),
            grant_ends: live.facts.deadline,
            alarmed: false,
        };
        self.tunnels.unconfirmed().insert(live.facts.id, pending);
        self.tunnels.cut_changed.notify_one();
    }

    /// Takes in that a tunnel has ended at a device. One that is not waited for changes nothing.
    pub(crate) fn confirm_cut(self: &Arc<Self>, tunnel: TunnelId, device: &DeviceId) {
        let confirmed = self.tunnels.unconfirmed().confirm(tunnel, device, Instant::now());
        let Some(confirmed) = confirmed else { return };
        self.tunnels.confirmations.send_modify(|count| *count += 1);
        // A device may be quicker than the disk: the record of the cut comes first.
        let (control, live, device) = (self.clone(), self.tunnels.get(tunnel), device.clone());
        self.spawn(async move {
            if let Some(live) = live {
                let _ = tokio::time::timeout(RECORD_DEADLINE, live.gone()).await;
            }
            let millis = u64::try_from(confirmed.after.as_millis()).unwrap_or(u64::MAX);
            let noted = control
                .store
                .cut_confirmed(tunnel, &device, millis, confirmed.alarmed);
            if let Err(error) = noted.await {
                tracing::warn!(tunnel = %tunnel.fmt_short(), %error, "a confirmed cut could not be recorded");
            }
        });
    }

    /// Asks a device that is back to confirm what it has not. What it does not have any more is confirmed by that.
    pub(crate) fn ask_again(self: &Arc<Self>, link: &Link, alive: &[TunnelId]) {
        let pending = self.tunnels.unconfirmed().of_device(&link.device);
        for (tunnel, why) in pending {
            if alive.contains(&tunnel) {
                let reason = why.into();
                link.send(FromServer::EndTunnel(EndTunnel { tunnel, reason }));
            } else {
                self.confirm_cut(tunnel, &link.device);
            }
        }
    }

    /// Closes the link of a device that has lost its trust, as soon as it has confirmed what was cut.
    pub(crate) fn close_link(self: &Arc<Self>, link: Arc<Link>, why: Code) {
        if self.tunnels.unconfirmed().of_device(&link.device).is_empty() {
            return link.close(why);
        }
        let control = self.clone();
        self.spawn(async move {
            let mut confirmations = control.tunnels.confirmations.subscribe();
            let confirmed =
                confirmations.wait_for(|_| control.tunnels.unconfirmed().of_device(&link.device).is_empty());
            tokio::select! {
                _ = tokio::time::timeout(LAST_WORDS, confirmed) => {}
                () = control.stopping() => {}
            }
            link.close(why);
        });
    }

    /// Takes in what was not confirmed before the start.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub(super) async fn recover_cuts(&self) -> Result<(), Code> {
        let cuts = self
            .store
            .unconfirmed_cuts()
            .await
            .map_err(|error| self.store_failed(&error))?;
        let (now, wall) = (Instant::now(), self.now());
        for cut in cuts {
            let UnconfirmedCut {
                tunnel,
                device,
                why,
                cut_at,
                expires_at,
                alarmed,
            } = cut;
            let pending = Pending {
                device,
                why,
                cut_at: now.checked_sub(wall.since(cut_at)).unwrap_or(now),
                grant_ends: now + expires_at.since(wall),
                alarmed,
            };
            self.tunnels.unconfirmed().insert(tunnel, pending);
        }
        Ok(())
    }
}

/// Raises an alarm for each cut that its device does not confirm in time.
pub(crate) async fn alarms(control: Arc<Control>) {
    while !control.is_stopping() {
        let changed = control.tunnels.cut_changed.notified();
        let (now, due, next) = {
            let (now, mut cuts) = (Instant::now(), control.tunnels.unconfirmed());
            (now, cuts.handle_timeout(now), cuts.next_timeout())
        };
        for (tunnel, pending) in due {
            tracing::warn!(tunnel = %tunnel.fmt_short(), device = %pending.device, why = pending.why.as_str(),
                "a device does not confirm that a tunnel was cut; the relay forwards nothing of it");
            let noted = control
                .store
                .cut_unconfirmed(tunnel, &pending.device, pending.why);
            if let Err(error) = noted.await {
                tracing::error!(tunnel = %tunnel.fmt_short(), %error, "an alarm could not be recorded");
            }
        }
        let wait = next.map_or(LONGEST, |next| next.saturating_duration_since(now).min(LONGEST));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed => {}
            () = control.stopping() => {}
        }
    }
}
