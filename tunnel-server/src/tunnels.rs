//! Tunnels: asked for, decided, written down, offered, attached, watched, ended.
//!
//! What is true of a tunnel at this moment stands in the [`table`]; what must outlive the process stands in the store. The
//! order of each step follows from two rules: nothing opens before its decision is durable, and what is cut is cut at the
//! relay first and written down last.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tunnel_proto::api::Traffic;
use tunnel_proto::{Code, DeviceId, Identity, TunnelId};

use crate::metrics::Ended;

use self::attendance::Attendance;
use self::table::{Live, Phase, Table};
use self::unconfirmed::Unconfirmed;

mod attach;
pub(crate) mod attendance;
pub(crate) mod confirm;
mod cut;
mod end;
pub(crate) mod limits;
mod open;
pub(crate) mod reconsider;
mod recover;
pub(crate) mod rotate;
mod spent;
pub(crate) mod table;
mod unconfirmed;
pub(crate) mod watch;

#[cfg(test)]
pub(crate) mod tests;

/// The live tunnels, behind a lock that is never held for longer than a look-up.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    table: Mutex<Table>,
    /// Wakes the task that ends tunnels whose time is over, since another one may be the next.
    deadline_changed: Notify,
    /// Those that ended since the start.
    ended: Mutex<Ended>,
    unconfirmed: Mutex<Unconfirmed>,
    /// Wakes the task that raises alarms, since there is another cut to be confirmed.
    cut_changed: Notify,
    /// Counts the cuts that devices have confirmed, for those who wait for one.
    confirmations: tokio::sync::watch::Sender<u64>,
    /// Counts the tunnels that were weighed anew.
    weighed: AtomicU64,
}

impl Tunnels {
    /// Returns the table, locked.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cuts that their devices have not confirmed, locked.
    pub(crate) fn unconfirmed(&self) -> MutexGuard<'_, Unconfirmed> {
        self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a tunnel that this server has in memory.
    pub(crate) fn get(&self, id: TunnelId) -> Option<std::sync::Arc<Live>> {
        self.table().get(id)
    }

    /// Says whether a device's tunnel is alive here.
    pub(crate) fn is_live_at(&self, id: TunnelId, device: &DeviceId) -> bool {
        self.get(id)
            .is_some_and(|live| live.facts.device == *device && !matches!(live.phase(), Phase::Ended(_)))
    }

    /// Counts a tunnel that has ended.
    fn count_end(&self, why: Code, traffic: Option<&Traffic>) {
        let bytes = traffic.map_or(0, |traffic| traffic.bytes_in.saturating_add(traffic.bytes_out));
        self.counts().count(why, bytes);
    }

    /// Returns how many tunnels have ended since the start, by code.
    pub(crate) fn ended(&self) -> Vec<(Code, u64)> {
        self.counts().by_code()
    }

    /// Returns how many bytes they have carried.
    pub(crate) fn carried(&self) -> u64 {
        self.counts().bytes()
    }

    fn counts(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a request waits for a tunnel's end, until what is returned is told how that ended.
    pub(crate) fn waits(&self, id: TunnelId) -> Waiting<'_> {
        self.table().attend(id, Attendance::handle_waiting);
        Waiting {
            tunnels: self,
            id,
            answered: false,
        }
    }

    /// Returns the tunnels that a device should have, by what is known here, and does not have, by its own list.
    pub(crate) fn missing_at(&self, device: &Identity, tunnels: &[TunnelId]) -> Vec<TunnelId> {
        let accepted = |phase| matches!(phase, Phase::Opening | Phase::Open);
        let live = self.table().of_identity(device);
        let missing = live
            .iter()
            .filter(|live| accepted(live.phase()) && !tunnels.contains(&live.facts.id));
        missing.map(|live| live.facts.id).collect()
    }
}

/// A request that waits for a tunnel's end. Dropped before it was answered, its peer has broken it off.
#[derive(Debug)]
pub(crate) struct Waiting<'t> {
    tunnels: &'t Tunnels,
    id: TunnelId,
    answered: bool,
}

impl Waiting<'_> {
    /// The request is answered.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let (now, broken_off) = (Instant::now(), !self.answered);
        self.tunnels
            .table()
            .attend(self.id, |attendance| attendance.handle_done(now, broken_off));
    }
}
