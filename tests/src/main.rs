//! `chaos`: faults under live sessions, scripted or random. It needs the rights of root and network namespaces.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
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

/// A seed that differs from run to run.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) >> 16
}

fn say(line: &str) {
    // Nobody may be listening any more.
    let _ = writeln!(std::io::stdout(), "{line}");
}
