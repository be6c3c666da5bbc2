//! `tunnel sessions`: who used which service on which device, and all that the audit trail says of it.

use std::time::Duration;

use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::api::Session;

use super::{Context, bytes_text, time_text, tunnels};
use crate::args;
use crate::failure::Failure;
use crate::output;
use crate::ttl::rough;

/// Lists sessions, newest first.
///
/// # Errors
/// Tells why the server does not say.
pub async fn sessions(context: &Context, args: args::Sessions) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let mut query = String::new();
    if let Some(operator) = &args.operator {
        query += &format!("&operator={}", operator.as_str().replace('+', "%2B"));
    }
    if let Some(device) = &args.device {
        query += &format!("&device={device}");
    }
    if let Some(tunnel) = &args.tunnel {
        query += &format!("&tunnel={}", tunnels::find(&mut api, tunnel).await?);
    }
    if let Some(since) = args.since {
        let since = SystemClock.now().before(since.0).as_secs();
        query += &format!("&since={}", since.saturating_mul(1000));
    }
    let sessions = api
        .sessions(&query, args.limit)
        .await
        .map_err(|error| error.into_failure("could not list sessions"))?;
    context.output.result(&sessions, || {
        if args.long {
            return sessions.iter().map(one).collect::<Vec<_>>().join("\n");
        }
        let rows: Vec<_> = sessions.iter().map(row).collect();
        output::table(
            [
                "STARTED", "OPERATOR", "DEVICE", "SERVICE", "TOOK", "TRAFFIC", "END",
            ],
            &rows,
        )
    })
}

fn row(session: &Session) -> [String; 7] {
    [
        started(session),
        or_dash(session.operator.as_deref()),
        or_dash(session.device.as_deref()),
        session.service.clone(),
        rough(Duration::from_millis(session.millis)),
        bytes_text(session.bytes_in.saturating_add(session.bytes_out)),
        end(session),
    ]
}

/// Returns when a session started: devices of before do not say, and a refused one did not.
fn started(session: &Session) -> String {
    let started = session.started_at;
    time_text(started.unwrap_or_else(|| session.ended_at.saturating_sub(session.millis / 1000)))
}

fn end(session: &Session) -> String {
    match (&session.refused, &session.cause, &session.ended_by) {
        (Some(why), ..) => format!("refused, {why}"),
        (_, Some(why), _) => why.clone(),
        (.., Some(by)) if by == "both" => "done".to_owned(),
        (.., Some(by)) => format!("broken off by the {by}"),
        _ => "-".to_owned(),
    }
}

fn one(session: &Session) -> String {
    let mut rows = vec![
        ("record", session.seq.to_string()),
        ("tunnel", session.tunnel.to_string()),
        ("operator", or_dash(session.operator.as_deref())),
        ("device", or_dash(session.device.as_deref())),
        ("service", session.service.clone()),
        ("started", started(session)),
        ("ended", time_text(session.ended_at)),
        ("end", end(session)),
        ("to the service", bytes_text(session.bytes_in)),
        ("from the service", bytes_text(session.bytes_out)),
    ];
    if let Some(dropped) = &session.dropped {
        rows.push((
            "dropped before",
            format!("{} sessions, {} refusals", dropped.sessions, dropped.refusals),
        ));
    }
    for path in &session.paths {
        rows.push(("path", format!("{}: {} {}", path.leg, path.carrier, path.address)));
    }
    if let Some(opening) = &session.opening {
        let batch = opening.batch.map(|batch| batch.to_string());
        rows.extend([
            ("asked from", opening.source.clone()),
            ("reason", or_dash(opening.reason.as_deref())),
            ("approved by", super::list_text(&opening.approvers)),
            (
                "decided by",
                tunnels::decided_by(&opening.policies, opening.policy_revision),
            ),
            ("grant", or_dash(opening.grant.as_deref())),
            ("only for batch", or_dash(batch.as_deref())),
            ("key", opening.holder_key.clone()),
        ]);
    }
    output::fields(&rows)
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}
