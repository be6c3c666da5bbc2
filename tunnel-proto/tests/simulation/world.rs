//! The network, and everything that happens in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tunnel_proto::CircuitId;
use tunnel_proto::bind::{Control, Kind, Role, SIZE};
use tunnel_proto::carrier::Carrier;
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::leg::Output;

use crate::address::Addr;
use crate::end::End;
use crate::random::Random;
use crate::relay::Relay;

/// Within what time both ends have heard of each other after all faults are over.
const CALM: Duration = Duration::from_secs(10);

/// Within what time every leg that may is back on UDP.
const UPGRADED: Duration = Duration::from_secs(260);

/// UDP addresses in the world. They are few, so that the next one to get an address gets one that another leg had.
const UDP_ADDRESSES: u64 = 40;

/// How long a TCP connection can be dead before the relay knows.
const WEBSOCKET_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a WebSocket is tried before that is given up.
const CONNECT: Duration = Duration::from_secs(5);

/// Calls without a step of the time after which a machine spins.
const SPIN: u32 = 2000;

const CIRCUITS: u8 = 3;

#[derive(Clone, Debug)]
enum Packet {
    Control { datagram: [u8; SIZE], padded: bool },
    Ask(CircuitId, Role, u64),
    Answer(CircuitId, Role, u64),
}

#[derive(Debug)]
enum Event {
    /// A carrier is set up, or is not.
    Carrier {
        end: usize,
        carrier: Carrier,
        attempt: u64,
    },
    ToRelay(Addr, Packet),
    ToEnd(Addr, Packet),
    /// The relay learns that a WebSocket is gone.
    Gone(Addr),
    /// An end learns that its WebSocket is gone.
    Broken(usize, Addr),
}

/// What is wrong with an end's network.
#[derive(Clone, Debug, Default)]
struct Trouble {
    blocked: [bool; 2],
    /// UDP carries only what is small.
    narrow: bool,
    loss_out: u64,
    loss_in: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    seed: u64,
    random: Random,
    start: Instant,
    now: Instant,
    pub(crate) steps: u64,
    pub(crate) attacks: u64,
    delivered: u64,
    ends: Vec<End>,
    troubles: Vec<Trouble>,
    doubled: u64,
    spread: u64,
    relay: Option<Relay>,
    back: Option<Instant>,
    gone_for_good: bool,
    open: BTreeSet<CircuitId>,
    next_circuit: u8,
    next_websocket: u64,
    queue: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    /// Binds as somebody on the way has seen them.
    seen: Vec<[u8; SIZE]>,
    still: u32,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            seed,
            random: Random::new(seed),
            start: now,
            now,
            steps: 0,
            attacks: 0,
            delivered: 0,
            ends: Vec::new(),
            troubles: Vec::new(),
            doubled: 0,
            spread: 5,
            relay: Some(Relay::start(seed, &BTreeSet::new())),
            back: None,
            gone_for_good: false,
            open: BTreeSet::new(),
            next_circuit: 0,
            next_websocket: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            seen: Vec::new(),
            still: 0,
        };
        for _ in 0..CIRCUITS {
            world.open_circuit(None);
        }
        world
    }

    pub(crate) fn hours(&self) -> f64 {
        self.elapsed().as_secs_f64() / 3600.0
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(crate) const fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(crate) fn lose_the_relay_for_good(&mut self) {
        self.relay = None;
        self.back = None;
        self.gone_for_good = true;
    }

    /// Everything may happen, for a while.
    pub(crate) fn run_wild(&mut self) {
        let end = self.now + self.random.millis(1_000, 180_000);
        while self.now < end {
            self.step(end);
            if self.random.chance(12) {
                self.trouble();
            }
        }
    }

    /// Everything is well again, and every leg that is open must be at work soon.
    pub(crate) fn calm_down(&mut self) {
        self.troubles.fill(Trouble::default());
        (self.doubled, self.spread) = (0, 5);
        if self.relay.is_none() && !self.gone_for_good {
            self.start_relay();
        }
        let start = self.now;
        for end in &mut self.ends {
            end.next_ask = end.next_ask.min(start + Duration::from_secs(1));
            end.pace = Duration::from_millis(500);
        }
        self.run_until(CALM, "heard", |end| end.heard.is_some_and(|at| at > start));
        if self.random.chance(200) {
            self.run_until(UPGRADED, "back on UDP", |end| {
                end.active == Some(end.only.unwrap_or(Carrier::Udp)) && !end.silent
            });
        }
        for end in 0..self.ends.len() {
            self.ends[end].pace = self.random.millis(20, 30_000);
        }
    }

    fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&End) -> bool) {
        let start = self.now;
        loop {
            let open = |end: &&End| self.open.contains(&end.circuit);
            let Some(late) = self.ends.iter().filter(open).find(|end| !done(end)) else {
                return;
            };
            assert!(
                self.now < start + limit,
                "seed {}, step {}, after {:?}: not {what} within {limit:?}: {late:#?}\nrelay has it at {:?}",
                self.seed,
                self.steps,
                self.elapsed(),
                self.relay
                    .as_ref()
                    .and_then(|relay| relay.circuits.place(late.circuit, late.role)),
            );
            self.step(start + limit);
        }
    }

    /// Goes to the next thing that happens, at most to `end`, and checks everything.
    fn step(&mut self, end: Instant) {
        self.steps += 1;
        let due = self.ends.iter().filter_map(End::due).min();
        let first = self.queue.keys().next().map(|key| key.0);
        let next = [due, first, self.back]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(end)
            .min(end);
        self.still = if next > self.now { 0 } else { self.still + 1 };
        assert!(
            self.still < SPIN,
            "seed {}, step {}: it spins",
            self.seed,
            self.steps
        );
        self.now = self.now.max(next);
        if self.back.is_some_and(|back| back <= self.now) {
            self.start_relay();
        }
        if let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let event = entry.remove();
            self.happen(event);
        }
        for end in 0..self.ends.len() {
            if self.ends[end].due().is_some_and(|due| due <= self.now) {
                self.tick(end);
            }
        }
        self.check();
    }

    fn check(&self) {
        let here = || format!("seed {}, step {}", self.seed, self.steps);
        for end in &self.ends {
            assert_eq!(end.leg.check(), Ok(()), "{}: {end:#?}", here());
        }
        let Some(relay) = &self.relay else { return };
        relay.check(&self.open);
        for end in &self.ends {
            if let Some(at) = relay.circuits.place(end.circuit, end.role) {
                assert!(
                    end.had.contains(&at),
                    "{}: {at:?} was never its own: {end:#?}",
                    here()
                );
            }
        }
    }

    fn tick(&mut self, end: usize) {
        let activity = self.ends[end].activity;
        self.ends[end].leg.handle_timeout(self.now, activity);
        self.drain(end);
        if let Some(number) = self.ends[end].ask(self.now) {
            let (circuit, role) = (self.ends[end].circuit, self.ends[end].role);
            self.send_data(end, Packet::Ask(circuit, role, number));
        }
    }

    fn drain(&mut self, end: usize) {
        while let Some(output) = self.ends[end].leg.poll_output() {
            match output {
                Output::Start(carrier) => self.set_up(end, carrier),
                Output::Stop(carrier) => self.tear_down(end, carrier),
                Output::Send {
                    carrier,
                    datagram,
                    padded,
                } => {
                    let counter = Control::decode(&datagram).unwrap().counter;
                    let state = &mut self.ends[end];
                    assert!(counter > state.counter, "a counter is used once");
                    state.counter = counter;
                    self.remember(datagram);
                    self.send(end, carrier, Packet::Control { datagram, padded });
                }
                Output::Use(carrier) => {
                    self.ends[end].active = Some(carrier);
                    self.ends[end].nudge(self.now);
                }
                Output::Silent(silent) => {
                    let state = &mut self.ends[end];
                    assert_ne!(state.silent, silent, "a change is a change");
                    state.silent = silent;
                    if !silent {
                        state.nudge(self.now);
                    }
                }
                Output::Repeat => self.ends[end].nudge(self.now),
                Output::Ended(_) => {
                    let state = &mut self.ends[end];
                    assert!(!self.open.contains(&state.circuit), "it ended of itself");
                    assert!(!state.ended, "nothing ends twice");
                    state.ended = true;
                }
            }
        }
    }

    fn set_up(&mut self, end: usize, carrier: Carrier) {
        let slot = carrier as usize;
        self.ends[end].attempt[slot] += 1;
        assert!(self.ends[end].only.is_none_or(|only| only == carrier));
        let attempt = self.ends[end].attempt[slot];
        let takes = match carrier {
            Carrier::Udp => Duration::from_millis(1),
            Carrier::WebSocket if self.troubles[end].blocked[slot] => CONNECT,
            Carrier::WebSocket => self.random.millis(30, 200),
        };
        let event = Event::Carrier {
            end,
            carrier,
            attempt,
        };
        self.later(takes, event);
    }

    fn tear_down(&mut self, end: usize, carrier: Carrier) {
        self.ends[end].attempt[carrier as usize] += 1;
        if let Some(at @ Addr::WebSocket(_)) = self.ends[end].at[carrier as usize].take() {
            let takes = if self.troubles[end].blocked[carrier as usize] {
                WEBSOCKET_TIMEOUT
            } else {
                Duration::from_millis(20)
            };
            self.later(takes, Event::Gone(at));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Carrier {
                end,
                carrier,
                attempt,
            } => self.carrier(end, carrier, attempt),
            Event::ToRelay(from, packet) => self.at_relay(from, packet),
            Event::ToEnd(to, packet) => self.at_end(to, packet),
            Event::Gone(address) => {
                if let Some(relay) = &mut self.relay {
                    relay.gone(address);
                }
            }
            Event::Broken(end, address) => {
                if self.ends[end].at[1] == Some(address) {
                    self.ends[end].at[1] = None;
                    self.ends[end].leg.handle_failed(self.now, Carrier::WebSocket);
                    self.drain(end);
                }
            }
        }
    }

    fn carrier(&mut self, end: usize, carrier: Carrier, attempt: u64) {
        if self.ends[end].attempt[carrier as usize] != attempt {
            return;
        }
        let works = carrier == Carrier::Udp
            || (self.relay.is_some() && !self.troubles[end].blocked[carrier as usize]);
        if works {
            let address = match carrier {
                Carrier::Udp => self.free_address(),
                Carrier::WebSocket => {
                    self.next_websocket += 1;
                    Addr::WebSocket(self.next_websocket)
                }
            };
            self.give_address(end, carrier, address);
            self.ends[end].leg.handle_ready(self.now, carrier);
        } else {
            self.ends[end].leg.handle_failed(self.now, carrier);
        }
        self.drain(end);
    }

    /// Finds a UDP address that nobody has at the moment, perhaps one that somebody had.
    fn free_address(&mut self) -> Addr {
        loop {
            let address = Addr::Udp(self.random.below(UDP_ADDRESSES) as u16);
            if self.ends.iter().all(|end| end.at[0] != Some(address)) {
                return address;
            }
        }
    }

    fn give_address(&mut self, end: usize, carrier: Carrier, address: Addr) {
        self.ends[end].at[carrier as usize] = Some(address);
        self.ends[end].had.insert(address);
    }

    fn at_relay(&mut self, from: Addr, packet: Packet) {
        let Some(relay) = &mut self.relay else { return };
        match packet {
            Packet::Control { datagram, padded } => {
                let (from_kind, answers) = (from, relay.bind(from, &datagram));
                for (to, datagram) in answers {
                    debug_assert_eq!(to, from_kind);
                    self.send_to_end(to, Packet::Control { datagram, padded });
                }
            }
            data @ (Packet::Ask(..) | Packet::Answer(..)) => {
                if let Some(to) = relay.forward(from) {
                    self.send_to_end(to, data);
                }
            }
        }
    }

    fn at_end(&mut self, to: Addr, packet: Packet) {
        let Some(end) = self.ends.iter().position(|end| end.at.contains(&Some(to))) else {
            return;
        };
        let carrier = if self.ends[end].at[0] == Some(to) {
            Carrier::Udp
        } else {
            Carrier::WebSocket
        };
        let state = &mut self.ends[end];
        match packet {
            Packet::Control { datagram, .. } => {
                state.leg.handle_control(self.now, carrier, &datagram);
                self.drain(end);
                return;
            }
            Packet::Ask(circuit, role, number) => {
                state.received(self.now);
                // What is for another is noise: the ends' own encryption tells.
                if circuit == state.circuit && role == state.role.other() {
                    self.send_data(end, Packet::Answer(circuit, role, number));
                }
            }
            Packet::Answer(circuit, role, number) => {
                state.received(self.now);
                if circuit == state.circuit && role == state.role && state.answered(self.now, number) {
                    self.delivered += 1;
                }
            }
        }
        let activity = self.ends[end].activity;
        self.ends[end].leg.handle_timeout(self.now, activity);
        self.drain(end);
    }

    fn send_data(&mut self, end: usize, packet: Packet) {
        if let Some(active) = self.ends[end].active.filter(|_| !self.ends[end].ended) {
            self.ends[end].sent(self.now);
            self.send(end, active, packet);
        }
    }

    fn send(&mut self, end: usize, carrier: Carrier, packet: Packet) {
        let Some(from) = self.ends[end].at[carrier as usize] else {
            return;
        };
        let loss = self.troubles[end].loss_out;
        if self.passes(end, carrier, &packet, loss) {
            self.deliver(packet, carrier, |packet| Event::ToRelay(from, packet));
        }
    }

    fn send_to_end(&mut self, to: Addr, packet: Packet) {
        // The network knows who has the address only when the packet arrives; its troubles are those of today's owner.
        let Some(end) = self.ends.iter().position(|end| end.at.contains(&Some(to))) else {
            return;
        };
        let carrier = if matches!(to, Addr::Udp(_)) {
            Carrier::Udp
        } else {
            Carrier::WebSocket
        };
        let loss = self.troubles[end].loss_in;
        if self.passes(end, carrier, &packet, loss) {
            self.deliver(packet, carrier, |packet| Event::ToEnd(to, packet));
        }
    }

    fn passes(&mut self, end: usize, carrier: Carrier, packet: &Packet, loss: u64) -> bool {
        let trouble = &self.troubles[end];
        let small = matches!(packet, Packet::Control { padded: false, .. });
        let stuck =
            trouble.blocked[carrier as usize] || (trouble.narrow && carrier == Carrier::Udp && !small);
        // TCP repeats what is lost.
        !stuck && (carrier == Carrier::WebSocket || !self.random.chance(loss))
    }

    fn deliver(&mut self, packet: Packet, carrier: Carrier, event: impl Fn(Packet) -> Event) {
        let spread = if carrier == Carrier::Udp { self.spread } else { 5 };
        if carrier == Carrier::Udp && self.random.chance(self.doubled) {
            let takes = self.random.millis(10, 10 + 2 * spread);
            self.later(takes, event(packet.clone()));
        }
        let takes = self.random.millis(10, 10 + spread);
        self.later(takes, event(packet));
    }

    fn later(&mut self, takes: Duration, event: Event) {
        self.next_event += 1;
        self.queue.insert((self.now + takes, self.next_event), event);
    }

    /// One more thing goes wrong, or is well again.
    fn trouble(&mut self) {
        let end = self.random.below(self.ends.len() as u64) as usize;
        match self.random.below(20) {
            0 => self.troubles[end].blocked[0] ^= true,
            1 => self.troubles[end].blocked[1] ^= true,
            2 => self.troubles[end].narrow ^= true,
            3 => self.troubles[end].loss_out = [0, 100, 500][self.random.below(3) as usize],
            4 => self.troubles[end].loss_in = [0, 100, 500][self.random.below(3) as usize],
            5 => {
                self.doubled = [0, 100, 300][self.random.below(3) as usize];
                self.spread = [5, 100, 3000][self.random.below(3) as usize];
            }
            6 => self.rebind(end),
            7 => self.move_end(end),
            8 => {
                self.move_end(end);
                self.move_end(end ^ 1);
            }
            9 | 10 => self.kill_relay(),
            11 => {
                let carrier = [Carrier::Udp, Carrier::WebSocket][self.random.below(2) as usize];
                self.ends[end].leg.handle_hint(self.now, carrier);
                self.drain(end);
            }
            12 => self.troubles[end] = Trouble::default(),
            13 if self.random.chance(300) => self.replace_circuit(end / 2),
            _ => self.attack(),
        }
    }

    /// The NAT in front of an end forgets: the relay sees it at another address, and its TCP connection is dead.
    fn rebind(&mut self, end: usize) {
        if self.ends[end].at[0].is_some() {
            let address = self.free_address();
            self.give_address(end, Carrier::Udp, address);
        }
        if let Some(at) = self.ends[end].at[1] {
            self.later(WEBSOCKET_TIMEOUT, Event::Gone(at));
            // Its packets come from an address that the relay has no connection with, and are answered with a reset.
            let takes = self.random.millis(100, 5000);
            self.later(takes, Event::Broken(end, at));
        }
    }

    fn move_end(&mut self, end: usize) {
        if !self.ends[end].ended {
            self.ends[end].active = None;
            self.ends[end].leg.handle_network_change(self.now);
            self.drain(end);
        }
    }

    fn kill_relay(&mut self) {
        if self.relay.take().is_none() {
            return;
        }
        self.back = Some(self.now + self.random.millis(50, 20_000));
        for end in 0..self.ends.len() {
            if let Some(at) = self.ends[end].at[1] {
                let takes = self.random.millis(1, 3000);
                self.later(takes, Event::Broken(end, at));
            }
        }
    }

    fn start_relay(&mut self) {
        self.back = None;
        let secret = self.random.word();
        self.relay = Some(Relay::start(secret, &self.open));
    }

    /// A tunnel is closed, perhaps while the relay is away, and another one opened at the same ends.
    fn replace_circuit(&mut self, pair: usize) {
        let circuit = self.ends[pair * 2].circuit;
        self.open.remove(&circuit);
        let told = match &mut self.relay {
            Some(relay) => relay.close(circuit),
            None => Vec::new(),
        };
        for (to, datagram) in told {
            self.send_to_end(
                to,
                Packet::Control {
                    datagram,
                    padded: false,
                },
            );
        }
        self.open_circuit(Some(pair));
    }

    fn open_circuit(&mut self, pair: Option<usize>) {
        self.next_circuit = self.next_circuit.wrapping_add(1);
        let circuit = CircuitId::from_bytes([self.next_circuit; 16]);
        self.open.insert(circuit);
        if let Some(relay) = &mut self.relay {
            relay.open(circuit, false);
        }
        for (number, role) in [Role::Source, Role::Destination].into_iter().enumerate() {
            let only = match self.random.below(8) {
                0 => Some(Carrier::Udp),
                1 => Some(Carrier::WebSocket),
                _ => None,
            };
            let end = End::new(self.now, circuit, role, only);
            match pair {
                Some(pair) => self.ends[pair * 2 + number] = end,
                None => {
                    self.ends.push(end);
                    self.troubles.push(Trouble::default());
                }
            }
            let place = pair.map_or(self.ends.len() - 1, |pair| pair * 2 + number);
            self.drain(place);
        }
    }

    fn remember(&mut self, datagram: [u8; SIZE]) {
        if self.seen.len() < 64 {
            self.seen.push(datagram);
        } else {
            let at = self.random.below(64) as usize;
            self.seen[at] = datagram;
        }
    }

    /// A stranger repeats what he has seen, forges, or sends as somebody else.
    fn attack(&mut self) {
        if self.seen.is_empty() {
            return;
        }
        let at = self.random.below(self.seen.len() as u64) as usize;
        let mut datagram = self.seen[at];
        let bind = Control::decode(&datagram).unwrap();
        self.attacks += 1;
        match self.random.below(3) {
            0 => {}
            1 => datagram = bind.encode(&LegKey::new(Secret::new([9; 32]))),
            _ => {
                let flipped = self.random.below(SIZE as u64) as usize;
                datagram[flipped] ^= 1 << self.random.below(8);
            }
        }
        let from = if self.random.chance(500) {
            Addr::Stranger(self.random.below(4) as u8)
        } else {
            let end = self.random.below(self.ends.len() as u64) as usize;
            self.ends[end].at[0].unwrap_or(Addr::Stranger(9))
        };
        // He also sends the leg answers that he made up.
        let kind = [Kind::Bound, Kind::Challenge, Kind::Ended][self.random.below(3) as usize];
        let false_answer = Control { kind, ..bind }.encode(&LegKey::new(Secret::new([9; 32])));
        let victim = self.random.below(self.ends.len() as u64) as usize;
        self.ends[victim]
            .leg
            .handle_control(self.now, Carrier::Udp, &false_answer);
        self.drain(victim);
        self.later(
            Duration::from_millis(1),
            Event::ToRelay(
                from,
                Packet::Control {
                    datagram,
                    padded: false,
                },
            ),
        );
    }
}
