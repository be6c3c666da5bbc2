//! The scripted matrix: each fault meets sessions over each carrier, during their set-up, in the middle of a bulk transfer,
//! while they are idle, and while they close.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::chaos::fault::{Fault, Kind, Site};
use crate::chaos::field::{Field, Opener, Target};
use crate::chaos::report::reason;
use crate::chaos::service::Wish;
use crate::chaos::session::{Session, State, Use};

/// What a session may use.
pub const CARRIERS: [&str; 3] = ["auto", "udp", "websocket"];

/// How long after a fault its sessions must be at work again.
const BACK: Duration = Duration::from_secs(60);

/// How long sessions may take to be there where nothing is wrong.
const READY: Duration = Duration::from_secs(60);

/// Bytes that each direction of a bulk session carries in a second.
const RATE: u32 = 64 * 1024;

/// How long a new session has before the fault strikes: about half of what it needs.
const HEAD_START: Duration = Duration::from_millis(40);

/// What a session is doing when the fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// It is being opened.
    SetUp,
    /// Both directions are full.
    Bulk,
    /// Nothing travels.
    Idle,
    /// It has said all, and waits for the end of the other direction.
    Close,
}

impl Moment {
    /// All of them.
    pub const ALL: [Moment; 4] = [Moment::SetUp, Moment::Bulk, Moment::Idle, Moment::Close];
}

/// How a session has got over a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All bytes arrived; how long somebody had to wait.
    Whole(Duration),
    /// It was refused while it was opened, with this code.
    Refused(String),
    /// It was lost, or a byte was.
    Lost(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Whole(wait) => write!(f, "{:.1} s", wait.as_secs_f64()),
            Outcome::Refused(code) => write!(f, "refused, `{code}`"),
            Outcome::Lost(why) => write!(f, "**lost**: {why}"),
        }
    }
}

/// One cell of the matrix.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The fault.
    pub fault: Fault,
    /// What the session might use.
    pub carrier: &'static str,
    /// What it was doing.
    pub moment: Moment,
    /// How it has got over it.
    pub outcome: Outcome,
}

/// Returns the faults of the whole matrix, with outages of this length.
pub fn all(cut: Duration) -> Vec<Fault> {
    let short = Duration::from_secs(5);
    let fault = |kind, site, hold| Fault { kind, site, hold };
    let mut faults = vec![
        fault(Kind::Kill, Site::Server, Duration::from_secs(1)),
        fault(Kind::Restart, Site::Server, Duration::from_secs(1)),
        fault(Kind::AgentRestart, Site::Device, Duration::ZERO),
        fault(Kind::AgentCrash, Site::Device, Duration::ZERO),
    ];
    for site in [Site::Technician, Site::Device] {
        faults.push(fault(Kind::BanUdp, site, short));
        faults.push(fault(Kind::BanWebSocket, site, short));
        faults.push(fault(Kind::Move, site, Duration::ZERO));
        faults.push(fault(Kind::Cut, site, cut));
        for kind in [
            Kind::Loss,
            Kind::LossOut,
            Kind::Reorder,
            Kind::Mtu1280,
            Kind::Mtu1000,
            Kind::Bufferbloat,
        ] {
            faults.push(fault(kind, site, short));
        }
    }
    faults.push(fault(Kind::Rebind, Site::Device, Duration::ZERO));
    faults.push(fault(Kind::MoveBoth, Site::Device, Duration::ZERO));
    faults
}

/// Returns a few faults that show most of what the matrix shows.
pub fn some() -> Vec<Fault> {
    let fault = |kind, site, millis| Fault {
        kind,
        site,
        hold: Duration::from_millis(millis),
    };
    vec![
        fault(Kind::Kill, Site::Server, 500),
        fault(Kind::BanUdp, Site::Technician, 2000),
        fault(Kind::BanWebSocket, Site::Device, 2000),
        fault(Kind::Rebind, Site::Device, 0),
        fault(Kind::AgentRestart, Site::Device, 0),
        fault(Kind::Cut, Site::Technician, 3000),
    ]
}

/// Does each fault in turn to sessions of its own, all in one network.
///
/// # Panics
/// When the network or the fleet cannot be built, or a session cannot be opened where nothing is wrong.
pub fn run(faults: &[Fault], tell: &dyn Fn(&str)) -> Vec<Cell> {
    let mut field = Field::build(1);
    let (mut target, opener) = field.split();
    let mut cells = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        let start = Instant::now();
        let of_fault = strike(&mut target, opener, *fault, number as u64);
        let lost = of_fault
            .iter()
            .filter(|cell| matches!(cell.outcome, Outcome::Lost(_)));
        tell(&format!(
            "{fault}: {} sessions, {} lost, {:.0} s",
            of_fault.len(),
            lost.count(),
            start.elapsed().as_secs_f64()
        ));
        cells.extend(of_fault);
    }
    cells
}

/// A session of the matrix with its place in it.
struct Entry {
    carrier: &'static str,
    moment: Moment,
    session: Session,
    wait: Duration,
}

fn strike(target: &mut Target<'_>, opener: Opener<'_>, fault: Fault, number: u64) -> Vec<Cell> {
    let mut entries = open(opener, number, &[Moment::Bulk, Moment::Idle, Moment::Close]);
    for entry in &entries {
        let name = entry.session.name.clone();
        crate::until_ok(&name, READY, || match entry.session.lost() {
            None if entry.session.is_open() => Ok(()),
            lost => Err(lost.unwrap_or_else(|| "not yet".to_owned())),
        });
    }
    for entry in &entries {
        entry.session.shared.pulse.take_longest(Instant::now());
    }
    let start = Instant::now();
    entries.extend(open(opener, number, &[Moment::SetUp]));
    // When the fault strikes is the input of the test, so it is by the clock.
    std::thread::sleep(HEAD_START);
    let closing = |entry: &&Entry| entry.moment == Moment::Close;
    entries
        .iter()
        .filter(closing)
        .for_each(|entry| entry.session.stop());
    target.begin(fault);
    std::thread::sleep(fault.hold);
    target.end(fault);
    let over = Instant::now();
    entries
        .iter()
        .filter(|entry| entry.moment == Moment::Idle)
        .for_each(|entry| entry.session.poke());
    for entry in &mut entries {
        entry.wait = await_work(entry, start, over);
    }
    entries
        .into_iter()
        .map(|entry| finish(entry, fault, opener))
        .collect()
}

fn open(opener: Opener<'_>, number: u64, moments: &[Moment]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (place, carrier) in CARRIERS.into_iter().enumerate() {
        for &moment in moments {
            let (rate, how) = match moment {
                Moment::Bulk | Moment::Close => (RATE, Use::Bulk(RATE)),
                Moment::Idle => (0, Use::Keys(Duration::from_secs(3600))),
                Moment::SetUp => (0, Use::Keys(Duration::from_millis(100))),
            };
            let wish = Wish {
                seed: (number << 8) | (place as u64) << 4 | moment as u64,
                rate,
            };
            let name = format!("matrix-{number}-{carrier}-{moment:?}");
            entries.push(Entry {
                carrier,
                moment,
                session: Session::connect(opener, &name, carrier, wish, how),
                wait: Duration::ZERO,
            });
        }
    }
    entries
}

/// Waits until a session is at work after a fault, or has ended; how long somebody had to wait.
fn await_work(entry: &Entry, start: Instant, over: Instant) -> Duration {
    let session = &entry.session;
    while session.state() == State::Live && over.elapsed() < BACK {
        let done = match entry.moment {
            Moment::Close => false,
            Moment::SetUp => session.is_open(),
            Moment::Bulk | Moment::Idle => session.shared.pulse.last() > over,
        };
        if done {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let now = Instant::now();
    match entry.moment {
        Moment::Close => session.ended().unwrap_or(now) - start,
        Moment::SetUp => session.shared.pulse.first().unwrap_or(now) - start,
        Moment::Bulk | Moment::Idle => session.shared.pulse.take_longest(now),
    }
}

fn finish(entry: Entry, fault: Fault, opener: Opener<'_>) -> Cell {
    entry.session.stop();
    let outcome = match entry.session.finish(BACK) {
        State::Done => Outcome::Whole(entry.wait),
        State::Refused(why) if entry.moment == Moment::SetUp => Outcome::Refused(reason(&why)),
        State::Refused(why) | State::Lost(why) => Outcome::Lost(why),
        State::Live => Outcome::Lost("it does not end".to_owned()),
    };
    let outcome = match opener.findings.take_wrong() {
        Some(wrong) => Outcome::Lost(wrong),
        None => outcome,
    };
    Cell {
        fault,
        carrier: entry.carrier,
        moment: entry.moment,
        outcome,
    }
}

/// Writes the matrix as Markdown, one table for each carrier.
pub fn markdown(cells: &[Cell]) -> String {
    let mut text = String::new();
    for carrier in CARRIERS {
        let _ = writeln!(
            text,
            "\nSessions with the carrier `{carrier}`:\n\n| fault | during set-up | in bulk | idle | while closing |\n\
             |---|---|---|---|---|"
        );
        let mut faults: Vec<Fault> = Vec::new();
        for cell in cells {
            if !faults.contains(&cell.fault) {
                faults.push(cell.fault);
            }
        }
        for fault in faults {
            let outcome = |moment| {
                let of =
                    |cell: &&Cell| cell.fault == fault && cell.carrier == carrier && cell.moment == moment;
                cells
                    .iter()
                    .find(of)
                    .map_or(String::new(), |cell| cell.outcome.to_string())
            };
            let outcomes = Moment::ALL.map(outcome).join(" | ");
            let _ = writeln!(text, "| {fault} | {outcomes} |");
        }
    }
    text
}
