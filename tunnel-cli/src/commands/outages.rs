//! `tunnel outages`: why devices were out of reach, by their own black boxes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tunnel_proto::api::Outage;

use super::{Context, time_text};
use crate::args;
use crate::failure::Failure;
use crate::output;
use crate::ssh;
use crate::ttl::rough;

/// Outages by what the devices saw.
#[derive(Debug, Serialize)]
struct Told {
    by_cause: Vec<Group>,
    outages: Vec<Outage>,
}

/// The outages in which one cause was seen; an outage with several causes stands in several groups.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Group {
    cause: String,
    outages: usize,
    devices: usize,
    secs: u64,
    last: u64,
}

/// Tells the outages of one device or of all, grouped by cause.
///
/// # Errors
/// Tells why the server does not say.
pub async fn outages(context: &Context, args: args::Outages) -> Result<(), Failure> {
    let device = args.device.as_deref().map(ssh::device).transpose()?;
    let (_, mut api) = context.api()?;
    let outages = api
        .outages(device.as_ref(), args.last.map(|span| span.0))
        .await
        .map_err(|error| error.into_failure("could not list outages"))?;
    let told = Told {
        by_cause: by_cause(&outages),
        outages,
    };
    context.output.result(&told, || {
        if told.outages.is_empty() {
            return "no outages\n".to_owned();
        }
        format!("{}\n{}", groups(&told.by_cause), list(&told.outages))
    })
}

/// Groups outages by cause: what cost most time first.
fn by_cause(outages: &[Outage]) -> Vec<Group> {
    let mut groups: BTreeMap<&str, (BTreeSet<&str>, Group)> = BTreeMap::new();
    for outage in outages {
        let causes: BTreeSet<_> = outage.causes.iter().map(|seen| seen.cause.as_str()).collect();
        for cause in causes {
            let (devices, group) = groups.entry(cause).or_insert_with(|| {
                let group = Group {
                    cause: cause.to_owned(),
                    outages: 0,
                    devices: 0,
                    secs: 0,
                    last: 0,
                };
                (BTreeSet::new(), group)
            });
            devices.insert(&outage.device);
            group.outages += 1;
            group.devices = devices.len();
            group.secs += outage.until.saturating_sub(outage.from);
            group.last = group.last.max(outage.until);
        }
    }
    let mut groups: Vec<_> = groups.into_values().map(|(_, group)| group).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.secs));
    groups
}

fn groups(groups: &[Group]) -> String {
    let row = |group: &Group| {
        [
            group.cause.clone(),
            group.outages.to_string(),
            group.devices.to_string(),
            rough(Duration::from_secs(group.secs)),
            time_text(group.last),
        ]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    output::table(["CAUSE", "OUTAGES", "DEVICES", "TIME", "LAST"], &rows)
}

/// Lists outages with what was seen in each. The table escapes what comes from devices.
pub fn list(outages: &[Outage]) -> String {
    let row = |outage: &Outage| {
        let lasted = outage.until.saturating_sub(outage.from);
        [
            outage.device.clone(),
            time_text(outage.from),
            rough(Duration::from_secs(lasted)),
            outage.attempts.to_string(),
            seen(outage),
        ]
    };
    let rows: Vec<_> = outages.iter().map(row).collect();
    output::table(["DEVICE", "LOST AT", "FOR", "TRIES", "SEEN"], &rows)
}

fn seen(outage: &Outage) -> String {
    let seen = outage.causes.iter().map(|seen| match &seen.detail {
        Some(detail) => format!("{} ({detail})", seen.cause),
        None => seen.cause.clone(),
    });
    seen.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use tunnel_proto::api::OutageCause;

    use super::*;

    fn outage(device: &str, from: u64, secs: u64, causes: &[&str]) -> Outage {
        let cause = |cause: &&str| OutageCause {
            cause: (*cause).to_owned(),
            count: 1,
            first: from,
            last: from + secs,
            detail: Some("said \u{1b}[2J by the device".into()),
        };
        Outage {
            device: device.into(),
            from,
            until: from + secs,
            attempts: 3,
            starts: 0,
            causes: causes.iter().map(cause).collect(),
        }
    }

    #[test]
    fn outages_are_grouped_by_cause_and_the_costliest_comes_first() {
        let told = [
            outage("a", 100, 50, &["dns", "udp-silent"]),
            outage("b", 200, 600, &["udp-silent"]),
            outage("b", 1000, 10, &["dns", "dns"]),
        ];
        let groups = by_cause(&told);
        let group = |cause: &str, outages, devices, secs, last| Group {
            cause: cause.into(),
            outages,
            devices,
            secs,
            last,
        };
        assert_eq!(
            groups,
            [group("udp-silent", 2, 2, 650, 800), group("dns", 2, 2, 60, 1010)]
        );
    }

    /// THREATS CLI-01.
    #[test]
    fn words_of_a_device_are_escaped() {
        let text = list(&[outage("a", 100, 50, &["dns"])]);
        assert!(
            !text.contains('\u{1b}') && text.contains("by the device"),
            "{text}"
        );
    }
}
