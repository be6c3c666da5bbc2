//! What a day of an idle device costs, in bytes on its own interface: link, both directions, IP headers included.
//!
//! A day is computed from what was measured. With `--hour` that is an hour, taken twenty-four times. Otherwise it is a short
//! window, and the beginning of the link is measured and added: behind an impatient NAT the window holds whole intervals
//! of the keepalive; else, where the interval still grows, what passes in it is counted, and what passes in a day too, by
//! the keepalive's own machine, which is run through a day in time that is only told.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tunnel_e2e::agent::Agent;
use tunnel_e2e::fleet::Fleet;
use tunnel_e2e::lab::Lab;
use tunnel_e2e::operator::ssh_options;
use tunnel_e2e::place::Place;
use tunnel_e2e::process::{self, Process};
use tunnel_e2e::sshd::{Sshd, user};
use tunnel_proto::defaults::KEEPALIVE_FIRST;
use tunnel_proto::keepalive::{Action, Keepalive};

use super::{MB, float};
use crate::network::Network;
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How often the peer's client asks whether its server is there: what is usual behind NAT.
const SSH_INTERVAL: Duration = Duration::from_secs(30);

/// How long the beginning of a connection takes at most.
const BEGINNING: Duration = Duration::from_secs(5);

/// How long it takes until a keepalive has learnt of an impatient NAT: one interval, and a longer one that was tried. What
/// that costs is paid once, and counts to the beginning.
const LEARNING: Duration = Duration::from_secs(65);

/// NATs that forget an idle mapping after this time; the first never does within a day's longest interval.
const NATS: [Option<u64>; 2] = [None, Some(30)];

/// Measures ours behind a patient and an impatient NAT, and `ssh -R` beside.
///
/// # Errors
/// Fails when a program does not come up.
pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for nat in NATS {
        let title = match nat {
            None => "a day of an idle device (direct: `ssh -R`, ServerAliveInterval 30)".to_owned(),
            Some(secs) => format!("the same behind a NAT that forgets after {secs} s"),
        };
        let mut row = Row::new(title, "MB").limit(Column::Udp, Limit::AtMost(1.0));
        let timeout = nat.map_or(String::new(), |secs| format!("udp_timeout = \"{secs}s\""));
        row.push(Column::Udp, ours(settings, &timeout, nat)? / MB);
        if nat.is_none() {
            row.push(Column::Direct, ssh(settings)? / MB);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn ours(settings: &Settings, nat: &str, binding: Option<u64>) -> Result<f64> {
    let (_lab, network) = network(nat);
    let fleet = Fleet::start(network.plan());
    let mut agent: Agent = fleet.enrol(fleet.device("idle").service("ssh", "tcp:127.0.0.1:22"));
    let counter = Counter::of(&network.far)?;
    agent.start();
    fleet.admin.wait_for_link("idle");
    let before = BEGINNING + binding.map_or(Duration::ZERO, |_| LEARNING);
    std::thread::sleep(before);
    let beginning = counter.bytes()?;
    let hour = settings.idle >= Duration::from_secs(3600);
    let window = if binding.is_some() && !hour {
        let intervals = (settings.idle.as_secs() / KEEPALIVE_FIRST.as_secs()).max(2);
        KEEPALIVE_FIRST * u32::try_from(intervals)?
    } else {
        settings.idle
    };
    std::thread::sleep(window);
    let bytes = counter.bytes()? - beginning;
    if binding.is_some() || hour {
        return Ok(float(beginning) + per_day(bytes, window));
    }
    let counted = exchanges(before, before + window);
    anyhow::ensure!(counted > 0, "the window is too short for a keepalive");
    let all = exchanges(before, DAY);
    Ok(float(beginning) + float(bytes) / float(counted) * float(all))
}

/// Returns how often a keepalive and its server say something to each other in a part of a link's first day, where
/// nothing is ever forgotten.
fn exchanges(from: Duration, until: Duration) -> u64 {
    let start = Instant::now();
    let mut keepalive = Keepalive::new(start);
    let (mut count, mut now) = (0, start);
    let mut add = |now: Instant| count += u64::from(now >= start + from && now < start + until);
    while now < start + until {
        now = keepalive.next_timeout();
        let Some(Action::Ping { seq, echo_after }) = keepalive.handle_timeout(now) else {
            break;
        };
        add(now);
        keepalive.handle_pong(now, seq, "192.0.2.1:1");
        if let Some(after) = echo_after {
            now += after;
            add(now);
            keepalive.handle_echo(now, seq, true);
        }
    }
    count
}

/// OpenSSH's client as a device's link: a port forwarded from the server, and its own keepalive.
fn ssh(settings: &Settings) -> Result<f64> {
    let (_lab, network) = network("");
    let files = tempfile::TempDir::with_prefix("tunnel-bench-")?;
    let sshd = Sshd::start(&network.open, &files.path().join("sshd"));
    let target = sshd.target();
    let target = target.strip_prefix("tcp:").context("sshd is reached over TCP")?;
    let mut splice = network.open.command(&settings.program);
    splice.args(["baseline", "splice", &format!("{}:0", network.open_ip), target]);
    let mut splice = Process::start("splice", &mut splice, files.path());
    let address = crate::path::listening(&mut splice)?;
    let counter = Counter::of(&network.far)?;
    let mut client: Command = network.far.command("ssh");
    client
        .args(ssh_options(&sshd))
        .args(["-N", "-v", "-R", "0:127.0.0.1:22"]);
    let port = address.port().to_string();
    client.args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-p",
        &port,
    ]);
    client
        .arg("-o")
        .arg(format!("ServerAliveInterval={}", SSH_INTERVAL.as_secs()));
    client.arg(format!("{}@{}", user(), address.ip()));
    let mut client = Process::start("ssh", &mut client, files.path());
    client.wait_to_say("Allocated port", Duration::from_secs(30));
    std::thread::sleep(BEGINNING);
    let beginning = counter.bytes()?;
    // Whole intervals, so that the window holds as many keepalives as it is long.
    let intervals = (settings.idle.as_secs() / SSH_INTERVAL.as_secs()).max(1);
    let window = SSH_INTERVAL * u32::try_from(intervals)?;
    std::thread::sleep(window);
    Ok(float(beginning) + per_day(counter.bytes()? - beginning, window))
}

fn per_day(bytes: u64, window: Duration) -> f64 {
    float(bytes) * DAY.as_secs_f64() / window.as_secs_f64()
}

fn network(nat: &str) -> (Lab, Network) {
    Network::behind(nat)
}

/// The bytes of IP that a host receives and sends, as the kernel counts them.
struct Counter {
    host: Place,
    before: u64,
}

impl Counter {
    fn of(host: &Place) -> Result<Self> {
        let mut counter = Self {
            host: host.clone(),
            before: 0,
        };
        counter.before = counter.now()?;
        Ok(counter)
    }

    /// Returns the bytes of IP packets since the start, both ways.
    fn bytes(&self) -> Result<u64> {
        Ok(self.now()? - self.before)
    }

    fn now(&self) -> Result<u64> {
        let counts = process::run(
            self.host.command("cat").arg("/proc/net/netstat"),
            Duration::from_secs(10),
        )
        .ok();
        // Two lines for each group: the names, and the numbers in the same order. Bytes are of whole IP packets (RFC 4293),
        // so that what the lines of this network need to find each other does not count.
        let mut lines = counts.lines().filter_map(|line| line.strip_prefix("IpExt: "));
        let names = lines.next().unwrap_or_default().split_whitespace();
        let numbers = lines.next().unwrap_or_default().split_whitespace();
        let told: Vec<u64> = names
            .zip(numbers)
            .filter(|(name, _)| ["InOctets", "OutOctets"].contains(name))
            .filter_map(|(_, number)| number.parse().ok())
            .collect();
        anyhow::ensure!(told.len() == 2, "the kernel counts no bytes of IP");
        Ok(told.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_as_many_keepalives_as_the_machine_wants() {
        let day = exchanges(Duration::ZERO, DAY);
        assert!((360..400).contains(&day), "{day}");
        let first = exchanges(Duration::ZERO, Duration::from_secs(300));
        assert!((8..20).contains(&first), "{first}");
    }
}
