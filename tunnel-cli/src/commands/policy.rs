//! `tunnel policy`.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use tunnel_proto::Code;
use tunnel_proto::api::{PolicyState, PolicyText};

use super::Context;
use crate::args;
use crate::escape::{escape, escape_lines};
use crate::failure::Failure;
use crate::output::write_stdout;

/// Largest policy that is sent, in bytes: a request's body has a bound, and JSON makes it a little longer.
const MAX_BYTES: u64 = 60 * 1024;

/// Runs one of the commands.
///
/// # Errors
/// Tells what the server refuses; a policy with errors is one.
pub async fn policy(context: &Context, args: args::Policy) -> Result<(), Failure> {
    match args {
        args::Policy::Show => show(context).await,
        args::Policy::Check(file) => check(context, &file.file).await,
        args::Policy::Apply(file) => apply(context, &file.file).await,
    }
}

async fn show(context: &Context) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let state = api
        .policy()
        .await
        .map_err(|error| error.into_failure("could not show the policy"))?;
    if context.output.json {
        return context.output.json_line(&state);
    }
    let text = state.text.unwrap_or_default();
    // In a file the text stays as it is, so that it can be put in force again.
    if std::io::stdout().is_terminal() {
        write_stdout(&escape_lines(&text))
    } else {
        write_stdout(&text)
    }
}

async fn check(context: &Context, file: &Path) -> Result<(), Failure> {
    let what = format!("could not check `{}`", file.display());
    let text = read(file, &what)?;
    let (_, mut api) = context.api()?;
    let state = api
        .policy_check(&PolicyText { text })
        .await
        .map_err(|error| error.into_failure(&what))?;
    context.output.result(&state, || {
        if state.errors.is_empty() {
            format!("{}good: {} policies\n", notes(&state), state.policies)
        } else {
            notes(&state)
        }
    })?;
    faults(&state, file)
}

async fn apply(context: &Context, file: &Path) -> Result<(), Failure> {
    let what = format!("could not put `{}` in force", file.display());
    let text = read(file, &what)?;
    let (_, mut api) = context.api()?;
    let state = api
        .policy_apply(&PolicyText { text })
        .await
        .map_err(|error| error.into_failure(&what))?;
    context.output.result(&state, || {
        if state.errors.is_empty() {
            let cut = state.tunnels_cut.unwrap_or_default();
            format!(
                "{}in force as revision {}: {} policies, {cut} tunnels cut\n",
                notes(&state),
                state.revision,
                state.policies
            )
        } else {
            notes(&state)
        }
    })?;
    faults(&state, file)
}

/// Lists what the server says of a text: the errors, then what is odd.
fn notes(state: &PolicyState) -> String {
    let errors = state
        .errors
        .iter()
        .map(|error| format!("error: {}\n", escape(error)));
    let warnings = state
        .warnings
        .iter()
        .map(|warning| format!("warning: {}\n", escape(warning)));
    errors.chain(warnings).collect()
}

fn faults(state: &PolicyState, file: &Path) -> Result<(), Failure> {
    if state.errors.is_empty() {
        return Ok(());
    }
    Err(
        Failure::new(Code::BadRequest, format!("could not accept `{}`", file.display()))
            .why(format!(
                "the policy has {} errors, and stays without effect",
                state.errors.len()
            ))
            .next("correct the lines and check it again")
            .detail(state.errors.join("; ")),
    )
}

/// Reads a policy from a file or from standard input, bounded.
fn read(file: &Path, what: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Code::BadRequest, what)
            .why("the file could not be read")
            .next("check its name and its mode")
            .detail(error.to_string())
    };
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin()
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let opened = std::fs::File::open(file).map_err(failed)?;
        opened
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
    }
    if text.len() as u64 > MAX_BYTES {
        return Err(
            Failure::new(Code::TooLarge, what).detail(format!("a policy has at most {MAX_BYTES} bytes"))
        );
    }
    Ok(text)
}
