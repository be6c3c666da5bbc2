//! `tunnel notifications`: how far those who are told of records are, and what could not be told.

use tunnel_proto::Code;
use tunnel_proto::api::{SettleNotifications, Settlement};

use super::{Context, time_text};
use crate::args;
use crate::failure::Failure;
use crate::output;

/// Runs one of the commands about notifications.
///
/// # Errors
/// Tells what the server refuses, and why a notification was not taken again.
pub async fn notifications(context: &Context, args: args::Notifications) -> Result<(), Failure> {
    match args {
        args::Notifications::List => list(context).await,
        args::Notifications::Retry(args) => settle(context, args, Settlement::Retry).await,
        args::Notifications::Drop(args) => settle(context, args, Settlement::Drop).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let found = api.notifications().await;
    let found = found.map_err(|error| error.into_failure("could not list notifications"))?;
    context.output.result(&found, || {
        let targets = found.targets.iter().map(|target| {
            let dead = found.dead.iter().filter(|letter| letter.target == target.name);
            [
                target.name.clone(),
                target.told.to_string(),
                target.head.to_string(),
                dead.count().to_string(),
            ]
        });
        let mut text = output::table(["TARGET", "TOLD", "OF", "GIVEN UP"], &targets.collect::<Vec<_>>());
        let dead = found.dead.iter().map(|letter| {
            [
                letter.target.clone(),
                letter.record.seq.to_string(),
                letter.record.kind.clone(),
                letter.tries.to_string(),
                time_text(letter.given_up_at),
                letter.error.clone(),
            ]
        });
        let dead: Vec<_> = dead.collect();
        if !dead.is_empty() {
            text += "\n";
            text += &output::table(["TARGET", "RECORD", "KIND", "TRIES", "GIVEN UP AT", "WHY"], &dead);
        }
        text
    })
}

async fn settle(context: &Context, args: args::GivenUp, how: Settlement) -> Result<(), Failure> {
    let what = format!("could not settle the notifications of `{}`", args.target);
    let (_, mut api) = context.api()?;
    let request = SettleNotifications {
        target: args.target,
        seq: args.record,
        how,
    };
    let done = api.settle_notifications(&request).await;
    let done = done.map_err(|error| error.into_failure(&what))?;
    context.output.result(&done, || {
        let word = match how {
            Settlement::Retry => "sent",
            Settlement::Drop => "dropped",
        };
        format!("{} {word}\n", done.settled)
    })?;
    match done.error {
        Some(error) => Err(Failure::new(Code::Unavailable, what).detail(error)),
        None => Ok(()),
    }
}
