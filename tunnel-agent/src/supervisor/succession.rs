//! Which worker is at the front, which program it runs, and when a new one has failed. Pure.
//!
//! The rules, each with a test of its name:
//!
//! - A new worker is *on trial* until the server has welcomed it and it has kept its link for [`PROBATION`]. Only then do the
//!   others drain; until then the one that worked (the *incumbent*) keeps its tunnels and takes the link back if need be.
//! - A trial fails when the worker ends, or has not come through in time ([`crate::defaults::TRIAL`]). It *counts* when the incumbent had a link
//!   as it began: then the server is in reach, and it is the program that fails. After [`TRIALS`] such failures the program
//!   is given up, and is not tried again. A trial while nobody can reach the server says nothing about a program.
//! - Where no incumbent runs, as after a reboot, the copy of the last program that came through becomes one.
//! - A program that has come through before is not given up.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tunnel_proto::TunnelId;
use tunnel_proto::code::Code;
use tunnel_proto::handover::{Message, Order, Role, State};

use crate::defaults::{
    BETWEEN_TRIALS, GATHER, LIVED, MAX_DRAINING, PROBATION, RESTART_PAUSES, TRIALS, WAITING,
};
use crate::outgoing::Outgoing;

/// What a worker runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// The program of the supervisor itself.
    Own,
    /// What lies at the supervisor's path at this moment.
    Installed,
    /// The copy of the last one that came through.
    LastGood,
    /// Whatever a supervisor of before has started.
    Inherited,
}

/// What is known of the program that is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    /// It is the last one that came through.
    pub(crate) proven: bool,
    /// It was given up.
    pub(crate) given_up: bool,
    /// There is a copy of another one that came through.
    pub(crate) last_good: bool,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Output {
    Start {
        worker: u64,
        program: Program,
    },
    Send {
        worker: u64,
        message: Message,
    },
    Kill {
        worker: u64,
    },
    /// The program of this worker has come through: keep it.
    Keep {
        worker: u64,
    },
    /// The program is given up: remember it.
    GiveUp {
        program: Program,
    },
    Status(String),
    /// The service is there.
    Ready,
    /// No worker can be started: end with its exit code.
    Exit(u8),
}

#[derive(Debug)]
struct Worker {
    program: Program,
    started: Instant,
    state: Option<State>,
    linked_since: Option<Instant>,
    ordered: Option<Order>,
    retired: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Workers of before say how they are.
    Gather {
        until: Instant,
    },
    Trial {
        candidate: u64,
        until: Instant,
        counts: bool,
    },
    /// The incumbent works, and the new program is tried again later.
    Rest {
        front: u64,
        from: Instant,
        until: Instant,
    },
    Settled {
        front: u64,
    },
    /// The worker at the front has ended, and is started again later.
    Pause {
        until: Instant,
        program: Program,
    },
    Over,
}

/// The state of all workers of a device.
#[derive(Debug)]
pub(crate) struct Succession {
    phase: Phase,
    workers: BTreeMap<u64, Worker>,
    next: u64,
    /// The program that is to be at the front.
    program: Program,
    standing: Standing,
    trial: Duration,
    failures: u32,
    pause: Duration,
    /// The exit code of the first worker that could not even start, since one could.
    no_start: Option<u8>,
    ready: bool,
    /// Ends that wait for a worker that can tell the server.
    ends: Outgoing,
    outputs: VecDeque<Output>,
}

impl Succession {
    /// Begins, with workers that a supervisor of before has left; a trial takes `trial` at most.
    pub(crate) fn new(now: Instant, standing: Standing, inherited: &[u64], trial: Duration) -> Self {
        let mut succession = Self {
            phase: Phase::Gather { until: now + GATHER },
            workers: BTreeMap::new(),
            next: inherited.iter().max().map_or(1, |last| last.saturating_add(1)),
            program: Program::Own,
            standing,
            trial,
            failures: 0,
            pause: RESTART_PAUSES.0,
            no_start: None,
            ready: false,
            ends: Outgoing::new(WAITING),
            outputs: VecDeque::new(),
        };
        for &worker in inherited {
            succession
                .workers
                .insert(worker, Worker::new(now, Program::Inherited));
            succession.send(worker, Message::Ask);
        }
        succession.settle(now);
        succession
    }

    /// Takes what a worker says.
    pub(crate) fn handle_message(&mut self, now: Instant, from: u64, message: Message) {
        let front = self.front() == Some(from);
        match message {
            Message::State(state) => self.handle_state(now, from, state),
            Message::Status(text) if front => self.say_of_front(&text),
            Message::EndTunnel(_) | Message::EndAll(_) | Message::Time(_) | Message::Rekey(_) if front => {
                let others: Vec<_> = self
                    .workers
                    .keys()
                    .copied()
                    .filter(|&other| other != from)
                    .collect();
                for other in others {
                    self.send(other, message.clone());
                }
            }
            Message::Ended(ended) => self.ends.push(ended),
            // What only a supervisor says, and what is not this worker's to say.
            _ => {}
        }
        self.settle(now);
    }

    fn handle_state(&mut self, now: Instant, from: u64, state: State) {
        if let Some(worker) = self.workers.get_mut(&from) {
            worker.linked_since = state.linked.then(|| worker.linked_since.unwrap_or(now));
            worker.retired |= state.role == Role::Draining;
            worker.state = Some(state);
            self.no_start = None;
        }
    }

    /// Takes the end of a worker, with its exit code where that is known.
    pub(crate) fn handle_end(&mut self, now: Instant, worker: u64, code: Option<u8>) {
        let Some(ended) = self.workers.remove(&worker) else {
            return;
        };
        if ended.state.is_some() {
            self.no_start = None;
        } else if ended.program != Program::Inherited {
            self.no_start.get_or_insert(code.unwrap_or(1));
        }
        match self.phase {
            Phase::Trial {
                candidate, counts, ..
            } if candidate == worker => self.fail(now, counts),
            Phase::Rest { front, .. } if front == worker => self.replace(now),
            Phase::Settled { front } if front == worker => self.restart(now, &ended),
            _ => {}
        }
        self.settle(now);
    }

    /// Lets time pass.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.settle(now);
    }

    /// Tries the program that lies at the supervisor's path.
    pub(crate) fn handle_upgrade(&mut self, now: Instant, standing: Standing) {
        let Phase::Settled { .. } = self.phase else {
            return self.say("a new program is not tried now: another one is on trial");
        };
        if standing.given_up {
            return self.say("the new program is not tried: it was given up before");
        }
        (self.program, self.standing, self.failures) = (Program::Installed, standing, 0);
        self.try_program(now);
        self.settle(now);
    }

    /// Has all workers read the configuration again.
    pub(crate) fn handle_reload(&mut self) {
        let workers: Vec<_> = self.workers.keys().copied().collect();
        workers
            .into_iter()
            .for_each(|worker| self.send(worker, Message::Reload));
    }

    /// Returns what is to be done next. Any `handle_*` may have added to it.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Succession::handle_timeout`] is to be called; any `handle_*` may change it.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let proof = |worker: u64| {
            self.workers
                .get(&worker)?
                .linked_since
                .map(|since| since + PROBATION)
        };
        match self.phase {
            Phase::Gather { until } | Phase::Pause { until, .. } => Some(until),
            Phase::Trial { candidate, until, .. } => Some(proof(candidate).map_or(until, |at| at.min(until))),
            Phase::Rest { front, from, until } => Some(if self.is_linked(front) { from } else { until }),
            Phase::Settled { front } if self.is_unproven(front) => proof(front),
            Phase::Settled { .. } | Phase::Over => None,
        }
    }

    /// Goes on as far as time and states allow, and tells the workers.
    fn settle(&mut self, now: Instant) {
        self.step(now);
        let up = self
            .workers
            .values()
            .any(|worker| !worker.retired && worker.state.is_some());
        if up && !std::mem::replace(&mut self.ready, up) {
            self.outputs.push_back(Output::Ready);
        }
        self.order();
        if let Some(front) = self.front()
            && !self.may_be_killed(front)
        {
            self.hand_ends_to(front);
        }
    }

    /// Says whether a worker ends soon unless it gets a link: what it was told would be lost with it.
    fn may_be_killed(&self, worker: u64) -> bool {
        matches!(self.phase, Phase::Trial { .. }) && !self.is_linked(worker)
    }

    fn hand_ends_to(&mut self, worker: u64) {
        while let Some(end) = self.ends.hand_over() {
            self.send(worker, Message::Ended(end));
        }
    }

    /// Leaves the workers to the next supervisor, and with them what waits here: the one that works keeps it, and one that
    /// drains passes it on.
    pub(crate) fn handle_leave(&mut self) {
        let any = self.workers.keys().next_back().copied();
        if let Some(heir) = self.incumbent().or(self.front()).or(any) {
            self.hand_ends_to(heir);
        }
    }

    fn step(&mut self, now: Instant) {
        match self.phase {
            Phase::Gather { until } => {
                if now >= until || self.workers.values().all(|worker| worker.state.is_some()) {
                    self.begin(now);
                }
            }
            Phase::Trial {
                candidate,
                until,
                counts,
            } => {
                let proven = self.linked_for(candidate, now).is_some_and(|time| {
                    // One that came through before has nothing to show but its link.
                    self.standing.proven || time >= PROBATION
                });
                if proven || (self.standing.proven && now >= until) {
                    self.succeed(candidate);
                } else if now >= until {
                    self.kill(candidate);
                    self.fail(now, counts);
                }
            }
            Phase::Rest { front, from, until } => {
                if (now >= from && self.is_linked(front)) || now >= until {
                    self.try_program(now);
                }
            }
            Phase::Settled { front } => {
                let came_through = self.linked_for(front, now).is_some_and(|time| time >= PROBATION);
                if came_through && self.is_unproven(front) {
                    self.keep(front);
                }
            }
            Phase::Pause { until, program } => {
                if now >= until {
                    let front = self.start(now, program);
                    self.phase = Phase::Settled { front };
                }
            }
            Phase::Over => {}
        }
    }

    fn begin(&mut self, now: Instant) {
        let incumbent = self.incumbent();
        if self.standing.given_up && (incumbent.is_some() || self.standing.last_good) {
            self.say("this program was given up before; the last one that worked goes on");
            let front = incumbent.unwrap_or_else(|| self.start(now, Program::LastGood));
            self.phase = Phase::Settled { front };
            // What it was asked to do by the restart.
            self.send(front, Message::Reload);
        } else if incumbent.is_none() && (self.standing.proven || !self.standing.last_good) {
            let front = self.start(now, Program::Own);
            self.phase = Phase::Settled { front };
        } else {
            self.try_program(now);
        }
    }

    fn try_program(&mut self, now: Instant) {
        let counts = self
            .incumbent()
            .is_some_and(|incumbent| self.is_linked(incumbent));
        let candidate = self.start(now, self.program);
        let until = now + self.trial;
        self.phase = Phase::Trial {
            candidate,
            until,
            counts,
        };
    }

    /// The worker on trial has come through.
    fn succeed(&mut self, candidate: u64) {
        self.phase = Phase::Settled { front: candidate };
        self.failures = 0;
        if self.is_unproven(candidate) {
            self.keep(candidate);
        }
        for (&number, worker) in &mut self.workers {
            worker.retired |= number != candidate;
        }
        // One that holds no tunnel ends by itself, and takes nobody's place.
        let retired: Vec<_> = self
            .workers
            .iter()
            .filter(|&(&number, worker)| {
                number != candidate
                    && worker
                        .state
                        .as_ref()
                        .is_none_or(|state| !state.tunnels.is_empty())
            })
            .map(|(&number, _)| number)
            .collect();
        for &worker in retired.iter().rev().skip(MAX_DRAINING) {
            self.send(worker, Message::EndAll(Code::TunnelClosed));
        }
    }

    /// The program on trial has failed.
    fn fail(&mut self, now: Instant, counts: bool) {
        self.failures += u32::from(counts);
        let incumbent = self.incumbent();
        let until = now + self.trial;
        let rest = |front| Phase::Rest {
            front,
            from: now + BETWEEN_TRIALS,
            until,
        };
        match incumbent {
            Some(front) if self.failures >= TRIALS && !self.standing.proven => {
                self.outputs.push_back(Output::GiveUp {
                    program: self.program,
                });
                self.standing.given_up = true;
                self.phase = Phase::Settled { front };
                self.say("a new program could not link and was given up; the last one that worked goes on");
            }
            Some(front) => self.phase = rest(front),
            None if self.standing.last_good && !self.standing.proven => {
                let front = self.start(now, Program::LastGood);
                self.phase = rest(front);
            }
            None => self.pause_or_exit(now, self.program),
        }
    }

    /// The incumbent has ended while the new program is not on trial: that one has its turn.
    fn replace(&mut self, now: Instant) {
        match self.no_start {
            Some(code) => self.exit(code),
            None => self.try_program(now),
        }
    }

    /// The worker at the front has ended.
    fn restart(&mut self, now: Instant, ended: &Worker) {
        if now.saturating_duration_since(ended.started) >= LIVED {
            self.pause = RESTART_PAUSES.0;
        }
        let program = match ended.program {
            Program::Inherited if self.standing.given_up && self.standing.last_good => Program::LastGood,
            Program::Inherited => Program::Own,
            program => program,
        };
        self.pause_or_exit(now, program);
    }

    fn pause_or_exit(&mut self, now: Instant, program: Program) {
        match self.no_start {
            Some(code) if self.workers.is_empty() => self.exit(code),
            _ => {
                let until = now + self.pause;
                self.pause = (self.pause * 2).min(RESTART_PAUSES.1);
                self.phase = Phase::Pause { until, program };
                self.say("the worker has ended and is started again");
            }
        }
    }

    fn exit(&mut self, code: u8) {
        self.phase = Phase::Over;
        self.outputs.push_back(Output::Exit(code));
    }

    fn keep(&mut self, worker: u64) {
        self.standing = Standing {
            proven: true,
            given_up: false,
            last_good: false,
        };
        self.outputs.push_back(Output::Keep { worker });
    }

    fn start(&mut self, now: Instant, program: Program) -> u64 {
        let worker = self.next;
        self.next += 1;
        self.workers.insert(worker, Worker::new(now, program));
        self.outputs.push_back(Output::Start { worker, program });
        worker
    }

    fn kill(&mut self, worker: u64) {
        self.workers.remove(&worker);
        self.outputs.push_back(Output::Kill { worker });
    }

    fn send(&mut self, worker: u64, message: Message) {
        self.outputs.push_back(Output::Send { worker, message });
    }

    fn say(&mut self, text: &str) {
        self.outputs.push_back(Output::Status(text.to_owned()));
    }

    /// Says how the front is, and what stays wrong until another program is installed.
    fn say_of_front(&mut self, text: &str) {
        if self.standing.given_up {
            self.say(&format!(
                "{text}; the new program was given up, the last one that worked runs"
            ));
        } else {
            self.say(text);
        }
    }

    /// Tells each worker its role, where that has changed.
    fn order(&mut self) {
        if matches!(self.phase, Phase::Gather { .. } | Phase::Over) {
            return;
        }
        let (front, incumbent) = (self.front(), self.incumbent());
        // Only who has the link hears whether the server can record, and sessions begin in all.
        let state = front.and_then(|front| self.workers.get(&front)?.state.as_ref());
        let recording = state.and_then(|state| state.recording);
        let numbers: Vec<_> = self.workers.keys().copied().collect();
        for number in numbers {
            let order = if front == Some(number) {
                let others = self.tunnels_but(number);
                Order {
                    role: Role::Active,
                    others,
                    recording: None,
                }
            } else {
                let waits = front.is_some() && incumbent == Some(number);
                let role = if waits { Role::Waiting } else { Role::Draining };
                Order {
                    role,
                    others: Vec::new(),
                    recording,
                }
            };
            let Some(worker) = self.workers.get_mut(&number) else {
                continue;
            };
            worker.retired |= order.role == Role::Draining;
            if worker.ordered.as_ref() != Some(&order) {
                worker.ordered = Some(order.clone());
                self.send(number, Message::Order(order));
            }
        }
    }

    fn tunnels_but(&self, front: u64) -> Vec<TunnelId> {
        let others = self.workers.iter().filter(|(number, _)| **number != front);
        let states = others.filter_map(|(_, worker)| worker.state.as_ref());
        states.flat_map(|state| state.tunnels.iter().copied()).collect()
    }

    /// Returns the worker that is to have the link.
    const fn front(&self) -> Option<u64> {
        match self.phase {
            Phase::Trial { candidate, .. } => Some(candidate),
            Phase::Rest { front, .. } | Phase::Settled { front } => Some(front),
            Phase::Gather { .. } | Phase::Pause { .. } | Phase::Over => None,
        }
    }

    /// Returns the worker that worked before the one on trial: one with a link rather than without, and the newest.
    fn incumbent(&self) -> Option<u64> {
        let candidate = match self.phase {
            Phase::Trial { candidate, .. } => Some(candidate),
            _ => None,
        };
        let fits = self
            .workers
            .iter()
            .filter(|(number, worker)| !worker.retired && Some(**number) != candidate);
        fits.max_by_key(|(number, worker)| (worker.linked_since.is_some(), worker.state.is_some(), **number))
            .map(|(number, _)| *number)
    }

    fn is_linked(&self, worker: u64) -> bool {
        self.workers
            .get(&worker)
            .is_some_and(|worker| worker.linked_since.is_some())
    }

    fn linked_for(&self, worker: u64, now: Instant) -> Option<Duration> {
        let since = self.workers.get(&worker)?.linked_since?;
        Some(now.saturating_duration_since(since))
    }

    /// Says whether a worker runs the program that is to be at the front and has not come through before.
    fn is_unproven(&self, worker: u64) -> bool {
        let runs = self
            .workers
            .get(&worker)
            .is_some_and(|worker| worker.program == self.program);
        runs && !self.standing.proven && !self.standing.given_up
    }
}

impl Worker {
    const fn new(now: Instant, program: Program) -> Self {
        Self {
            program,
            started: now,
            state: None,
            linked_since: None,
            ordered: None,
            retired: false,
        }
    }
}

#[cfg(test)]
mod tests;
