//! How much of a connection may be under way: enough to use the whole path, and little more.
//!
//! The machine keeps a model of the path: the round trip without any queue, and the rate at which data arrives. It lets so
//! much be under way that the path is full and a short queue of a target length stands at its bottleneck, whatever room
//! the bottleneck has for more. Packets that are lost without a queue are the fault of a radio and not of congestion: up
//! to a few in a hundred they change nothing.
//!
//! Where somebody else fills the queue, giving way helps nobody. That is seen by the queue, which stays, and by the own
//! rate, which falls: then the machine takes its share like the others do (see `share`), and looks every few seconds
//! whether it is alone again.
//!
//! Time is handed in. One step of control is a *round*: the time until the first packet that was sent in it is
//! acknowledged.

use std::time::{Duration, Instant};

mod round;
mod share;

use round::{Crowd, Losses, Round, bytes_of, float, scaled};
use share::Share;

/// Packets that may be under way before anything is known (RFC 9002 section 7.2).
const FIRST_PACKETS: u64 = 10;

/// Packets that may always be under way: with fewer, a single lost one is noticed only by a timer.
const LEAST_PACKETS: u64 = 4;

/// Packets that may be under way however many are lost, as long as no queue stands: a radio that loses a tenth of all
/// packets is slow, but it works.
const LEAST_PACKETS_LOSSY: u64 = 16;

/// Shortest queue that is aimed at. Below, what processors and radios add by themselves would pass for a queue.
const LEAST_TARGET: Duration = Duration::from_millis(5);

/// Packets under way whose target is the longest queue, by twice, that is not suspected to be that of others.
const USUAL_PACKETS: u64 = 32;

/// How late packets are by themselves on radios and busy machines. What is no later does not make the window smaller than
/// anybody may begin with.
const USUAL_LATE: Duration = Duration::from_millis(25);

/// Shortest time of a round.
const LEAST_ROUND: Duration = Duration::from_millis(2);

/// How long the round trip without a queue is believed. Then the queue is let run empty, to see it.
const BASE_LIFETIME: Duration = Duration::from_secs(10);

/// Rounds without a queue after which the window grows faster: the path has become wider.
const EMPTY_ROUNDS: u32 = 3;

/// What a queue is in proportion to the round trip without one, at least, to be suspected: a few connections like this one
/// together keep less.
const CROWD: f64 = 0.35;

/// Rounds of such growth after which it becomes as fast as at the start.
const RAMP_ROUNDS: u32 = 6;

/// How often it is looked whether somebody else still fills the queue.
const SHARE_LOOK: Duration = Duration::from_secs(5);

/// The state of one connection's congestion control.
#[derive(Clone, Debug)]
pub struct Congestion {
    mtu: u64,
    window: u64,
    mode: Mode,
    base: Option<Base>,
    round: Round,
    /// Bytes a second that arrived in the last round and in the one before.
    rates: [f64; 2],
    losses: Losses,
    /// Rounds in a row in which the window was used and no queue stood.
    empty: u32,
    crowd: Crowd,
    /// When the path began. What was sent earlier says nothing about it.
    since: Instant,
    /// Bytes under way that were sent earlier: they take no room on this path.
    stale: u64,
    in_flight: u64,
}

#[derive(Clone, Debug)]
enum Mode {
    /// The window grows by a share of what is acknowledged, until a queue forms.
    Grow {
        gain: f64,
        best: f64,
        flat: u32,
        rounds: u32,
    },
    /// A queue of the target's length is held.
    Hold,
    /// The queue runs empty, to see the round trip without it.
    Drain(Drain),
    /// Somebody else fills the queue.
    Share(Share),
}

#[derive(Clone, Debug)]
struct Drain {
    /// Whether a round has begun in which all was sent with the smaller window.
    sent: bool,
    /// What is gone on with if others still fill the queue.
    share: Option<Share>,
    /// The window for afterwards.
    window: u64,
    /// The queue before.
    queue: Duration,
}

/// The round trip without a queue, and when it was seen last.
#[derive(Clone, Copy, Debug)]
struct Base {
    time: Duration,
    seen: Instant,
}

impl Congestion {
    /// Starts on a path of which nothing is known; `mtu` is the size of a packet in bytes.
    pub fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu.max(1));
        Self {
            mtu,
            window: FIRST_PACKETS * mtu,
            mode: Mode::grow(1.0),
            base: None,
            round: Round::new(now),
            rates: [0.0; 2],
            losses: Losses::default(),
            empty: 0,
            crowd: Crowd::default(),
            since: now,
            stale: 0,
            in_flight: 0,
        }
    }

    /// Returns how many bytes may be under way.
    pub const fn window(&self) -> u64 {
        self.window + self.stale
    }

    /// Returns how many bytes may be under way on a path of which nothing is known.
    pub const fn first_window(&self) -> u64 {
        FIRST_PACKETS * self.mtu
    }

    /// Something was sent.
    pub fn handle_sent(&mut self, bytes: u64) {
        self.in_flight += bytes;
        self.round.most_in_flight = self.round.most_in_flight.max(self.in_flight);
    }

    /// A packet has arrived. Call [`Congestion::handle_acked`] after all packets of one acknowledgement.
    pub fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        if sent < self.since {
            self.stale = self.stale.saturating_sub(bytes);
            return;
        }
        let rtt = now.saturating_duration_since(sent);
        self.losses.add(bytes, 0, self.mtu);
        self.round.add(sent, bytes, rtt);
        match &mut self.base {
            Some(base) if rtt >= base.time => {}
            base => *base = Some(Base { time: rtt, seen: now }),
        }
        if let Mode::Grow { gain, .. } = self.mode
            && 2 * self.round.most_in_flight > self.window
        {
            self.window += scaled(bytes, gain);
        }
    }

    /// All packets of an acknowledgement were handed in; `in_flight` bytes remain under way.
    pub fn handle_acked(&mut self, now: Instant, in_flight: u64) {
        self.in_flight = in_flight;
        self.round.most_in_flight = self.round.most_in_flight.max(in_flight);
        if let Some(base) = self.base
            && let Mode::Grow { gain, .. } = self.mode
            && self
                .round
                .take_recent()
                .is_some_and(|rtt| rtt > base.time + self.target(base, self.window))
        {
            self.stop_growing(gain);
        }
        if self.round.over && now >= self.round.start + LEAST_ROUND {
            let round = std::mem::replace(&mut self.round, Round::new(now));
            self.end_round(now, &round);
        }
    }

    /// Packets were lost, the last of which was sent at a time; or, with no bytes, one was marked by a full router.
    /// After `persistent` loss nothing of what was known of the path is believed.
    pub fn handle_loss(&mut self, now: Instant, sent: Instant, bytes: u64, persistent: bool) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        if sent < self.since {
            self.stale = self.stale.saturating_sub(bytes);
            return;
        }
        if persistent {
            self.handle_new_path(now);
            return;
        }
        // A mark weighs as much as a lost packet that counts in full.
        let marked = if bytes == 0 { self.window / 8 } else { 0 };
        self.losses.add(0, bytes + marked, self.mtu);
        let queue = self.queue(self.round.rtt);
        let target = self
            .base
            .map_or(LEAST_TARGET, |base| self.target(base, self.window));
        if let Mode::Share(share) = &mut self.mode
            && queue > target
        {
            self.window = share
                .handle_loss(now, sent, self.window)
                .max(LEAST_PACKETS * self.mtu);
        }
    }

    /// Packets take another path from now on. What is under way on the old one takes no room on it.
    pub fn handle_new_path(&mut self, now: Instant) {
        let (mtu, in_flight) = (self.mtu, self.in_flight);
        *self = Self {
            mtu,
            window: FIRST_PACKETS * mtu,
            stale: in_flight,
            in_flight,
            ..Self::new(now, 1)
        };
    }

    /// The size of packets has changed. If they have become smaller, the larger ones were lost because they were large, and
    /// what that did to the window was wrong.
    pub fn handle_mtu(&mut self, mtu: u16) {
        let before = std::mem::replace(&mut self.mtu, u64::from(mtu.max(1)));
        self.window = self.window.max(LEAST_PACKETS * self.mtu);
        if self.mtu < before {
            self.window = self.window.max(self.first_window());
            self.losses = Losses::default();
            self.empty = 0;
            self.mode = Mode::grow(1.0);
        }
    }

    /// Returns the length of the queue that is aimed at, in time: that of as many packets as the root of those under way.
    /// So the larger of two connections gives way to the smaller.
    fn target(&self, base: Base, window: u64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a window is far below 2^52")]
        let packets = window.max(self.mtu) as f64 / self.mtu as f64;
        base.time.div_f64(packets.sqrt()).max(LEAST_TARGET)
    }

    fn queue(&self, rtt: Option<Duration>) -> Duration {
        let base = self.base.map(|base| base.time);
        rtt.zip(base)
            .map_or(Duration::ZERO, |(rtt, base)| rtt.saturating_sub(base))
    }

    fn set_window(&mut self, bytes: f64) {
        self.window = bytes_of(bytes).max(LEAST_PACKETS * self.mtu);
    }

    /// The bottleneck is full. What was under way one round ago is what filled it.
    fn stop_growing(&mut self, gain: f64) {
        self.set_window(float(self.window) / (1.0 + gain));
        self.mode = Mode::Hold;
        self.empty = 0;
        self.crowd.clear();
    }

    fn end_round(&mut self, now: Instant, round: &Round) {
        let (Some(rtt), Some(base)) = (round.rtt, self.base) else {
            return;
        };
        self.losses.end_round();
        let rate = float(round.acked) / now.saturating_duration_since(round.start).as_secs_f64();
        let used = round.most_in_flight + (self.window / 4).max(2 * self.mtu) > self.window;
        let seen = Seen {
            now,
            rtt,
            queue: rtt.saturating_sub(base.time),
            target: self.target(base, self.window),
            rate,
            used,
        };
        if used || rate > self.rates[0] {
            self.rates = [rate, self.rates[0]];
        }
        if seen.queue <= seen.target / 4 {
            self.base = Some(Base { seen: now, ..base });
        }
        match std::mem::replace(&mut self.mode, Mode::Hold) {
            Mode::Grow {
                gain,
                best,
                flat,
                rounds,
            } => self.grow(seen, gain, best, flat, rounds),
            Mode::Hold => self.hold(seen, base),
            Mode::Drain(drain) => self.drain(seen, base, drain),
            Mode::Share(share) => self.share(seen, share, base),
        }
    }

    fn grow(&mut self, seen: Seen, gain: f64, best: f64, flat: u32, rounds: u32) {
        let grows = seen.rate > best * (1.0 + gain / 4.0);
        let flat = if grows || !seen.used { 0 } else { flat + 1 };
        if flat >= 3 || self.losses.excess() >= 1.0 {
            self.stop_growing(gain);
            return;
        }
        self.mode = Mode::Grow {
            gain: if rounds >= RAMP_ROUNDS { 1.0 } else { gain },
            best: best.max(seen.rate),
            flat,
            rounds: rounds + 1,
        };
    }

    fn hold(&mut self, seen: Seen, base: Base) {
        if !seen.used {
            self.empty = 0;
            return;
        }
        let usual = self.target(
            base,
            self.window.max(self.crowd.window).max(USUAL_PACKETS * self.mtu),
        );
        if seen.queue > (usual * 2).max(base.time.mul_f64(CROWD)) {
            self.crowd.add(seen.now);
        } else {
            self.crowd.clear();
            if seen.queue < seen.target / 2 {
                self.crowd.window = self.window;
            }
        }
        if self.crowd.is_one(seen.now) || seen.now > base.seen + BASE_LIFETIME {
            self.drain_queue(&seen, base, None);
            return;
        }
        self.empty = if seen.queue < seen.target / 2 {
            self.empty + 1
        } else {
            0
        };
        if self.empty > EMPTY_ROUNDS && self.losses.excess() == 0.0 {
            self.mode = Mode::grow(0.25);
            return;
        }
        self.steer(&seen, base);
    }

    /// Lets so much be under way as arrives in a round trip with a queue of the target's length.
    fn steer(&mut self, seen: &Seen, base: Base) {
        let (window, excess) = (float(self.window), self.losses.excess());
        let rate = if seen.queue > seen.target * 2 {
            seen.rate
        } else {
            self.rates[0].max(self.rates[1])
        };
        // What is lost on a radio has used the path as well.
        let rate = rate / (1.0 - self.losses.share() * (1.0 - excess));
        let mut aim = rate * (base.time + seen.target.mul_f64(1.0 - excess)).as_secs_f64();
        if seen.queue <= base.time.max(USUAL_LATE) && excess == 0.0 {
            aim = aim.max(float(self.first_window()));
        }
        if seen.queue <= seen.target {
            let least = if excess == 0.0 {
                window
            } else {
                window.min(float(LEAST_PACKETS_LOSSY * self.mtu))
            };
            aim = aim.max(least);
        }
        self.set_window(aim.clamp(window * 0.5, window * 1.25));
    }

    /// Keeps the path a little less than full for two rounds. If the queue is only the own one, it is gone then.
    fn drain_queue(&mut self, seen: &Seen, base: Base, share: Option<Share>) {
        let full = seen.rate * base.time.as_secs_f64();
        let window = match share {
            Some(_) => self.window,
            None => bytes_of(seen.rate * (base.time + seen.target).as_secs_f64()),
        };
        self.set_window(full * 0.9);
        self.mode = Mode::Drain(Drain {
            sent: false,
            share,
            window,
            queue: seen.queue,
        });
    }

    fn drain(&mut self, seen: Seen, base: Base, drain: Drain) {
        if !drain.sent {
            // What this round has shown was sent before.
            self.mode = Mode::Drain(Drain { sent: true, ..drain });
            return;
        }
        let asked = self.crowd.is_one(seen.now) || drain.share.is_some();
        self.window = drain.window.max(LEAST_PACKETS * self.mtu);
        self.empty = 0;
        self.crowd.clear();
        if seen.queue <= (drain.queue / 4).max(seen.target / 2) || !asked {
            // A queue of connections like this one is short, and not the path.
            let time = if seen.queue <= seen.target {
                seen.rtt
            } else {
                base.time
            };
            self.base = Some(Base { time, seen: seen.now });
            self.crowd.window = self.window.max(self.crowd.window / 2);
            self.mode = Mode::Hold;
            return;
        }
        let mut share = drain.share.unwrap_or_else(|| {
            self.window = self.window.max(self.crowd.window);
            Share::new(seen.now, self.window, self.mtu, self.crowd.window == 0)
        });
        if share.is_base(seen.now, seen.rtt, seen.target) {
            self.base = Some(Base {
                time: seen.rtt,
                seen: seen.now,
            });
        }
        self.mode = Mode::Share(share);
    }

    fn share(&mut self, seen: Seen, mut share: Share, base: Base) {
        if share.look_due(seen.now) {
            self.drain_queue(&seen, base, Some(share));
            return;
        }
        if seen.used {
            self.window = share.grown(seen.now, seen.rtt, self.window);
        }
        self.mode = Mode::Share(share);
    }
}

/// What a round has shown.
#[derive(Clone, Copy, Debug)]
struct Seen {
    now: Instant,
    /// Its shortest round trip.
    rtt: Duration,
    queue: Duration,
    target: Duration,
    /// Bytes that arrived, a second.
    rate: f64,
    /// Whether the window was used, so that it can have been what bounded the rate.
    used: bool,
}

impl Mode {
    const fn grow(gain: f64) -> Self {
        Self::Grow {
            gain,
            best: 0.0,
            flat: 0,
            rounds: 0,
        }
    }
}

#[cfg(test)]
mod tests;
