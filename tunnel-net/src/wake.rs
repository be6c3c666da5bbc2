//! Sending at once after an outage, whatever is still taken for under way.
//!
//! What was sent into an outage counts as under way until an answer shows that it is lost. When that is a whole window
//! full, congestion control lets nothing out before the probe timer, which has doubled all the while: after half an hour
//! it may be half an hour away. So a leg that has found its way again lets one train of packets pass.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Lets a connection send once beyond its window. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<State>);

#[derive(Debug, Default)]
struct State {
    called: AtomicBool,
    paths: AtomicU64,
}

impl Wake {
    /// Lets the next train of packets pass.
    pub fn call(&self) {
        self.0.called.store(true, Ordering::Relaxed);
    }

    /// Notes that packets take another path from now on.
    pub(crate) fn moved(&self) {
        self.0.paths.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many paths the packets of the leg have taken.
    pub(crate) fn paths(&self) -> u64 {
        self.0.paths.load(Ordering::Relaxed)
    }

    /// Puts this in front of the controllers that a factory makes.
    pub(crate) fn before(
        &self,
        inner: Arc<dyn ControllerFactory + Send + Sync>,
    ) -> Arc<dyn ControllerFactory + Send + Sync> {
        Arc::new(Factory {
            inner,
            wake: self.clone(),
        })
    }
}

struct Factory {
    inner: Arc<dyn ControllerFactory + Send + Sync>,
    wake: Wake,
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Woken {
            inner: Arc::clone(&self.inner).build(now, current_mtu),
            wake: self.wake.clone(),
        })
    }
}

struct Woken {
    inner: Box<dyn Controller>,
    wake: Wake,
}

impl Controller for Woken {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.wake.0.called.store(false, Ordering::Relaxed);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.wake.0.called.load(Ordering::Relaxed) {
            // quinn does not pace a window of this size either.
            return u64::MAX;
        }
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            wake: self.wake.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}
