//! What processes use, as the kernel tells it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Returns the CPU seconds that a process has used so far, all its threads, in its own code and in the kernel for it.
///
/// # Errors
/// Fails when the process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read `{path}`"))?;
    let ticks = ticks(&text).with_context(|| format!("`{path}` has another form than expected"))?;
    #[expect(clippy::cast_precision_loss, reason = "ticks of a benchmark are few")]
    let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(seconds)
}

/// Adds up fields 14 and 15, `utime` and `stime` (proc(5)). The name in field 2 may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Returns the resident memory of a process, in bytes.
///
/// # Errors
/// Fails when the process is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// Returns the most resident memory that a process has had, in bytes.
///
/// # Errors
/// Fails when the process is gone.
pub fn peak_resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read `{path}`"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("`{path}` has no {field}"))? * 1024)
}

/// Returns the size of a file, in bytes.
///
/// # Errors
/// Fails when it is not there.
pub fn file_bytes(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)
        .with_context(|| format!("could not look at `{}`", path.display()))?
        .len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_strange_name() {
        let stat = "42 (a b) c) S 1 2 3 4 5 6 7 8 9 10 700 80 0 0 20";
        assert_eq!(ticks(stat), Some(780));
    }

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(resident_bytes(pid).unwrap() <= peak_resident_bytes(pid).unwrap());
    }
}
