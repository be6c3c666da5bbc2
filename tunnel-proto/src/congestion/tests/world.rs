//! A path that is made of numbers: a bottleneck with a rate and a queue, and a radio that loses packets; and what sends
//! over it as quinn does.

use std::collections::VecDeque;

use std::time::{Duration, Instant};

use super::super::Congestion;
use super::super::share::Share;

pub(super) const MTU: u64 = 1400;
const TICK: Duration = Duration::from_micros(200);

/// Megabits a second, in bytes a second.
pub(super) const MBIT: f64 = 125_000.0;

/// One direction of a path, and the way back without a bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Bytes a second.
    pub(super) rate: f64,
    pub(super) delay: Duration,
    /// Longest wait at the bottleneck.
    pub(super) queue: Duration,
    pub(super) loss: f64,
    /// By how much a packet is late at most by itself.
    pub(super) jitter: Duration,
}

impl Link {
    pub(super) fn new(mbit: f64, round_trip_ms: u64, queue_ms: u64) -> Self {
        Self {
            rate: mbit * MBIT,
            delay: Duration::from_millis(round_trip_ms) / 2,
            queue: Duration::from_millis(queue_ms),
            loss: 0.0,
            jitter: Duration::ZERO,
        }
    }

    pub(super) fn losing(self, loss: f64) -> Self {
        Self { loss, ..self }
    }
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is a handful of them")]
pub(super) enum Controller {
    Ours(Congestion),
    /// CUBIC as TCP has it, with its slow start.
    Cubic {
        share: Share,
        window: u64,
        slow_start: bool,
        round: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Flow {
    controller: Controller,
    under_way: VecDeque<(u64, Instant)>,
    next: u64,
    tokens: f64,
    smoothed: Duration,
    acks: VecDeque<(Instant, u64)>,
    last_ack: Instant,
    acked: u64,
    /// Packets that may still be sent; none for no end.
    pub(super) left: Option<u64>,
}

impl Flow {
    pub(super) fn new(now: Instant, controller: Controller) -> Self {
        Self {
            controller,
            under_way: VecDeque::new(),
            next: 0,
            tokens: 0.0,
            smoothed: Duration::from_millis(333),
            acks: VecDeque::new(),
            last_ack: now,
            acked: 0,
            left: None,
        }
    }

    pub(super) fn window(&self) -> u64 {
        match &self.controller {
            Controller::Ours(ours) => ours.window(),
            Controller::Cubic { window, .. } => *window,
        }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.under_way.len() as u64 * MTU
    }

    /// Takes the acknowledgements that are there by now, in pairs as receivers send them.
    fn take_acks(&mut self, now: Instant) {
        let due = self.acks.iter().take_while(|(at, _)| *at <= now).count();
        let arrived: Vec<_> = self.acks.drain(..due).collect();
        for pair in arrived.chunks(2) {
            for &(_, number) in pair {
                let Some(at) = self.under_way.iter().position(|(sent, _)| *sent == number) else {
                    continue;
                };
                let (_, sent) = self.under_way.remove(at).unwrap();
                self.smoothed = (self.smoothed * 7 + (now - sent)) / 8;
                self.acked += MTU;
                self.ack(now, sent);
            }
            let last = pair.last().unwrap().1;
            let gone = self
                .under_way
                .iter()
                .take_while(|(number, _)| number + 3 <= last)
                .count();
            self.lose(now, gone);
            self.last_ack = now;
            let in_flight = self.in_flight();
            if let Controller::Ours(ours) = &mut self.controller {
                ours.handle_acked(now, in_flight);
            }
        }
        if !self.under_way.is_empty() && now > self.last_ack + self.smoothed * 3 {
            self.last_ack = now;
            self.lose(now, self.under_way.len());
        }
    }

    fn ack(&mut self, now: Instant, sent: Instant) {
        match &mut self.controller {
            Controller::Ours(ours) => ours.handle_ack(now, sent, MTU),
            Controller::Cubic {
                share,
                window,
                slow_start,
                round,
            } => {
                if *slow_start {
                    *window += MTU;
                } else if now > *round + self.smoothed {
                    *round = now;
                    *window = share.grown(now, self.smoothed, *window);
                }
            }
        }
    }

    fn lose(&mut self, now: Instant, count: usize) {
        let Some((_, sent)) = self.under_way.drain(..count).next_back() else {
            return;
        };
        match &mut self.controller {
            Controller::Ours(ours) => ours.handle_loss(now, sent, count as u64 * MTU, false),
            Controller::Cubic {
                share,
                window,
                slow_start,
                ..
            } => {
                *slow_start = false;
                *window = share.handle_loss(now, sent, *window).max(2 * MTU);
            }
        }
    }
}

/// Some connections over one path.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) link: Link,
    free_at: Instant,
    random: u64,
    pub(super) flows: Vec<Flow>,
    pub(super) longest_queue: Duration,
    /// The share of the packets that found no room in the last run.
    pub(super) dropped: f64,
    drops: u32,
    /// The waits at the bottleneck of packets that were sent, for their mean.
    waits: (Duration, u32),
}

impl World {
    pub(super) fn new(link: Link) -> Self {
        let start = Instant::now();
        Self {
            now: start,
            link,
            free_at: start,
            random: 7,
            flows: Vec::new(),
            longest_queue: Duration::ZERO,
            dropped: 0.0,
            drops: 0,
            waits: (Duration::ZERO, 0),
        }
    }

    pub(super) fn alone(link: Link) -> Self {
        let mut world = Self::new(link);
        world.add_ours();
        world
    }

    pub(super) fn add_ours(&mut self) {
        let ours = Controller::Ours(Congestion::new(self.now, MTU as u16));
        self.flows.push(Flow::new(self.now, ours));
    }

    pub(super) fn add_cubic(&mut self) {
        let cubic = Controller::Cubic {
            share: Share::new(self.now, 10 * MTU, MTU, false),
            window: 10 * MTU,
            slow_start: true,
            round: self.now,
        };
        self.flows.push(Flow::new(self.now, cubic));
    }

    pub(super) fn ours_mut(&mut self) -> &mut Congestion {
        match &mut self.flows[0].controller {
            Controller::Ours(ours) => ours,
            Controller::Cubic { .. } => panic!("it is not the first"),
        }
    }

    /// Goes on for some time; the bytes a second that each connection got.
    pub(super) fn run(&mut self, time: Duration) -> Vec<f64> {
        let before: Vec<_> = self.flows.iter().map(|flow| flow.acked).collect();
        let (begin, end) = (self.now, self.now + time);
        self.longest_queue = Duration::ZERO;
        self.waits = (Duration::ZERO, 0);
        self.drops = 0;
        while self.now < end {
            self.now += TICK;
            for at in 0..self.flows.len() {
                self.flows[at].take_acks(self.now);
                self.send(at);
            }
        }
        self.dropped = f64::from(self.drops) / f64::from(self.drops + self.waits.1).max(1.0);
        let time = (end - begin).as_secs_f64();
        let got = self.flows.iter().zip(before);
        got.map(|(flow, before)| (flow.acked - before) as f64 / time)
            .collect()
    }

    /// Sends what window and pacing let through, as quinn does.
    fn send(&mut self, at: usize) {
        let flow = &mut self.flows[at];
        let window = flow.window();
        let pace = 1.25 * window as f64 / flow.smoothed.as_secs_f64();
        let burst = (pace * 0.002).clamp(10.0 * MTU as f64, 256.0 * MTU as f64);
        flow.tokens = (flow.tokens + pace * TICK.as_secs_f64()).min(burst);
        while self.flows[at].in_flight() + MTU < window
            && self.flows[at].tokens >= MTU as f64
            && self.flows[at].left != Some(0)
        {
            let arrival = self.carry();
            let (now, back) = (self.now, self.link.delay);
            let flow = &mut self.flows[at];
            flow.left = flow.left.map(|left| left - 1);
            flow.tokens -= MTU as f64;
            if flow.under_way.is_empty() {
                flow.last_ack = now;
            }
            flow.under_way.push_back((flow.next, now));
            if let Some(arrival) = arrival {
                let ack = arrival + back;
                let ack = flow.acks.back().map_or(ack, |(last, _)| ack.max(*last));
                flow.acks.push_back((ack, flow.next));
            }
            flow.next += 1;
            if let Controller::Ours(ours) = &mut flow.controller {
                ours.handle_sent(MTU);
            }
        }
    }

    /// Carries a packet over the bottleneck: when it arrives, if it does.
    fn carry(&mut self) -> Option<Instant> {
        let wait = self.free_at.saturating_duration_since(self.now);
        if wait > self.link.queue {
            self.drops += 1;
            return None;
        }
        self.longest_queue = self.longest_queue.max(wait);
        self.waits = (self.waits.0 + wait, self.waits.1 + 1);
        self.free_at = self.now + wait + Duration::from_secs_f64(MTU as f64 / self.link.rate);
        let (lost, late) = (self.chance(), self.chance());
        let arrival = self.free_at + self.link.delay + self.link.jitter.mul_f64(late);
        (lost >= self.link.loss).then_some(arrival)
    }

    fn chance(&mut self) -> f64 {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn mean_wait(&self) -> Duration {
        self.waits.0 / self.waits.1.max(1)
    }
}
