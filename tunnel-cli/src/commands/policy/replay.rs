//! `tunnel policy replay`: a candidate against the decisions that the audit trail holds. The server only hands out records
//! and policies; the work is done here.

use std::path::Path;

use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_policy::{Engine, Line, Past, Replay, Replayed};
use tunnel_proto::api::AuditRecord;

use super::{not_valid, of_version, read};
use crate::api::Api;
use crate::args;
use crate::commands::Context;
use crate::commands::audit::read::page;
use crate::failure::Failure;
use crate::output;
use crate::signals::Signals;

/// Records in one page.
const PAGE: u32 = 500;

/// Weighs the candidate and shows what comes of it.
///
/// # Errors
/// Tells what cannot be read.
pub(super) async fn replay(context: &Context, args: &args::PolicyReplay) -> Result<(), Failure> {
    let what = format!("could not weigh `{}`", args.file.display());
    let candidate = Engine::new(&read(&args.file, &what)?).map_err(|error| not_valid(&error, &what))?;
    let (_, mut api) = context.api()?;
    let mut signals = Signals::new()?;
    let since = SystemClock
        .now()
        .before(args.since.0)
        .as_secs()
        .saturating_mul(1000);
    let done = tokio::select! {
        done = weigh(&mut api, candidate, since, &what) => done?,
        () = signals.any() => return Err(Failure::interrupted()),
    };
    context.output.result(&done, || text(&done, &args.file))
}

async fn weigh(api: &mut Api, candidate: Engine, since: u64, what: &str) -> Result<Replayed, Failure> {
    let mut replay = Replay::new(candidate);
    let mut after = first_after(api, since).await?;
    loop {
        let page = page(api, after, PAGE).await?;
        let Some(last) = page.records.last() else {
            return Ok(replay.finish());
        };
        after = last.seq;
        for record in page.records.iter().filter(|record| record.time_millis >= since) {
            let Some(past) = decision(record) else { continue };
            if past.question.is_some() && !replay.knows(past.policy_revision) {
                let revision = of_version(api, past.policy_revision, what).await?;
                let engine = revision.text.and_then(|text| Engine::new(&text).ok());
                replay.learn(past.policy_revision, engine);
            }
            replay.weigh(&past);
        }
    }
}

/// Reads a record of a decision; others are passed over.
fn decision(record: &AuditRecord) -> Option<Past> {
    let decides = matches!(record.kind.as_str(), "tunnel.opened" | "tunnel.denied");
    decides.then(|| serde_json::from_str(&record.body).ok()).flatten()
}

/// Finds a record before the first one of a time, in few steps. The order of records is not that of their times, but a
/// clock that was set back costs no more than records that are read for nothing.
async fn first_after(api: &mut Api, since: u64) -> Result<u64, Failure> {
    let (mut low, mut high) = (0_u64, u64::from(u32::MAX));
    while high - low > u64::from(PAGE) {
        let middle = low + (high - low) / 2;
        match page(api, middle, 1).await?.records.first() {
            Some(record) if record.time_millis < since => low = middle,
            _ => high = middle,
        }
    }
    Ok(low)
}

fn text(done: &Replayed, file: &Path) -> String {
    let rows = |what: &str, lines: &std::collections::BTreeMap<Line, u64>| -> Vec<[String; 6]> {
        let row = |(line, count): (&Line, &u64)| {
            [
                what.to_owned(),
                line.operator.to_string(),
                line.devices.clone(),
                line.service.to_string(),
                format!("{} -> {}", line.before, line.after),
                count.to_string(),
            ]
        };
        lines.iter().map(row).collect()
    };
    let all = [rows("loses", &done.lost), rows("gains", &done.gained)].concat();
    let mut text = if all.is_empty() {
        "nobody would lose or gain anything\n".to_owned()
    } else {
        output::table(
            [
                "WHAT",
                "OPERATOR",
                "DEVICE GROUPS",
                "SERVICE",
                "DECISION",
                "TIMES",
            ],
            &all,
        )
    };
    text.push_str(&format!(
        "{} decisions weighed by `{}`\n",
        done.decisions,
        file.display()
    ));
    for (count, why) in [
        (
            done.unknown,
            "cannot be replayed: their records do not hold what they were made from",
        ),
        (
            done.no_policy,
            "cannot be replayed: their policy is not at hand, or not valid by today's schema",
        ),
        (done.no_device, "were about devices that did not exist"),
    ] {
        if count > 0 {
            text.push_str(&format!("{count} decisions {why}\n"));
        }
    }
    text
}
