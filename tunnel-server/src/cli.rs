//! The command line of `tunnel-server`.

mod check;
mod code;
mod make;
mod run;
mod span;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use tunnel_proto::UnixTime;
use tunnel_proto::code::Exit;

use crate::config::{Config, ConfigError, DataDir};
use crate::failure::{Failure, chain};

/// Control plane and relay of the tunnel system.
#[derive(Debug, Parser)]
#[command(name = "tunnel-server", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print results and errors as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new server: directory, authority, keys, store, first policy, first invite.
    Init(make::Init),
    /// Make a one-time code for devices (`tunnel-agent enrol`) or operators (`tunnel login`).
    EnrolCode(code::EnrolCode),
    /// Run the server until it is told to stop.
    Run(Data),
    /// Say whether the server would run, and why not.
    Check(Data),
    /// Print the schema that policies are checked against.
    PolicySchema,
    /// Print the OpenAPI document of the API.
    Openapi,
}

/// Where the server keeps what it must not lose.
#[derive(Debug, clap::Args)]
struct Data {
    /// The data directory; `TUNNEL_SERVER_DATA` if absent.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Data {
    fn directory(&self) -> Result<DataDir, Failure> {
        let named = self
            .data
            .clone()
            .or_else(|| std::env::var_os("TUNNEL_SERVER_DATA").map(PathBuf::from));
        named.map(DataDir::new).ok_or_else(|| {
            Failure::usage(
                "E_USAGE",
                "could not find the data directory",
                "neither `--data` nor `TUNNEL_SERVER_DATA` names it",
                "add `--data DIR`",
            )
        })
    }
}

/// Runs the program on its arguments.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                Exit::Usage as u8
            } else {
                Exit::Done as u8
            });
        }
    };
    match dispatch(&cli) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            let text = if cli.json {
                failure.to_json()
            } else {
                failure.to_string()
            };
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Init(command) => on_runtime(command.run(cli.json))?,
        Command::EnrolCode(command) => on_runtime(command.run(cli.json))?,
        Command::Check(data) => on_runtime(check::run(data.directory()?, cli.json))?,
        Command::Run(data) => run::command(data),
        Command::Openapi => print(crate::api::document().trim_end()),
        Command::PolicySchema => print(tunnel_policy::SCHEMA_TEXT.trim_end()),
    }
}

/// Runs a short command: one thread is enough.
fn on_runtime<F: Future>(command: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::failed(
                "E_INTERNAL",
                "could not start",
                error.to_string(),
                "try again with fewer programs running",
            )
        })?;
    Ok(runtime.block_on(command))
}

/// Writes a result. Nobody may read it any more, which is no failure of ours.
fn print(text: &str) -> Result<Exit, Failure> {
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(Exit::Done)
}

/// Reads the configuration of a server that was made.
fn load_config(data: &DataDir, what: &str) -> Result<Config, Failure> {
    Config::load(data).map_err(|error| {
        let next = match &error {
            ConfigError::File(file) if file.is_missing() => {
                format!(
                    "make the server with `tunnel-server init --data {}`, or name another directory",
                    data.path().display()
                )
            }
            ConfigError::File(_) => "run this as the user that the server runs as".to_owned(),
            ConfigError::Text(_) => format!("correct `{}`", data.config().display()),
        };
        Failure::usage("E_CONFIG", what, chain(&error), next)
    })
}

/// Returns what time it is. Commands have no other clock than the machine's.
fn now() -> UnixTime {
    UnixTime::from_secs(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
    )
}
