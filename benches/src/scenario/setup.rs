//! How long it takes until the first byte has come back.

use std::time::Instant;

use anyhow::Result;

use crate::load::client::{connects, first_byte};
use crate::path::Path;
use crate::report::Row;
use crate::settings::Settings;

/// Measures all paths.
///
/// # Errors
/// Fails when a path breaks.
pub fn run(settings: &Settings, paths: &[Path]) -> Result<Vec<Row>> {
    let mut session = Row::new("one more connection to its first byte, p50", "ms");
    let mut start = Row::new("start of the near end to its first byte", "ms");
    for _ in 0..settings.runs {
        for path in paths {
            session.push(
                path.column,
                connects(&path.target, settings.connects)?.quantile_ms(0.5),
            );
            let begun = Instant::now();
            if let Some(near) = path.another_near()? {
                first_byte(&near.target)?;
                start.push(path.column, begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(vec![start, session])
}
