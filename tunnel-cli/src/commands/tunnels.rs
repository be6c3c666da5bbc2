//! `tunnel tunnels`, `tunnel describe` and `tunnel close`.

use serde::Serialize;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::api::{RotateTunnel, Tunnel};
use tunnel_proto::batch::BatchHash;
use tunnel_proto::{Code, TunnelId, UnixTime};

use super::{Context, bytes_text, devices, list_text, time_text};
use crate::api::Api;
use crate::args;
use crate::failure::Failure;
use crate::output;
use crate::ssh;
use crate::ttl::rough;

/// Most tunnels that are looked at to find one by the first digits of its id.
const SEARCH: u32 = 500;

/// Fewest digits that name a tunnel.
const MIN_DIGITS: usize = 4;

/// Lists tunnels.
///
/// # Errors
/// Tells why the server does not say.
pub async fn list(context: &Context, args: args::Tunnels) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let tunnels = api
        .tunnels(args.all, args.limit)
        .await
        .map_err(|error| error.into_failure("could not list tunnels"))?;
    let now = SystemClock.now();
    context.output.result(&tunnels, || {
        let rows: Vec<_> = tunnels.iter().map(|tunnel| row(tunnel, now)).collect();
        output::table(
            ["TUNNEL", "DEVICE", "SERVICES", "OPERATOR", "STATE", "TRAFFIC"],
            &rows,
        )
    })
}

fn row(tunnel: &Tunnel, now: UnixTime) -> [String; 6] {
    [
        tunnel.id.fmt_short(),
        tunnel.device.clone(),
        match tunnel.batch {
            Some(batch) => format!("{}, batch {}", list_text(&tunnel.services), short(batch)),
            None => list_text(&tunnel.services),
        },
        tunnel.operator.clone(),
        state(tunnel, now),
        tunnel.traffic.as_ref().map_or_else(
            || "-".to_owned(),
            |t| bytes_text(t.bytes_in.saturating_add(t.bytes_out)),
        ),
    ]
}

/// Returns the first digits of a batch's hash, by which people tell one from another.
fn short(batch: BatchHash) -> String {
    batch.to_string().chars().take(8).collect()
}

fn state(tunnel: &Tunnel, now: UnixTime) -> String {
    let state = plain_state(tunnel, now);
    if tunnel.break_glass {
        format!("{state}, GLASS BROKEN")
    } else {
        state
    }
}

fn plain_state(tunnel: &Tunnel, now: UnixTime) -> String {
    match (&tunnel.end_reason, tunnel.ended_at) {
        (Some(reason), _) => format!("{}, {reason}", tunnel.state),
        (None, None) => {
            format!(
                "{}, {} left",
                tunnel.state,
                rough(UnixTime::from_secs(tunnel.expires_at).since(now))
            )
        }
        (None, Some(_)) => tunnel.state.clone(),
    }
}

/// Shows one tunnel.
///
/// # Errors
/// Tells that there is none, or why the server does not say.
pub async fn describe(context: &Context, args: args::Describe) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let id = match find(&mut api, &args.tunnel).await {
        Ok(id) => id,
        Err(failure) => {
            // What is no tunnel may be a device. Where it is neither, the tunnel's failure says how to find one.
            let Ok(device) = ssh::device(&args.tunnel) else {
                return Err(failure);
            };
            return match devices::describe(context, &mut api, &device).await {
                Err(other) if other.code() == Code::NotFound.as_str() => Err(failure),
                done => done,
            };
        }
    };
    let what = format!("could not show the tunnel `{}`", id.fmt_short());
    let tunnel = api.tunnel(id).await.map_err(|error| error.into_failure(what))?;
    context.output.result(&tunnel, || one(&tunnel))
}

fn one(tunnel: &Tunnel) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![
        ("tunnel", tunnel.id.to_string()),
        ("operator", tunnel.operator.clone()),
        ("device", tunnel.device.clone()),
        ("services", list_text(&tunnel.services)),
        ("reason", or_dash(&tunnel.reason)),
        ("state", tunnel.state.clone()),
        ("opened", time_text(tunnel.opened_at)),
        ("until", time_text(tunnel.expires_at)),
        ("decided by", decided_by(&tunnel.policies, tunnel.policy_revision)),
        ("approved by", list_text(&tunnel.approvers)),
        ("grant", or_dash(&tunnel.grant)),
        ("asked from", tunnel.source.clone()),
    ];
    if let Some(approval) = tunnel.approval {
        rows.push(("approval", approval.to_string()));
    }
    if let Some(batch) = tunnel.batch {
        rows.push(("only for batch", batch.to_string()));
    }
    if tunnel.break_glass {
        rows.push(("ALARM", "opened by breaking the glass".to_owned()));
    }
    if let Some(ended_at) = tunnel.ended_at {
        rows.push((
            "ended",
            format!(
                "{}, {}, by {}",
                time_text(ended_at),
                or_dash(&tunnel.end_reason),
                or_dash(&tunnel.ended_by)
            ),
        ));
    }
    if let Some(traffic) = &tunnel.traffic {
        let leg = |carrier: &Option<String>| carrier.clone().unwrap_or_else(|| "not bound".to_owned());
        rows.push((
            "to the device",
            format!(
                "{} in {} datagrams",
                bytes_text(traffic.bytes_in),
                traffic.datagrams_in
            ),
        ));
        rows.push((
            "from the device",
            format!(
                "{} in {} datagrams",
                bytes_text(traffic.bytes_out),
                traffic.datagrams_out
            ),
        ));
        rows.push(("dropped", format!("{} datagrams", traffic.dropped)));
        rows.push((
            "carriers",
            format!(
                "{} here, {} at the device",
                leg(&traffic.source_carrier),
                leg(&traffic.destination_carrier)
            ),
        ));
        for path in &traffic.paths {
            rows.push(("path", format!("{}: {} {}", path.leg, path.carrier, path.address)));
        }
    }
    output::fields(&rows)
}

/// Writes what has decided.
pub(super) fn decided_by(policies: &[String], revision: u64) -> String {
    format!("{} (policy revision {revision})", list_text(policies))
}

/// Closes tunnels, each for itself; the first failure is told at the end.
///
/// # Errors
/// Tells the first that could not be closed.
pub async fn close(context: &Context, args: args::Close) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Closed {
        closed: Vec<TunnelId>,
    }
    let (_, mut api) = context.api()?;
    let mut closed = Vec::new();
    let mut failed = None;
    for text in &args.tunnels {
        match close_one(&mut api, text).await {
            Ok(id) => closed.push(id),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    let closed = Closed { closed };
    context.output.result(&closed, || {
        closed.closed.iter().fold(String::new(), |text, id| {
            text + &format!("closed {}\n", id.fmt_short())
        })
    })?;
    failed.map_or(Ok(()), Err)
}

/// Gives the legs of a live tunnel fresh keys.
///
/// # Errors
/// Tells why not.
pub async fn rotate(context: &Context, args: args::Rotate) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let id = find(&mut api, &args.tunnel).await?;
    let what = format!("could not rotate the keys of the tunnel `{}`", id.fmt_short());
    let request = RotateTunnel {
        source: args.source,
        destination: args.destination,
    };
    let rotated = api.rotate(id, &request).await;
    let rotated = rotated.map_err(|error| error.into_failure(what))?;
    context.output.result(&rotated, || {
        rotated.legs.iter().fold(String::new(), |text, leg| {
            let bound = leg.bound_micros.map_or_else(
                || "its end has not bound with the new one yet".to_owned(),
                |micros| format!("bound with the new one after {} ms", micros.div_ceil(1000)),
            );
            text + &format!("{}: the old key is worth nothing, {bound}\n", leg.leg)
        })
    })
}

async fn close_one(api: &mut Api, text: &str) -> Result<TunnelId, Failure> {
    let id = find(api, text).await?;
    let what = format!("could not close the tunnel `{}`", id.fmt_short());
    api.close(id).await.map_err(|error| error.into_failure(what))?;
    Ok(id)
}

/// Finds a tunnel by its id or by the first digits of it.
pub(super) async fn find(api: &mut Api, text: &str) -> Result<TunnelId, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let shown: String = text.chars().take(40).collect();
    let what = format!("could not find the tunnel `{shown}`");
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if text.len() < MIN_DIGITS || text.len() > 32 || !text.chars().all(is_digit) {
        return Err(Failure::new(Code::BadRequest, what)
            .why(format!(
                "it is neither an id nor its first digits, {MIN_DIGITS} or more"
            ))
            .next("`tunnel tunnels` lists them"));
    }
    let tunnels = api
        .tunnels(true, SEARCH)
        .await
        .map_err(|error| error.into_failure(&what))?;
    let mut fitting = tunnels
        .iter()
        .map(|tunnel| tunnel.id)
        .filter(|id| id.to_string().starts_with(text));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(Failure::new(Code::NotFound, what)),
        (Some(_), Some(_)) => Err(Failure::new(Code::BadRequest, what)
            .why("several tunnels start with these digits")
            .next("give more of them; `tunnel --json tunnels` shows whole ids")),
    }
}
