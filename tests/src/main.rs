//! `chaos`: faults under live sessions, scripted or random. It needs the rights of root and network namespaces.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tunnel_e2e::chaos::matrix::{self, Outcome};
use tunnel_e2e::chaos::report;
use tunnel_e2e::chaos::run::{self, Plan};

/// Faults under live sessions that check every byte.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Random faults, until the time is over or there were enough of them.
    Run(Run),
    /// Each fault, over each carrier, at each moment of a session.
    Matrix(Matrix),
}

#[derive(Debug, clap::Args)]
struct Matrix {
    /// A Markdown file between whose marks the table is written; it goes to the standard output without.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only faults in whose description these words are, as `network cut at the device`.
    #[arg(long, default_value = "")]
    only: String,
    /// How long a network is cut, in seconds.
    #[arg(long, default_value_t = 30)]
    cut: u64,
    /// What the table says about where it comes from, as the commit and the machine.
    #[arg(long, default_value = "")]
    about: String,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// For how many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Until how many faults.
    #[arg(long)]
    faults: Option<u64>,
    /// What everything random follows from; another one each time without.
    #[arg(long)]
    seed: Option<u64>,
    /// The longest outage, in seconds.
    #[arg(long, default_value_t = 30)]
    longest: u64,
}

fn main() -> ExitCode {
    match Args::parse().what {
        What::Run(args) => random(&args),
        What::Matrix(args) => scripted(&args),
    }
}

fn random(args: &Run) -> ExitCode {
    let seed = args.seed.unwrap_or_else(any_seed);
    say(&format!("seed {seed}"));
    let time = match (args.seconds, args.faults) {
        (None, None) => Some(60),
        (seconds, _) => seconds,
    };
    let plan = Plan {
        seed,
        time: time.map(Duration::from_secs),
        faults: args.faults,
        longest: Duration::from_secs(args.longest),
    };
    match run::run(plan, &say) {
        Ok(summary) => {
            say(&format!("\n{}seed {seed}", summary.text()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            say(&format!("\nFAILED: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn scripted(args: &Matrix) -> ExitCode {
    let mut faults = matrix::all(Duration::from_secs(args.cut));
    faults.retain(|fault| fault.to_string().contains(&args.only));
    let cells = matrix::run(&faults, &say);
    let table = matrix::markdown(&cells);
    let lost = cells
        .iter()
        .filter(|cell| matches!(cell.outcome, Outcome::Lost(_)))
        .count();
    let text = format!(
        "{} cells, {lost} sessions lost. {}\n{table}",
        cells.len(),
        args.about
    );
    let written = match &args.out {
        Some(path) => report::replace(path, "matrix", &text),
        None => {
            say(&text);
            Ok(())
        }
    };
    if let Err(error) = written {
        say(&format!("the table could not be written: {error}\n{text}"));
        return ExitCode::FAILURE;
    }
    if lost > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// A seed that differs from run to run.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) >> 16
}

fn say(line: &str) {
    // Nobody may be listening any more.
    let _ = writeln!(std::io::stdout(), "{line}");
}
