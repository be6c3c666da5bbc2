//! One stream over a radio that loses packets.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::float;
use crate::load::Way;
use crate::load::client::Bulk;
use crate::path::Path;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

/// Properties of the device's link; each direction loses its share.
pub const LINK: &str = "rate = \"50mbit\", queue = \"100ms\", loss = \"1%\"";

/// How much longer than on loopback is measured: what counts is the mean over many losses.
const LONGER: u32 = 4;

/// Measures all paths.
///
/// # Errors
/// Fails when a path breaks.
pub fn run(settings: &Settings, paths: &[Path]) -> Result<Vec<Row>> {
    let time = settings.bulk * LONGER;
    let mut rows = Vec::new();
    for way in Way::BOTH {
        let name = format!("one stream {} (50 Mbit/s, 80 ms, 1 % loss)", way.as_str());
        let mut row = Row::new(name, "Mbit/s").limit(Column::Udp, Limit::AtLeastTimes(2.0, Column::OpenSsh));
        for _ in 0..settings.runs {
            for path in paths {
                row.push(path.column, rate(path, way, settings.warm_up * LONGER, time)?);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

fn rate(path: &Path, way: Way, warm_up: Duration, time: Duration) -> Result<f64> {
    let bulk = Bulk::start(&path.target, way, 1)?;
    std::thread::sleep(warm_up);
    let (start, before) = (Instant::now(), bulk.arrived());
    std::thread::sleep(time);
    Ok(float(bulk.arrived() - before) * 8.0 / 1e6 / start.elapsed().as_secs_f64())
}
