//! What rounds show: arrivals, round trips, losses, and queues that do not go away.

use std::time::{Duration, Instant};

/// Share of lost packets from which on they count as congestion, and from which on they count in full.
const LOSS_COUNTS: (f64, f64) = (0.03, 0.06);

/// How many packets the share of lost ones is taken of, about.
const LOSS_MEMORY: u64 = 512;

/// For how many rounds they count in full at most.
const LOSS_ROUNDS: u32 = 16;

/// Rounds with a queue of more than twice the target after which it is asked whose it is.
const CROWDED_ROUNDS: u32 = 6;

/// How long it must have stood, too: another connection that starts makes a queue for a moment.
const CROWDED: Duration = Duration::from_millis(500);

/// What has come since the round began.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) start: Instant,
    pub(super) acked: u64,
    pub(super) rtt: Option<Duration>,
    /// The shortest of the last few round trips, and of how many.
    recent: (Duration, u32),
    pub(super) most_in_flight: u64,
    pub(super) over: bool,
}

/// Bytes that arrived and that were lost; what is old counts less.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    acked: u64,
    lost: u64,
    rounds: u32,
    /// Rounds in a row without a loss.
    without: u32,
}

/// A queue that giving way does not make shorter.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Crowd {
    /// Rounds in a row in which it was seen, and since when.
    rounds: u32,
    since: Option<Instant>,
    /// The window before.
    pub(super) window: u64,
}

impl Crowd {
    pub(super) fn add(&mut self, now: Instant) {
        self.rounds += 1;
        self.since.get_or_insert(now);
    }

    pub(super) const fn clear(&mut self) {
        self.rounds = 0;
        self.since = None;
    }

    pub(super) fn is_one(&self, now: Instant) -> bool {
        self.rounds >= CROWDED_ROUNDS && self.since.is_some_and(|since| now >= since + CROWDED)
    }
}

impl Round {
    pub(super) const fn new(start: Instant) -> Self {
        Self {
            start,
            acked: 0,
            rtt: None,
            recent: (Duration::MAX, 0),
            most_in_flight: 0,
            over: false,
        }
    }

    pub(super) fn add(&mut self, sent: Instant, bytes: u64, rtt: Duration) {
        self.acked += bytes;
        self.rtt = Some(self.rtt.map_or(rtt, |least| least.min(rtt)));
        self.recent = (self.recent.0.min(rtt), self.recent.1 + 1);
        self.over |= sent >= self.start;
    }

    /// Returns the shortest of the last few round trips, once there are enough of them.
    pub(super) fn take_recent(&mut self) -> Option<Duration> {
        let (rtt, count) = self.recent;
        (count >= 8).then(|| {
            self.recent = (Duration::MAX, 0);
            rtt
        })
    }
}

impl Losses {
    pub(super) fn add(&mut self, acked: u64, lost: u64, mtu: u64) {
        self.acked += acked;
        self.lost += lost;
        if lost > 0 {
            self.without = 0;
        }
        if self.acked + self.lost > LOSS_MEMORY * mtu {
            self.fade();
        }
    }

    pub(super) fn end_round(&mut self) {
        self.rounds += 1;
        self.without += 1;
        if self.without > LOSS_ROUNDS {
            // One moment in which all was lost would otherwise weigh for as long as hundreds of packets take.
            self.lost = 0;
        }
        if self.rounds >= LOSS_ROUNDS {
            self.fade();
        }
    }

    fn fade(&mut self) {
        self.rounds = 0;
        self.acked /= 2;
        self.lost /= 2;
    }

    pub(super) fn share(&self) -> f64 {
        float(self.lost) / float((self.acked + self.lost).max(1))
    }

    /// Returns how far the losses count as congestion, from 0 to 1.
    pub(super) fn excess(&self) -> f64 {
        let (from, full) = LOSS_COUNTS;
        ((self.share() - from) / (full - from)).clamp(0.0, 1.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "windows and counts are far below 2^52")]
pub(super) const fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// Returns whole bytes; a window is far below what a `u64` holds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits"
)]
pub(super) const fn bytes_of(bytes: f64) -> u64 {
    bytes.clamp(0.0, 1e12) as u64
}

pub(super) fn scaled(bytes: u64, by: f64) -> u64 {
    bytes_of(float(bytes) * by)
}
