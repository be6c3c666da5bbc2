use tunnel_proto::handover::VERSION;
use tunnel_proto::message::{EndTunnel, EndsDropped, FromAgent, SessionEnded, TunnelEnded};

use super::*;
use crate::defaults::TRIAL;

const SECOND: Duration = Duration::from_secs(1);

/// A succession with a clock of its own; what it put out is kept until it is looked at.
struct World {
    now: Instant,
    succession: Succession,
    outputs: Vec<Output>,
}

const NEW: Standing = Standing {
    proven: false,
    given_up: false,
    last_good: true,
};
const PROVEN: Standing = Standing {
    proven: true,
    given_up: false,
    last_good: false,
};

fn tunnel(number: u8) -> TunnelId {
    TunnelId::from_bytes([number; 16])
}

fn state(role: Role, linked: bool, tunnels: &[u8]) -> Message {
    Message::State(State {
        protocol: VERSION,
        version: "0.1.0".into(),
        role,
        linked,
        tunnels: tunnels.iter().copied().map(tunnel).collect(),
        recording: None,
    })
}

impl World {
    fn new(standing: Standing, inherited: &[u64]) -> Self {
        let now = crate::testing::start();
        let succession = Succession::new(now, standing, inherited, TRIAL);
        let mut world = Self {
            now,
            succession,
            outputs: Vec::new(),
        };
        world.drain();
        world
    }

    /// A supervisor that was restarted while worker 1 was linked and had tunnel 7.
    fn restarted(standing: Standing) -> Self {
        let mut world = Self::new(standing, &[1]);
        world.say(1, state(Role::Active, true, &[7]));
        world
    }

    fn drain(&mut self) {
        while let Some(output) = self.succession.poll_output() {
            self.outputs.push(output);
        }
        assert!(
            self.succession.workers.len() <= 16,
            "workers are bounded by what is started"
        );
    }

    fn say(&mut self, worker: u64, message: Message) {
        self.succession.handle_message(self.now, worker, message);
        self.drain();
    }

    fn end(&mut self, worker: u64, code: Option<u8>) {
        self.succession.handle_end(self.now, worker, code);
        self.drain();
    }

    /// Lets time pass, with all timeouts on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.succession.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.succession.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Returns the workers that were started since the last look.
    fn started(&mut self) -> Vec<(u64, Program)> {
        let outputs = self.take();
        let started = outputs.into_iter().filter_map(|output| match output {
            Output::Start { worker, program } => Some((worker, program)),
            _ => None,
        });
        started.collect()
    }

    /// Returns the last order of a worker.
    fn role(&self, worker: u64) -> Option<Role> {
        Some(self.succession.workers.get(&worker)?.ordered.as_ref()?.role)
    }

    fn gave_up(&self) -> bool {
        self.outputs
            .iter()
            .any(|output| matches!(output, Output::GiveUp { .. }))
    }
}

#[test]
fn a_first_program_is_kept_once_it_has_come_through() {
    let mut world = World::new(Standing::default(), &[]);
    assert_eq!(world.started(), [(1, Program::Own)]);
    assert_eq!(world.role(1), Some(Role::Active));
    world.pass(600 * SECOND);
    assert_eq!(world.take(), [], "a device that is offline waits");
    world.say(1, state(Role::Active, true, &[]));
    world.pass(PROBATION - SECOND);
    world.say(1, state(Role::Active, false, &[]));
    world.say(1, state(Role::Active, true, &[]));
    world.pass(PROBATION - SECOND);
    assert!(
        !world.take().contains(&Output::Keep { worker: 1 }),
        "the link was lost between"
    );
    world.pass(SECOND);
    assert_eq!(world.take(), [Output::Keep { worker: 1 }]);
}

#[test]
fn the_others_drain_only_once_the_new_one_has_come_through() {
    let mut world = World::restarted(NEW);
    assert_eq!(world.started(), [(2, Program::Own)]);
    assert_eq!(
        (world.role(1), world.role(2)),
        (Some(Role::Waiting), Some(Role::Active))
    );
    let order = world.succession.workers[&2].ordered.clone().unwrap();
    assert_eq!(
        order.others,
        [tunnel(7)],
        "its first word to the server names what lives elsewhere"
    );
    // The server has one link for each device: the new one displaces the old.
    world.say(2, state(Role::Active, true, &[]));
    world.say(1, state(Role::Waiting, false, &[7]));
    world.pass(PROBATION - SECOND);
    assert_eq!(world.role(1), Some(Role::Waiting));
    world.pass(SECOND);
    assert_eq!(
        (world.role(1), world.role(2)),
        (Some(Role::Draining), Some(Role::Active))
    );
    assert!(world.outputs.contains(&Output::Keep { worker: 2 }));
    world.say(1, state(Role::Draining, false, &[]));
    assert_eq!(
        world.succession.workers[&2].ordered.clone().unwrap().others,
        [],
        "what has ended is not named any more"
    );
    world.take();
    world.end(1, None);
    assert_eq!(world.take(), [], "that was to be expected");
}

#[test]
fn a_program_that_came_through_before_has_to_link_only() {
    let mut world = World::restarted(PROVEN);
    world.say(2, state(Role::Active, false, &[]));
    assert_eq!(world.role(1), Some(Role::Waiting));
    world.say(2, state(Role::Active, true, &[]));
    assert_eq!(world.role(1), Some(Role::Draining));
}

// AGT-16
#[test]
fn a_new_program_that_fails_twice_in_reach_of_the_server_is_given_up() {
    for ends_by_itself in [true, false] {
        let mut world = World::restarted(NEW);
        for worker in [2, 3] {
            assert_eq!(world.started(), [(worker, Program::Own)]);
            assert_eq!(world.role(1), Some(Role::Waiting));
            if ends_by_itself {
                world.end(worker, Some(1));
            } else {
                world.pass(TRIAL);
                assert!(world.outputs.contains(&Output::Kill { worker }));
            }
            assert_eq!(world.role(1), Some(Role::Active), "the one that worked goes on");
            if worker == 2 {
                assert!(!world.gave_up());
                world.pass(BETWEEN_TRIALS);
            }
        }
        assert!(world.outputs.contains(&Output::GiveUp {
            program: Program::Own
        }));
        world.take();
        world.pass(600 * SECOND);
        assert_eq!(world.take(), [], "it is not tried again");
        world.say(1, Message::Status("linked".into()));
        let [Output::Status(text)] = &world.take()[..] else {
            panic!("one status")
        };
        assert!(text.starts_with("linked") && text.contains("given up"), "{text}");
    }
}

#[test]
fn a_new_program_that_links_and_falls_over_is_given_up_too() {
    let mut world = World::restarted(NEW);
    for worker in [2, 3] {
        world.say(worker, state(Role::Active, true, &[]));
        world.say(1, state(Role::Waiting, false, &[7]));
        world.pass(SECOND);
        world.end(worker, None);
        assert_eq!(world.role(1), Some(Role::Active));
        world.say(1, state(Role::Active, true, &[7]));
        world.pass(BETWEEN_TRIALS);
    }
    assert!(world.gave_up());
    assert!(
        world.succession.workers.contains_key(&1),
        "and its tunnel is there still"
    );
}

#[test]
fn nothing_is_given_up_while_nobody_reaches_the_server() {
    let mut world = World::restarted(NEW);
    world.end(2, Some(1));
    world.say(1, state(Role::Active, false, &[7]));
    world.take();
    // The first failure counted; since then the device is offline.
    for _ in 0..5 {
        world.pass(2 * TRIAL);
        assert!(!world.gave_up());
    }
    assert!(world.started().len() >= 4, "it is tried again and again");
    assert!(world.succession.workers.contains_key(&1));
}

#[test]
fn a_program_that_came_through_before_is_not_given_up() {
    let mut world = World::restarted(PROVEN);
    for worker in 2..8 {
        world.end(worker, Some(1));
        assert_eq!(world.role(1), Some(Role::Active));
        world.pass(BETWEEN_TRIALS);
    }
    assert!(!world.gave_up());
    world.pass(TRIAL);
    assert_eq!(
        world.role(1),
        Some(Role::Draining),
        "without a link it takes over in the end"
    );
}

// AGT-16
#[test]
fn after_a_reboot_the_last_good_program_says_whether_it_is_the_new_one() {
    let mut world = World::new(NEW, &[]);
    assert_eq!(world.started(), [(1, Program::Own)]);
    world.pass(TRIAL);
    assert!(!world.gave_up(), "the device may be offline");
    assert_eq!(world.started(), [(2, Program::LastGood)]);
    world.say(2, state(Role::Active, true, &[]));
    for worker in [3, 4] {
        world.pass(BETWEEN_TRIALS);
        assert_eq!(world.started(), [(worker, Program::Own)]);
        world.end(worker, None);
    }
    assert!(world.outputs.contains(&Output::GiveUp {
        program: Program::Own
    }));
    assert_eq!(world.role(2), Some(Role::Active));
    world.take();
    world.end(2, Some(1));
    world.pass(SECOND);
    assert_eq!(
        world.started(),
        [(5, Program::LastGood)],
        "it is what runs from here on"
    );
}

#[test]
fn an_offline_device_is_not_rolled_back() {
    let mut world = World::new(NEW, &[]);
    world.pass(20 * TRIAL);
    assert!(!world.gave_up());
    let candidate = match world.succession.phase {
        Phase::Trial { candidate, .. } => candidate,
        _ => {
            world.pass(TRIAL);
            world.succession.front().unwrap()
        }
    };
    world.say(candidate, state(Role::Active, true, &[]));
    world.pass(PROBATION);
    assert!(world.outputs.contains(&Output::Keep { worker: candidate }));
}

#[test]
fn a_program_that_was_given_up_is_not_started() {
    let given_up = Standing {
        given_up: true,
        ..NEW
    };
    let mut world = World::new(given_up, &[]);
    assert_eq!(world.started(), [(1, Program::LastGood)]);
    let mut world = World::restarted(given_up);
    assert_eq!(world.role(1), Some(Role::Active));
    assert!(world.outputs.contains(&Output::Send {
        worker: 1,
        message: Message::Reload
    }));
    assert_eq!(world.started(), []);
}

#[test]
fn an_upgrade_in_place_is_a_trial_like_another() {
    let mut world = World::new(PROVEN, &[]);
    world.say(1, state(Role::Active, true, &[7]));
    world.take();
    world.succession.handle_upgrade(world.now, NEW);
    world.drain();
    assert_eq!(world.started(), [(2, Program::Installed)]);
    assert_eq!(world.role(1), Some(Role::Waiting));
    world.say(2, state(Role::Active, true, &[]));
    world.pass(PROBATION);
    assert_eq!(world.role(1), Some(Role::Draining));
    world.end(2, None);
    world.pass(SECOND);
    assert_eq!(world.started(), [(3, Program::Installed)]);
    world.succession.handle_upgrade(
        world.now,
        Standing {
            given_up: true,
            ..NEW
        },
    );
    world.drain();
    assert_eq!(world.started(), [], "one that was given up is not tried");
}

#[test]
fn a_worker_that_cannot_start_ends_the_supervisor_with_its_code() {
    let mut world = World::new(Standing::default(), &[]);
    world.end(1, Some(2));
    assert_eq!(world.take().last(), Some(&Output::Exit(2)));
    // With a last good program that cannot either, the code is that of the new one.
    let mut world = World::new(NEW, &[]);
    world.end(1, Some(2));
    assert_eq!(world.started().last(), Some(&(2, Program::LastGood)));
    world.end(2, Some(70));
    assert_eq!(world.take().last(), Some(&Output::Exit(2)));
}

#[test]
fn a_worker_that_ends_is_started_again_after_a_pause_that_grows() {
    let mut world = World::new(PROVEN, &[]);
    let mut before = Duration::ZERO;
    for worker in 1..10 {
        world.say(worker, state(Role::Active, true, &[]));
        world.take();
        world.end(worker, None);
        let pause = world.succession.poll_timeout().unwrap() - world.now;
        assert!(pause >= before && pause <= RESTART_PAUSES.1, "{pause:?}");
        before = pause;
        world.pass(pause);
        assert_eq!(world.started(), [(worker + 1, Program::Own)]);
    }
    assert_eq!(before, RESTART_PAUSES.1);
    world.say(10, state(Role::Active, true, &[]));
    world.pass(LIVED);
    world.end(10, None);
    assert_eq!(
        world.succession.poll_timeout(),
        Some(world.now + RESTART_PAUSES.0)
    );
}

#[test]
fn what_ends_tunnels_reaches_the_others_and_their_ends_reach_the_front() {
    let mut world = World::restarted(PROVEN);
    world.say(2, state(Role::Active, true, &[]));
    world.take();
    let end = Message::EndTunnel(EndTunnel {
        tunnel: tunnel(7),
        reason: Code::Revoked.into(),
    });
    world.say(2, end.clone());
    let to_first = Output::Send {
        worker: 1,
        message: end.clone(),
    };
    assert_eq!(world.take(), [to_first]);
    world.say(1, end);
    world.say(1, Message::EndAll(Code::Revoked));
    assert_eq!(world.take(), [], "only the front speaks for the server");
    let ended = Message::Ended(FromAgent::TunnelEnded(TunnelEnded {
        tunnel: tunnel(7),
        reason: Code::Revoked,
        sessions: 1,
    }));
    world.say(1, ended.clone());
    let to_front = Output::Send {
        worker: 2,
        message: ended.clone(),
    };
    assert_eq!(world.take(), [to_front]);
    // While nobody is at the front, ends wait, and not without bound.
    world.end(2, None);
    (0..2 * WAITING.count).for_each(|_| world.say(1, ended.clone()));
    world.take();
    world.pass(SECOND);
    let sent = world
        .take()
        .into_iter()
        .filter(|output| matches!(output, Output::Send { worker: 3, message } if *message == ended));
    assert_eq!(sent.count(), WAITING.count);
}

/// The end of a session, as one worker tells it another.
fn session(number: u64, refused: Option<Code>, dropped: Option<EndsDropped>) -> Message {
    Message::Ended(FromAgent::SessionEnded(SessionEnded {
        tunnel: tunnel(7),
        service: "ssh".into(),
        refused,
        millis: 0,
        bytes_in: 0,
        bytes_out: 0,
        end: None,
        number: Some(number),
        dropped,
    }))
}

impl World {
    /// Takes what was handed to a worker.
    fn handed_to(&mut self, worker: u64) -> Vec<Message> {
        let handed = |output| match output {
            Output::Send { worker: to, message } if to == worker => Some(message),
            _ => None,
        };
        let said = self.take().into_iter().filter_map(handed);
        said.filter(|message| matches!(message, Message::Ended(_)))
            .collect()
    }
}

/// While nobody can tell the server, refusals make room before sessions that took place, and what is missing is told.
#[test]
fn real_sessions_outlast_any_number_of_refusals_where_ends_wait() {
    let mut world = World::restarted(PROVEN);
    world.say(2, state(Role::Active, true, &[]));
    world.end(2, None);
    world.take();
    let count = WAITING.count as u64;
    let refused = Some(Code::ServiceUnknown);
    world.say(1, session(0, refused, None));
    world.say(1, session(1, None, None));
    (2..count + 20).for_each(|number| world.say(1, session(number, refused, None)));
    world.say(1, session(count + 20, None, None));
    world.pass(SECOND);
    let handed = world.handed_to(3);
    assert_eq!(handed.len(), WAITING.count);
    let (sessions, refusals) = (0, 21);
    let first = session(1, None, Some(EndsDropped { sessions, refusals }));
    assert_eq!(
        (&handed[0], handed.last()),
        (&first, Some(&session(count + 20, None, None)))
    );
}

/// A worker on trial that gets no link is ended, and what it was handed would be lost with it.
#[test]
fn ends_are_not_handed_to_a_worker_on_trial_before_it_is_linked() {
    let mut world = World::restarted(NEW);
    world.say(2, state(Role::Active, false, &[]));
    world.say(1, session(0, None, None));
    assert_eq!(world.handed_to(2), []);
    world.say(2, state(Role::Active, true, &[]));
    assert_eq!(world.handed_to(2), [session(0, None, None)]);
    world.say(2, state(Role::Active, false, &[]));
    world.say(1, session(1, None, None));
    assert_eq!(world.handed_to(2), []);
    // A supervisor that leaves in the middle of it takes nothing with it.
    world.succession.handle_leave();
    world.drain();
    assert_eq!(world.handed_to(1), [session(1, None, None)]);
    world.succession.handle_leave();
    world.drain();
    assert_eq!(world.handed_to(1), [], "once");
}

#[test]
fn a_worker_of_before_that_says_nothing_holds_nobody_up() {
    let mut world = World::new(PROVEN, &[4, 9]);
    world.say(9, state(Role::Active, true, &[]));
    assert_eq!(world.started(), [], "the other one may say something yet");
    world.pass(GATHER);
    assert_eq!(world.started(), [(10, Program::Own)]);
    assert_eq!(
        (world.role(4), world.role(9)),
        (Some(Role::Draining), Some(Role::Waiting))
    );
}

/// A server that cannot record has no session begin in any worker; only the one with the link hears it from the server.
#[test]
fn whether_the_server_can_record_reaches_the_others() {
    let mut world = World::restarted(PROVEN);
    let says = |worker: u64, recording| {
        let Message::State(state) = state(Role::Active, true, &[u8::try_from(worker).unwrap()]) else {
            unreachable!("it is a state")
        };
        Message::State(State { recording, ..state })
    };
    let told = |world: &World, worker: u64| {
        world.succession.workers[&worker]
            .ordered
            .clone()
            .unwrap()
            .recording
    };
    for recording in [Some(true), Some(false), Some(true), None, Some(false)] {
        world.say(2, says(2, recording));
        assert_eq!(
            (world.role(1), told(&world, 1)),
            (Some(Role::Draining), recording)
        );
        let sent = world.take().into_iter().any(|output| {
            let order = Order {
                role: Role::Draining,
                others: Vec::new(),
                recording,
            };
            let message = Message::Order(order);
            output == Output::Send { worker: 1, message }
        });
        assert!(sent, "{recording:?}");
        assert_eq!(told(&world, 2), None, "the front knows best");
    }
    world.say(1, says(1, Some(true)));
    assert_eq!(
        told(&world, 1),
        Some(false),
        "only the front speaks for the server"
    );
}

#[test]
fn workers_that_drain_are_bounded_and_the_oldest_gives_way() {
    let mut world = World::new(PROVEN, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for worker in 1..=9 {
        let role = if worker == 9 { Role::Active } else { Role::Draining };
        // The third has none left: it is about to end, and takes nobody's place.
        let tunnels = [u8::try_from(worker).unwrap()];
        let tunnels = if worker == 3 { &[][..] } else { &tunnels };
        world.say(worker, state(role, worker == 9, tunnels));
    }
    world.say(10, state(Role::Active, true, &[]));
    let ended: Vec<_> = world
        .take()
        .into_iter()
        .filter_map(|output| match output {
            Output::Send {
                worker,
                message: Message::EndAll(_),
            } => Some(worker),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [2, 1]);
}
