//! `tunnel request`, `approvals`, `approve`, `deny` and `withdraw`: the agreement of others to what policy permits only then.

use std::time::Duration;

use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::api::{Approval, AskApproval, DecideApproval};
use tunnel_proto::backoff::Backoff;
use tunnel_proto::batch::{Batch, BatchHash};
use tunnel_proto::{ApprovalId, Code, UnixTime};

use super::{Context, list_text, run, time_text};
use crate::api::Api;
use crate::args;
use crate::batch;
use crate::failure::Failure;
use crate::output;
use crate::ssh;
use crate::ttl::{Span, rough};

/// Fewest digits that name an approval.
const MIN_DIGITS: usize = 4;

/// Asks for an approval, and waits for the decision if that is wanted.
///
/// # Errors
/// Tells what the server refuses, and with `--wait` that it was denied or not decided in time.
pub async fn request(context: &Context, args: args::Request) -> Result<(), Failure> {
    let devices = args.devices.0.iter().map(|text| ssh::device(text));
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    let commands = args.commands.as_deref().map(batch::from_file).transpose()?;
    let (_, mut api) = context.api()?;
    let request = AskApproval {
        devices: devices.iter().map(ToString::to_string).collect(),
        services: args.services.0.iter().map(ToString::to_string).collect(),
        reason: args.reason,
        window_secs: args.window.map(|window| window.0.as_secs()),
        commands: commands.as_ref().map(|batch| batch.commands().to_vec()),
    };
    let asked = api.ask_approval(&request).await;
    let asked = asked.map_err(|error| error.into_failure("could not ask for an approval"))?;
    if asked.batch != commands.map(|batch| batch.hash()) {
        let failure = Failure::new(Code::Protocol, "could not ask for an approval");
        return Err(failure.why("the server took another batch than it was given"));
    }
    let id = asked.id.fmt_short();
    context.output.note(&format!(
        "{} to agree with `tunnel approve {id}`",
        people(asked.needed)
    ));
    let decided = match args.wait {
        Some(wait) => wait_for(&mut api, &asked, wait.map(|wait| wait.0)).await?,
        None => asked,
    };
    context
        .output
        .result(&decided, || one(&decided, SystemClock.now()))
}

fn people(needed: u32) -> String {
    match needed {
        1 => "somebody has".to_owned(),
        count => format!("{count} people have"),
    }
}

/// Waits until an approval is decided; as long as somebody can decide, if no other time is given.
async fn wait_for(api: &mut Api, asked: &Approval, wait: Option<Duration>) -> Result<Approval, Failure> {
    let what = format!("the approval `{}` was not given", asked.id.fmt_short());
    let decided = async {
        let mut backoff = Backoff::default();
        loop {
            match api.await_decision(asked.id).await {
                Ok(approval) if approval.state == "pending" => backoff = Backoff::default(),
                Ok(approval) => return Ok(approval),
                // A server that is away for a while comes back, and what was asked for is still there.
                Err(error) if error.may_pass() => {
                    let pause = Duration::from_millis(100) + backoff.failed(fastrand::u64(..));
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error.into_failure(&what)),
            }
        }
    };
    let wait = wait.unwrap_or_else(|| patience(asked.expires_at, SystemClock.now()));
    // Not as a time of day, which a span without end does not lead to.
    let approval = match tokio::time::timeout(wait, decided).await {
        Ok(decided) => decided?,
        Err(_) => {
            return Err(Failure::new(Code::Deadline, what)
                .why("nobody has decided in this time")
                .next("`tunnel approvals` shows it; it goes on waiting"));
        }
    };
    let code = match approval.state.as_str() {
        "approved" => return Ok(approval),
        "denied" => Code::ApprovalDenied,
        "withdrawn" => Code::ApprovalWithdrawn,
        _ => Code::ApprovalExpired,
    };
    let failure = Failure::new(code, what);
    Err(match ended(&approval) {
        Some(detail) => failure.detail(detail),
        None => failure,
    })
}

/// Returns how long somebody can decide, and a little more for the news of it; a server may say that it is for ever.
fn patience(expires_at: u64, now: UnixTime) -> Duration {
    let left = UnixTime::from_secs(expires_at).since(now);
    left.saturating_add(Duration::from_secs(60))
}

/// Lists approvals, or shows one.
///
/// # Errors
/// Tells why the server does not say.
pub async fn approvals(context: &Context, args: args::Approvals) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let now = SystemClock.now();
    if let Some(text) = args.approval {
        let id = find(&mut api, &text).await?;
        let approval = api.approval(id).await;
        let approval = approval.map_err(|error| error.into_failure("could not show the approval"))?;
        return context.output.result(&approval, || one(&approval, now));
    }
    let approvals = api.approvals(args.all).await;
    let approvals = approvals.map_err(|error| error.into_failure("could not list approvals"))?;
    context.output.result(&approvals, || {
        let rows: Vec<_> = approvals.iter().map(|approval| row(approval, now)).collect();
        let head = ["APPROVAL", "WHO", "DEVICES", "SERVICES", "STATE", "REASON"];
        output::table(head, &rows)
    })
}

/// Agrees to what somebody else asks for.
///
/// # Errors
/// Tells what the server refuses.
pub async fn approve(context: &Context, args: args::Approve) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let id = find(&mut api, &args.approval).await?;
    let what = format!("could not approve `{}`", id.fmt_short());
    let approval = api
        .decide_approval(id, "approve", &DecideApproval::default())
        .await;
    let approval: Approval = approval.map_err(|error| error.into_failure(what))?;
    context
        .output
        .result(&approval, || one(&approval, SystemClock.now()))
}

/// Says no to what somebody else asks for.
///
/// # Errors
/// Tells what the server refuses.
pub async fn deny(context: &Context, args: args::Deny) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let id = find(&mut api, &args.approval).await?;
    let what = format!("could not deny `{}`", id.fmt_short());
    let reason = DecideApproval { reason: args.reason };
    let approval = api.decide_approval(id, "deny", &reason).await;
    let approval: Approval = approval.map_err(|error| error.into_failure(what))?;
    context
        .output
        .result(&approval, || one(&approval, SystemClock.now()))
}

/// Takes an approval back.
///
/// # Errors
/// Tells what the server refuses.
pub async fn withdraw(context: &Context, args: args::Deny) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let id = find(&mut api, &args.approval).await?;
    let what = format!("could not withdraw `{}`", id.fmt_short());
    let reason = DecideApproval { reason: args.reason };
    let withdrawn = api.withdraw_approval(id, &reason).await;
    let withdrawn = withdrawn.map_err(|error| error.into_failure(what))?;
    context.output.result(&withdrawn, || {
        format!(
            "withdrew {}, {} tunnels cut\n",
            id.fmt_short(),
            withdrawn.tunnels_cut
        )
    })
}

fn row(approval: &Approval, now: UnixTime) -> [String; 6] {
    [
        approval.id.fmt_short(),
        approval.requester.clone(),
        list_text(&approval.devices),
        services(approval),
        state(approval, now),
        approval.reason.clone(),
    ]
}

/// Returns the hash of the commands that are shown: who decides goes by them, and not by what a server says of them.
fn hash_of(commands: &[Vec<String>], said: Option<BatchHash>) -> String {
    match Batch::new(commands.to_vec()) {
        Ok(batch) if said == Some(batch.hash()) => batch.hash().to_string(),
        _ => "NOT OF THESE COMMANDS: the server shows others than it was asked for".to_owned(),
    }
}

fn services(approval: &Approval) -> String {
    let services = list_text(&approval.services);
    match &approval.commands {
        Some(commands) => format!("{services}, {} commands", commands.len()),
        None => services,
    }
}

fn state(approval: &Approval, now: UnixTime) -> String {
    let left = rough(UnixTime::from_secs(approval.expires_at).since(now));
    match approval.state.as_str() {
        "pending" => {
            let mine = if approval.may_approve {
                ", yours to decide"
            } else {
                ""
            };
            format!(
                "pending, {} of {}{mine}",
                approval.approvers.len(),
                approval.needed
            )
        }
        "approved" => format!("approved, {left} left"),
        _ => match ended(approval) {
            Some(how) => format!("{} {how}", approval.state),
            None => approval.state.clone(),
        },
    }
}

/// Says who ended it and why, if somebody did.
fn ended(approval: &Approval) -> Option<String> {
    let by = approval.ended_by.as_ref()?;
    Some(match &approval.end_reason {
        Some(reason) => format!("by {by}: {reason}"),
        None => format!("by {by}"),
    })
}

fn one(approval: &Approval, now: UnixTime) -> String {
    let window = Span(Duration::from_secs(approval.window_secs));
    let mut rows = vec![
        ("approval", approval.id.to_string()),
        ("who", approval.requester.clone()),
        ("devices", list_text(&approval.devices)),
        ("services", list_text(&approval.services)),
        ("reason", approval.reason.clone()),
        ("for", window.to_string()),
        ("state", state(approval, now)),
        ("approved by", list_text(&approval.approvers)),
        ("asked", time_text(approval.asked_at)),
    ];
    if matches!(approval.state.as_str(), "pending" | "approved") {
        rows.push(("until", time_text(approval.expires_at)));
    }
    let Some(commands) = &approval.commands else {
        return output::fields(&rows);
    };
    rows.push(("batch", hash_of(commands, approval.batch)));
    format!("{}commands:\n{}", output::fields(&rows), run::shown(commands))
}

/// Finds an approval by its id or by the first digits of it.
async fn find(api: &mut Api, text: &str) -> Result<ApprovalId, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let shown: String = text.chars().take(40).collect();
    let what = format!("could not find the approval `{shown}`");
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let next = "`tunnel approvals` lists those that you may see";
    if text.len() < MIN_DIGITS || text.len() > 32 || !text.chars().all(is_digit) {
        let why = format!("it is neither an id nor its first digits, {MIN_DIGITS} or more");
        return Err(Failure::new(Code::BadRequest, what).why(why).next(next));
    }
    let approvals = api.approvals(true).await;
    let approvals = approvals.map_err(|error| error.into_failure(&what))?;
    let mut fitting = approvals
        .iter()
        .map(|approval| approval.id)
        .filter(|id| id.to_string().starts_with(text));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(Failure::new(Code::NotFound, what).next(next)),
        (Some(_), Some(_)) => Err(Failure::new(Code::BadRequest, what)
            .why("several approvals start with these digits")
            .next("give more of them; `tunnel --json approvals` shows whole ids")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_names_a_time_without_end_is_waited_for() {
        let now = UnixTime::from_secs(1000);
        assert_eq!(patience(4600, now), Duration::from_secs(3660));
        assert_eq!(patience(0, now), Duration::from_secs(60));
        for expires_at in [u64::MAX, u64::MAX - 10] {
            let decided = tokio::time::timeout(patience(expires_at, UnixTime::default()), async { 7 });
            assert_eq!(decided.await, Ok(7));
        }
    }

    #[test]
    fn an_approval_is_shown_with_what_is_next() {
        let mut approval = Approval {
            id: ApprovalId::from_bytes([1; 16]),
            requester: "ana".into(),
            devices: vec!["pump-17".into()],
            services: vec!["ssh".into()],
            reason: "\u{1b}[2J".into(),
            window_secs: 3600,
            state: "pending".into(),
            needed: 2,
            approvers: vec!["ben".into()],
            asked_at: 1000,
            expires_at: 4600,
            ended_by: None,
            end_reason: None,
            may_approve: true,
            commands: None,
            batch: None,
        };
        let now = UnixTime::from_secs(1000);
        let text = one(&approval, now);
        assert!(
            text.contains("pending, 1 of 2, yours to decide") && text.contains("1h"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
        approval.state = "approved".into();
        assert_eq!(state(&approval, now), "approved, 60 min left");
        approval.state = "denied".into();
        approval.ended_by = Some("ben".into());
        approval.end_reason = Some("not today".into());
        assert_eq!(state(&approval, now), "denied by ben: not today");
    }
}
