//! Throughput of one and of sixteen streams, both ways, and the CPU time and memory that each process needs for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{GIB, MB, float};
use crate::load::Way;
use crate::load::client::Bulk;
use crate::path::{Path, Role};
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;
use crate::usage;

/// How long a transfer may stand still before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many streams at once.
const STREAMS: [usize; 2] = [1, 16];

/// Measures all paths.
///
/// # Errors
/// Fails when a path breaks.
pub fn run(settings: &Settings, paths: &[Path]) -> Result<Vec<Row>> {
    let mut rates = BTreeMap::new();
    let mut costs = BTreeMap::new();
    for _ in 0..settings.runs {
        for streams in STREAMS {
            for way in Way::BOTH {
                for path in paths {
                    let found = measure(settings, path, way, streams)?;
                    let row = rates
                        .entry((streams, way.as_str()))
                        .or_insert_with(|| rate_row(streams, way));
                    row.push(path.column, found.rate);
                    for (role, cost) in found.cpu.into_iter().filter(|_| streams == 1) {
                        let key = (order(role), way.as_str());
                        costs
                            .entry(key)
                            .or_insert_with(|| cost_row(role, way))
                            .push(path.column, cost);
                    }
                }
            }
        }
    }
    let mut rows: Vec<Row> = rates.into_values().chain(costs.into_values()).collect();
    rows.extend(memory(paths)?);
    Ok(rows)
}

fn rate_row(streams: usize, way: Way) -> Row {
    let name = if streams == 1 {
        "one stream".to_owned()
    } else {
        format!("{streams} streams")
    };
    let row = Row::new(format!("{name} {}", way.as_str()), "MB/s");
    if streams == 1 {
        row.limit(Column::Udp, Limit::AtLeastTimes(1.5, Column::HopByHop))
    } else {
        row
    }
}

fn cost_row(role: Role, way: Way) -> Row {
    let row = Row::new(
        format!("CPU of the {}, one stream {}", role.as_str(), way.as_str()),
        "s/GiB",
    );
    if role == Role::Relay {
        row.limit(Column::Udp, Limit::AtMost(1.0))
            .limit(Column::WebSocket, Limit::AtMost(2.0))
    } else {
        row
    }
}

fn order(role: Role) -> usize {
    Role::ALL
        .iter()
        .position(|other| *other == role)
        .unwrap_or_default()
}

/// What one transfer showed.
struct Found {
    /// MB/s.
    rate: f64,
    /// CPU seconds for each GiB.
    cpu: Vec<(Role, f64)>,
}

fn measure(settings: &Settings, path: &Path, way: Way, streams: usize) -> Result<Found> {
    let processes = path.processes();
    let cpu = || {
        processes
            .iter()
            .map(|(role, pid)| Ok((*role, usage::cpu_seconds(*pid)?)))
            .collect::<Result<Vec<_>>>()
    };
    let bulk = Bulk::start(&path.target, way, streams)?;
    std::thread::sleep(settings.warm_up);
    let (start, arrived, used) = (Instant::now(), bulk.arrived(), cpu()?);
    std::thread::sleep(settings.bulk);
    // On a machine with much else to do, a short time may show nothing.
    while bulk.arrived() == arrived && start.elapsed() < PATIENCE {
        std::thread::sleep(settings.bulk);
    }
    let (seconds, bytes, now) = (
        start.elapsed().as_secs_f64(),
        float(bulk.arrived() - arrived),
        cpu()?,
    );
    anyhow::ensure!(
        bytes > 0.0,
        "nothing arrives: {}, {}",
        path.column.title(),
        way.as_str()
    );
    let cpu = used
        .iter()
        .zip(&now)
        .map(|((role, used), (_, now))| (*role, (now - used) / (bytes / GIB)));
    Ok(Found {
        rate: bytes / 1e6 / seconds,
        cpu: cpu.collect(),
    })
}

/// Reads how much memory each process had at most, over all transfers.
fn memory(paths: &[Path]) -> Result<Vec<Row>> {
    let mut rows: Vec<_> = Role::ALL
        .map(|role| {
            Row::new(
                format!("most memory of the {} in all transfers", role.as_str()),
                "MB",
            )
        })
        .into();
    for path in paths {
        for (role, pid) in path.processes() {
            rows[order(role)].push(path.column, float(usage::peak_resident_bytes(pid)?) / MB);
        }
    }
    Ok(rows)
}
