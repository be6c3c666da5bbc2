//! Every transition of a leg.

use super::*;
use crate::keys::Secret;

const CIRCUIT: CircuitId = CircuitId::from_bytes([1; 16]);
/// One way to the relay.
const DELAY: Duration = Duration::from_millis(20);

fn key() -> LegKey {
    LegKey::new(Secret::new([7; 32]))
}

/// A leg, two carriers that can be blocked, and a relay that follows the rules of `bind`.
struct World {
    now: Instant,
    leg: Leg,
    passes: [bool; 2],
    /// Whether the path of UDP carries only what is small.
    narrow: bool,
    used: Vec<Carrier>,
    /// Whether the relay sees the leg at another address than the bound one.
    elsewhere: bool,
    bound: Option<(Carrier, u64)>,
    last_counter: u64,
    under_way: VecDeque<(Instant, Carrier, [u8; SIZE])>,
    ready: VecDeque<(Instant, Carrier)>,
    activity: Activity,
    silent: bool,
    repeats: usize,
    ended: Option<Code>,
    steps: usize,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            leg: Leg::new(now, CIRCUIT, Role::Source, key(), None),
            passes: [true; 2],
            narrow: false,
            used: Vec::new(),
            elsewhere: false,
            bound: None,
            last_counter: 0,
            under_way: VecDeque::new(),
            ready: VecDeque::new(),
            activity: Activity::default(),
            silent: false,
            repeats: 0,
            ended: None,
            steps: 0,
        }
    }

    /// The relay's rules: a later counter, and a challenge for every other address than the bound one, and for the
    /// first one of UDP.
    fn relay(&mut self, carrier: Carrier, datagram: &[u8]) {
        let control = Control::decode(datagram).unwrap();
        assert!(
            Control::is_authentic(datagram, &key()),
            "the leg signs what it sends"
        );
        if control.counter <= self.last_counter {
            return;
        }
        let challenge = 1000 + index(carrier) as u64;
        let moves = match self.bound {
            Some((bound, _)) => bound != carrier || self.elsewhere,
            None => carrier == Carrier::Udp,
        };
        self.last_counter = control.counter;
        let kind = if moves && control.value != challenge {
            Kind::Challenge
        } else {
            Kind::Bound
        };
        if kind == Kind::Bound {
            self.bound = Some((carrier, control.counter));
            self.elsewhere = false;
        }
        let value = if kind == Kind::Challenge { challenge } else { 0 };
        let answer = Control {
            kind,
            value,
            ..control
        };
        self.under_way
            .push_back((self.now + DELAY * 2, carrier, answer.encode(&key())));
    }

    fn drain(&mut self) {
        while let Some(output) = self.leg.poll_output() {
            match output {
                Output::Start(carrier) => self.ready.push_back((self.now + DELAY, carrier)),
                Output::Stop(carrier) => self.ready.retain(|(_, c)| *c != carrier),
                Output::Send {
                    carrier,
                    padded: true,
                    ..
                } if self.narrow && carrier == Carrier::Udp => {}
                Output::Send {
                    carrier, datagram, ..
                } if self.passes[index(carrier)] => {
                    self.relay(carrier, &datagram);
                }
                Output::Send { .. } => {}
                Output::Use(carrier) => self.used.push(carrier),
                Output::Silent(silent) => self.silent = silent,
                Output::Repeat => self.repeats += 1,
                Output::Ended(code) => self.ended = Some(code),
            }
        }
    }

    /// Goes to the next thing that happens, at most to `end`.
    fn step(&mut self, end: Instant) {
        self.drain();
        self.steps += 1;
        let answer = self.under_way.iter().map(|a| a.0).min();
        let ready = self.ready.iter().map(|r| r.0).min();
        let timeout = self.leg.poll_timeout(self.activity);
        let next = [answer, ready, timeout]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(end)
            .min(end);
        self.now = self.now.max(next);
        if let Some(at) = self.under_way.iter().position(|a| a.0 <= self.now) {
            let (_, carrier, datagram) = self.under_way.remove(at).unwrap();
            if self.passes[index(carrier)] {
                self.leg.handle_control(self.now, carrier, &datagram);
            }
        } else if let Some(at) = self.ready.iter().position(|r| r.0 <= self.now) {
            let (_, carrier) = self.ready.remove(at).unwrap();
            self.leg.handle_ready(self.now, carrier);
        } else {
            self.leg.handle_timeout(self.now, self.activity);
        }
        self.drain();
        assert_eq!(self.leg.check(), Ok(()), "{:?}", self.leg);
    }

    /// Runs until the state is there; panics after `limit`. Returns how long it took.
    fn until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now < start + limit, "not within {limit:?}: {what}");
            self.step(start + limit);
        }
        self.now - start
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn udp_is_taken_where_it_passes() {
    let mut world = World::new();
    let took = world.until(secs(1), "UDP in use", |w| w.leg.active() == Some(Carrier::Udp));
    assert!(took <= DELAY * 4, "{took:?}");
    world.run(secs(300));
    assert_eq!(world.leg.active(), Some(Carrier::Udp));
    assert!(world.steps < 400, "{} steps in five quiet minutes", world.steps);
}

#[test]
fn websocket_is_taken_where_udp_is_blocked_and_left_when_it_passes_again() {
    let mut world = World::new();
    world.passes = [false, true];
    world.until(secs(1), "WebSocket in use", |w| {
        w.leg.active() == Some(Carrier::WebSocket)
    });
    world.run(secs(120));
    assert_eq!(world.leg.active(), Some(Carrier::WebSocket));
    world.passes = [true, true];
    world.until(secs(250), "UDP in use", |w| w.leg.active() == Some(Carrier::Udp));
    assert_eq!(world.bound.unwrap().0, Carrier::Udp);
    world.run(secs(60));
    assert_eq!(world.leg.active(), Some(Carrier::Udp));
}

#[test]
fn a_leg_bound_to_one_carrier_uses_no_other() {
    for only in [Carrier::Udp, Carrier::WebSocket] {
        let mut world = World::new();
        world.leg = Leg::new(world.now, CIRCUIT, Role::Source, key(), Some(only));
        world.until(secs(1), "bound", |w| w.leg.active() == Some(only));
        world.passes[index(only)] = false;
        world.run(secs(60));
        assert_eq!(world.leg.active(), Some(only));
        assert!(world.silent);
    }
}

#[test]
fn a_ban_of_udp_is_left_for_websocket_while_data_waits() {
    let mut world = World::new();
    world.run(secs(5));
    world.passes = [false, true];
    world.activity.waiting_since = Some(world.now);
    let took = world.until(secs(3), "WebSocket in use", |w| {
        w.leg.active() == Some(Carrier::WebSocket)
    });
    assert!(took <= secs(3), "{took:?}");
    assert!(!world.silent);
}

/// A path that swallows packets as long as QUIC's, but not binds.
#[test]
fn a_narrow_path_of_udp_is_never_taken() {
    let mut world = World::new();
    world.narrow = true;
    world.until(secs(1), "WebSocket in use", |w| {
        w.leg.active() == Some(Carrier::WebSocket)
    });
    world.run(secs(1000));
    assert_eq!(world.used, [Carrier::WebSocket]);
    world.narrow = false;
    world.until(secs(250), "UDP in use", |w| w.leg.active() == Some(Carrier::Udp));
}

#[test]
fn a_path_that_becomes_narrow_is_left_when_data_waits() {
    let mut world = World::new();
    world.run(secs(5));
    world.narrow = true;
    world.run(secs(60));
    assert_eq!(
        world.used,
        [Carrier::Udp],
        "small datagrams pass, and nothing else is needed"
    );
    world.activity.waiting_since = Some(world.now);
    world.until(secs(3), "WebSocket in use", |w| {
        w.leg.active() == Some(Carrier::WebSocket)
    });
    assert!(!world.silent);
}

#[test]
fn a_silent_relay_is_noticed_in_time_and_found_again() {
    let mut world = World::new();
    world.run(secs(60));
    world.passes = [false, false];
    let took = world.until(secs(15), "silence noticed", |w| w.silent);
    assert!(took <= secs(15), "{took:?}");
    world.run(secs(60));
    assert!(world.steps < 2000, "{} steps", world.steps);
    world.passes = [true, true];
    let took = world.until(secs(5), "heard again", |w| !w.silent);
    assert!(took <= secs(5), "{took:?}");
}

/// WebSocket is tried beside a UDP that is silent: whichever answers first, nothing is left over.
#[test]
fn one_carrier_is_left_when_both_answer_again() {
    for late in 0..40 {
        let mut world = World::new();
        world.run(secs(5));
        world.passes = [false, false];
        world.activity.waiting_since = Some(world.now);
        world.until(secs(3), "silence noticed", |w| w.silent);
        world.run(Duration::from_millis(late * 25));
        world.passes = [true, true];
        world.activity = Activity::default();
        world.run(secs(40));
        assert_eq!(world.leg.active(), Some(Carrier::Udp), "{late}");
        assert_eq!(world.bound.unwrap().0, Carrier::Udp, "{late}");
    }
}

#[test]
fn an_end_that_only_listens_notices_soon_after_the_last_data() {
    let mut world = World::new();
    world.run(secs(60));
    world.activity.received = Some(world.now);
    world.passes = [false, false];
    let took = world.until(secs(3), "silence noticed", |w| w.silent);
    assert!(took <= secs(3), "{took:?}");
    world.run(secs(20));
    world.passes = [true, true];
    let took = world.until(secs(2), "heard again", |w| !w.silent);
    assert!(took <= secs(1), "{took:?}");
}

#[test]
fn a_silent_relay_is_noticed_at_once_while_data_waits() {
    let mut world = World::new();
    world.run(secs(5));
    world.passes = [false, false];
    world.activity.waiting_since = Some(world.now);
    world.until(secs(3), "silence noticed", |w| w.silent);
}

/// The other end was away; here everything was well all the time.
#[test]
fn what_was_lost_is_repeated_when_the_other_end_is_heard_again() {
    let mut world = World::new();
    world.run(secs(60));
    for (wait, repeated) in [(Duration::from_millis(700), false), (secs(20), true)] {
        let before = world.repeats;
        world.activity.waiting_since = Some(world.now);
        world.run(wait);
        assert_eq!(world.repeats, before, "nothing has changed yet");
        world.activity = Activity {
            received: Some(world.now),
            waiting_since: None,
        };
        world.leg.handle_timeout(world.now, world.activity);
        world.drain();
        assert_eq!(world.repeats > before, repeated, "after {wait:?}");
    }
    assert!(!world.silent, "the relay was there");
}

/// One repetition may be lost, or come before the other end is back.
#[test]
fn what_was_lost_is_repeated_until_something_comes_and_not_for_ever() {
    for heard in [true, false] {
        let mut world = World::new();
        world.leg = Leg::new(world.now, CIRCUIT, Role::Source, key(), Some(Carrier::Udp));
        world.run(secs(60));
        let before = world.repeats;
        world.passes = [false, false];
        world.activity.waiting_since = Some(world.now);
        world.until(secs(3), "silence noticed", |w| w.silent);
        world.passes = [true, true];
        world.until(secs(3), "heard again", |w| !w.silent);
        if heard {
            for _ in 0..2 {
                world.run(Duration::from_millis(100));
                world.activity.received = Some(world.now);
                world.activity.waiting_since = None;
                world.leg.handle_timeout(world.now, world.activity);
            }
        }
        world.run(secs(100));
        let repeats = world.repeats - before;
        assert!(
            if heard {
                (2..=4).contains(&repeats)
            } else {
                repeats > 4
            },
            "{repeats}"
        );
        assert!(repeats <= 2 * (REPEAT_PAUSES.len() + 1), "{repeats}");
    }
}

#[test]
fn an_end_is_believed_only_from_the_relay() {
    let mut world = World::new();
    world.run(secs(1));
    let ended = Control {
        kind: Kind::Ended,
        circuit: CIRCUIT,
        role: Role::Source,
        counter: 0,
        value: Code::PolicyChanged as u64,
    };
    let forged = ended.encode(&LegKey::new(Secret::new([8; 32])));
    world.leg.handle_control(world.now, Carrier::Udp, &forged);
    world.drain();
    assert_eq!(world.ended, None);
    world
        .leg
        .handle_control(world.now, Carrier::Udp, &ended.encode(&key()));
    world.drain();
    assert_eq!(world.ended, Some(Code::PolicyChanged));
    assert_eq!(world.leg.poll_timeout(Activity::default()), None);
}

#[test]
fn a_changed_network_is_bound_again_within_a_round_trip() {
    let mut world = World::new();
    world.run(secs(5));
    let before = world.bound.unwrap().1;
    world.leg.handle_network_change(world.now);
    let took = world.until(secs(1), "bound again", |w| w.bound.unwrap().1 > before);
    assert!(took <= DELAY * 3, "{took:?}");
    world.run(secs(60));
    assert_eq!(
        world.leg.active(),
        Some(Carrier::Udp),
        "WebSocket is not needed where UDP works"
    );
    assert_eq!(
        world.used,
        [Carrier::Udp; 2],
        "whoever sends is told of the way afterwards too"
    );
}

#[test]
fn what_is_sent_after_a_move_waits_for_the_challenge_only() {
    let mut world = World::new();
    world.run(secs(5));
    world.elsewhere = true;
    world.leg.handle_network_change(world.now);
    let took = world.until(secs(1), "UDP in use again", |w| w.used.len() == 2);
    assert!(took <= DELAY * 3, "{took:?}");
    assert!(
        !world.elsewhere,
        "the bind that answers the challenge went before"
    );
    world.run(secs(60));
    assert_eq!(world.used, [Carrier::Udp; 2]);
}

#[test]
fn carriers_that_fail_at_once_do_not_make_it_spin() {
    let mut world = World::new();
    for _ in 0..1000 {
        world.drain();
        if let Some((_, carrier)) = world.ready.pop_front() {
            world.leg.handle_failed(world.now, carrier);
        } else if let Some(next) = world.leg.poll_timeout(world.activity) {
            world.now = world.now.max(next);
            world.leg.handle_timeout(world.now, world.activity);
        }
    }
    let spent = world.now - Instant::now();
    assert!(spent > secs(300), "1,000 steps took only {spent:?}");
}
