//! A keystroke beside a bulk transfer through the same tunnel.

use std::time::Duration;

use anyhow::Result;

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
        let name = format!(
            "keystroke beside a bulk transfer {} ({}), p99",
            way.as_str(),
            setting.as_str()
        );
        let mut row = Row::new(name, "ms");
        if setting == Setting::SlowLink {
            for column in [Column::Udp, Column::WebSocket] {
                row = row.limit(column, Limit::AtMost(round_trip(paths)? + ADDED_MS));
            }
        }
        for _ in 0..settings.runs {
            for path in paths {
                let bulk = Bulk::start(&path.target, way, 1)?;
                std::thread::sleep(setting.fill(settings));
                row.push(path.column, keystrokes(&path.target, typing)?.quantile_ms(0.99));
                drop(bulk);
            }
        }
        rows.push(row);
    }
    Ok(rows)
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
