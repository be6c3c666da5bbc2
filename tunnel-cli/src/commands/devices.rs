//! `tunnel devices`: who is truly there, by proof and its age.

use std::time::Duration;

use serde::Serialize;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::api::{Device, LinkState, Outage};
use tunnel_proto::{DeviceId, UnixTime};

use super::status::skew_text;
use super::{Context, bytes_text, list_text, outages, time_text};
use crate::api::Api;
use crate::args;
use crate::failure::Failure;
use crate::output;
use crate::ssh;
use crate::ttl::rough;

/// Outages that are shown with a device.
const LAST_OUTAGES: usize = 10;

/// From when on a device's clock is worth a word, in seconds.
const SKEW: u64 = 60;

/// Lists devices, or shows one.
///
/// # Errors
/// Tells why the server does not say.
pub async fn devices(context: &Context, args: args::Devices) -> Result<(), Failure> {
    let device = args.device.as_deref().map(ssh::device).transpose()?;
    let (_, mut api) = context.api()?;
    let now = SystemClock.now();
    match device {
        Some(id) => describe(context, &mut api, &id).await,
        None => {
            let devices = api
                .devices()
                .await
                .map_err(|error| error.into_failure("could not list devices"))?;
            context.output.result(&devices, || all(&devices, now))
        }
    }
}

fn all(devices: &[Device], now: UnixTime) -> String {
    let rows: Vec<_> = devices
        .iter()
        .map(|device| {
            [
                device.id.clone(),
                presence(device, now),
                list_text(&device.services),
                list_text(&device.groups),
            ]
        })
        .collect();
    output::table(["DEVICE", "PRESENCE", "SERVICES", "GROUPS"], &rows)
}

/// Shows one device, with the outages that it told of last.
///
/// # Errors
/// Tells why the server does not say.
pub async fn describe(context: &Context, api: &mut Api, id: &DeviceId) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Described {
        #[serde(flatten)]
        device: Device,
        outages: Vec<Outage>,
    }
    let what = format!("could not show the device `{id}`");
    let device = api.device(id).await.map_err(|error| error.into_failure(&what))?;
    let mut outages = api
        .outages(Some(id), None)
        .await
        .map_err(|error| error.into_failure(what))?;
    outages.truncate(LAST_OUTAGES);
    let described = Described { device, outages };
    context.output.result(&described, || {
        let text = one(&described.device, SystemClock.now());
        match described.outages.is_empty() {
            true => text,
            false => format!("{text}\n{}", outages::list(&described.outages)),
        }
    })
}

fn one(device: &Device, now: UnixTime) -> String {
    let mut rows = vec![
        ("device", device.id.clone()),
        ("presence", presence(device, now)),
        ("services", list_text(&device.services)),
        ("groups", list_text(&device.groups)),
        (
            "access",
            if device.access {
                "on".to_owned()
            } else {
                "switched off by its owner".to_owned()
            },
        ),
        (
            "agent version",
            device.version.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        (
            "ssh host keys",
            if device.ssh_host_keys.is_empty() {
                "none reported".into()
            } else {
                kinds(device)
            },
        ),
    ];
    if let Some(link) = &device.link {
        rows.push((
            "linked since",
            format!("{}, over {}", time_text(link.since), link.carrier),
        ));
        if let Some(bytes) = link.cost_bytes_per_day {
            rows.push(("idle cost", format!("{} a day at this rate", bytes_text(bytes))));
        }
        if link.clock_skew_secs.unsigned_abs() > SKEW {
            rows.push((
                "clock",
                skew_text(link.clock_skew_secs, "the device", "the server"),
            ));
        }
    }
    if let Some(expires_at) = device.cert_expires_at {
        rows.push(("certificate until", time_text(expires_at)));
    }
    output::fields(&rows)
}

/// Returns the kinds of the host keys; the keys themselves are for programs.
fn kinds(device: &Device) -> String {
    let kind = |key: &String| key.split(' ').next().unwrap_or_default().to_owned();
    device
        .ssh_host_keys
        .iter()
        .map(kind)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Says what is proven about a device, and how old the proof is.
pub(super) fn presence(device: &Device, now: UnixTime) -> String {
    let mut text = match &device.link {
        Some(link) => proof(link),
        None => match device.last_seen {
            Some(at) => format!(
                "not linked, last seen {} ago",
                rough(now.since(UnixTime::from_secs(at)))
            ),
            None => "never linked".to_owned(),
        },
    };
    if device.unconfirmed_cuts > 0 {
        text.push_str(", cut unconfirmed");
    }
    if device.quarantined {
        text.push_str(", in quarantine");
    }
    if !device.access {
        text.push_str(", access off");
    }
    if let Some(skew) = device
        .link
        .as_ref()
        .map(|link| link.clock_skew_secs)
        .filter(|skew| skew.unsigned_abs() > SKEW)
    {
        let way = if skew > 0 { "ahead" } else { "behind" };
        text.push_str(&format!(
            ", clock {} {way}",
            rough(Duration::from_secs(skew.unsigned_abs()))
        ));
    }
    text
}

fn proof(link: &LinkState) -> String {
    let Some(millis) = link.proven_millis_ago else {
        return "linked, nothing proven yet".to_owned();
    };
    let rtt = link
        .rtt_millis
        .map_or_else(String::new, |rtt| format!(", {rtt} ms"));
    let overdue = if link.overdue { ", overdue" } else { "" };
    format!(
        "proven {} ago{rtt}{overdue}",
        rough(Duration::from_millis(millis))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device {
            id: "pump-17".into(),
            groups: vec![],
            link: None,
            services: vec!["ssh".into()],
            access: true,
            version: None,
            ssh_host_keys: vec![],
            last_seen: None,
            cert_expires_at: None,
            quarantined: false,
            unconfirmed_cuts: 0,
        }
    }

    fn link() -> LinkState {
        LinkState {
            carrier: "udp".into(),
            since: 1,
            proven_millis_ago: Some(3200),
            rtt_millis: Some(41),
            clock_skew_secs: 0,
            overdue: false,
            proof_within_secs: 25,
            cost_bytes: Some(900),
            cost_bytes_per_day: Some(210_000),
        }
    }

    #[test]
    fn presence_is_a_proof_and_its_age() {
        let now = UnixTime::from_secs(100_000);
        let with = |link: LinkState| {
            presence(
                &Device {
                    link: Some(link),
                    ..device()
                },
                now,
            )
        };
        assert_eq!(with(link()), "proven 3 s ago, 41 ms");
        let late = LinkState {
            overdue: true,
            proven_millis_ago: Some(300_000),
            ..link()
        };
        assert_eq!(with(late), "proven 5 min ago, 41 ms, overdue");
        assert_eq!(
            with(LinkState {
                proven_millis_ago: None,
                ..link()
            }),
            "linked, nothing proven yet"
        );
        let skewed = LinkState {
            clock_skew_secs: -11_520,
            ..link()
        };
        assert_eq!(with(skewed), "proven 3 s ago, 41 ms, clock 3 h behind");
        assert_eq!(presence(&device(), now), "never linked");
        let gone = Device {
            last_seen: Some(85_600),
            access: false,
            ..device()
        };
        let alarming = Device {
            quarantined: true,
            unconfirmed_cuts: 2,
            ..device()
        };
        assert_eq!(
            presence(&alarming, now),
            "never linked, cut unconfirmed, in quarantine"
        );
        assert_eq!(presence(&gone, now), "not linked, last seen 4 h ago, access off");
    }
}
