//! `tunnel-server run`.

use std::io;

use tracing::level_filters::LevelFilter;
use tunnel_proto::code::Exit;

use super::Data;
use crate::failure::{Failure, chain};
use crate::run::{RunError, run};

/// Runs the server until it is told to stop.
pub(super) fn command(data: &Data) -> Result<Exit, Failure> {
    let data = data.directory()?;
    let config = super::load_config(&data, "could not start the server")?;
    start_logs()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::failed(
            "E_INTERNAL",
            "could not start",
            error.to_string(),
            "try again with fewer programs running",
        )
    })?;
    match runtime.block_on(run(&data, config)) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(failure(&error)),
    }
}

fn failure(error: &RunError) -> Failure {
    let what = "could not run the server";
    let why = chain(error);
    match error {
        RunError::Listen { .. } => Failure::failed(
            "E_LISTEN",
            what,
            why,
            "end the program that has the port, or change `listen` in `server.toml`",
        ),
        RunError::Failed(_) => Failure {
            exit: Exit::Fault,
            ..Failure::failed("E_INTERNAL", what, why, "start it again")
        },
        _ => Failure::failed(
            "E_UNAVAILABLE",
            what,
            why,
            "run `tunnel-server check` to see what is missing",
        ),
    }
}

/// Starts logging to standard error. `TUNNEL_SERVER_LOG` says how much: `error`, `warn`, `info` (if absent), `debug`,
/// `trace` or `off`.
fn start_logs() -> Result<(), Failure> {
    let level = match std::env::var("TUNNEL_SERVER_LOG") {
        Err(_) => LevelFilter::INFO,
        Ok(text) => text.parse().map_err(|_| {
            let why = "`TUNNEL_SERVER_LOG` is none of `error`, `warn`, `info`, `debug`, `trace` and `off`";
            Failure::usage(
                "E_CONFIG",
                "could not start the server",
                why,
                "correct the variable, or remove it",
            )
        })?,
    };
    let logs = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false);
    // The journal has its own time stamps. A subscriber that is there already is as good.
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => logs.without_time().try_init(),
        None => logs.try_init(),
    };
    Ok(())
}
