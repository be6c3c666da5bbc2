//! The share of a connection beside others that fill the queue until it overflows: the window of CUBIC (RFC 9438), so that
//! neither side takes from the other.

use std::time::{Duration, Instant};

use super::SHARE_LOOK;
use super::round::{float, scaled};

/// By how much a loss lowers the window (RFC 9438 section 4.6).
const BETA: f64 = 0.7;

/// How fast the window comes back, in packets a second cubed (RFC 9438 section 5).
const C: f64 = 0.4;

/// Packets by which the window grows in a round trip at least, as fast as Reno in the mean (RFC 9438 section 4.3).
const RENO: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// How many looks have to find the same round trip as the one before them.
const SAME_LOOKS: u32 = 2;

/// The window of CUBIC, and when it is to be looked whether it is still needed.
#[derive(Clone, Debug)]
pub(super) struct Share {
    mtu: u64,
    /// Packets at the last loss.
    most: f64,
    since: Instant,
    /// What Reno's window would be, in packets.
    reno: f64,
    /// No loss has shown yet how large the window may be: it grows fast.
    late: bool,
    look_at: Instant,
    /// The round trip of the last look, and how many before it found the same.
    looked: Duration,
    same: u32,
}

impl Share {
    /// Begins with a window; `late` if others had filled the queue before there was any, so that it says nothing.
    pub(super) fn new(now: Instant, window: u64, mtu: u64, late: bool) -> Self {
        let packets = float(window) / float(mtu);
        Self {
            mtu,
            most: packets / BETA,
            since: now,
            reno: packets,
            late,
            look_at: now + SHARE_LOOK,
            looked: Duration::ZERO,
            same: 0,
        }
    }

    /// Returns the window after a round.
    pub(super) fn grown(&mut self, now: Instant, rtt: Duration, window: u64) -> u64 {
        self.reno += RENO;
        let time = (now.saturating_duration_since(self.since) + rtt).as_secs_f64();
        let back = (self.most * (1.0 - BETA) / C).cbrt();
        if self.late {
            return scaled(window, 1.5);
        }
        let cubic = C * (time - back).powi(3) + self.most;
        let packets = float(window) / float(self.mtu);
        let packets = cubic
            .clamp(packets, packets * 1.5)
            .max(self.reno.min(packets * 1.5));
        scaled(self.mtu, packets)
    }

    /// Returns the window after a loss; only the first of those that one full queue has caused lowers it.
    pub(super) fn handle_loss(&mut self, now: Instant, sent: Instant, window: u64) -> u64 {
        if sent < self.since {
            return window;
        }
        let packets = float(window) / float(self.mtu);
        // A connection that comes back lower than before gives room to newer ones (RFC 9438 section 4.7).
        self.most = if packets < self.most {
            packets * (1.0 + BETA) / 2.0
        } else {
            packets
        };
        self.late = false;
        self.since = now;
        self.reno = packets * BETA;
        scaled(window, BETA)
    }

    pub(super) fn look_due(&self, now: Instant) -> bool {
        now >= self.look_at
    }

    /// A look has found a queue, with this shortest round trip. Says whether that is the path itself, which has become
    /// longer: a queue of others is not as long again each time.
    pub(super) fn is_base(&mut self, now: Instant, rtt: Duration, target: Duration) -> bool {
        self.look_at = now + SHARE_LOOK;
        let same = rtt.abs_diff(self.looked) < target / 2;
        self.same = if same { self.same + 1 } else { 0 };
        self.looked = rtt;
        self.same >= SAME_LOOKS
    }
}
