//! The command line of the benchmarks.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tunnel_bench::baseline;
use tunnel_bench::report::{Column, Report};
use tunnel_bench::settings::Settings;
use tunnel_bench::suite::{self, Name};

/// Measures the tunnel system beside its peers, and prints one Markdown table.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    /// What to measure; all of it without.
    #[arg(value_enum)]
    scenarios: Vec<Name>,
    /// How often everything is measured.
    #[arg(long)]
    runs: Option<usize>,
    /// How long each bulk transfer is measured.
    #[arg(long)]
    seconds: Option<f64>,
    /// How many idle agents are started.
    #[arg(long)]
    agents: Option<usize>,
    /// How many devices are linked while tunnels are opened and cut.
    #[arg(long)]
    crowd: Option<usize>,
    /// Listens to an idle device for an hour.
    #[arg(long)]
    hour: bool,
    /// How many faults of each kind a session has to outlive.
    #[arg(long)]
    faults: Option<u32>,
    /// What is compared; all of it without.
    #[arg(long, value_enum, value_delimiter = ',')]
    columns: Vec<Column>,
    /// Measures shortly and once, to see that everything works.
    #[arg(long)]
    small: bool,
    /// Fails when a limit is missed.
    #[arg(long)]
    strict: bool,
    /// Directory for the report; `target/bench` without.
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Runs a part of a baseline; the benchmarks start these themselves.
    #[command(subcommand, hide = true)]
    Baseline(baseline::Part),
}

fn main() -> ExitCode {
    match perform(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("tunnel-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(args: &Args) -> Result<ExitCode> {
    if let Some(Part::Baseline(part)) = &args.part {
        return baseline::run(part).map(|()| ExitCode::SUCCESS);
    }
    let names = if args.scenarios.is_empty() {
        vec![Name::All]
    } else {
        args.scenarios.clone()
    };
    let report = suite::run(&settings(args)?, &names, &columns(args), &say)?;
    save(args, &report)?;
    io::stdout().write_all(report.markdown().as_bytes())?;
    Ok(if args.strict && !report.holds() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn settings(args: &Args) -> Result<Settings> {
    let program = std::env::current_exe()?;
    let mut settings = if args.small {
        Settings::small(program)
    } else {
        Settings::full(program)
    };
    settings.runs = args.runs.unwrap_or(settings.runs).max(1);
    settings.faults = args.faults.unwrap_or(settings.faults).max(1);
    settings.agents = args.agents.unwrap_or(settings.agents).max(1);
    settings.crowd = args.crowd.unwrap_or(settings.crowd).max(1);
    if args.hour {
        settings.idle = Duration::from_secs(3600);
    }
    if let Some(seconds) = args.seconds {
        settings.bulk = Duration::try_from_secs_f64(seconds).context("that is no time for a transfer")?;
    }
    Ok(settings)
}

fn columns(args: &Args) -> Vec<Column> {
    let wanted = |column: &Column| args.columns.is_empty() || args.columns.contains(column);
    Column::ALL.into_iter().filter(wanted).collect()
}

/// Writes the report beside what was built.
fn save(args: &Args, report: &Report) -> Result<()> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|path| path.ends_with("target"));
    let out = args
        .out
        .clone()
        .or_else(|| target.map(|target| target.join("bench")));
    let out = out.context("say with `--out` where the report goes")?;
    fs::create_dir_all(&out).with_context(|| format!("could not make `{}`", out.display()))?;
    fs::write(out.join("report.md"), report.markdown())?;
    fs::write(out.join("report.json"), report.json()?)?;
    Ok(())
}

/// Tells a person what goes on; data goes to the standard output.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
