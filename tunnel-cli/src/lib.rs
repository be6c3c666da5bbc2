//! The `tunnel` program: a technician's and a script's way to devices.
//!
//! It proves who the operator is, asks for tunnels, and is one end of each: the other end is the device and nobody
//! between. It decides nothing; what it is told by servers and devices it checks, bounds and escapes.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may unwrap"))]

pub mod api;
pub mod args;
pub mod batch;
pub mod commands;
pub mod connect;
pub mod escape;
pub mod failure;
pub mod forward;
pub mod home;
pub mod http;
pub mod output;
pub mod signals;
pub mod ssh;
pub mod stdio;
pub mod ttl;
pub mod tunnel;

use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser as _;
use tunnel_proto::Code;
use tunnel_proto::code::Exit;

use args::{Cli, Command};
use commands::Context;
use failure::Failure;
use output::Output;

/// Runs the program with the given arguments, the program's name first, and returns how it ended.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return wrong_use(&args, &error),
    };
    let output = Output {
        json: cli.global.json,
    };
    if cli.global.verbose {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(std::io::stderr)
            .init();
    }
    match start(with_escape(cli, &args), output) {
        Ok(()) => ExitCode::from(Exit::Done as u8),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Tells help on stdout and wrong use on stderr, each in the form that was asked for.
fn wrong_use(args: &[OsString], error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if !error.use_stderr() {
        return match output::write_stdout(&text) {
            Ok(()) => ExitCode::from(Exit::Done as u8),
            Err(failure) => ExitCode::from(failure.exit_code()),
        };
    }
    let own = args.iter().take_while(|arg| *arg != "--");
    if own.clone().any(|arg| arg == "--json") {
        let why = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let failure = Failure::new(Code::BadRequest, "the command is not of the documented form")
            .why(why)
            .next("see `tunnel --help`");
        output::write_stderr(&failure.to_json());
    } else {
        output::write_stderr(&escape::escape_lines(&text));
    }
    ExitCode::from(Exit::Usage as u8)
}

/// Puts back the `--` with which the arguments of OpenSSH's programs begin: clap takes it for its own, and then a host
/// that looks like an option would be read as one.
fn with_escape(mut cli: Cli, args: &[OsString]) -> Cli {
    if let Command::Ssh(ssh) | Command::Scp(ssh) = &mut cli.command {
        let before = args
            .len()
            .checked_sub(ssh.args.len() + 1)
            .and_then(|at| args.get(at));
        if before.is_some_and(|before| before == "--") {
            ssh.args.insert(0, "--".into());
        }
    }
    cli
}

fn start(cli: Cli, output: Output) -> Result<(), Failure> {
    let home = home::Home::find(cli.global.home.as_deref())?;
    let context = Context { home, output };
    match cli.command {
        Command::Ssh(args) => commands::ssh::ssh(&context, args),
        Command::Scp(args) => commands::ssh::scp(&context, args),
        Command::SshConfig(args) => commands::ssh::ssh_config(&context, args),
        Command::Logout => commands::login::logout(&context),
        Command::Lock(args) => commands::lock::lock(&context, args),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::new(Code::Internal, "could not start").detail(error.to_string()))?;
            let result = runtime.block_on(dispatch(&context, command));
            // A thread may still wait for a terminal's next line; the program does not wait for it.
            runtime.shutdown_background();
            result
        }
    }
}

async fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Login(args) => commands::login::login(context, args).await,
        Command::Status => commands::status::status(context).await,
        Command::Doctor(args) => commands::doctor::doctor(context, args).await,
        Command::Devices(args) => commands::devices::devices(context, args).await,
        Command::Outages(args) => commands::outages::outages(context, args).await,
        Command::Connect(args) => {
            let ask = with_environment(args.ask)?;
            let (device, service) = (ssh::device(&args.device)?, args.service);
            let connect = connect::Connect {
                device,
                service,
                host_keys: args.host_keys,
                ask,
            };
            connect::run(&context.home, context.output, connect).await
        }
        Command::Forward(args) => {
            let ask = with_environment(args.ask)?;
            let device = ssh::device(&args.device)?;
            let forward = forward::Forward {
                device,
                specs: args.specs,
                expose: args.expose,
                ask,
            };
            forward::run(&context.home, context.output, forward).await
        }
        Command::Run(args) => {
            let ask = with_environment(args.ask.clone())?;
            commands::run::run(context, args, ask).await
        }
        Command::Tunnels(args) => commands::tunnels::list(context, args).await,
        Command::Sessions(args) => commands::sessions::sessions(context, args).await,
        Command::Describe(args) => commands::tunnels::describe(context, args).await,
        Command::Close(args) => commands::tunnels::close(context, args).await,
        Command::Rotate(args) => commands::tunnels::rotate(context, args).await,
        Command::Cut(args) => commands::cut::cut(context, args).await,
        Command::Request(args) => commands::approvals::request(context, args).await,
        Command::Approvals(args) => commands::approvals::approvals(context, args).await,
        Command::Approve(args) => commands::approvals::approve(context, args).await,
        Command::Deny(args) => commands::approvals::deny(context, args).await,
        Command::Withdraw(args) => commands::approvals::withdraw(context, args).await,
        Command::Policy(args) => commands::policy::policy(context, args).await,
        Command::Why(args) => commands::why::why(context, args).await,
        Command::Facts(args) => commands::members::facts(context, args).await,
        Command::Group(args) => commands::members::group(context, args).await,
        Command::Audit(args) => commands::audit::audit(context, args).await,
        Command::Notifications(args) => commands::notifications::notifications(context, args).await,
        Command::EnrolCode(args) => commands::access::enrol_code(context, args).await,
        Command::Revoke(args) => commands::access::revoke(context, args).await,
        Command::Quarantine(args) => commands::suspension::quarantine(context, args).await,
        Command::Release(args) => commands::suspension::release(context, args).await,
        Command::Disable(args) => commands::suspension::disable(context, args).await,
        Command::Enable(args) => commands::suspension::enable(context, args).await,
        Command::Ssh(_) | Command::Scp(_) | Command::SshConfig(_) | Command::Logout | Command::Lock(_) => {
            Ok(())
        }
    }
}

/// Completes what a tunnel is asked for with from the environment, which `ssh` hands on to its ProxyCommand.
fn with_environment(ask: args::Ask) -> Result<tunnel::Ask, Failure> {
    Ok(tunnel::Ask {
        ttl: ask
            .ttl
            .map_or_else(|| from_environment("TUNNEL_TTL"), |ttl| Ok(Some(ttl)))?,
        reason: ask
            .reason
            .map_or_else(|| from_environment("TUNNEL_REASON"), |reason| Ok(Some(reason)))?,
        break_glass: ask.break_glass || from_environment(BREAK_GLASS)?.unwrap_or(false),
        carriers: ask
            .carrier
            .map_or_else(|| from_environment("TUNNEL_CARRIER"), |carrier| Ok(Some(carrier)))?
            .unwrap_or_default(),
        permit: ask
            .permit
            .map_or_else(|| from_environment("TUNNEL_PERMIT"), |file| Ok(Some(file)))?
            .map(|file| commands::lock::permit_to_show(&file))
            .transpose()?,
        batch: None,
    })
}

/// Hands `--break-glass` on to the ProxyCommand of `ssh`: `true` or `false`.
const BREAK_GLASS: &str = "TUNNEL_BREAK_GLASS";

/// Reads a value from the environment; `None` where it is not set, or empty.
fn from_environment<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>, Failure> {
    let wrong = |why: String| {
        Failure::new(Code::BadRequest, format!("could not read {name}"))
            .why(why)
            .next("correct it, or unset it")
    };
    match std::env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => text
            .parse()
            .map(Some)
            .map_err(|error: T::Err| wrong(error.to_string())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(wrong(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh_args(line: &str) -> Vec<OsString> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let cli = Cli::try_parse_from(&args).unwrap();
        let (Command::Ssh(ssh) | Command::Scp(ssh)) = with_escape(cli, &args).command else {
            panic!("not ssh")
        };
        ssh.args
    }

    /// THREATS CLI-03.
    #[test]
    fn the_arguments_of_openssh_come_through_as_they_are() {
        for line in [
            "pump-17 -- uname -a",
            "-v -p 22 ana@pump-17 ls -l --json",
            "pump-17 -v -- --home x",
            "-- pump-17 ls",
            "-- -v ls",
            "--",
            "-- --",
            "-oUser=ana pump-17 --",
        ] {
            let expected: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            for own in ["ssh", "--json scp", "ssh --reason x --service=b"] {
                assert_eq!(
                    ssh_args(&format!("tunnel {own} {line}")),
                    expected,
                    "{own} {line}"
                );
            }
        }
    }
}
