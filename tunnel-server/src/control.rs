//! The control plane's middle: what policies, identities, tunnels, links, store and relay have in common.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel_certs::Trust;
use tunnel_net::ServerAddr;
use tunnel_net::clock::Clock;
use tunnel_proto::audit::{Checkpoint, Head};
use tunnel_proto::names::GroupName;
use tunnel_proto::{Code, DeviceId, Identity, NodeName, OperatorName, UnixTime};

use self::approvals::Decisions;
use self::authoriser::Authoriser;
use self::decide::InForce;
use self::evidence::Evidence;
use self::quotas::Quotas;
use self::steadiness::{Moment, Steadiness};
use self::suspension::Suspended;
use self::trust::Revoked;
use crate::audit::Event;
use crate::ca::{Keys, random_bytes};
use crate::failure::chain;
use crate::links::Links;
use crate::links::returns::{Arrivals, TOO_OFTEN};
use crate::notify::Target;
use crate::relay::Relay;
use crate::run::gate::Gate;
use crate::store::{Store, StoreError};
use crate::tunnels::Tunnels;

pub(crate) mod approvals;
pub(crate) mod authoriser;
pub(crate) mod decide;
pub(crate) mod evidence;
mod gathered;
mod members;
mod policies;
pub(crate) mod quotas;
pub(crate) mod retention;
pub(crate) mod sessions;
pub(crate) mod steadiness;
pub(crate) mod suspension;
pub(crate) mod trust;
mod why;

/// The ports that peers are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ports {
    /// Of the API and the WebSocket carrier.
    pub(crate) tcp: u16,
    /// Of the relay and of control links.
    pub(crate) udp: u16,
}

/// Everything that a request may need. There is one of it in a server.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) node: NodeName,
    pub(crate) identity: Identity,
    /// Where newcomers find the server.
    pub(crate) address: ServerAddr,
    pub(crate) ports: Ports,
    pub(crate) trust: Arc<Trust>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) keys: Keys,
    pub(crate) store: Store,
    pub(crate) relay: Relay,
    pub(crate) revoked: Arc<Revoked>,
    pub(crate) suspended: Suspended,
    pub(crate) policy: watch::Sender<Arc<InForce>>,
    pub(crate) decisions: Decisions,
    pub(crate) tunnels: Tunnels,
    pub(crate) links: Links,
    /// Who is asked before a tunnel opens that policy permits.
    pub(crate) authoriser: Option<Authoriser>,
    /// Who is told what was recorded.
    pub(crate) notify: Vec<Arc<Target>>,
    pub(crate) quotas: Quotas,
    pub(crate) evidence: Evidence,
    /// How long audit records are kept; for ever if absent.
    pub(crate) audit_kept: Option<Duration>,
    pub(crate) steadiness: Mutex<Steadiness>,
    pub(crate) started: Instant,
    /// How many agents are to come back in a second.
    pub(crate) returns_per_sec: u32,
    /// Agents that were sent away for a while since the start.
    pub(crate) shed: AtomicU64,
    pub(crate) arrivals: Mutex<Arrivals<DeviceId>>,
    /// Connections that measure.
    pub(crate) probes: Gate<Identity>,
    /// Work that goes on when who asked for it has left.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Control {
    /// Returns the time.
    pub(crate) fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// Returns the time with whether it can be relied on.
    pub(crate) fn moment(&self) -> Moment {
        let now = self.now();
        let mut clock = self.steadiness.lock().unwrap_or_else(PoisonError::into_inner);
        let steady = clock.is_steady(now, Instant::now());
        Moment { now, steady }
    }

    /// Returns the times by which live tunnels are judged: one that either allows goes on. While the clock has not settled
    /// after a jump there are two, as it shows and as it would show without the jump (THREATS SRV-09).
    pub(crate) fn moments(&self) -> Vec<Moment> {
        let shown = self.moment().now;
        let clock = self.steadiness.lock().unwrap_or_else(PoisonError::into_inner);
        let before = clock.without_jump(Instant::now());
        let each = [Some(shown), before].into_iter().flatten();
        each.map(|now| Moment { now, steady: true }).collect()
    }

    /// Returns random bytes that nobody can guess.
    ///
    /// # Panics
    /// If the system has none; nothing that this server does would be safe then.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        random_bytes().expect("the system has random bytes")
    }

    /// Runs work beside the caller. It is waited for when the server stops.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Runs work that changes state to its end, also when the caller leaves.
    ///
    /// # Errors
    /// Returns the work's own error, or [`Code::Internal`] if it panicked.
    pub(crate) async fn to_the_end<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Code> + Send + 'static,
    {
        self.tasks
            .spawn(work)
            .await
            .unwrap_or_else(|_| Err(Code::Internal.into()))
    }

    /// Lets a link of a device in, or says after which time its agent is to come back.
    pub(crate) fn admit_link(&self, device: &DeviceId, now: Instant) -> Result<(), Duration> {
        // Its own allowance first: who comes without end takes nothing from what all have together.
        if !self.quotas.links.take(now, device) {
            return Err(TOO_OFTEN);
        }
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.admit(device, now)
    }

    /// Says whether the server is about to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until the server is about to stop.
    pub(crate) async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Records an event on which nothing depends. One that cannot be recorded is logged.
    pub(crate) async fn note(&self, event: Event) {
        if let Err(error) = self.store.record(event).await {
            tracing::error!(error = %chain(&error), "an event could not be recorded");
        }
    }

    /// Records an event that anybody can cause; of one who causes too many they are counted only.
    pub(crate) async fn note_by(&self, by: &Identity, event: Event) {
        if self.quotas.records.take(Instant::now(), by) {
            self.note(event).await;
        } else {
            self.gather(&by.to_string(), "", &event.write().kind);
        }
    }

    /// Counts what gets no record of its own.
    pub(crate) fn gather(&self, by: &str, source: &str, what: &str) {
        self.evidence.gathered().count(by, source, what, 1, self.now());
    }

    /// Counts so many at once, if there are any.
    pub(crate) fn gather_many(&self, by: &str, what: &str, count: u64) {
        if count > 0 {
            self.evidence.gathered().count(by, "", what, count, self.now());
        }
    }

    /// Logs why the store failed, and returns the code that the peer gets.
    pub(crate) fn store_failed(&self, error: &StoreError) -> Code {
        tracing::error!(error = %chain(error), "the store failed");
        error.code()
    }

    /// Signs where the audit chain has come to.
    pub(crate) fn checkpoint(&self, head: Head) -> String {
        to_base64(&Checkpoint::of(head, self.now()).sign(&self.keys.audit_key))
    }

    /// Returns the groups of an operator; one that is not known has none.
    pub(crate) async fn groups_of(&self, operator: &OperatorName) -> Result<Vec<GroupName>, Code> {
        let record = self
            .store
            .operator(operator)
            .await
            .map_err(|error| self.store_failed(&error))?;
        Ok(record.map(|record| record.groups).unwrap_or_default())
    }
}

/// Why a request that would change the caller's own rights is refused.
pub(crate) const OWN_GROUPS: &str = "nobody changes its own groups";

/// Writes bytes as the API does.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads bytes as the API writes them; nothing longer than a token can be.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    const LONGEST: usize = tunnel_proto::cose::MAX_BYTES.div_ceil(3) * 4;
    (text.len() <= LONGEST)
        .then(|| URL_SAFE_NO_PAD.decode(text).ok())
        .flatten()
}
