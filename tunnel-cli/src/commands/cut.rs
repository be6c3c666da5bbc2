//! `tunnel cut`: ends tunnels because trust in them ended, and says who has confirmed it and how long it took.

use std::time::Duration;

use tunnel_proto::api::{CutReport, CutTunnel, CutTunnels};

use super::Context;
use super::tunnels::find;
use crate::args;
use crate::failure::Failure;
use crate::output;
use crate::ssh;

/// Cuts tunnels.
///
/// # Errors
/// Tells what the server refuses.
pub async fn cut(context: &Context, args: args::Cut) -> Result<(), Failure> {
    let device = args.device.as_deref().map(ssh::device).transpose()?;
    let (_, mut api) = context.api()?;
    let tunnel = match args.tunnel.as_deref() {
        Some(text) => Some(find(&mut api, text).await?.to_string()),
        None => None,
    };
    let request = CutTunnels {
        tunnel,
        device: device.map(|id| id.to_string()),
        operator: args.operator.map(|name| name.to_string()),
        device_group: args.device_group.map(|group| group.to_string()),
        operator_group: args.operator_group.map(|group| group.to_string()),
        reason: args.reason,
    };
    let report = api
        .cut(&request)
        .await
        .map_err(|error| error.into_failure("could not cut"))?;
    context.output.result(&report, || text(&report))?;
    let silent = report.cuts.iter().filter(|cut| cut.confirmed_micros.is_none());
    match silent.count() {
        0 => {}
        1 => context.output.note(UNCONFIRMED_ONE),
        count => context.output.note(&format!("{count} {UNCONFIRMED_MANY}")),
    }
    Ok(())
}

const UNCONFIRMED_ONE: &str = "1 cut is not confirmed by its device yet; the relay forwards nothing of it, and the device is asked again when it is back";
const UNCONFIRMED_MANY: &str = "cuts are not confirmed by their devices yet; the relay forwards nothing of them, and the devices are asked again when they are back";

fn text(report: &CutReport) -> String {
    if report.cuts.is_empty() {
        return "no tunnel was alive\n".to_owned();
    }
    let rows: Vec<_> = report.cuts.iter().map(row).collect();
    output::table(
        ["TUNNEL", "DEVICE", "OPERATOR", "RELAY STOPPED", "CONFIRMED"],
        &rows,
    )
}

fn row(cut: &CutTunnel) -> [String; 5] {
    let confirmed = cut.confirmed_micros.map_or_else(
        || "not yet".to_owned(),
        |micros| format!("by the device after {}", millis(micros)),
    );
    [
        cut.tunnel.fmt_short(),
        cut.device.clone(),
        cut.operator.clone(),
        format!("after {}", millis(cut.stopped_micros)),
        confirmed,
    ]
}

/// Writes microseconds as people read them.
fn millis(micros: u64) -> String {
    format!("{:.1} ms", Duration::from_micros(micros).as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunnel_proto::TunnelId;

    #[test]
    fn a_cut_says_who_confirmed_it_and_when() {
        let cut = CutTunnel {
            tunnel: TunnelId::from_bytes([7; 16]),
            device: "pump-17".into(),
            operator: "ana".into(),
            services: vec!["ssh".into()],
            stopped_micros: 420,
            confirmed_micros: Some(12_340),
        };
        let late = CutTunnel {
            confirmed_micros: None,
            ..cut.clone()
        };
        let shown = text(&CutReport {
            cuts: vec![cut, late],
        });
        assert!(shown.contains("after 0.4 ms"), "{shown}");
        assert!(shown.contains("by the device after 12.3 ms"), "{shown}");
        assert!(shown.contains("not yet"), "{shown}");
        assert_eq!(text(&CutReport { cuts: vec![] }), "no tunnel was alive\n");
    }
}
