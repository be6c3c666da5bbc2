//! How many tunnels can be opened in a second.

use anyhow::Result;

use super::float;
use crate::crowd::{ALLOW_ALL, Crowd, many};
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

/// Policies of a large fleet.
pub(super) const POLICIES: usize = 1_000;

/// Measures what is decided by many policies beside what is simply allowed.
///
/// # Errors
/// Fails when a tunnel is refused.
pub fn run(settings: &Settings, crowd: &mut Crowd) -> Result<Vec<Row>> {
    let figure = format!(
        "tunnels opened in a second, both legs admitted, {} devices linked",
        crowd.len()
    );
    let mut row = Row::new(figure, "1/s").limit(Column::Udp, Limit::AtLeast(300.0));
    for _ in 0..settings.runs {
        for (column, policy) in policies() {
            crowd.apply(&policy)?;
            let took = crowd.open_and_close(settings.opens)?;
            row.push(column, float(settings.opens as u64) / took.as_secs_f64());
        }
    }
    Ok(vec![row])
}

/// Returns what is in force, by column.
pub(super) fn policies() -> [(Column, String); 2] {
    [
        (Column::Udp, many(POLICIES)),
        (Column::AllowAll, ALLOW_ALL.to_owned()),
    ]
}
