//! One end of a tunnel: the machine of its leg, its carriers, and a peer protocol that repeats what is not answered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tunnel_proto::CircuitId;
use tunnel_proto::bind::Role;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::leg::{Activity, Leg};

use crate::address::Addr;
use crate::relay::key;

/// First pause before something is sent again; doubled each time, as QUIC does.
const REPEAT_FIRST: Duration = Duration::from_millis(300);
const REPEAT_MAX: Duration = Duration::from_secs(20);

/// What one end is, sends, and knows.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) circuit: CircuitId,
    pub(crate) role: Role,
    pub(crate) leg: Leg,
    pub(crate) only: Option<Carrier>,
    /// The address of each carrier that is up, as the relay sees it.
    pub(crate) at: [Option<Addr>; 2],
    /// The attempt that counts for each carrier.
    pub(crate) attempt: [u64; 2],
    /// Every address that it ever had.
    pub(crate) had: BTreeSet<Addr>,
    /// What is used for sending; nothing while a move is under way.
    pub(crate) active: Option<Carrier>,
    pub(crate) silent: bool,
    pub(crate) ended: bool,
    pub(crate) activity: Activity,
    pub(crate) counter: u64,
    /// A question that waits for its answer, when it is repeated, and after which pause again.
    pub(crate) asks: Option<Ask>,
    pub(crate) next_ask: Instant,
    pub(crate) pace: Duration,
    /// When an answer came last.
    pub(crate) heard: Option<Instant>,
    number: u64,
}

/// A question to the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) number: u64,
    pub(crate) again: Instant,
    pause: Duration,
}

impl End {
    pub(crate) fn new(now: Instant, circuit: CircuitId, role: Role, only: Option<Carrier>) -> Self {
        Self {
            circuit,
            role,
            leg: Leg::new(now, circuit, role, key(circuit, role), only),
            only,
            at: [None; 2],
            attempt: [0; 2],
            had: BTreeSet::new(),
            active: None,
            silent: false,
            ended: false,
            activity: Activity::default(),
            counter: 0,
            asks: None,
            next_ask: now,
            pace: Duration::from_millis(200),
            heard: None,
            number: 0,
        }
    }

    /// Returns when it wants to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        let asks = match (&self.asks, self.active) {
            _ if self.ended => None,
            (Some(ask), Some(_)) => Some(ask.again),
            (None, Some(_)) => Some(self.next_ask),
            (_, None) => None,
        };
        self.leg.poll_timeout(self.activity).into_iter().chain(asks).min()
    }

    /// Returns the number of a question that is to be sent, if one is.
    pub(crate) fn ask(&mut self, now: Instant) -> Option<u64> {
        if self.active.is_none() || self.ended {
            return None;
        }
        match &mut self.asks {
            Some(ask) if now >= ask.again => {
                ask.pause = (ask.pause * 2).min(REPEAT_MAX);
                ask.again = now + ask.pause;
                Some(ask.number)
            }
            None if now >= self.next_ask => {
                self.number += 1;
                self.asks = Some(Ask {
                    number: self.number,
                    again: now + REPEAT_FIRST,
                    pause: REPEAT_FIRST,
                });
                Some(self.number)
            }
            Some(_) | None => None,
        }
    }

    /// What waits is sent at once, as after a change of the carrier.
    pub(crate) fn nudge(&mut self, now: Instant) {
        if let Some(ask) = &mut self.asks {
            ask.again = now;
            ask.pause = REPEAT_FIRST;
        }
    }

    pub(crate) fn answered(&mut self, now: Instant, number: u64) -> bool {
        if self.asks.is_some_and(|ask| ask.number == number) {
            self.asks = None;
            self.next_ask = now + self.pace;
            self.heard = Some(now);
            return true;
        }
        false
    }

    pub(crate) fn sent(&mut self, now: Instant) {
        self.activity.waiting_since.get_or_insert(now);
    }

    pub(crate) fn received(&mut self, now: Instant) {
        self.activity.received = Some(now);
        self.activity.waiting_since = None;
    }
}
