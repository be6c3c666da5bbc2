//! `tunnel-agent supervise`: the small process that a service manager starts, stops and restarts, while the workers that
//! it starts keep the tunnels.
//!
//! A connection cannot be handed from process to process, so the process that has it lives on. A restart of the service
//! replaces the supervisor; its successor gets the channels of the workers from the service manager ([`store`]), starts a
//! worker of its own program, and has the others drain once that one has come through ([`succession`]).

mod carry;
mod programs;
mod store;
mod succession;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tunnel_proto::handover::Message;

use self::carry::carry;
use self::programs::Programs;
use self::succession::{Output, Program, Succession};
use crate::channel;
use crate::defaults;
use crate::failure::Failure;
use crate::run;
use crate::state::{Lock, StateDir};

/// The name of a worker in the list of processes.
const WORKER_NAME: &str = "tunnel-agent";

/// What a supervisor begins with; made before any thread is started.
#[derive(Debug)]
pub(crate) struct Start {
    state: StateDir,
    _lock: Lock,
    programs: Programs,
    inherited: BTreeMap<u64, OwnedFd>,
    arguments: Vec<OsString>,
    trial: Duration,
}

impl Start {
    /// Takes the place of the state's supervisor, and what the one before has left. Workers are started with `arguments`.
    ///
    /// # Errors
    /// Tells that another supervisor runs.
    pub(crate) fn new(state: StateDir, arguments: Vec<OsString>) -> Result<Self, Failure> {
        let inherited = store::inherited();
        if state.path().exists() {
            state.create()?;
        }
        Ok(Self {
            _lock: state.lock_supervisor()?,
            programs: Programs::new(state.path()),
            inherited,
            state,
            arguments,
            trial: run::trial()?,
        })
    }
}

/// A supervisor at work.
struct Supervisor {
    start: Start,
    succession: Succession,
    workers: BTreeMap<u64, Worker>,
    channels: JoinSet<()>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// Leaves what workers say from there on to the successor.
    leaving: CancellationToken,
    /// Copies of programs that are being written.
    copies: JoinSet<()>,
}

/// The supervisor's end of a worker.
struct Worker {
    /// `None` once nothing more is said to it.
    outbox: Option<mpsc::Sender<Message>>,
    /// `None` for one that a supervisor of before has started.
    child: Option<Child>,
}

/// What a worker says, or that it is gone.
type Event = (u64, Option<Message>);

/// Supervises until a signal or the end of all workers; the exit code.
///
/// # Errors
/// Says why it could not start.
pub(crate) async fn supervise(mut start: Start) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let standing = start.programs.standing(Program::Own);
    let inherited = std::mem::take(&mut start.inherited);
    let numbers: Vec<_> = inherited.keys().copied().collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        workers = numbers.len(),
        ?standing,
        "supervisor started"
    );
    let mut supervisor = Supervisor {
        succession: Succession::new(Instant::now(), standing, &numbers, start.trial),
        start,
        workers: BTreeMap::new(),
        channels: JoinSet::new(),
        events: mpsc::channel(defaults::QUEUE),
        leaving: CancellationToken::new(),
        copies: JoinSet::new(),
    };
    for (number, fd) in inherited {
        supervisor.adopt(number, fd, None);
    }
    let code = supervisor.run(&mut signals).await;
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    supervisor.leave().await;
    Ok(code)
}

impl Supervisor {
    /// Works until a signal ends it, or no worker can be started.
    async fn run(&mut self, signals: &mut Signals) -> u8 {
        loop {
            while let Some(output) = self.succession.poll_output() {
                if let Output::Exit(code) = output {
                    return code;
                }
                self.handle_output(output);
            }
            let timeout = self.succession.poll_timeout();
            // All branches are cancel-safe: channels, signals, a timer.
            tokio::select! {
                Some((worker, said)) = self.events.1.recv() => match said {
                    Some(message) => self.succession.handle_message(Instant::now(), worker, message),
                    None => self.handle_end(worker).await,
                },
                () = wait_until(timeout) => self.succession.handle_timeout(Instant::now()),
                Some(_) = self.copies.join_next() => {}
                asked = signals.next() => match asked {
                    Asked::Stop => return 0,
                    Asked::Reload => self.succession.handle_reload(),
                    Asked::Upgrade => {
                        let standing = self.start.programs.standing(Program::Installed);
                        tracing::info!(?standing, "trying the installed program");
                        self.succession.handle_upgrade(Instant::now(), standing);
                    }
                },
            }
        }
    }

    fn handle_output(&mut self, output: Output) {
        match output {
            Output::Start { worker, program } => self.start_worker(worker, program),
            Output::Send { worker, message } => self.send(worker, message),
            Output::Kill { worker } => {
                tracing::error!(worker, "a worker on trial could not link in time");
                let _ = self.workers.remove(&worker).map(Worker::kill);
            }
            Output::Keep { worker } => self.keep(worker),
            Output::GiveUp { program } => {
                tracing::error!(
                    ?program,
                    "a new program could not link and is given up; the last one that worked goes on"
                );
                if let Err(error) = self.start.programs.give_up(program) {
                    tracing::error!(error, "it will be tried again after a restart");
                }
            }
            Output::Status(text) => {
                tracing::debug!(text, "status");
                let _ = sd_notify::notify(&[NotifyState::Status(&text)]);
            }
            Output::Ready => drop(sd_notify::notify(&[NotifyState::Ready])),
            Output::Exit(_) => {}
        }
    }

    fn start_worker(&mut self, number: u64, program: Program) {
        let path = self.start.programs.path(program);
        let started = channel::pair().and_then(|(above, below)| {
            let mut command = Command::new(&path);
            command
                .arg0(WORKER_NAME)
                .args(&self.start.arguments)
                .stdin(Stdio::from(below));
            for name in store::VARIABLES {
                command.env_remove(name);
            }
            Ok((above, command.spawn()?))
        });
        match started {
            Ok((above, child)) => {
                tracing::info!(worker = number, pid = child.id(), ?program, "worker started");
                store::keep(number, &above);
                self.adopt(number, above, Some(child));
            }
            Err(error) => {
                tracing::error!(worker = number, %error, path = %path.display(), "a worker could not be started");
                self.succession.handle_end(Instant::now(), number, None);
            }
        }
    }

    /// Begins to talk to a worker.
    fn adopt(&mut self, number: u64, fd: OwnedFd, child: Option<Child>) {
        // Room for all ends that may have waited for this worker.
        let (outbox, inbox) = mpsc::channel(defaults::QUEUE + defaults::WAITING.count);
        let outbox = Some(outbox);
        self.workers.insert(number, Worker { outbox, child });
        let (events, leaving) = (self.events.0.clone(), self.leaving.clone());
        self.channels.spawn(carry(number, fd, inbox, events, leaving));
    }

    fn send(&mut self, number: u64, message: Message) {
        // A worker that takes nothing is no use; its orders are said again with the next change.
        if let Some(worker) = self.workers.get(&number)
            && let Some(outbox) = &worker.outbox
            && outbox.try_send(message).is_err()
        {
            tracing::warn!(worker = number, "a worker was not told something");
        }
    }

    async fn handle_end(&mut self, number: u64) {
        let Some(worker) = self.workers.remove(&number) else {
            return;
        };
        let code = worker.reap().await;
        tracing::info!(worker = number, code, "worker ended");
        self.succession.handle_end(Instant::now(), number, code);
    }

    /// Keeps a copy of a program that has come through, beside the rest of the work: flash memory is slow.
    fn keep(&mut self, number: u64) {
        let child = self.workers.get(&number).and_then(|worker| worker.child.as_ref());
        let Some(pid) = child.map(Child::id) else { return };
        let programs = self.start.programs.clone();
        self.copies.spawn_blocking(move || match programs.keep(pid) {
            Ok(()) => tracing::info!("the program has come through, and a copy is kept"),
            Err(error) => tracing::warn!(
                error,
                "no copy of the program could be kept; a bad one cannot be rolled back"
            ),
        });
    }

    /// Leaves the workers to a successor, where the service manager keeps their channels; else ends them.
    async fn leave(mut self) {
        while self.copies.join_next().await.is_some() {}
        self.pass_on().await;
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            return;
        }
        // Their channels are closed, so they end; those that do not are ended.
        for worker in self.workers.into_values() {
            worker.reap().await;
        }
        tracing::debug!(state = %self.start.state.path().display(), "all workers have ended");
    }
}

impl Supervisor {
    /// Leaves what was heard and not passed on to a worker, and lets go of all channels. What workers say from here on stays in
    /// those for the successor, also what one hands straight back.
    async fn pass_on(&mut self) {
        self.leaving.cancel();
        let (events, mut heard) = std::mem::replace(&mut self.events, mpsc::channel(1));
        drop(events);
        // There is nothing more once no channel is read.
        let all = async {
            while let Some((worker, said)) = heard.recv().await {
                if let Some(message @ (Message::Ended(_) | Message::EndTunnel(_) | Message::EndAll(_))) = said
                {
                    self.succession.handle_message(Instant::now(), worker, message);
                }
            }
        };
        let _ = tokio::time::timeout(defaults::CLOSE_DEADLINE, all).await;
        self.succession.handle_leave();
        while let Some(output) = self.succession.poll_output() {
            if let Output::Send { worker, message } = output {
                self.send(worker, message);
            }
        }
        for worker in self.workers.values_mut() {
            worker.outbox = None;
        }
        let said = async { while self.channels.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(defaults::CLOSE_DEADLINE, said).await;
        self.channels.shutdown().await;
    }
}

impl Worker {
    /// Waits for the end of a process whose channel has ended, or is closed; its exit code. It has as long as an agent
    /// alone, and a moment.
    async fn reap(mut self) -> Option<u8> {
        let deadline = Instant::now() + defaults::STOP_DEADLINE + Duration::from_secs(1);
        while let Ok(None) = self.child.as_mut()?.try_wait() {
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.kill()
    }

    /// Makes sure that the process has ended; its exit code.
    fn kill(self) -> Option<u8> {
        let mut child = self.child?;
        let _ = child.kill();
        let status = child.wait().ok()?;
        status.code().and_then(|code| u8::try_from(code).ok())
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
    Upgrade,
}

/// The signals of a supervisor: SIGTERM and SIGINT end it, SIGHUP has the configuration read again, SIGUSR2 tries the
/// program that is installed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    upgrade: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                let next = "report this with the system's version";
                Failure::local("E_INTERNAL", "could not listen for signals", error, next)
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            upgrade: listen(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
            _ = self.upgrade.recv() => Asked::Upgrade,
        }
    }
}
