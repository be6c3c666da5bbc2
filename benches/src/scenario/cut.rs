//! How long after the commit of an event the last datagram passes that it forbids.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tunnel_proto::api::Suspend;

use super::open::policies;
use crate::crowd::{Crowd, Opened, Pulse};
use crate::report::{Column, Limit, Row};
use crate::settings::Settings;
use crate::stats::Times;

/// How often a single session sends.
const ONE_EVERY: Duration = Duration::from_millis(1);

/// How often each of many sessions sends, in turns.
const EACH_EVERY: Duration = Duration::from_millis(50);

/// Silence after which no session sends any more.
const QUIET: Duration = Duration::from_millis(1000);

/// What ends every tunnel.
const FORBID: &str = "@id(\"nobody\") forbid (principal, action == Action::\"connect\", resource);\n";

/// Measures one session that its device's quarantine ends, and many that a policy ends.
///
/// # Errors
/// Fails when a session is not cut, or one that is not concerned is.
pub fn run(settings: &Settings, crowd: &mut Crowd) -> Result<Vec<Row>> {
    let devices = crowd.len();
    let mut one = Row::new(
        format!("commit to last byte, one session among {devices} devices, p99"),
        "ms",
    )
    .limit(Column::Udp, Limit::AtMost(20.0));
    let many = format!(
        "commit to last byte, {} sessions among {devices} devices",
        settings.live
    );
    let mut p99 = Row::new(format!("{many}, p99"), "ms").limit(Column::Udp, Limit::AtMost(250.0));
    let mut last = Row::new(format!("{many}, the last of all"), "ms");
    for _ in 0..settings.runs {
        for (column, policy) in policies() {
            crowd.apply(&policy)?;
            let mut times = Times::default();
            for _ in 0..settings.cuts {
                times.push(cut_one(crowd)?);
            }
            one.push(column, times.quantile_ms(0.99));
            let times = cut_many(crowd, settings.live, &policy)?;
            p99.push(column, times.quantile_ms(0.99));
            last.push(column, times.quantile_ms(1.0));
        }
    }
    Ok(vec![one, p99, last])
}

fn cut_one(crowd: &mut Crowd) -> Result<Duration> {
    let tunnels = crowd.open(1)?;
    let [tunnel] = tunnels.as_slice() else {
        return Err(anyhow!("one was asked for"));
    };
    let pulse = Pulse::start(crowd, &tunnels, ONE_EVERY)?;
    let request = suspension(tunnel);
    crowd
        .block_on(async |admin| admin.suspend(&request).await.map(drop))
        .map_err(|error| anyhow!("{error:?}"))?;
    let event = crowd.written("device.quarantined")?;
    let times = pulse.settle(event, QUIET / 10)?;
    drop(pulse);
    crowd
        .block_on(async |admin| admin.lift_suspension(&request).await.map(drop))
        .map_err(|error| anyhow!("{error:?}"))?;
    times.first().copied().context("one was asked for")
}

fn cut_many(crowd: &mut Crowd, count: usize, policy: &str) -> Result<Times> {
    let tunnels = crowd.open(count)?;
    let pulse = Pulse::start(crowd, &tunnels, EACH_EVERY)?;
    crowd.apply(&format!("{policy}{FORBID}"))?;
    let event = crowd.written("policy.changed")?;
    let mut times = Times::default();
    for time in pulse.settle(event, QUIET)? {
        times.push(time);
    }
    drop(pulse);
    crowd.apply(policy)?;
    Ok(times)
}

fn suspension(tunnel: &Opened) -> Suspend {
    Suspend {
        identity: format!(
            "spiffe://{}/device/{}",
            tunnel_e2e::server::TRUST_DOMAIN,
            tunnel.device
        ),
        reason: None,
    }
}
