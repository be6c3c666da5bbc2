//! `tunnel-agent check`: says whether the device would work, and what to mend. It changes nothing, and does not disturb
//! an agent that runs.

mod net;
mod report;
mod server;

pub use net::check as check_net;
pub use report::{Finding, Report, Status};

use std::path::{Path, PathBuf};
use std::time::Duration;

use tunnel_net::ServerAddr;
use tunnel_net::clock::{Clock as _, FloorClock};
use tunnel_proto::UnixTime;

use crate::access::Switch;
use crate::commands::{Allowed, Commands, Listed};
use crate::config::Config;
use crate::connect::connect;
use crate::defaults::{EXPIRY_WARNING, SKEW_WARNING};
use crate::failure::Failure;
use crate::host_keys;
use crate::state::{Enrolled, StateDir};
use crate::target::Target;

/// How far the check goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// This machine alone.
    Local,
    /// The server too.
    WithServer,
}

/// Checks everything that can be checked.
pub async fn check(loaded: Result<(PathBuf, Config), Failure>, stage: Stage) -> Report {
    let mut report = Report::default();
    check_user(&mut report);
    let config = match loaded {
        Ok((file, config)) => {
            check_config(&mut report, &config, &file);
            config
        }
        Err(failure) => {
            report.failed("configuration", &failure);
            return report;
        }
    };
    check_targets(&mut report, &config).await;
    check_host_keys(&mut report, &config);
    check_access(&mut report, &config);
    let state = StateDir::new(&config.state_dir);
    let clock = std::sync::Arc::new(state.clock());
    if let Some(mut enrolled) = check_identity(&mut report, &state, &clock)
        && check_proxy(&mut report, &config, &state, &mut enrolled.server)
        && stage == Stage::WithServer
    {
        server::check(&mut report, &enrolled, clock).await;
    }
    report
}

fn check_user(report: &mut Report) {
    if rustix::process::geteuid().is_root() {
        report.warning(
            "user",
            "runs as root",
            "give the state directory to a user of its own; the agent then becomes it",
        );
    } else {
        report.ok(
            "user",
            format!("runs as user {}", rustix::process::geteuid().as_raw()),
        );
    }
}

fn check_config(report: &mut Report, config: &Config, file: &std::path::Path) {
    if config.policy.services.is_empty() {
        let text = format!("`{}` offers no service", file.display());
        report.warning(
            "configuration",
            text,
            "add `[services.ssh]` with `target = \"tcp:127.0.0.1:22\"`",
        );
    } else {
        report.ok(
            "configuration",
            format!(
                "`{}` offers {} service(s)",
                file.display(),
                config.policy.services.len()
            ),
        );
    }
}

async fn check_targets(report: &mut Report, config: &Config) {
    for (name, service) in &config.policy.services {
        let title = format!("service {name}");
        if let Target::Commands(commands) = &service.target {
            check_programs(report, &title, commands);
            continue;
        }
        match connect(&service.target).await {
            Ok(_) => report.ok(&title, format!("`{}` accepts connections", service.target)),
            Err(code) => {
                let what = format!("`{}` cannot be reached", service.target);
                report.failed(&title, &Failure::of(code, what));
            }
        }
    }
}

/// Says what may be run, that a program is not there, and which programs get arguments that the owner has not chosen.
fn check_programs(report: &mut Report, title: &str, commands: &Commands) {
    const OPEN: &str =
        "list commands with all their words, or trust whoever the server lets run them with the device's key";
    let Allowed::Only(listed) = &commands.allowed else {
        let what = "any program gets any arguments, and runs as the agent's user";
        return report.warning(title, what, OPEN);
    };
    let absent = listed.iter().map(Listed::program);
    let absent: Vec<_> = absent.filter(|program| !Path::new(program).is_file()).collect();
    if !absent.is_empty() {
        let what = format!("there is no `{}`", absent.join("`, `"));
        report.warning(title, what, "install what is missing, or take it out of `allow`");
    }
    let open = listed.iter().filter(|listed| listed.takes_any_more());
    let open: Vec<_> = open.map(Listed::as_str).collect();
    if !open.is_empty() {
        let what = format!(
            "gets any arguments, and runs as the agent's user: `{}`",
            open.join("`, `")
        );
        report.warning(title, what, OPEN);
    } else if absent.is_empty() {
        report.ok(title, format!("runs {} command(s)", listed.len()));
    }
}

fn check_host_keys(report: &mut Report, config: &Config) {
    let files = host_keys::files(config.host_key_files.as_deref());
    let (keys, errors) = host_keys::read(&files);
    for error in &errors {
        report.warning(
            "host keys",
            error.to_string(),
            "let the agent's user read it, or change `ssh.host_key_files`",
        );
    }
    if !keys.is_empty() {
        report.ok(
            "host keys",
            format!(
                "{} will be reported, so that nobody has to trust on first use",
                keys.len()
            ),
        );
    } else if errors.is_empty() && config.policy.services.keys().any(|name| name.as_str() == "ssh") {
        report.warning(
            "host keys",
            "there are none",
            "install an SSH server, or name its `.pub` files in `ssh.host_key_files`",
        );
    }
}

fn check_access(report: &mut Report, config: &Config) {
    if !config.access {
        report.warning(
            "access",
            "is off in the configuration",
            "set `enabled = true` in `[access]` to let operators in",
        );
    } else if config.state_dir.is_dir() && !Switch::new(&config.state_dir).is_on() {
        report.warning(
            "access",
            "the owner's switch is off",
            "run `tunnel-agent access on` to let operators in",
        );
    } else {
        report.ok("access", "is on");
    }
}

fn check_identity(report: &mut Report, state: &StateDir, clock: &FloorClock) -> Option<Enrolled> {
    if state.path().exists()
        && let Err(failure) = state.create()
    {
        report.failed("state", &failure);
        return None;
    }
    match state.load(clock) {
        Ok(enrolled) => {
            report.ok(
                "state",
                format!("`{}` is private to this user", state.path().display()),
            );
            check_certificate(report, &enrolled, clock.now());
            check_floor(report, clock);
            Some(enrolled)
        }
        Err(failure) => {
            report.failed("identity", &failure);
            None
        }
    }
}

/// Puts the proxy on the way to the server; says whether the way is known.
fn check_proxy(report: &mut Report, config: &Config, state: &StateDir, server: &mut ServerAddr) -> bool {
    match config.on_the_way(server.clone()) {
        Ok(found) => {
            if let Some(proxy) = &found.proxy {
                let text = format!("`{proxy}` is asked for `{found}`; UDP does not take it");
                report.ok("proxy", text);
            }
            *server = found.recalled_from(&state.addresses());
            true
        }
        Err(failure) => {
            report.failed("proxy", &failure);
            false
        }
    }
}

fn check_certificate(report: &mut Report, enrolled: &Enrolled, now: UnixTime) {
    let left = enrolled.own.not_after.since(now);
    let text = format!("`{}`, valid for {} more", enrolled.own.identity, words(left));
    if left < EXPIRY_WARNING {
        report.warning(
            "certificate",
            text,
            "let the agent run and reach its server, so that it renews it",
        );
    } else {
        report.ok("certificate", text);
    }
}

fn check_floor(report: &mut Report, clock: &FloorClock) {
    if clock.behind() > SKEW_WARNING {
        let text = format!(
            "is at least {} behind what was proven before",
            words(clock.behind())
        );
        report.warning(
            "clock",
            text,
            "set the clock, as by `timedatectl set-ntp true`; the agent works on all the same",
        );
    }
}

/// Writes a span of time as people say it.
fn words(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_words() {
        for (secs, text) in [
            (59, "59 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (90 * 86_400, "90 days"),
        ] {
            assert_eq!(words(Duration::from_secs(secs)), text);
        }
    }
}
