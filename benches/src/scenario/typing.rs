//! A keystroke beside a bulk transfer through the same tunnel, and without one.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::float;
use crate::load::Way;
use crate::load::client::{Bulk, Typing, keystrokes};
use crate::path::Path;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

/// Where the paths are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// On loopback, where the processors are the limit.
    Loopback,
    /// On an emulated link of 10 Mbit/s with a round trip of 80 ms, where so many milliseconds may wait before packets
    /// are dropped.
    SlowLink(u32),
}

impl Setting {
    fn name(self) -> String {
        match self {
            Self::Loopback => "loopback".to_owned(),
            Self::SlowLink(queue) => format!("10 Mbit/s, 80 ms, queue of {queue} ms"),
        }
    }

    /// Returns how long a transfer needs to fill the path.
    fn fill(self, settings: &Settings) -> Duration {
        match self {
            Self::Loopback => settings.warm_up,
            Self::SlowLink(queue) => settings.warm_up.saturating_mul(4) + Duration::from_millis(queue.into()),
        }
    }
}

/// How much longer a keystroke may take beside a bulk transfer on a slow link: over UDP, and over a WebSocket, where what
/// TCP holds back cannot be overtaken.
const LONGER: [(Column, f64); 2] = [(Column::Udp, 1.5), (Column::WebSocket, 2.0)];

/// Measures all paths.
///
/// # Errors
/// Fails when a path breaks.
pub fn run(settings: &Settings, setting: Setting, paths: &[Path]) -> Result<Vec<Row>> {
    let typing = Typing {
        count: settings.keystrokes,
        size: 64,
        interval: Duration::from_millis(10),
    };
    let mut idle = Row::new(format!("keystroke ({}), p99", setting.name()), "ms");
    let mut rows = [Way::Up, Way::Down].map(|way| (way, Rows::new(way, setting)));
    for _ in 0..settings.runs {
        for path in paths {
            let alone = keystrokes(&path.target, typing)?.quantile_ms(0.99);
            idle.push(path.column, alone);
            for (way, rows) in &mut rows {
                let bulk = Bulk::start(&path.target, *way, 1)?;
                std::thread::sleep(setting.fill(settings));
                let (start, arrived) = (Instant::now(), bulk.arrived());
                let beside = keystrokes(&path.target, typing)?.quantile_ms(0.99);
                let bits = float(bulk.arrived() - arrived) * 8.0;
                rows.keys.push(path.column, beside);
                rows.longer.push(path.column, beside / alone);
                rows.rates
                    .push(path.column, bits / 1e6 / start.elapsed().as_secs_f64());
                // What fills a deep queue must be gone before the next measurement.
                drop(bulk);
                rest(path, alone);
            }
        }
    }
    let beside = rows
        .into_iter()
        .flat_map(|(_, rows)| [rows.keys, rows.longer, rows.rates]);
    Ok(std::iter::once(idle).chain(beside).collect())
}

/// What is measured beside transfers of one way.
struct Rows {
    keys: Row,
    longer: Row,
    rates: Row,
}

impl Rows {
    fn new(way: Way, setting: Setting) -> Self {
        let (name, way) = (setting.name(), way.as_str());
        let mut longer = Row::new(format!("that, by the keystroke alone ({way}, {name})"), "×");
        if setting != Setting::Loopback {
            for (column, most) in LONGER {
                longer = longer.limit(column, Limit::AtMost(most));
            }
        }
        Self {
            keys: Row::new(
                format!("keystroke beside a bulk transfer {way} ({name}), p99"),
                "ms",
            ),
            longer,
            rates: Row::new(format!("that transfer {way} ({name})"), "Mbit/s"),
        }
    }
}

/// Longest wait for a path to be idle again.
const REST: Duration = Duration::from_secs(10);

/// Waits until a path is as quick as it is alone, or a while.
fn rest(path: &Path, alone: f64) {
    let start = Instant::now();
    let one = Typing {
        count: 1,
        size: 64,
        interval: Duration::ZERO,
    };
    while start.elapsed() < REST {
        if keystrokes(&path.target, one).is_ok_and(|times| times.quantile_ms(0.5) < 1.5 * alone) {
            return;
        }
    }
}
