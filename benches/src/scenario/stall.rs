//! For how long a session stands still when something happens to its path.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tunnel_e2e::lab::Lab;

use crate::load::client::first_byte;
use crate::load::pulse::Pulse;
use crate::network::Network;
use crate::path::{NearEnd, Path};
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;
use crate::stats::Times;

/// Round trip from end to end in the emulated network.
const ROUND_TRIP_MS: f64 = 80.0;

/// How long a session may stand still before it is counted as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same for a session of a peer; meanwhile a new one is begun beside it.
const PEER_PATIENCE: Duration = Duration::from_secs(3);

/// For how long a session runs undisturbed before and between faults.
const REST: Duration = Duration::from_millis(600);

/// The operator's link in the emulated network, and the device's.
const NEAR: &str = "technician";
const FAR: &str = "mobile";

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The operator's machine gets another address, as one that goes from one network to another.
    Moves,
    /// The NAT before the device gets another address, which nobody is told.
    Renumbered,
    /// The relay's process is killed and started again.
    Restart,
    /// The operator's network lets no UDP pass any more.
    Ban,
}

impl Fault {
    const fn figure(self) -> &'static str {
        match self {
            Self::Moves => "stall after an address change of the operator's machine, p99",
            Self::Renumbered => "stall after an address change of the device's NAT, p99",
            Self::Restart => "stall after a restart of the relay, beyond the restart, p99",
            Self::Ban => "stall after a ban of UDP, p99",
        }
    }

    const fn most_ms(self) -> Option<f64> {
        match self {
            Self::Moves => Some(2.0 * ROUND_TRIP_MS + 100.0),
            Self::Renumbered => None,
            Self::Restart => Some(1000.0),
            Self::Ban => Some(3000.0),
        }
    }

    /// Says whether a path has what the fault is done to.
    const fn concerns(self, column: Column) -> bool {
        match column {
            Column::Udp => true,
            // Its session is TCP from the operator's machine, which is what moves.
            Column::OpenSsh => matches!(self, Self::Moves),
            // Its device's end connects again by itself.
            Column::Rathole => matches!(self, Self::Restart),
            _ => false,
        }
    }
}

/// Measures ours and the peers. Our programs choose their carrier, whatever the column is called.
///
/// # Errors
/// Fails when a path does not come up again.
pub fn run(settings: &Settings, columns: &[Column], progress: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let (lab, network) = Network::emulated("");
    let mut rows = Vec::new();
    for fault in [Fault::Moves, Fault::Renumbered, Fault::Restart, Fault::Ban] {
        let mut stalls = Row::new(fault.figure(), "ms");
        if let Some(most) = fault.most_ms() {
            stalls = stalls.limit(Column::Udp, Limit::AtMost(most));
        }
        let mut lost =
            Row::new("sessions that did not outlive it", "%").limit(Column::Udp, Limit::AtMost(0.0));
        for &column in columns {
            if !fault.concerns(column) {
                continue;
            }
            progress(&format!("{}: {}", fault.figure(), column.title()));
            let mut path = Path::open_free(column, &network, settings)?;
            let count = match column {
                Column::Udp => settings.faults,
                _ => settings.faults.div_ceil(10),
            };
            let found = repeat(&mut path, fault, &lab, count)?;
            stalls.push(column, found.stalls.quantile_ms(0.99));
            lost.push(column, f64::from(found.lost) * 100.0 / f64::from(count));
        }
        rows.extend([stalls, lost]);
    }
    Ok(rows)
}

#[derive(Default)]
struct Found {
    stalls: Times,
    lost: u32,
}

/// A session, and the near end that was started for it alone.
struct Session {
    pulse: Pulse,
    _near: Option<NearEnd>,
}

impl Session {
    fn start(path: &Path, fault: Fault) -> Result<Self> {
        // A carrier that was banned is tried again only after a while, and an `ssh` whose connection is gone never.
        let near = match (path.column, fault) {
            (Column::OpenSsh, _) | (_, Fault::Ban) => path.another_near()?,
            _ => None,
        };
        let target = near.as_ref().map_or(&path.target, |near| &near.target);
        first_byte(target)?;
        Ok(Self {
            pulse: Pulse::start(target)?,
            _near: near,
        })
    }
}

fn repeat(path: &mut Path, fault: Fault, lab: &Lab, count: u32) -> Result<Found> {
    let mut found = Found::default();
    let mut session = Session::start(path, fault)?;
    for at in 0..count {
        if fault == Fault::Ban && at > 0 {
            session = Session::start(path, fault)?;
        }
        rest(&session.pulse)?;
        session.pulse.mark();
        let (event, outage) = cause(path, fault, lab)?;
        // What a client of a peer loses that begins a new session at the very moment of the fault.
        let (anew, patience) = if path.column == Column::Udp {
            (None, PATIENCE)
        } else {
            (Some(Session::start(path, fault)?), PEER_PATIENCE)
        };
        let begun = event.elapsed();
        match (session.pulse.resumed(event, patience), anew) {
            (Some(stall), _) => found.stalls.push(stall.saturating_sub(outage)),
            (None, anew) => {
                found.lost += 1;
                let time = if anew.is_some() { begun } else { patience };
                found.stalls.push(time.saturating_sub(outage));
                session = anew.map_or_else(|| Session::start(path, fault), Ok)?;
            }
        }
        if fault == Fault::Ban {
            lab.set(NEAR, "block=none");
        }
    }
    Ok(found)
}

/// Lets a session run for a while.
fn rest(pulse: &Pulse) -> Result<()> {
    let later = Instant::now() + REST;
    ensure!(
        pulse.resumed(later, REST + PATIENCE).is_some(),
        "a session does not go on although nothing happens to it"
    );
    Ok(())
}

/// Lets it happen; when it had happened, and for how long the relay was away.
fn cause(path: &mut Path, fault: Fault, lab: &Lab) -> Result<(Instant, Duration)> {
    let begin = Instant::now();
    match fault {
        Fault::Moves => lab.rebind(NEAR),
        Fault::Renumbered => lab.rebind(FAR),
        Fault::Ban => lab.set(NEAR, "block=udp"),
        Fault::Restart => {
            let event = path.restart_relay()?;
            return Ok((event, begin.elapsed()));
        }
    }
    Ok((Instant::now(), Duration::ZERO))
}
