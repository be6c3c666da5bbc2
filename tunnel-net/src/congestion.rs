//! Congestion control of end-to-end connections: [`tunnel_proto::congestion`] in the shape that quinn asks for.
//!
//! quinn sees one peer address for ever and never learns that packets have begun to take another path. The leg counts its
//! paths, and the controller looks at the count.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use tunnel_proto::congestion::Congestion;

use crate::wake::Wake;

/// Makes the controllers of the connections over a leg.
pub(crate) struct Controllers {
    /// What counts the leg's paths.
    pub(crate) wake: Wake,
}

impl ControllerFactory for Controllers {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Controlled {
            machine: Congestion::new(now, mtu),
            known: self.wake.paths(),
            wake: self.wake.clone(),
        })
    }
}

#[derive(Clone)]
struct Controlled {
    machine: Congestion,
    wake: Wake,
    /// The count of paths that the machine knows of.
    known: u64,
}

impl Controlled {
    fn look(&mut self, now: Instant) {
        let paths = self.wake.paths();
        if paths != self.known {
            self.known = paths;
            self.machine.handle_new_path(now);
        }
    }
}

impl Controller for Controlled {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.look(now);
        self.machine.handle_sent(bytes);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        self.look(now);
        self.machine.handle_ack(now, sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, _app_limited: bool, _largest_acked: Option<u64>) {
        self.machine.handle_acked(now, in_flight);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.look(now);
        self.machine.handle_loss(now, sent, lost_bytes, persistent);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.machine.handle_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.machine.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.machine.first_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fills the window on the way that is gone does not keep packets from the new one.
    #[test]
    fn a_new_path_of_the_leg_makes_room_for_its_first_packets() {
        let (wake, now) = (Wake::default(), Instant::now());
        let factory = Arc::new(Controllers { wake: wake.clone() });
        let mut controller = factory.build(now, 1200);
        let first = controller.window();
        controller.on_sent(now, first, 9);
        wake.moved();
        controller.on_sent(now, 1200, 10);
        assert_eq!(controller.window(), 2 * first);
        controller.on_sent(now, 1200, 11);
        assert_eq!(
            controller.window(),
            2 * first,
            "the same path twice is no new one"
        );
    }
}
