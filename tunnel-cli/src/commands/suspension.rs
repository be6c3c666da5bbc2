//! `tunnel quarantine`, `release`, `disable` and `enable`: trust that is taken away for a time.

use serde::Serialize;
use tunnel_proto::Identity;
use tunnel_proto::api::Suspend;

use super::Context;
use crate::args;
use crate::failure::Failure;
use crate::home::Login;
use crate::ssh;

/// Puts a device into quarantine.
///
/// # Errors
/// Tells what the server refuses.
pub async fn quarantine(context: &Context, args: args::Suspend<String>) -> Result<(), Failure> {
    let id = ssh::device(&args.name)?;
    suspend(context, args.reason, "quarantined", |login| {
        Identity::device(login.trust.trust_domain(), &id)
    })
    .await
}

/// Releases a device from quarantine.
///
/// # Errors
/// Tells what the server refuses.
pub async fn release(context: &Context, args: args::Suspend<String>) -> Result<(), Failure> {
    let id = ssh::device(&args.name)?;
    let words = ["released", "was not in quarantine"];
    lift(context, args.reason, words, |login| {
        Identity::device(login.trust.trust_domain(), &id)
    })
    .await
}

/// Disables an operator.
///
/// # Errors
/// Tells what the server refuses.
pub async fn disable(
    context: &Context,
    args: args::Suspend<tunnel_proto::OperatorName>,
) -> Result<(), Failure> {
    suspend(context, args.reason, "disabled", |login| {
        Identity::operator(login.trust.trust_domain(), &args.name)
    })
    .await
}

/// Enables an operator again.
///
/// # Errors
/// Tells what the server refuses.
pub async fn enable(
    context: &Context,
    args: args::Suspend<tunnel_proto::OperatorName>,
) -> Result<(), Failure> {
    let words = ["enabled", "was not disabled"];
    lift(context, args.reason, words, |login| {
        Identity::operator(login.trust.trust_domain(), &args.name)
    })
    .await
}

async fn suspend(
    context: &Context,
    reason: Option<String>,
    done: &str,
    identity: impl FnOnce(&Login) -> Identity,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Done {
        identity: String,
        tunnels_cut: u64,
    }
    let (login, mut api) = context.api()?;
    let identity = identity(&login);
    let request = Suspend {
        identity: identity.to_string(),
        reason,
    };
    let name = short(&identity);
    let answer = api
        .suspend(&request)
        .await
        .map_err(|error| error.into_failure(format!("could not suspend `{name}`")))?;
    let result = Done {
        identity: request.identity,
        tunnels_cut: answer.tunnels_cut,
    };
    context.output.result(&result, || {
        format!("{done} {name}, {} tunnels cut\n", result.tunnels_cut)
    })
}

async fn lift(
    context: &Context,
    reason: Option<String>,
    [done, nothing]: [&str; 2],
    identity: impl FnOnce(&Login) -> Identity,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Done {
        identity: String,
        lifted: bool,
    }
    let (login, mut api) = context.api()?;
    let identity = identity(&login);
    let request = Suspend {
        identity: identity.to_string(),
        reason,
    };
    let name = short(&identity);
    let answer = api
        .lift_suspension(&request)
        .await
        .map_err(|error| error.into_failure(format!("could not lift the suspension of `{name}`")))?;
    let result = Done {
        identity: request.identity,
        lifted: answer.lifted,
    };
    context.output.result(&result, || match result.lifted {
        true => format!("{done} {name}\n"),
        false => format!("{name} {nothing}\n"),
    })
}

/// Names an identity of the own fleet, as `device/pump-17`.
fn short(identity: &Identity) -> String {
    let text = identity.to_string();
    let own = format!("spiffe://{}/", identity.trust_domain);
    text.strip_prefix(&own).unwrap_or(&text).to_owned()
}
