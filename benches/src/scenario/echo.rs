//! What a path adds to the round trip of a keystroke.

use anyhow::Result;

use crate::load::client::echoes;
use crate::path::Path;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

/// Bytes of a message.
const SIZE: usize = 64;

/// Measures all paths.
///
/// # Errors
/// Fails when a path breaks.
pub fn run(settings: &Settings, paths: &[Path]) -> Result<Vec<Row>> {
    let mut p50 =
        Row::new("echo of 64 bytes, p50", "ms").limit(Column::Udp, Limit::AtMostTimes(3.0, Column::Direct));
    let mut p99 = Row::new("echo of 64 bytes, p99", "ms");
    for _ in 0..settings.runs {
        for path in paths {
            let times = echoes(&path.target, settings.echoes, SIZE)?;
            p50.push(path.column, times.quantile_ms(0.5));
            p99.push(path.column, times.quantile_ms(0.99));
        }
    }
    Ok(vec![p50, p99])
}
