//! Where and of what a run was made: a figure without that is none.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What a report says of its run.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    /// Commit of the sources; `+` behind it tells of changes that were not committed.
    pub commit: String,
    /// Cores, processor and kernel.
    pub machine: String,
    /// The command line.
    pub command: String,
    /// When the run began.
    pub time: String,
}

impl Origin {
    /// Looks around.
    pub fn here() -> Self {
        let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        Self {
            commit: commit(),
            machine: machine(),
            command: format!("cargo run --release -p tunnel-bench -- {words}")
                .trim_end_matches([' ', '-'])
                .to_owned(),
            time: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        }
    }
}

fn commit() -> String {
    let hash = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if changed { hash + "+" } else { hash }
}

fn git(words: &[&str]) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git").args(words).current_dir(root).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores, {}, Linux {}",
        model.unwrap_or("unknown processor"),
        kernel.trim()
    )
}
