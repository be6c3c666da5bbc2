//! Cuts that their devices have not confirmed, apart from sockets and clocks.
//!
//! The relay has stopped a tunnel before it stands here, so nothing reaches the device through it. What is open is whether
//! the device has ended its own side. A cut that is not confirmed in time is an alarm; it is over when the device confirms
//! late, or when the grant's own time is over, since the device enforces that by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tunnel_proto::{Code, DeviceId, TunnelId};

/// How long a device has to confirm a cut before that is an alarm: a round trip of the worst line, some times over.
pub(crate) const CONFIRM_DEADLINE: Duration = Duration::from_secs(10);

/// Most cuts that are waited for; as many as there may be live tunnels. The oldest makes room, which is logged.
const MAX: usize = 50_000;

/// A cut that waits for its device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub(crate) device: DeviceId,
    pub(crate) why: Code,
    pub(crate) cut_at: Instant,
    /// When the tunnel's grant is over.
    pub(crate) grant_ends: Instant,
    /// Whether the alarm was raised.
    pub(crate) alarmed: bool,
}

/// What came of a confirmation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Confirmed {
    pub(crate) after: Duration,
    pub(crate) alarmed: bool,
}

/// The cuts that wait for their devices.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed {
    cuts: BTreeMap<TunnelId, Pending>,
    by_device: HashMap<DeviceId, BTreeSet<TunnelId>>,
    timeouts: BTreeSet<(Instant, TunnelId)>,
}

impl Pending {
    /// Returns when something is due: first the alarm, then the end of the grant.
    fn due(&self) -> Instant {
        if self.alarmed {
            self.grant_ends
        } else {
            self.grant_ends.min(self.cut_at + CONFIRM_DEADLINE)
        }
    }
}

impl Unconfirmed {
    /// Takes a cut in. A second cut of a tunnel changes nothing.
    pub(crate) fn insert(&mut self, tunnel: TunnelId, pending: Pending) {
        if self.cuts.contains_key(&tunnel) {
            return;
        }
        if self.cuts.len() >= MAX
            && let Some(&(_, oldest)) = self.timeouts.first()
        {
            tracing::error!(tunnel = %oldest.fmt_short(), "too many unconfirmed cuts; this one is given up");
            self.remove(oldest);
        }
        self.timeouts.insert((pending.due(), tunnel));
        self.by_device
            .entry(pending.device.clone())
            .or_default()
            .insert(tunnel);
        self.cuts.insert(tunnel, pending);
    }

    /// A device has confirmed that a tunnel of its own has ended; `None` if that is not waited for.
    pub(crate) fn confirm(&mut self, tunnel: TunnelId, device: &DeviceId, now: Instant) -> Option<Confirmed> {
        if self.cuts.get(&tunnel)?.device != *device {
            return None;
        }
        let pending = self.remove(tunnel)?;
        Some(Confirmed {
            after: now.saturating_duration_since(pending.cut_at),
            alarmed: pending.alarmed,
        })
    }

    /// Returns the cuts whose alarm is due, each once, and forgets those whose grants are over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<(TunnelId, Pending)> {
        let mut alarms = Vec::new();
        while let Some(&(due, tunnel)) = self.timeouts.first() {
            if due > now {
                break;
            }
            self.timeouts.pop_first();
            let Some(pending) = self.cuts.get_mut(&tunnel) else {
                continue;
            };
            if now >= pending.grant_ends {
                self.remove(tunnel);
                continue;
            }
            pending.alarmed = true;
            self.timeouts.insert((pending.due(), tunnel));
            alarms.push((tunnel, pending.clone()));
        }
        alarms
    }

    /// Returns when [`Unconfirmed::handle_timeout`] is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timeouts.first().map(|(due, _)| *due)
    }

    /// Says whether a cut waits for its device.
    pub(crate) fn is_pending(&self, tunnel: TunnelId) -> bool {
        self.cuts.contains_key(&tunnel)
    }

    /// Returns the cuts that a device has not confirmed, with why they were made.
    pub(crate) fn of_device(&self, device: &DeviceId) -> Vec<(TunnelId, Code)> {
        let ids = self.by_device.get(device).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.cuts.get(id)?.why))).collect()
    }

    /// Returns how many cuts of a device have raised an alarm that is not over.
    pub(crate) fn alarms_of(&self, device: &DeviceId) -> usize {
        let ids = self.by_device.get(device).into_iter().flatten();
        ids.filter(|id| self.cuts.get(id).is_some_and(|pending| pending.alarmed))
            .count()
    }

    /// Returns how many cuts have raised an alarm that is not over.
    pub(crate) fn alarms(&self) -> usize {
        self.cuts.values().filter(|pending| pending.alarmed).count()
    }

    fn remove(&mut self, tunnel: TunnelId) -> Option<Pending> {
        let pending = self.cuts.remove(&tunnel)?;
        self.timeouts.remove(&(pending.due(), tunnel));
        if let Some(ids) = self.by_device.get_mut(&pending.device) {
            ids.remove(&tunnel);
            if ids.is_empty() {
                self.by_device.remove(&pending.device);
            }
        }
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(number: u64) -> TunnelId {
        TunnelId::from_bytes(u128::from(number).to_be_bytes())
    }

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn pending(name: &str, now: Instant) -> Pending {
        Pending {
            device: device(name),
            why: Code::Cut,
            cut_at: now,
            grant_ends: now + HOUR,
            alarmed: false,
        }
    }

    #[test]
    fn a_cut_that_is_confirmed_in_time_is_no_alarm() {
        let now = Instant::now();
        let mut cuts = Unconfirmed::default();
        cuts.insert(id(1), pending("pump", now));
        let later = now + Duration::from_millis(30);
        assert_eq!(
            cuts.confirm(id(1), &device("pond"), later),
            None,
            "another's tunnel"
        );
        let confirmed = cuts.confirm(id(1), &device("pump"), later).unwrap();
        assert_eq!((confirmed.after, confirmed.alarmed), (later - now, false));
        assert_eq!(cuts.confirm(id(1), &device("pump"), later), None);
        assert_eq!(cuts.handle_timeout(now + HOUR), []);
        assert!(cuts.by_device.is_empty() && cuts.timeouts.is_empty());
    }

    #[test]
    fn an_unconfirmed_cut_is_one_alarm_until_it_is_confirmed_late() {
        let now = Instant::now();
        let mut cuts = Unconfirmed::default();
        cuts.insert(id(1), pending("pump", now));
        cuts.insert(id(1), pending("pump", now + HOUR));
        let due = now + CONFIRM_DEADLINE;
        assert_eq!(cuts.next_timeout(), Some(due));
        assert_eq!(cuts.handle_timeout(due - Duration::from_millis(1)), []);
        assert_eq!(cuts.alarms_of(&device("pump")), 0);
        assert_eq!(cuts.handle_timeout(due).len(), 1);
        assert_eq!(cuts.handle_timeout(due + Duration::from_secs(1)), []);
        assert_eq!((cuts.alarms(), cuts.alarms_of(&device("pump"))), (1, 1));
        assert_eq!(cuts.of_device(&device("pump")), [(id(1), Code::Cut)]);
        assert!(cuts.confirm(id(1), &device("pump"), due).unwrap().alarmed);
        assert_eq!((cuts.alarms(), cuts.next_timeout()), (0, None));
    }

    #[test]
    fn an_alarm_is_over_with_the_grant() {
        let now = Instant::now();
        let mut cuts = Unconfirmed::default();
        cuts.insert(id(1), pending("pump", now));
        assert_eq!(cuts.handle_timeout(now + CONFIRM_DEADLINE).len(), 1);
        assert_eq!(cuts.next_timeout(), Some(now + HOUR));
        assert_eq!(cuts.handle_timeout(now + HOUR), []);
        assert!(!cuts.is_pending(id(1)) && cuts.by_device.is_empty());
    }

    #[test]
    fn there_is_a_bound() {
        let now = Instant::now();
        let mut cuts = Unconfirmed::default();
        for number in 0..=MAX as u64 {
            cuts.insert(id(number), pending("pump", now + Duration::from_millis(number)));
        }
        assert_eq!(cuts.cuts.len(), MAX);
        assert!(!cuts.is_pending(id(0)) && cuts.is_pending(id(MAX as u64)));
        assert_eq!(cuts.timeouts.len(), MAX);
    }
}
