//! `tunnel-agent run`: signals, logs and the service manager round the agent.

use std::os::fd::AsFd as _;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::level_filters::LevelFilter;

use crate::agent::{Agent, Options};
use crate::channel::Channel;
use crate::defaults::{LOG_VARIABLE, TRIAL, TRIAL_VARIABLE, TRIALS_IN_SECS};
use crate::failure::Failure;

/// Sends log lines to the error output, with as much as the variable `TUNNEL_AGENT_LOG` asks for.
///
/// # Errors
/// Tells that the variable has no level in it.
pub fn start_logs() -> Result<(), Failure> {
    let level = match std::env::var(LOG_VARIABLE) {
        Ok(text) => text.parse::<LevelFilter>().map_err(|_| {
            let what = format!("could not use the variable `{LOG_VARIABLE}`");
            let why = "it is none of `error`, `warn`, `info`, `debug`, `trace` and `off`";
            Failure::local("E_USAGE", what, why, "set it to one of these, or unset it")
        })?,
        Err(_) => LevelFilter::INFO,
    };
    let logs = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false);
    // The journal has its own time stamps.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        logs.without_time().init()
    } else {
        logs.init()
    }
    Ok(())
}

/// Returns how long a new program has to link.
///
/// # Errors
/// Tells that the variable has no such time in it.
pub(crate) fn trial() -> Result<Duration, Failure> {
    let Some(text) = std::env::var_os(TRIAL_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(TRIAL);
    };
    let secs = text.to_str().and_then(|text| text.parse().ok());
    let secs = secs.filter(|secs| TRIALS_IN_SECS.contains(secs));
    secs.map(Duration::from_secs).ok_or_else(|| {
        let what = format!("could not use the variable `{TRIAL_VARIABLE}`");
        let (least, most) = (TRIALS_IN_SECS.start(), TRIALS_IN_SECS.end());
        let why = format!("it is no number of seconds from {least} to {most}");
        Failure::local("E_USAGE", what, why, "set it to one of these, or unset it")
    })
}

/// Takes the channel to the supervisor off the standard input, and leaves nothing there. Must be called in a tokio runtime.
///
/// # Errors
/// Tells that it is no such channel.
pub(crate) fn take_channel() -> Result<Channel, Failure> {
    let taken = || {
        let channel = std::io::stdin().as_fd().try_clone_to_owned()?;
        if rustix::net::sockopt::socket_type(&channel)? != rustix::net::SocketType::SEQPACKET {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Channel::new(channel)
    };
    taken().map_err(|error: std::io::Error| {
        let what = "could not find a supervisor on the standard input";
        Failure::local(
            "E_USAGE",
            what,
            error,
            "run `tunnel-agent supervise`, which starts workers itself",
        )
    })
}

/// Runs the agent, alone or as a worker, until a signal or its supervisor ends it.
///
/// # Errors
/// Says why it could not start.
pub(crate) async fn run(options: Options, supervisor: Option<Channel>) -> Result<(), Failure> {
    let agent = Agent::with_supervisor(options, supervisor, trial()?)?;
    if rustix::process::geteuid().is_root() {
        tracing::warn!(
            "the agent runs as root and does not need to: give the state directory to a user of its own"
        );
    }
    let stop = CancellationToken::new();
    let (reload_sender, reload) = mpsc::channel(1);
    let signals = AbortOnDropHandle::new(tokio::task::spawn(handle_signals(stop.clone(), reload_sender)?));
    tracing::info!(device = %agent.own().identity, version = env!("CARGO_PKG_VERSION"), "agent started");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    agent.run(stop, reload).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    drop(signals);
    Ok(())
}

/// Turns signals into what the agent understands: SIGTERM and SIGINT end it, SIGHUP makes it read its file again.
fn handle_signals(
    stop: CancellationToken,
    reload: mpsc::Sender<()>,
) -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let failed = |error| {
        Failure::local(
            "E_INTERNAL",
            "could not listen for signals",
            error,
            "report this with the system's version",
        )
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
                // One that waits already is enough: it reads the newest file.
                _ = hang_up.recv() => drop(reload.try_send(())),
            }
        }
    })
}
