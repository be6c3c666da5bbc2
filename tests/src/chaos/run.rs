//! The random run: several sessions at once, and faults with random pauses, until time or count is reached.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::chaos::fault::{Fault, Random, Round, Schedule};
use crate::chaos::field::{CHECKED, DEVICE, Field, Opener, Target};
use crate::chaos::report::{Summary, reason};
use crate::chaos::service::{Wish, hold};
use crate::chaos::session::{Session, State, Use};
use crate::operator::Forward;

/// How long after the last fault of a round all sessions must be at work again.
const BACK: Duration = Duration::from_secs(60);

/// How long sessions may take to end when they are asked to.
const END: Duration = Duration::from_secs(60);

/// Events that are told again after a failure.
const LAST: usize = 30;

/// Pause after a session could not be opened.
const REFUSED: Duration = Duration::from_millis(500);

/// How often the sessions are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What everything random follows from.
    pub seed: u64,
    /// For how long; without it, until `faults`.
    pub time: Option<Duration>,
    /// How many faults; without it, until `time`.
    pub faults: Option<u64>,
    /// Longest outage.
    pub longest: Duration,
}

impl Plan {
    fn is_done(&self, start: Instant, faults: u64) -> bool {
        self.time.is_some_and(|time| start.elapsed() >= time)
            || self.faults.is_some_and(|count| faults >= count)
    }
}

/// Why a run has failed, with what happened last.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs it in a network of its own; each line of what goes on is told.
///
/// # Errors
/// Tells which session was lost, or which byte is wrong.
///
/// # Panics
/// When the network or the fleet cannot be built.
pub fn run(plan: Plan, tell: &(dyn Fn(&str) + Sync)) -> Result<Summary, Failure> {
    let mut field = Field::build(plan.seed);
    let (target, opener) = field.split();
    let forward = opener
        .operator
        .forward_with(&[("TUNNEL_TTL", "12h")], DEVICE, &[CHECKED]);
    let log = Log::new(tell);
    let stop = AtomicBool::new(false);
    let brief = Mutex::new(Brief::default());
    let result = std::thread::scope(|scope| {
        let guests = scope.spawn(|| guests(opener, plan.seed, &stop, &brief, &log));
        let mut run = Run {
            plan,
            target,
            opener,
            sessions: lasting(opener, &forward, plan.seed),
            brief: &brief,
            log: &log,
            summary: Summary::default(),
        };
        // A harness that panics has a seed and last events, too; and the guests must be told.
        let result = catch_unwind(AssertUnwindSafe(|| run.play()))
            .unwrap_or_else(|panic| Err(words(panic.as_ref()).to_owned()));
        stop.store(true, Ordering::Relaxed);
        let _ = guests.join();
        result.and_then(|()| run.finish())
    });
    result.map_err(|why| {
        let kept = keep_logs(&field);
        Failure(format!(
            "{why}\nseed {}; what happened last:\n{}\nthe programs' logs are in {kept}",
            plan.seed,
            log.last()
        ))
    })
}

/// Returns what a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
}

/// The sessions that last as long as the run.
fn lasting(opener: Opener<'_>, forward: &Forward, seed: u64) -> Vec<Session> {
    let address = forward.address();
    let wish = |number, rate| Wish {
        seed: seed.wrapping_mul(31).wrapping_add(number),
        rate,
    };
    let keys = Use::Keys(Duration::from_millis(150));
    vec![
        Session::through(
            opener,
            "bulk",
            address,
            wish(1, 128 * 1024),
            Use::Bulk(128 * 1024),
        ),
        Session::through(opener, "keys", address, wish(2, 0), keys),
        Session::through(
            opener,
            "idle",
            address,
            wish(3, 0),
            Use::Keys(Duration::from_secs(25)),
        ),
        Session::connect(opener, "keys-udp", "udp", wish(4, 0), keys),
        Session::connect(opener, "keys-websocket", "websocket", wish(5, 0), keys),
        Session::connect(
            opener,
            "bulk-alone",
            "auto",
            wish(6, 64 * 1024),
            Use::Bulk(64 * 1024),
        ),
        Session::ssh(opener, "ssh", Duration::from_millis(200)),
    ]
}

/// What has become of the sessions that come and go.
#[derive(Debug, Default)]
struct Brief {
    done: u64,
    refused: std::collections::BTreeMap<String, u64>,
    lost: Option<String>,
}

/// Opens sessions that come and go, so that faults meet their set-up and their close.
fn guests(opener: Opener<'_>, seed: u64, stop: &AtomicBool, brief: &Mutex<Brief>, log: &Log<'_>) {
    let mut random = Random::new(seed ^ 0x6775_6573_7473);
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) || hold(brief).lost.is_some() {
            return;
        }
        let carrier = ["auto", "udp", "websocket"][random.below(3) as usize];
        let bulk = random.below(2) == 0;
        let wish = Wish {
            seed: random.below(u64::MAX),
            rate: if bulk { 64 * 1024 } else { 0 },
        };
        let how = if bulk {
            Use::Bulk(64 * 1024)
        } else {
            Use::Keys(Duration::from_millis(50))
        };
        let name = format!("guest-{number}-{carrier}");
        let session = Session::connect(opener, &name, carrier, wish, how);
        // It is asked to end at some moment, be it there or not.
        let until = Instant::now() + Duration::from_millis(random.below(4000));
        while Instant::now() < until && session.state() == State::Live {
            std::thread::sleep(LOOK);
        }
        session.stop();
        let opened = session.is_open();
        match session.finish(END + BACK) {
            State::Done => hold(brief).done += 1,
            State::Refused(why) => {
                log.say(&format!("{name} was not opened: {why}"));
                *hold(brief).refused.entry(reason(&why)).or_default() += 1;
                // As a person would, it does not try again at once.
                std::thread::sleep(REFUSED);
            }
            State::Live => {}
            State::Lost(why) => hold(brief).lost = Some(format!("{name} (opened: {opened}): {why}")),
        }
    }
}

struct Run<'a> {
    plan: Plan,
    target: Target<'a>,
    opener: Opener<'a>,
    sessions: Vec<Session>,
    brief: &'a Mutex<Brief>,
    log: &'a Log<'a>,
    summary: Summary,
}

impl Run<'_> {
    fn play(&mut self) -> Result<(), String> {
        let start = Instant::now();
        self.settle(start)?;
        self.take_longest();
        let plan = self.plan;
        let schedule = Schedule::new(plan.seed, plan.longest);
        let mut begun = 0;
        let mut unsettled = Vec::new();
        for round in schedule {
            if plan.is_done(start, begun) {
                break;
            }
            begun += round.faults.len() as u64;
            self.strike(&round)?;
            unsettled.extend(round.faults.iter().map(|(_, fault)| *fault));
            if round.settle {
                let over = Instant::now();
                self.settle(over)?;
                self.note(&std::mem::take(&mut unsettled), over.elapsed());
            }
            self.wait(Instant::now() + round.pause)?;
        }
        let over = Instant::now();
        self.settle(over)?;
        self.note(&unsettled, over.elapsed());
        self.summary.took = start.elapsed();
        Ok(())
    }

    /// Plays the events of a round.
    fn strike(&mut self, round: &Round) -> Result<(), String> {
        let start = Instant::now();
        for (at, number, begins) in round.events() {
            self.wait(start + at)?;
            let fault = round.faults[number].1;
            if begins {
                self.log.say(&fault.to_string());
                self.target.begin(fault);
            } else {
                self.target.end(fault);
                self.log.say(&format!("over: {}", fault.kind.as_str()));
            }
        }
        Ok(())
    }

    /// Waits until a moment, and sees that no session is lost meanwhile.
    fn wait(&self, until: Instant) -> Result<(), String> {
        loop {
            self.check()?;
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            std::thread::sleep((until - now).min(LOOK));
        }
    }

    fn check(&self) -> Result<(), String> {
        let lost = self.sessions.iter().find_map(Session::lost);
        let guest = || hold(self.brief).lost.clone();
        let wrong = || self.opener.findings.wrong().first().cloned();
        match lost.or_else(guest).or_else(wrong) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Waits until every session has got something since a moment.
    fn settle(&self, since: Instant) -> Result<(), String> {
        let late = |session: &&Session| session.name != "idle" && session.shared.pulse.last() <= since;
        loop {
            self.check()?;
            let Some(session) = self.sessions.iter().find(late) else {
                return Ok(());
            };
            if since.elapsed() > BACK {
                return Err(format!("{} stands still since {BACK:?}", session.name));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn take_longest(&self) -> Duration {
        let now = Instant::now();
        let longest = |session: &Session| session.shared.pulse.take_longest(now);
        let free = self.sessions.iter().filter(|session| session.free);
        free.map(longest).max().unwrap_or_default()
    }

    fn note(&mut self, faults: &[Fault], back: Duration) {
        let stall = self.take_longest();
        if !faults.is_empty() {
            self.log.say(&format!(
                "all are back after {:.2} s; the longest wait was {:.2} s",
                back.as_secs_f64(),
                stall.as_secs_f64()
            ));
        }
        for fault in faults {
            let tally = self.summary.faults.entry(fault.kind).or_default();
            tally.count += 1;
            if faults.len() == 1 {
                tally.stalls.push(stall);
                tally.back.push(back);
            } else {
                tally.in_company = tally.in_company.max(stall);
            }
        }
    }

    /// Ends all sessions and sees that everything has arrived.
    fn finish(mut self) -> Result<Summary, String> {
        self.check()?;
        self.summary.lasting = self.sessions.len();
        for session in &self.sessions {
            if session.name != "idle" && !session.name.starts_with("bulk") {
                self.summary.answers.extend(session.shared.pulse.waits());
            }
            session.stop();
        }
        for session in self.sessions {
            let name = session.name.clone();
            let state = session.finish(END);
            if state != State::Done {
                return Err(format!("{name}: {state:?}"));
            }
        }
        if let Some(wrong) = self.opener.findings.wrong().first() {
            return Err(wrong.clone());
        }
        let brief = std::mem::take(&mut *hold(self.brief));
        self.summary.brief = brief.done;
        self.summary.refused = brief.refused;
        self.summary.compared = self.opener.findings.compared();
        Ok(self.summary)
    }
}

/// What goes on, told at once, and the last of it kept.
struct Log<'a> {
    start: Instant,
    tell: &'a (dyn Fn(&str) + Sync),
    last: Mutex<VecDeque<String>>,
}

impl<'a> Log<'a> {
    fn new(tell: &'a (dyn Fn(&str) + Sync)) -> Self {
        Self {
            start: Instant::now(),
            tell,
            last: Mutex::default(),
        }
    }

    fn say(&self, what: &str) {
        let line = format!("{:8.2}  {what}", self.start.elapsed().as_secs_f64());
        (self.tell)(&line);
        let mut last = hold(&self.last);
        last.push_back(line);
        if last.len() > LAST {
            last.pop_front();
        }
    }

    fn last(&self) -> String {
        let lines: Vec<String> = hold(&self.last).iter().cloned().collect();
        lines.join("\n")
    }
}

/// Saves the files of the fleet from being removed with it; where they are.
fn keep_logs(field: &Field) -> String {
    let from = field.fleet.directory();
    let to = std::env::temp_dir().join(format!("tunnel-chaos-{}", std::process::id()));
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(from)
        .arg(&to)
        .status();
    match copied {
        Ok(status) if status.success() => to.display().to_string(),
        _ => "no place: they could not be copied".to_owned(),
    }
}
