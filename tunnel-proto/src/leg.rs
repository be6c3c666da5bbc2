//! An end's side of a leg: which carrier its datagrams take, and whether the relay still hears it.
//!
//! UDP is tried first and WebSocket after a short head start; the first carrier on which the relay confirms a bind is
//! taken. A live leg moves to UDP when it works again, and away from a carrier on which the relay falls silent. The shell
//! owns sockets and clocks; this machine owns the decisions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::bind::{Control, Kind, Role, SIZE};
use crate::carrier::Carrier;
use crate::code::Code;
use crate::defaults::UDP_HEAD_START;
use crate::ids::CircuitId;
use crate::keys::LegKey;

/// Pauses between the binds of one probe. The last is how long the final one may take. They stay short, so that a relay
/// that is back after a restart is found within half a second.
const PROBE_PAUSES: [Duration; 7] = [
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_millis(500),
    Duration::from_millis(500),
    Duration::from_millis(500),
    Duration::from_millis(500),
];

/// After how many unanswered binds a carrier that carries data is doubted and another one is tried beside it.
const DOUBT_AFTER: usize = 3;

/// How long data may wait for any answer before the relay is asked whether it is there.
const ANSWER_PATIENCE: Duration = Duration::from_millis(800);

/// How long a leg may be quiet after data came before it asks whether the relay is there. An end that only listens learns
/// of a dead relay by nothing else. Doubled with each answer, up to [`QUIET_MAX`].
const QUIET_FIRST: Duration = Duration::from_secs(1);

/// How long a leg may be quiet at most before it asks. With the length of a probe it bounds how late a silent relay is
/// noticed: within 15 seconds.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// How long data must have waited for the wait to be an outage, and no long way. What is sent again during an outage is
/// sent more and more seldom, and only the end whose own carrier was gone knows that it is over.
pub const OUTAGE: Duration = Duration::from_secs(1);

/// Pauses between repetitions after an outage. The other end may not be back yet when the first comes, and the path may
/// lose it. The second is made in any case, the others as long as nothing is received.
const REPEAT_PAUSES: [Duration; 5] = [
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// First pause before a failed carrier is tried again while there is no other.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// Longest pause before a failed carrier is tried again while there is no other.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Pause before UDP is tried again while WebSocket works; doubled up to [`UPGRADE_MAX`].
const UPGRADE_FIRST: Duration = Duration::from_secs(15);

/// Longest pause between attempts to get back to UDP.
const UPGRADE_MAX: Duration = Duration::from_secs(240);

/// What the shell saw of data since the last call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// When data was received last, over any carrier.
    pub received: Option<Instant>,
    /// Since when sent data waits for anything to be received; `None` when nothing waits.
    pub waiting_since: Option<Instant>,
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Set up a carrier afresh, and tell by [`Leg::handle_ready`] or [`Leg::handle_failed`].
    Start(Carrier),
    /// Give a carrier up.
    Stop(Carrier),
    /// Send a control datagram over a carrier.
    Send {
        /// The carrier.
        carrier: Carrier,
        /// The datagram.
        datagram: [u8; SIZE],
        /// Whether it goes padded (see [`crate::bind`]).
        padded: bool,
    },
    /// Data goes over this carrier from now on; what comes over another one is still taken.
    Use(Carrier),
    /// Whether the relay is silent has changed.
    Silent(bool),
    /// An outage is over, or may be: whoever would wait longer and longer before it repeats what was lost meanwhile does
    /// so at once.
    Repeat,
    /// The relay says that the circuit has ended.
    Ended(Code),
}

#[derive(Debug)]
enum Slot {
    /// Not in use; to be tried at the time, if any.
    Off { retry: Option<Instant> },
    /// The shell sets it up.
    Starting,
    /// It can send; whether it is heard is for the probe to show.
    Up { probe: Option<Probe>, challenge: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    /// Counter of its first bind; an answer to an earlier one says nothing.
    first: u64,
    sent: usize,
    next: Instant,
    /// Whether it asks for the size that data needs, too.
    padded: bool,
}

/// What was lost in an outage is being repeated.
#[derive(Clone, Copy, Debug)]
struct Repetition {
    since: Instant,
    next: Instant,
    done: usize,
}

/// The state of one leg at its end.
#[derive(Debug)]
pub struct Leg {
    circuit: CircuitId,
    role: Role,
    key: LegKey,
    counter: u64,
    slots: [Slot; 2],
    failures: [u32; 2],
    /// The only carrier that is used, if there is a choice at all.
    only: Option<Carrier>,
    active: Option<Carrier>,
    /// The counter whose bind made `active` so: an answer to an older one does not undo it.
    active_counter: u64,
    confirmed: Instant,
    /// The last data that was seen, and how many times the relay has answered in quiet since.
    data_seen: Option<Instant>,
    quiet_answers: u32,
    /// Since when data waited when that was looked at last.
    waited_since: Option<Instant>,
    repetition: Option<Repetition>,
    websocket_start: Option<Instant>,
    /// All carriers were given up for a changed network: the first that is confirmed is taken anew, even if it was the
    /// one before.
    afresh: bool,
    silent: bool,
    ended: bool,
    outputs: VecDeque<Output>,
}

impl Leg {
    /// Starts a leg that the relay has admitted. With `only`, it uses that carrier or none.
    pub fn new(now: Instant, circuit: CircuitId, role: Role, key: LegKey, only: Option<Carrier>) -> Self {
        let mut leg = Self {
            circuit,
            role,
            key,
            counter: 0,
            slots: [Slot::Off { retry: None }, Slot::Off { retry: None }],
            failures: [0; 2],
            only,
            active: None,
            active_counter: 0,
            confirmed: now,
            data_seen: None,
            quiet_answers: 0,
            waited_since: None,
            repetition: None,
            websocket_start: None,
            afresh: false,
            silent: false,
            ended: false,
            outputs: VecDeque::new(),
        };
        leg.start_afresh(now);
        leg
    }

    /// The shell has set a carrier up.
    pub fn handle_ready(&mut self, now: Instant, carrier: Carrier) {
        if matches!(self.slots[index(carrier)], Slot::Starting) && !self.ended {
            self.slots[index(carrier)] = Slot::Up {
                probe: None,
                challenge: 0,
            };
            self.begin_probe(now, carrier, true);
        }
    }

    /// A carrier could not be set up, or broke.
    pub fn handle_failed(&mut self, now: Instant, carrier: Carrier) {
        if self.ended || matches!(self.slots[index(carrier)], Slot::Off { .. }) {
            return;
        }
        self.give_up(now, carrier);
        self.doubt(carrier);
    }

    /// The relay has handed out another key. Whatever it was asked with the old one is asked anew.
    pub fn handle_rekey(&mut self, now: Instant, key: LegKey) {
        if self.ended {
            return;
        }
        self.key = key;
        for carrier in [Carrier::Udp, Carrier::WebSocket] {
            if self.active == Some(carrier) || !self.is_at_rest(carrier) {
                self.begin_probe(now, carrier, true);
            }
        }
    }

    /// Something hints that a carrier does not work: an ICMP answer, or an error in sending. Anybody can forge the former,
    /// so it only makes the leg ask.
    pub fn handle_hint(&mut self, now: Instant, carrier: Carrier) {
        if self.is_at_rest(carrier) && !self.ended {
            self.begin_probe(now, carrier, true);
        }
    }

    /// A control datagram came over a carrier. Says whether the relay made it, for this leg as its key is now; anything
    /// else is passed over.
    pub fn handle_control(&mut self, now: Instant, carrier: Carrier, datagram: &[u8]) -> bool {
        let Some(control) = Control::decode(datagram) else {
            return false;
        };
        let ours = control.circuit == self.circuit && control.role == self.role && !self.ended;
        if !ours || control.kind == Kind::Bind || !Control::is_authentic(datagram, &self.key) {
            return false;
        }
        match control.kind {
            Kind::Bound => self.bound(now, carrier, control.counter),
            Kind::Challenge => self.challenged(now, carrier, control),
            Kind::Ended => self.end(Code::from_number(control.value)),
            Kind::Bind => {}
        }
        true
    }

    /// The machine's network has changed: what was known of the carriers may be wrong.
    pub fn handle_network_change(&mut self, now: Instant) {
        if self.ended {
            return;
        }
        for carrier in [Carrier::Udp, Carrier::WebSocket] {
            self.failures[index(carrier)] = 0;
            self.stop(carrier, None);
        }
        self.afresh = true;
        self.start_afresh(now);
    }

    /// Goes on with the time. Call it when [`Leg::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant, activity: Activity) {
        if self.ended {
            return;
        }
        if activity.received != self.data_seen {
            self.data_seen = activity.received;
            self.quiet_answers = 0;
            self.confirmed = self.confirmed.max(activity.received.unwrap_or(self.confirmed));
            let waited = self.waited_since.zip(activity.received);
            if waited.is_some_and(|(since, received)| received >= since + OUTAGE) {
                self.repeat(now);
            }
        }
        self.waited_since = activity.waiting_since;
        self.repeat_again(now, activity);
        for carrier in [Carrier::Udp, Carrier::WebSocket] {
            self.continue_probe(now, carrier);
            if matches!(self.slots[index(carrier)], Slot::Off { retry: Some(at) } if now >= at) {
                self.start(carrier);
            }
        }
        self.look(now, activity);
        if self.websocket_start.is_some_and(|at| now >= at) {
            self.websocket_start = None;
            if matches!(self.slots[index(Carrier::WebSocket)], Slot::Off { .. }) {
                self.start(Carrier::WebSocket);
            }
        }
    }

    /// Returns when [`Leg::handle_timeout`] is to be called next. Any other call may change the answer.
    pub fn poll_timeout(&self, activity: Activity) -> Option<Instant> {
        if self.ended {
            return None;
        }
        let slots = self.slots.iter().filter_map(|slot| match slot {
            Slot::Off { retry } => *retry,
            Slot::Starting => None,
            Slot::Up { probe, .. } => probe.map(|probe| probe.next),
        });
        let look = self
            .active
            .filter(|&active| self.is_at_rest(active))
            .map(|_| self.look_due(activity));
        let repeat = self.repetition.map(|repetition| repetition.next);
        slots.chain(self.websocket_start).chain(look).chain(repeat).min()
    }

    /// Returns what is to be done next. Call it after every other call until it returns `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the carrier that data takes.
    pub const fn active(&self) -> Option<Carrier> {
        self.active
    }

    /// Names the first invariant that does not hold.
    ///
    /// # Errors
    /// - L1: a leg that has ended uses no carrier and wants nothing.
    /// - L2: a leg that has not ended never waits for nothing: a carrier is being set up, or a time is due.
    /// - L3: a leg that is bound to one carrier uses no other.
    /// - L4: what was asked and answered has counters that were used, and a probe is no longer than it may be.
    /// - L5: a carrier that data takes is there, unless the relay is silent or the network has changed.
    /// - L6: a carrier that is up without being used is being asked about: it is taken soon, or given up.
    pub fn check(&self) -> Result<(), &'static str> {
        let in_use = |slot: &Slot| !matches!(slot, Slot::Off { .. });
        if self.ended {
            let wants = self
                .slots
                .iter()
                .any(|slot| !matches!(slot, Slot::Off { retry: None }));
            return if wants { Err("L1") } else { Ok(()) };
        }
        let starting = self.slots.iter().any(|slot| matches!(slot, Slot::Starting));
        if !starting && self.poll_timeout(Activity::default()).is_none() {
            return Err("L2");
        }
        if self
            .only
            .is_some_and(|only| in_use(&self.slots[index(other(only))]))
        {
            return Err("L3");
        }
        let wrong_probe = self.slots.iter().any(|slot| match slot {
            Slot::Up {
                probe: Some(probe), ..
            } => probe.first > self.counter || probe.sent > PROBE_PAUSES.len(),
            Slot::Up { probe: None, .. } | Slot::Off { .. } | Slot::Starting => false,
        });
        if wrong_probe || self.active_counter > self.counter {
            return Err("L4");
        }
        let there = |carrier| matches!(self.slots[index(carrier)], Slot::Up { .. });
        if self.active.is_some_and(|active| !there(active)) && !self.silent && !self.afresh {
            return Err("L5");
        }
        let idle = |slot: &Slot| matches!(slot, Slot::Up { probe: None, .. });
        let spare = [Carrier::Udp, Carrier::WebSocket]
            .into_iter()
            .filter(|&carrier| self.active != Some(carrier));
        if spare.into_iter().any(|carrier| idle(&self.slots[index(carrier)])) {
            return Err("L6");
        }
        Ok(())
    }

    /// Asks the relay whether it is there when data waits, or when all has been quiet for long.
    fn look(&mut self, now: Instant, activity: Activity) {
        let Some(active) = self.active.filter(|&active| self.is_at_rest(active)) else {
            return;
        };
        if now >= self.look_due(activity) {
            // What is quiet is asked in few bytes: that is where they count.
            self.begin_probe(now, active, activity.waiting_since.is_some());
        }
    }

    /// Has what was lost repeated now, and some times more.
    fn repeat(&mut self, now: Instant) {
        self.outputs.push_back(Output::Repeat);
        self.repetition = Some(Repetition {
            since: now,
            next: now + REPEAT_PAUSES[0],
            done: 1,
        });
    }

    fn repeat_again(&mut self, now: Instant, activity: Activity) {
        let Some(repetition) = self
            .repetition
            .as_mut()
            .filter(|repetition| now >= repetition.next)
        else {
            return;
        };
        let heard = activity
            .received
            .is_some_and(|received| received > repetition.since);
        if heard && repetition.done > 1 {
            self.repetition = None;
            return;
        }
        self.outputs.push_back(Output::Repeat);
        match REPEAT_PAUSES.get(repetition.done) {
            Some(&pause) => {
                repetition.next = now + pause;
                repetition.done += 1;
            }
            None => self.repetition = None,
        }
    }

    /// Returns when the relay is to be asked.
    fn look_due(&self, activity: Activity) -> Instant {
        if let Some(since) = activity.waiting_since {
            return since.max(self.confirmed) + ANSWER_PATIENCE;
        }
        let new_data = activity.received.filter(|_| activity.received != self.data_seen);
        let (heard, answers) = match new_data {
            Some(received) => (self.confirmed.max(received), 0),
            None => (self.confirmed, self.quiet_answers),
        };
        heard + QUIET_FIRST.saturating_mul(1 << answers.min(8)).min(QUIET_MAX)
    }

    /// Says whether a carrier can send and no probe is under way.
    fn is_at_rest(&self, carrier: Carrier) -> bool {
        matches!(self.slots[index(carrier)], Slot::Up { probe: None, .. })
    }

    /// Begins to ask the relay whether it hears a carrier. On UDP a padded probe fails where the path swallows what is
    /// as long as QUIC's packets, so that data never goes where only small datagrams pass.
    fn begin_probe(&mut self, now: Instant, carrier: Carrier, padded: bool) {
        let first = self.counter + 1;
        let padded = padded && carrier == Carrier::Udp;
        if let Slot::Up { probe, .. } = &mut self.slots[index(carrier)] {
            *probe = Some(Probe {
                first,
                sent: 0,
                next: now,
                padded,
            });
            self.continue_probe(now, carrier);
        }
    }

    fn continue_probe(&mut self, now: Instant, carrier: Carrier) {
        let Slot::Up {
            probe: Some(probe), ..
        } = &mut self.slots[index(carrier)]
        else {
            return;
        };
        if now < probe.next {
            return;
        }
        let Some(&pause) = PROBE_PAUSES.get(probe.sent) else {
            self.give_up(now, carrier);
            self.doubt(carrier);
            return;
        };
        probe.sent += 1;
        probe.next = now + pause;
        let doubtful = probe.sent > DOUBT_AFTER;
        self.send_bind(carrier);
        if doubtful {
            self.doubt(carrier);
        }
    }

    fn send_bind(&mut self, carrier: Carrier) {
        let Slot::Up { challenge, probe } = self.slots[index(carrier)] else {
            return;
        };
        self.counter += 1;
        let bind = Control {
            kind: Kind::Bind,
            circuit: self.circuit,
            role: self.role,
            counter: self.counter,
            value: challenge,
        };
        let padded = probe.is_some_and(|probe| probe.padded);
        self.outputs.push_back(Output::Send {
            carrier,
            datagram: bind.encode(&self.key),
            padded,
        });
    }

    /// A carrier does not answer. If it is the one in use, the other is tried at once; so it is in place of the rest of
    /// UDP's head start. Afterwards each is tried again in its own time.
    fn doubt(&mut self, carrier: Carrier) {
        let falls_silent = self.active == Some(carrier) && !self.silent;
        if falls_silent {
            self.silent = true;
            self.outputs.push_back(Output::Silent(true));
        }
        let other = other(carrier);
        let cut_short = other == Carrier::WebSocket && self.websocket_start.take().is_some();
        if (falls_silent || cut_short) && matches!(self.slots[index(other)], Slot::Off { .. }) {
            self.start(other);
        }
    }

    fn bound(&mut self, now: Instant, carrier: Carrier, counter: u64) {
        let Slot::Up { probe, .. } = &mut self.slots[index(carrier)] else {
            return;
        };
        if !probe.is_some_and(|probe| counter >= probe.first) || counter > self.counter {
            return;
        }
        *probe = None;
        self.failures[index(carrier)] = 0;
        self.confirmed = now;
        self.quiet_answers = self.quiet_answers.saturating_add(1);
        if counter < self.active_counter {
            // The relay has taken a later bind over another carrier since: ask again where it is heard better.
            if carrier == Carrier::Udp {
                self.begin_probe(now, carrier, true);
            }
            return;
        }
        self.active_counter = counter;
        let was_silent = std::mem::take(&mut self.silent);
        if was_silent {
            self.outputs.push_back(Output::Silent(false));
        }
        if self.active != Some(carrier) || self.afresh {
            self.take(now, carrier);
        } else if was_silent {
            // The other carrier was tried meanwhile.
            self.settle(now, carrier);
            self.repeat(now);
        }
    }

    fn take(&mut self, now: Instant, carrier: Carrier) {
        self.active = Some(carrier);
        self.afresh = false;
        self.outputs.push_back(Output::Use(carrier));
        self.repeat(now);
        self.settle(now, carrier);
    }

    /// One carrier works: the others are given up, and UDP is tried again later if it is not the one.
    fn settle(&mut self, now: Instant, carrier: Carrier) {
        self.websocket_start = None;
        match carrier {
            Carrier::Udp => {
                self.failures = [0; 2];
                self.stop(Carrier::WebSocket, None);
                if self.counter > self.active_counter {
                    // A later bind may have led the relay to the carrier that was just given up.
                    self.begin_probe(now, carrier, false);
                }
            }
            Carrier::WebSocket => {
                let failures = &mut self.failures[index(Carrier::Udp)];
                let pause = UPGRADE_FIRST
                    .saturating_mul(1 << (*failures).min(8))
                    .min(UPGRADE_MAX);
                match self.slots[index(Carrier::Udp)] {
                    // A probe under way decides by itself, and the pause follows it.
                    Slot::Starting | Slot::Up { .. } => {}
                    Slot::Off { .. } => {
                        self.slots[index(Carrier::Udp)] = Slot::Off {
                            retry: Some(now + pause),
                        }
                    }
                }
            }
        }
    }

    fn challenged(&mut self, now: Instant, carrier: Carrier, control: Control) {
        if let Slot::Up {
            challenge,
            probe: Some(probe),
        } = &mut self.slots[index(carrier)]
            && control.counter >= probe.first
            && control.counter <= self.counter
            && *challenge != control.value
        {
            *challenge = control.value;
            probe.next = now + PROBE_PAUSES[0];
            self.send_bind(carrier);
            if self.afresh || self.active.is_none() {
                // The relay hears this carrier, and what follows this bind finds the leg bound: no round trip is lost.
                self.take(now, carrier);
            }
        }
    }

    fn end(&mut self, code: Code) {
        self.ended = true;
        self.repetition = None;
        for carrier in [Carrier::Udp, Carrier::WebSocket] {
            self.stop(carrier, None);
        }
        self.outputs.push_back(Output::Ended(code));
    }

    /// Tries UDP, and WebSocket after the head start, or without UDP at once.
    fn start_afresh(&mut self, now: Instant) {
        self.start(Carrier::Udp);
        let head_start = if self.only.is_none() {
            UDP_HEAD_START
        } else {
            Duration::ZERO
        };
        self.websocket_start = Some(now + head_start);
    }

    fn start(&mut self, carrier: Carrier) {
        if self.only.is_some_and(|only| only != carrier) {
            self.slots[index(carrier)] = Slot::Off { retry: None };
            return;
        }
        self.slots[index(carrier)] = Slot::Starting;
        self.outputs.push_back(Output::Start(carrier));
    }

    fn stop(&mut self, carrier: Carrier, retry: Option<Instant>) {
        let before = std::mem::replace(&mut self.slots[index(carrier)], Slot::Off { retry });
        if !matches!(before, Slot::Off { .. }) {
            self.outputs.push_back(Output::Stop(carrier));
        }
    }

    /// Stops a carrier that does not work and says when it is tried again.
    fn give_up(&mut self, now: Instant, carrier: Carrier) {
        let was_active = self.active == Some(carrier);
        let other_works = self.active.is_some() && !was_active && !self.silent;
        let failures = self.failures[index(carrier)];
        let (first, max) = if other_works {
            (UPGRADE_FIRST, UPGRADE_MAX)
        } else {
            (RETRY_FIRST, RETRY_MAX)
        };
        let pause = first.saturating_mul(1 << failures.min(8)).min(max);
        self.failures[index(carrier)] = failures + 1;
        // With UDP at work WebSocket is not needed at all; it is started again when UDP is doubted.
        let retry = if other_works && carrier == Carrier::WebSocket {
            None
        } else {
            Some(now + pause)
        };
        self.stop(carrier, retry);
    }
}

const fn index(carrier: Carrier) -> usize {
    match carrier {
        Carrier::Udp => 0,
        Carrier::WebSocket => 1,
    }
}

const fn other(carrier: Carrier) -> Carrier {
    match carrier {
        Carrier::Udp => Carrier::WebSocket,
        Carrier::WebSocket => Carrier::Udp,
    }
}

#[cfg(test)]
mod tests;
