//! A keystroke beside a bulk transfer through the same tunnel.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::float;
use crate::load::Way;
use crate::load::client::{Bulk, Typing, echoes, keystrokes};
use crate::path::Path;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

/// Where the paths are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// On loopback, where the processors are the limit.
    Loopback,
    /// On an emulated link of 10 Mbit/s with a round trip of 80 ms.
    SlowLink,
}

impl Setting {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::SlowLink => "10 Mbit/s, 80 ms",
        }
    }

    /// Returns how long a transfer needs to fill the path.
    const fn fill(self, settings: &Settings) -> Duration {
        match self {
            Self::Loopback => settings.warm_up,
            Self::SlowLink => settings.warm_up.saturating_mul(4),
        }
    }
}

/// Milliseconds that a bulk transfer may add to a keystroke on a slow link.
const ADDED_MS: f64 = 150.0;

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
    let mut rows = Vec::new();
    for way in [Way::Up, Way::Down] {
        let mut keys = key_row(setting, way, paths)?;
        let name = format!("that transfer {} ({})", way.as_str(), setting.as_str());
        let mut rates = Row::new(name, "Mbit/s");
        for _ in 0..settings.runs {
            for path in paths {
                let bulk = Bulk::start(&path.target, way, 1)?;
                std::thread::sleep(setting.fill(settings));
                let (start, arrived) = (Instant::now(), bulk.arrived());
                keys.push(path.column, keystrokes(&path.target, typing)?.quantile_ms(0.99));
                let bits = float(bulk.arrived() - arrived) * 8.0;
                rates.push(path.column, bits / 1e6 / start.elapsed().as_secs_f64());
            }
        }
        rows.extend([keys, rates]);
    }
    Ok(rows)
}

fn key_row(setting: Setting, way: Way, paths: &[Path]) -> Result<Row> {
    let name = format!(
        "keystroke beside a bulk transfer {} ({}), p99",
        way.as_str(),
        setting.as_str()
    );
    let row = Row::new(name, "ms");
    if setting == Setting::Loopback {
        return Ok(row);
    }
    // A WebSocket is a TCP connection: what the link does to one of those it does to the other.
    Ok(row
        .limit(Column::Udp, Limit::AtMost(round_trip(paths)? + ADDED_MS))
        .limit(Column::WebSocket, Limit::AtMostAbove(ADDED_MS, Column::Direct)))
}

/// Returns the round trip of the idle network, in whole milliseconds.
fn round_trip(paths: &[Path]) -> Result<f64> {
    let direct = paths.iter().find(|path| path.column == Column::Direct);
    let times = direct
        .map(|path| echoes(&path.target, 20, 64))
        .transpose()?
        .unwrap_or_default();
    Ok(if times.is_empty() {
        0.0
    } else {
        times.quantile_ms(0.5).round()
    })
}
