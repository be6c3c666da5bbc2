//! The command line of the agent. Output is data, errors are talk; there are no prompts.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tunnel_net::link::Try;
use tunnel_proto::DeviceId;
use tunnel_proto::code::Exit;

use crate::access::Switch;
use crate::agent::Options;
use crate::config::{self, Config, Origin};
use crate::defaults::{CONFIG_FILE, CONFIG_VARIABLE, MAX_FILE_BYTES, STATE_VARIABLE};
use crate::enrol::{self, Enrolment};
use crate::failure::Failure;
use crate::state::{self, StateDir};
use crate::{check, run, site, supervisor};

/// Names the carrier that is used, as for the other programs.
const CARRIER_VARIABLE: &str = "TUNNEL_CARRIER";

/// Offers named services of this device to operators, through a server that it dials.
///
/// It opens no port. The owner's file says which services there are and who may use them.
#[derive(Debug, Parser)]
#[command(
    name = "tunnel-agent",
    version,
    max_term_width = 100,
    subcommand_required = false
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file [variable: TUNNEL_AGENT_CONFIG] [default: /etc/tunnel-agent/agent.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory, over the one in the file [variable: TUNNEL_AGENT_STATE] [default: /var/lib/tunnel-agent]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Write results and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Show each setting with where it comes from, and end
    #[arg(long, global = true)]
    print_config: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this machine a device of a fleet, with a one-time code from its owner
    Enrol {
        /// The code; `-` reads it from the standard input
        code: String,
        /// Name of the device, where the code leaves a choice
        #[arg(long, value_name = "ID")]
        id: Option<DeviceId>,
        /// Give up the identity that is there already
        #[arg(long)]
        replace: bool,
        /// A permit of the owner's keys, which a device with a lock needs to change over to another fleet's root
        #[arg(long, value_name = "FILE")]
        permit: Option<PathBuf>,
    },
    /// Link to the server and serve tunnels
    Run {
        /// Check the configuration, and end
        #[arg(long)]
        check_config: bool,
    },
    /// Keep an agent running, as a service: a restart, even into another version, ends no session
    ///
    /// A new program has to link to the server before the one that works gives way to it. SIGHUP has the configuration read
    /// again; SIGUSR2 tries the program that is installed now.
    Supervise,
    /// Serve tunnels as a supervisor says, which is on the other end of the standard input
    #[command(hide = true)]
    Worker,
    /// Say whether this device would work, and what to mend
    Check {
        /// Measure the way to the server instead: DNS, both carriers, loss, MTU, NAT, proxy, clock
        #[arg(long)]
        net: bool,
    },
    /// Show who is connected to this device, and who asks to be let in
    Who,
    /// Show who asks to be let in, or let one of them in
    Allow {
        /// The tunnel's id, or the first digits of it
        tunnel: Option<String>,
    },
    /// Refuse one of those who ask to be let in
    Deny {
        /// The tunnel's id, or the first digits of it
        tunnel: String,
    },
    /// End a tunnel now, or all of them
    End {
        /// The tunnel's id, or the first digits of it; all if absent
        tunnel: Option<String>,
    },
    /// The owner's switch: `off` cuts all tunnels and lets nobody in
    Access {
        /// `on`, `off` or `status`
        #[command(subcommand)]
        action: Access,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Access {
    /// Let operators in again
    On,
    /// Cut all tunnels and let nobody in
    Off,
    /// Say how the switch stands
    Status,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(&cli) {
        Ok(exit) => exit,
        Err(failure) => {
            let text = if cli.global.json {
                failure.to_json()
            } else {
                failure.to_string()
            };
            let _ = writeln!(std::io::stderr(), "{text}");
            failure.exit_code()
        }
    }
}

fn execute(cli: &Cli) -> Result<ExitCode, Failure> {
    let exit = match &cli.command {
        _ if cli.global.print_config => {
            let (file, config) = load(&cli.global, true)?;
            say(&config::print(&config, &file))
        }
        // It ends as its workers do.
        Some(Command::Supervise) => return supervise(&cli.global),
        None => Err(Failure::local(
            "E_USAGE",
            "could not tell what to do",
            "no command was given",
            "run `tunnel-agent --help`",
        )),
        Some(Command::Enrol {
            code,
            id,
            replace,
            permit,
        }) => enrol(&cli.global, code, id.as_ref(), *replace, permit.as_deref()),
        Some(Command::Run { check_config }) => run(&cli.global, *check_config),
        Some(Command::Worker) => worker(&cli.global),
        Some(Command::Check { net }) => check(&cli.global, *net),
        Some(Command::Access { action }) => access(&cli.global, *action),
        Some(Command::Who) => on_site(&cli.global, &site::Command::Who),
        Some(Command::Allow { tunnel }) => on_site(&cli.global, &site::Command::Allow(tunnel.clone())),
        Some(Command::Deny { tunnel }) => on_site(&cli.global, &site::Command::Deny(tunnel.clone())),
        Some(Command::End { tunnel }) => on_site(&cli.global, &site::Command::End(tunnel.clone())),
    };
    exit.map(|exit| ExitCode::from(exit as u8))
}

fn enrol(
    global: &Global,
    code: &str,
    id: Option<&DeviceId>,
    replace: bool,
    permit: Option<&Path>,
) -> Result<Exit, Failure> {
    let from_input;
    let text = if code == "-" {
        from_input = read_input()?;
        &from_input
    } else {
        code
    };
    let code = enrol::read_code(text)?;
    let (_, config) = load(global, false)?;
    state::become_owner(&config.state_dir)?;
    let state = StateDir::new(&config.state_dir);
    let asked = Enrolment {
        code: &code,
        id,
        replace,
        permit: permit.map(enrol::read_permit).transpose()?,
        config: &config,
    };
    let enrolled = runtime()?.block_on(enrol::enrol(&asked, &state))?;
    if global.json {
        let json = serde_json::json!({
            "identity": enrolled.identity.to_string(),
            "server": enrolled.server.to_string(),
            "expires_at": enrolled.expires_at.as_secs(),
            "state_dir": config.state_dir,
        });
        return say(&format!("{json}\n"));
    }
    say(&format!(
        "enrolled as `{}` with `{}`\nstart the agent: `systemctl enable --now tunnel-agent`, or `tunnel-agent run`\n",
        enrolled.identity, enrolled.server
    ))
}

fn run(global: &Global, check_config: bool) -> Result<Exit, Failure> {
    let (file, config) = load(global, true)?;
    if check_config {
        return if global.json {
            say("{\"ok\":true}\n")
        } else {
            say("the configuration has no errors\n")
        };
    }
    run::start_logs()?;
    let options = options(file, config)?;
    runtime()?.block_on(run::run(options, None))?;
    Ok(Exit::Done)
}

/// Becomes the user of the state, and says what an agent is started with.
fn options(file: PathBuf, config: Config) -> Result<Options, Failure> {
    let carriers = carriers()?;
    state::become_owner(&config.state_dir)?;
    Ok(Options {
        config,
        config_file: Some(file),
        carriers,
    })
}

fn supervise(global: &Global) -> Result<ExitCode, Failure> {
    let (file, config) = load(global, true)?;
    run::start_logs()?;
    state::become_owner(&config.state_dir)?;
    let arguments = [
        "--config".into(),
        file.into(),
        "--state".into(),
        config.state_dir.clone().into(),
        "worker".into(),
    ];
    let start = supervisor::Start::new(StateDir::new(&config.state_dir), arguments.into())?;
    Ok(ExitCode::from(runtime()?.block_on(supervisor::supervise(start))?))
}

fn worker(global: &Global) -> Result<Exit, Failure> {
    let (file, config) = load(global, true)?;
    run::start_logs()?;
    let options = options(file, config)?;
    runtime()?.block_on(async { run::run(options, Some(run::take_channel()?)).await })?;
    Ok(Exit::Done)
}

fn check(global: &Global, net: bool) -> Result<Exit, Failure> {
    let loaded = load(global, true);
    if let Ok((_, config)) = &loaded {
        state::become_owner(&config.state_dir)?;
    }
    let runtime = runtime()?;
    let report = match net {
        true => runtime.block_on(check::check_net(loaded)),
        false => runtime.block_on(check::check(loaded, check::Stage::WithServer)),
    };
    say(&if global.json {
        report.to_json()
    } else {
        report.to_text()
    })?;
    Ok(report.exit())
}

fn on_site(global: &Global, command: &site::Command) -> Result<Exit, Failure> {
    let (_, config) = load(global, false)?;
    state::become_owner(&config.state_dir)?;
    let (text, exit) = site::execute(&config.state_dir, command, global.json)?;
    say(&text).map(|_| exit)
}

fn access(global: &Global, action: Access) -> Result<Exit, Failure> {
    let (_, config) = load(global, false)?;
    state::become_owner(&config.state_dir)?;
    let switch = Switch::new(&config.state_dir);
    if !config.state_dir.is_dir() {
        return Err(Failure::local(
            "E_NOT_ENROLLED",
            "could not find the owner's switch",
            format!("there is no directory `{}`", config.state_dir.display()),
            "enrol this device first, or name the directory with `--state`",
        ));
    }
    match action {
        Access::Status => {}
        Access::On | Access::Off => switch.set(matches!(action, Access::On)).map_err(|error| {
            let what = format!("could not write in `{}`", config.state_dir.display());
            Failure::local(
                "E_STATE",
                what,
                error,
                "run the command as root or as the agent's user",
            )
        })?,
    }
    let (on, allowed) = (switch.is_on(), config.access);
    if global.json {
        let json = serde_json::json!({ "access": on && allowed, "switch": on, "configuration": allowed });
        return say(&format!("{json}\n"));
    }
    say(match (on, allowed) {
        (true, true) => "access is on\n",
        (false, _) => "access is off: a running agent cuts its tunnels and refuses new ones\n",
        (true, false) => {
            "access is off: the switch is on, but `access.enabled` in the configuration is false\n"
        }
    })
}

/// Finds and reads the configuration. Where it is not required, a file that nobody named may be missing.
fn load(global: &Global, required: bool) -> Result<(PathBuf, Config), Failure> {
    let named = match &global.config {
        Some(file) => Some(file.clone()),
        None => variable(CONFIG_VARIABLE),
    };
    let file = named.clone().unwrap_or_else(|| CONFIG_FILE.into());
    let optional = !required && named.is_none() && !Path::new(CONFIG_FILE).exists();
    let mut config = if optional {
        Config::empty()
    } else {
        Config::load(&file)?
    };
    let state = match &global.state {
        Some(dir) => Some((dir.clone(), Origin::Flag("--state"))),
        None => variable(STATE_VARIABLE).map(|dir| (dir, Origin::Variable(STATE_VARIABLE))),
    };
    if let Some((dir, origin)) = state {
        config.state_dir = std::path::absolute(dir).map_err(|error| {
            Failure::local(
                "E_USAGE",
                "could not use the state directory",
                error,
                "name an absolute path",
            )
        })?;
        config.origins.insert("state_dir".into(), origin);
    }
    Ok((file, config))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn carriers() -> Result<Try, Failure> {
    match std::env::var(CARRIER_VARIABLE) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|error| {
            let what = format!("could not use the variable `{CARRIER_VARIABLE}`");
            Failure::local("E_USAGE", what, error, "set it to one of these, or unset it")
        }),
        _ => Ok(Try::Both),
    }
}

/// Reads a code from the standard input, so that it stands in no list of processes.
fn read_input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| {
            Failure::local(
                "E_USAGE",
                "could not read the code from the standard input",
                error,
                "pass it as text",
            )
        })?;
    Ok(text)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Only names are looked up on other threads.
        .max_blocking_threads(2)
        .thread_stack_size(256 * 1024)
        .build()
        .map_err(|error| {
            Failure::local(
                "E_INTERNAL",
                "could not start",
                error,
                "check the limits of this process",
            )
        })
}

/// Writes to the standard output. A reader that went away is no failure of ours.
fn say(text: &str) -> Result<Exit, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::local(
            "E_OUTPUT",
            "could not write the result",
            error,
            "check where the output goes",
        )),
        _ => Ok(Exit::Done),
    }
}
