//! The live tunnels of this server and the states that they go through, apart from sockets and clocks.
//!
//! ```text
//! deciding ──recorded──> opening ──both legs bound──> open
//!     └──────────────────────┴──────────end───────────┴──────> ended
//! ```
//!
//! INVARIANT: a tunnel stands here before its decision is written, and the writing refuses a decision from what has changed
//! since. So whoever takes trust away, and goes through the table when that is written, meets every tunnel that was
//! decided under the old trust (THREATS TOK-14, POL-03, POL-04).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunnel_policy::{Approval, Limits};
use tunnel_proto::api::Traffic;
use tunnel_proto::batch::BatchHash;
use tunnel_proto::bind::Role;
use tunnel_proto::defaults::BIND_DEADLINE;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::{FactName, FactValue, Subject};
use tunnel_proto::{CircuitId, Code, DeviceId, Identity, OperatorName, ServiceName, TunnelId, UnixTime};

use super::attendance::Attendance;
use super::reconsider::Touched;
use super::rotate::Legs;

/// Live tunnels of one operator.
const MAX_OF_OPERATOR: usize = 1024;
/// Live tunnels to one device.
const MAX_OF_DEVICE: usize = 256;
/// Live tunnels in all.
const MAX: usize = 50_000;

/// What is fixed about a tunnel from its start.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) id: TunnelId,
    pub(crate) circuit: CircuitId,
    pub(crate) operator: OperatorName,
    pub(crate) holder_key: KeyHash,
    /// From when on the operator's certificate was valid, which tells its age.
    pub(crate) certified_at: UnixTime,
    pub(crate) device: DeviceId,
    pub(crate) device_key: KeyHash,
    pub(crate) services: Vec<ServiceName>,
    pub(crate) reason: Option<String>,
    /// What others have agreed to, if that was needed.
    pub(crate) approval: Option<Approval>,
    /// Whether it was opened without the approvals that policy asks for.
    pub(crate) break_glass: bool,
    /// The only batch of commands that it is for.
    pub(crate) batch: Option<BatchHash>,
    /// What the fleet's own authoriser said, if it was asked.
    pub(crate) authoriser: Option<BTreeMap<FactName, FactValue>>,
    /// What policy lets it use.
    pub(crate) limits: Limits,
    /// Where the request came from.
    pub(crate) source: IpAddr,
    pub(crate) opened_at: UnixTime,
    pub(crate) expires_at: UnixTime,
    /// When the tunnel ends, by the clock that nobody sets (THREATS TOK-11, SRV-09).
    pub(crate) deadline: Instant,
}

/// How far a tunnel is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Asked for; the decision is not durable, so nothing may attach.
    Deciding,
    /// Decided and recorded; the legs may attach.
    Opening,
    /// Both legs have been bound.
    Open,
    /// Over.
    Ended(Code),
}

impl Phase {
    /// Returns the state as the API calls it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Deciding | Self::Opening => "opening",
            Self::Open => "open",
            Self::Ended(_) => "ended",
        }
    }
}

/// A tunnel that this server has in memory.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) facts: Facts,
    pub(crate) legs: Legs,
    /// What its circuit had carried when it was closed: sessions are told of before the tunnel's end is recorded.
    pub(crate) carried: OnceLock<Traffic>,
    phase: watch::Sender<Phase>,
    /// Cancelled when its end is recorded, or it never came to be.
    gone: CancellationToken,
}

impl Live {
    /// Waits until the tunnel's end is recorded, or it never came to be.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Returns the phase as it is.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Returns a receiver that hears every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }
}

#[derive(Debug)]
struct Entry {
    live: Arc<Live>,
    bound: [bool; 2],
    since: Instant,
    /// What is known of the operator's end.
    operator: Attendance,
}

/// The live tunnels.
#[derive(Debug, Default)]
pub(crate) struct Table {
    tunnels: BTreeMap<TunnelId, Entry>,
    by_circuit: HashMap<CircuitId, TunnelId>,
    by_operator: HashMap<OperatorName, BTreeSet<TunnelId>>,
    by_device: HashMap<DeviceId, BTreeSet<TunnelId>>,
    /// Of those that have not ended.
    deadlines: BTreeSet<(Instant, TunnelId)>,
}

impl Table {
    /// Takes a tunnel in.
    ///
    /// # Errors
    /// [`Code::Limit`] if the operator, the device or the server has too many, or the operator more than policy lets it
    /// have to the device.
    pub(crate) fn insert(&mut self, facts: Facts, phase: Phase, now: Instant) -> Result<Arc<Live>, Code> {
        self.insert_rotated(facts, phase, [0; 2], now)
    }

    /// As [`Table::insert`], for a tunnel whose legs' keys were rotated so many times.
    ///
    /// # Errors
    /// [`Code::Limit`] if the operator, the device or the server has too many.
    pub(crate) fn insert_rotated(
        &mut self,
        facts: Facts,
        phase: Phase,
        rotations: [u32; 2],
        now: Instant,
    ) -> Result<Arc<Live>, Code> {
        let of_operator = self.by_operator.get(&facts.operator).map_or(0, BTreeSet::len);
        let of_device = self.by_device.get(&facts.device).map_or(0, BTreeSet::len);
        if self.tunnels.len() >= MAX || of_operator >= MAX_OF_OPERATOR || of_device >= MAX_OF_DEVICE {
            return Err(Code::Limit);
        }
        if let Some(most) = facts.limits.tunnels
            && self.between(&facts.operator, &facts.device).len() >= most as usize
        {
            return Err(Code::Limit);
        }
        let id = facts.id;
        self.by_circuit.insert(facts.circuit, id);
        self.by_operator
            .entry(facts.operator.clone())
            .or_default()
            .insert(id);
        self.by_device.entry(facts.device.clone()).or_default().insert(id);
        self.deadlines.insert((facts.deadline, id));
        let live = Arc::new(Live {
            facts,
            legs: Legs::new(rotations),
            carried: OnceLock::new(),
            phase: watch::Sender::new(phase),
            gone: CancellationToken::new(),
        });
        self.tunnels.insert(
            id,
            Entry {
                live: live.clone(),
                bound: [false; 2],
                since: now,
                operator: Attendance::new(now),
            },
        );
        Ok(live)
    }

    /// Returns the tunnels of an operator to a device that have not ended.
    fn between(&self, operator: &OperatorName, device: &DeviceId) -> BTreeSet<TunnelId> {
        let ids = self.by_operator.get(operator).into_iter().flatten();
        let live = ids.filter_map(|id| self.tunnels.get(id)).map(|entry| &entry.live);
        live.filter(|live| live.facts.device == *device && !matches!(live.phase(), Phase::Ended(_)))
            .map(|live| live.facts.id)
            .collect()
    }

    /// Notes that the decision is durable.
    ///
    /// # Errors
    /// Returns why the tunnel has ended meanwhile; it must not open then.
    pub(crate) fn recorded(&mut self, id: TunnelId) -> Result<(), Code> {
        let Some(entry) = self.tunnels.get(&id) else {
            return Err(Code::TunnelClosed);
        };
        let phase = entry.live.phase();
        match phase {
            Phase::Ended(why) => Err(why),
            Phase::Deciding => {
                entry.live.phase.send_replace(Phase::Opening);
                Ok(())
            }
            Phase::Opening | Phase::Open => Ok(()),
        }
    }

    /// Notes that a leg is bound; returns the tunnel when it is open by that, the first time.
    pub(crate) fn bound(&mut self, circuit: CircuitId, role: Role) -> Option<TunnelId> {
        let id = *self.by_circuit.get(&circuit)?;
        let entry = self.tunnels.get_mut(&id)?;
        entry.bound[role as usize] = true;
        if entry.bound != [true; 2] || entry.live.phase() != Phase::Opening {
            return None;
        }
        entry.live.phase.send_replace(Phase::Open);
        Some(id)
    }

    /// Ends a tunnel. Returns it, with the phase that it was in, to the one caller that did it.
    #[must_use]
    pub(crate) fn end(&mut self, id: TunnelId, why: Code) -> Option<(Arc<Live>, Phase)> {
        let live = self.tunnels.get(&id)?.live.clone();
        let before = live.phase();
        if matches!(before, Phase::Ended(_)) {
            return None;
        }
        live.phase.send_replace(Phase::Ended(why));
        self.deadlines.remove(&(live.facts.deadline, id));
        Some((live, before))
    }

    /// Forgets a tunnel that has ended and is recorded as such.
    pub(crate) fn forget(&mut self, id: TunnelId) {
        let Some(entry) = self.tunnels.remove(&id) else {
            return;
        };
        entry.live.gone.cancel();
        let facts = &entry.live.facts;
        self.by_circuit.remove(&facts.circuit);
        self.deadlines.remove(&(facts.deadline, id));
        remove(&mut self.by_operator, &facts.operator, id);
        remove(&mut self.by_device, &facts.device, id);
    }

    /// Returns a tunnel.
    pub(crate) fn get(&self, id: TunnelId) -> Option<Arc<Live>> {
        self.tunnels.get(&id).map(|entry| entry.live.clone())
    }

    /// Returns the tunnel of a circuit.
    pub(crate) fn of_circuit(&self, circuit: CircuitId) -> Option<Arc<Live>> {
        self.by_circuit.get(&circuit).and_then(|id| self.get(*id))
    }

    /// Returns every tunnel that has not ended.
    pub(crate) fn live(&self) -> Vec<Arc<Live>> {
        self.deadlines
            .iter()
            .filter_map(|(_, id)| self.get(*id))
            .collect()
    }

    /// Returns every tunnel that has not ended and that a change can touch. What is not touched is not looked at.
    pub(crate) fn touched(&self, touched: &Touched) -> Vec<Arc<Live>> {
        match touched {
            Touched::All => self.live(),
            Touched::Devices(devices) => {
                self.not_ended(devices.iter().filter_map(|id| self.by_device.get(id)).flatten())
            }
            Touched::Operators(names) => self.not_ended(
                names
                    .iter()
                    .filter_map(|name| self.by_operator.get(name))
                    .flatten(),
            ),
            Touched::Approval(id) => self.resting(|approval| approval.id == Some(*id)),
            Touched::AgreedBy(name) => self.resting(|approval| approval.approvers.contains(name)),
        }
    }

    /// Returns every tunnel that has not ended and rests on such an approval.
    fn resting(&self, fits: impl Fn(&Approval) -> bool) -> Vec<Arc<Live>> {
        let mut live = self.live();
        live.retain(|live| live.facts.approval.as_ref().is_some_and(&fits));
        live
    }

    fn not_ended<'a>(&self, ids: impl Iterator<Item = &'a TunnelId>) -> Vec<Arc<Live>> {
        let is_live = |live: &Arc<Live>| !matches!(live.phase(), Phase::Ended(_));
        ids.filter_map(|id| self.get(*id)).filter(is_live).collect()
    }

    /// Returns every tunnel that has not ended and depends on an identity.
    pub(crate) fn of_identity(&self, identity: &Identity) -> Vec<Arc<Live>> {
        let ids = match &identity.subject {
            Subject::Device(id) => self.by_device.get(id),
            Subject::Operator(name) => self.by_operator.get(name),
            Subject::Server(_) => None,
        };
        self.not_ended(ids.into_iter().flatten())
    }

    /// Returns the tunnels whose time is over.
    pub(crate) fn expired(&self, now: Instant) -> Vec<TunnelId> {
        self.deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .map(|(_, id)| *id)
            .collect()
    }

    /// Returns when the next tunnel's time is over.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Notes what is learnt of the operator's end of a tunnel.
    pub(crate) fn attend(&mut self, id: TunnelId, learn: impl FnOnce(&mut Attendance)) {
        if let Some(entry) = self.tunnels.get_mut(&id) {
            learn(&mut entry.operator);
        }
    }

    /// Notes for each circuit how many signs of life of the operator there have been so far.
    pub(crate) fn listen(&mut self, signs: &[(CircuitId, u64)], now: Instant) {
        for (circuit, signs) in signs {
            if let Some(id) = self.by_circuit.get(circuit).copied() {
                self.attend(id, |operator| operator.handle_signs(now, *signs));
            }
        }
    }

    /// Returns the tunnels without an operator, and those that were never opened by both ends.
    pub(crate) fn abandoned(&self, now: Instant) -> Vec<TunnelId> {
        let is_abandoned = |entry: &Entry| match entry.live.phase() {
            Phase::Open => entry.operator.is_gone(now),
            // One that was opening when the server stopped; of others the relay tells.
            Phase::Opening => now.saturating_duration_since(entry.since) >= 2 * BIND_DEADLINE,
            Phase::Deciding | Phase::Ended(_) => false,
        };
        let tunnels = self.tunnels.iter();
        tunnels
            .filter(|(_, entry)| is_abandoned(entry))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Returns which tunnels make room for one more of this operator to this device, of which policy lets it have `most`:
    /// those whose operators have been silent longest, and long enough. Nobody does where that would not be enough.
    pub(crate) fn in_the_way(
        &self,
        operator: &OperatorName,
        device: &DeviceId,
        most: Option<u32>,
        now: Instant,
    ) -> BTreeSet<TunnelId> {
        let (none, between) = (BTreeSet::new(), self.between(operator, device));
        // The narrowest first: what leaves it leaves the others too.
        let bounds = [
            (&between, most.map_or(usize::MAX, |most| most as usize)),
            (self.by_operator.get(operator).unwrap_or(&none), MAX_OF_OPERATOR),
            (self.by_device.get(device).unwrap_or(&none), MAX_OF_DEVICE),
        ];
        let mut leaving = BTreeSet::new();
        for (ids, most) in bounds {
            let staying = ids.difference(&leaving).count();
            let too_many = (staying + 1).saturating_sub(most);
            if too_many == 0 {
                continue;
            }
            let mut ghosts: Vec<_> = ids
                .difference(&leaving)
                .filter_map(|id| Some((self.silence(*id, now)?, *id)))
                .collect();
            if ghosts.len() < too_many {
                return BTreeSet::new();
            }
            ghosts.sort_unstable();
            leaving.extend(ghosts.into_iter().rev().take(too_many).map(|(_, id)| id));
        }
        leaving
    }

    /// Returns how long the operator of a tunnel has been silent, if that is long enough to give way. One that has ended
    /// gives nothing away.
    fn silence(&self, id: TunnelId, now: Instant) -> Option<Duration> {
        let entry = self.tunnels.get(&id)?;
        let is_over = matches!(entry.live.phase(), Phase::Ended(_));
        entry.operator.gives_way(now).filter(|_| !is_over)
    }
}

/// Takes an id out of an index, and the index's entry when it was the last.
fn remove<K: Eq + std::hash::Hash>(index: &mut HashMap<K, BTreeSet<TunnelId>>, key: &K, id: TunnelId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn facts(n: u8, now: Instant) -> Facts {
        Facts {
            id: TunnelId::from_bytes([n; 16]),
            circuit: CircuitId::from_bytes([n; 16]),
            operator: "ana".parse().unwrap(),
            holder_key: KeyHash::of_spki(b"ana"),
            certified_at: UnixTime::from_secs(1),
            device: "pump".parse().unwrap(),
            device_key: KeyHash::of_spki(b"pump"),
            services: vec!["ssh".parse().unwrap()],
            reason: None,
            approval: None,
            break_glass: false,
            batch: None,
            authoriser: None,
            limits: Limits::default(),
            source: IpAddr::from([127, 0, 0, 1]),
            opened_at: UnixTime::from_secs(1),
            expires_at: UnixTime::from_secs(1 + u64::from(n)),
            deadline: now + Duration::from_secs(n.into()),
        }
    }

    fn id(n: u8) -> TunnelId {
        TunnelId::from_bytes([n; 16])
    }

    #[test]
    fn a_tunnel_goes_through_its_states_once() {
        let now = Instant::now();
        let mut table = Table::default();
        let live = table.insert(facts(1, now), Phase::Deciding, now).unwrap();
        let circuit = live.facts.circuit;
        assert_eq!(table.bound(circuit, Role::Source), None);
        assert_eq!(table.recorded(id(1)), Ok(()));
        assert_eq!(live.phase().as_str(), "opening");
        assert_eq!(table.bound(circuit, Role::Source), None);
        assert_eq!(table.bound(circuit, Role::Destination), Some(id(1)));
        assert_eq!(table.bound(circuit, Role::Destination), None);
        assert_eq!(live.phase(), Phase::Open);
        assert!(
            table
                .end(id(1), Code::TunnelClosed)
                .is_some_and(|(_, before)| before == Phase::Open)
        );
        assert!(table.end(id(1), Code::Revoked).is_none());
        assert_eq!(live.phase(), Phase::Ended(Code::TunnelClosed));
        assert!(table.live().is_empty() && table.get(id(1)).is_some());
        table.forget(id(1));
        assert!(table.get(id(1)).is_none() && table.of_circuit(circuit).is_none());
        assert!(table.by_operator.is_empty() && table.by_device.is_empty() && table.deadlines.is_empty());
    }

    /// THREATS TOK-14.
    #[test]
    fn what_was_cut_while_it_was_decided_never_opens() {
        let now = Instant::now();
        let mut table = Table::default();
        table.insert(facts(1, now), Phase::Deciding, now).unwrap();
        assert!(
            table
                .end(id(1), Code::Revoked)
                .is_some_and(|(_, before)| before == Phase::Deciding)
        );
        assert_eq!(table.recorded(id(1)), Err(Code::Revoked));
        assert_eq!(table.recorded(id(2)), Err(Code::TunnelClosed));
    }

    #[test]
    fn deadlines_come_in_order() {
        let now = Instant::now();
        let mut table = Table::default();
        for n in [3, 1, 2] {
            table.insert(facts(n, now), Phase::Opening, now).unwrap();
        }
        assert_eq!(table.next_deadline(), Some(now + Duration::from_secs(1)));
        assert_eq!(table.expired(now), []);
        assert_eq!(table.expired(now + Duration::from_secs(2)), [id(1), id(2)]);
        let _ = table.end(id(1), Code::TunnelExpired);
        assert_eq!(table.expired(now + Duration::from_secs(2)), [id(2)]);
    }

    #[test]
    fn an_identity_has_its_own_tunnels() {
        let now = Instant::now();
        let mut table = Table::default();
        table.insert(facts(1, now), Phase::Opening, now).unwrap();
        table
            .insert(
                Facts {
                    operator: "bob".parse().unwrap(),
                    ..facts(2, now)
                },
                Phase::Opening,
                now,
            )
            .unwrap();
        let count = |text: &str| table.of_identity(&text.parse().unwrap()).len();
        assert_eq!(count("spiffe://f/operator/ana"), 1);
        assert_eq!(count("spiffe://f/device/pump"), 2);
        assert_eq!(count("spiffe://f/server/pump"), 0);
    }

    #[test]
    fn policy_bounds_the_tunnels_of_an_operator_to_a_device() {
        let now = Instant::now();
        let mut table = Table::default();
        let one_of_two = |n| Facts {
            limits: Limits {
                tunnels: Some(2),
                ..Limits::default()
            },
            ..facts(n, now)
        };
        let elsewhere = Facts {
            device: "mill".parse().unwrap(),
            ..one_of_two(9)
        };
        for facts in [elsewhere, one_of_two(1), one_of_two(2)] {
            table.insert(facts, Phase::Opening, now).unwrap();
        }
        assert!(matches!(
            table.insert(one_of_two(3), Phase::Opening, now),
            Err(Code::Limit)
        ));
        let _ = table.end(id(1), Code::TunnelClosed);
        assert!(table.insert(one_of_two(3), Phase::Opening, now).is_ok());
    }

    #[test]
    fn what_nobody_attends_is_abandoned() {
        let start = Instant::now();
        let mut table = Table::default();
        for (n, phase) in [(1, Phase::Opening), (2, Phase::Open), (3, Phase::Open)] {
            table.insert(facts(n, start), phase, start).unwrap();
        }
        table.attend(id(2), Attendance::handle_waiting);
        let now = start + Duration::from_secs(3);
        table.listen(
            &[
                (CircuitId::from_bytes([2; 16]), 1),
                (CircuitId::from_bytes([9; 16]), 1),
            ],
            now,
        );
        table.attend(id(2), |operator| operator.handle_done(now, true));
        assert_eq!(table.abandoned(now), []);
        assert_eq!(table.abandoned(start + 2 * BIND_DEADLINE), [id(1), id(2)]);
    }

    /// THREATS part 5, with the ghosts of those who are gone left out.
    #[test]
    fn ghosts_make_room() {
        let start = Instant::now();
        let mut table = Table::default();
        let numbered = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            bytes
        };
        for n in 0..MAX_OF_DEVICE {
            let one = Facts {
                id: TunnelId::from_bytes(numbered(n)),
                circuit: CircuitId::from_bytes(numbered(n)),
                ..facts(1, start)
            };
            table.insert(one, Phase::Open, start).unwrap();
        }
        let (ana, pump, pond) = (
            "ana".parse().unwrap(),
            "pump".parse().unwrap(),
            "pond".parse().unwrap(),
        );
        let now = start + Duration::from_secs(60);
        assert_eq!(table.in_the_way(&ana, &pump, None, now).len(), 1);
        assert_eq!(
            table.in_the_way(&ana, &pond, None, now),
            [].into(),
            "there is room"
        );
        let all_but_one: Vec<_> = (0..MAX_OF_DEVICE)
            .filter(|n| ![7, 8].contains(n))
            .map(|n| (CircuitId::from_bytes(numbered(n)), 1))
            .collect();
        table.listen(&all_but_one, now);
        let [seven, eight] = [7, 8].map(|n| TunnelId::from_bytes(numbered(n)));
        assert_eq!(table.in_the_way(&ana, &pump, None, now), [eight].into());
        // One that has ended and is being written down makes no room.
        let _ = table.end(eight, Code::TunnelClosed);
        assert_eq!(table.in_the_way(&ana, &pump, None, now), [seven].into());
        table.listen(&[(CircuitId::from_bytes(numbered(7)), 1)], now);
        assert_eq!(
            table.in_the_way(&ana, &pump, None, now),
            [].into(),
            "all are heard"
        );
    }

    #[test]
    fn an_operators_own_ghosts_make_room_where_policy_counts() {
        let start = Instant::now();
        let mut table = Table::default();
        let bobs = Facts {
            operator: "bob".parse().unwrap(),
            ..facts(9, start)
        };
        let elsewhere = Facts {
            device: "mill".parse().unwrap(),
            ..facts(8, start)
        };
        for facts in [bobs, elsewhere, facts(1, start), facts(2, start)] {
            table.insert(facts, Phase::Open, start).unwrap();
        }
        let (ana, pump) = ("ana".parse().unwrap(), "pump".parse().unwrap());
        let now = start + Duration::from_secs(60);
        let in_the_way = |table: &Table, most| table.in_the_way(&ana, &pump, most, now);
        for most in [None, Some(3)] {
            assert_eq!(in_the_way(&table, most), [].into(), "there is room");
        }
        assert_eq!(in_the_way(&table, Some(2)), [id(2)].into());
        assert_eq!(in_the_way(&table, Some(1)), [id(1), id(2)].into());
        assert_eq!(in_the_way(&table, Some(0)), [].into(), "nothing would help");
        table.listen(&[(CircuitId::from_bytes([2; 16]), 1)], now);
        assert_eq!(in_the_way(&table, Some(2)), [id(1)].into());
        assert_eq!(in_the_way(&table, Some(1)), [].into(), "one is not enough");
    }

    #[test]
    fn a_device_has_a_bounded_number_of_tunnels() {
        let now = Instant::now();
        let mut table = Table::default();
        for n in 0..MAX_OF_DEVICE {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let one = Facts {
                id: TunnelId::from_bytes(bytes),
                ..facts(1, now)
            };
            table.insert(one, Phase::Opening, now).unwrap();
        }
        assert!(matches!(
            table.insert(facts(200, now), Phase::Opening, now),
            Err(Code::Limit)
        ));
    }
}
