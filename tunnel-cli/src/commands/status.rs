//! `tunnel status`.

use std::time::{Duration, Instant};

use serde::Serialize;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::api;

use super::{Context, time_text};
use crate::failure::Failure;
use crate::output;
use crate::ttl::rough;

#[derive(Serialize)]
struct Status {
    identity: String,
    server: String,
    home: String,
    cert_expires_at: u64,
    answer: Option<Answer>,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    status: api::Status,
    connect_millis: u64,
    rtt_millis: u64,
    clock_skew_secs: i64,
}

/// Shows who is logged in, and whether and how fast the server answers.
///
/// # Errors
/// Tells that nobody is logged in, or that the server does not answer; what is known is shown before.
pub async fn status(context: &Context) -> Result<(), Failure> {
    let (login, mut api) = context.api()?;
    let started = Instant::now();
    let asked = async {
        api.status().await?;
        let connect = started.elapsed();
        let again = Instant::now();
        let status = api.status().await?;
        Ok((status, connect, again.elapsed()))
    }
    .await;
    let now = SystemClock.now();
    let (answer, failure) = match asked {
        Ok((status, connect, rtt)) => {
            let clock_skew_secs = now.as_secs() as i64 - status.clock as i64;
            let answer = Answer {
                status,
                connect_millis: millis(connect),
                rtt_millis: millis(rtt),
                clock_skew_secs,
            };
            (Some(answer), None)
        }
        Err(error) => {
            let error: crate::http::HttpError = error;
            (
                None,
                Some(error.into_failure(format!("could not reach the server `{}`", login.server))),
            )
        }
    };
    let status = Status {
        identity: login.peer.identity.to_string(),
        server: login.server.to_string(),
        home: context.home.dir().display().to_string(),
        cert_expires_at: login.peer.not_after.as_secs(),
        answer,
    };
    let left = login.peer.not_after.since(now);
    context.output.result(&status, || text(&status, left))?;
    failure.map_or(Ok(()), Err)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn text(status: &Status, left: Duration) -> String {
    let mut rows = vec![
        ("logged in as", status.identity.clone()),
        (
            "until",
            format!("{} ({} left)", time_text(status.cert_expires_at), rough(left)),
        ),
        ("server", status.server.clone()),
        ("state directory", status.home.clone()),
    ];
    if let Some(answer) = &status.answer {
        let node = &answer.status;
        rows.push(("node", format!("{}, version {}", node.node, node.version)));
        rows.push(("up for", rough(Duration::from_secs(node.uptime_secs))));
        rows.push(("policy revision", node.policy_revision.to_string()));
        rows.push((
            "round trip",
            format!(
                "{} ms, {} ms to connect",
                answer.rtt_millis, answer.connect_millis
            ),
        ));
        if let Some(count) = node.unconfirmed_cuts.filter(|count| *count > 0) {
            rows.push(("alarm", format!("{count} cuts that no device has confirmed")));
        }
        if let Some(count) = node.broken_glass.filter(|count| *count > 0) {
            rows.push((
                "ALARM",
                format!(
                    "the glass was broken {count} times in the last day: `tunnel tunnels --all` shows by whom"
                ),
            ));
        }
        if answer.clock_skew_secs.abs() > 5 {
            rows.push((
                "clock",
                skew_text(answer.clock_skew_secs, "this machine", "the server"),
            ));
        }
    }
    output::fields(&rows)
}

/// Says whose clock is how far from whose.
pub fn skew_text(skew_secs: i64, whose: &str, from: &str) -> String {
    let way = if skew_secs > 0 { "ahead of" } else { "behind" };
    format!(
        "{whose} is {} {way} {from}",
        rough(Duration::from_secs(skew_secs.unsigned_abs()))
    )
}
