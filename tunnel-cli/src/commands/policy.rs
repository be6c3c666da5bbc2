//! `tunnel policy`.

mod replay;
mod test;

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use serde::Serialize;
use tunnel_policy::{Difference, MAX_POLICY_BYTES, PolicyErrors};
use tunnel_proto::Code;
use tunnel_proto::api::{PolicyRevision, PolicyState, PolicyText};

use super::{Context, bytes_text, time_text};
use crate::api::Api;
use crate::args;
use crate::escape::{escape, escape_lines};
use crate::failure::Failure;
use crate::output::{self, write_stdout};

/// Runs one of the commands.
///
/// # Errors
/// Tells what the server refuses; a policy with errors is one.
pub async fn policy(context: &Context, args: args::Policy) -> Result<(), Failure> {
    match args {
        args::Policy::Show(args) => show(context, args.version).await,
        args::Policy::List => list(context).await,
        args::Policy::Check(file) => check(context, &file.file).await,
        args::Policy::Diff(args) => diff(context, &args.file, args.from).await,
        args::Policy::Apply(args) => apply(context, &args.file, args.if_version).await,
        args::Policy::Rollback(args) => rollback(context, args.version).await,
        args::Policy::Test(args) => test::test(context.output, &args),
        args::Policy::Replay(args) => replay::replay(context, &args).await,
    }
}

async fn show(context: &Context, version: Option<u64>) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let text = match version {
        None => {
            let state = in_force(&mut api, "could not show the policy").await?;
            if context.output.json {
                return context.output.json_line(&state);
            }
            context.output.note(&format!("version {}", state.revision));
            state.text
        }
        Some(version) => {
            let revision = of_version(&mut api, version, "could not show the policy").await?;
            if context.output.json {
                return context.output.json_line(&revision);
            }
            revision.text
        }
    };
    let text = text.unwrap_or_default();
    // In a file the text stays as it is, so that it can be put in force again.
    if std::io::stdout().is_terminal() {
        write_stdout(&escape_lines(&text))
    } else {
        write_stdout(&text)
    }
}

async fn in_force(api: &mut Api, what: &str) -> Result<PolicyState, Failure> {
    api.policy().await.map_err(|error| error.into_failure(what))
}

async fn of_version(api: &mut Api, version: u64, what: &str) -> Result<PolicyRevision, Failure> {
    let revision = api.policy_revision(version).await;
    revision.map_err(|error| error.into_failure(what))
}

async fn list(context: &Context) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let revisions = api
        .policy_revisions()
        .await
        .map_err(|error| error.into_failure("could not list the policies"))?;
    context.output.result(&revisions, || {
        let row = |one: &PolicyRevision| {
            [
                one.revision.to_string(),
                time_text(one.at),
                bytes_text(one.bytes),
                one.by.clone(),
            ]
        };
        let rows: Vec<_> = revisions.iter().map(row).collect();
        output::table(["VERSION", "IN FORCE FROM", "SIZE", "BY"], &rows)
    })
}

async fn check(context: &Context, file: &Path) -> Result<(), Failure> {
    let what = format!("could not check `{}`", file.display());
    let text = read(file, &what)?;
    let (_, mut api) = context.api()?;
    let if_revision = None;
    let state = api
        .policy_check(&PolicyText { text, if_revision })
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

async fn diff(context: &Context, file: &Path, from: Option<u64>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Compared {
        version: u64,
        #[serde(flatten)]
        difference: Difference,
    }
    let what = format!("could not compare `{}`", file.display());
    let text = read(file, &what)?;
    let (_, mut api) = context.api()?;
    let (version, before) = match from {
        Some(version) => (version, of_version(&mut api, version, &what).await?.text),
        None => {
            let state = in_force(&mut api, &what).await?;
            (state.revision, state.text)
        }
    };
    let difference =
        tunnel_policy::diff(&before.unwrap_or_default(), &text).map_err(|error| not_valid(&error, &what))?;
    let compared = Compared { version, difference };
    context.output.result(&compared, || {
        let found = &compared.difference;
        if found.is_empty() {
            return format!("no policy differs from version {version}\n");
        }
        let removed = found.removed.values().map(|text| marked("- ", text));
        let added = found.added.values().map(|text| marked("+ ", text));
        let changed = found.changed.values();
        let changed = changed.map(|(before, after)| marked("- ", before) + &marked("+ ", after));
        removed.chain(changed).chain(added).collect::<Vec<_>>().join("\n")
    })
}

/// Puts a mark before each line of a text.
fn marked(mark: &str, text: &str) -> String {
    text.lines()
        .map(|line| format!("{mark}{}\n", escape(line)))
        .collect()
}

async fn apply(context: &Context, file: &Path, if_revision: Option<u64>) -> Result<(), Failure> {
    let what = format!("could not put `{}` in force", file.display());
    let text = read(file, &what)?;
    let (_, mut api) = context.api()?;
    let state = put(context, &mut api, PolicyText { text, if_revision }, &what).await?;
    faults(&state, file)
}

async fn put(context: &Context, api: &mut Api, text: PolicyText, what: &str) -> Result<PolicyState, Failure> {
    let state = api
        .policy_apply(&text)
        .await
        .map_err(|error| error.into_failure(what))?;
    context.output.result(&state, || {
        if state.errors.is_empty() {
            let cut = state.tunnels_cut.unwrap_or_default();
            format!(
                "{}in force as version {}: {} policies, {cut} tunnels cut\n",
                notes(&state),
                state.revision,
                state.policies
            )
        } else {
            notes(&state)
        }
    })?;
    Ok(state)
}

async fn rollback(context: &Context, version: Option<u64>) -> Result<(), Failure> {
    let what = "could not go back to a policy of before";
    let (_, mut api) = context.api()?;
    let current = in_force(&mut api, what).await?.revision;
    let version = version.unwrap_or_else(|| current.saturating_sub(1));
    if version >= current {
        return Err(Failure::new(Code::BadRequest, what)
            .why(format!(
                "version {version} is not one of before: {current} is in force"
            ))
            .next("`tunnel policy list` shows the versions"));
    }
    let text = of_version(&mut api, version, what)
        .await?
        .text
        .unwrap_or_default();
    // Somebody else's change in this moment is not undone unseen.
    let if_revision = Some(current);
    put(context, &mut api, PolicyText { text, if_revision }, what)
        .await
        .map(drop)
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

fn not_valid(error: &PolicyErrors, what: &str) -> Failure {
    Failure::new(Code::BadRequest, what)
        .why("a policy is not valid")
        .next("correct the lines; `tunnel policy check` tells all of them")
        .detail(error.to_string())
}

/// Reads a policy from a file or from standard input, bounded.
fn read(file: &Path, what: &str) -> Result<String, Failure> {
    read_bounded(file, what, MAX_POLICY_BYTES)
}

fn read_bounded(file: &Path, what: &str, most: usize) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Code::BadRequest, what)
            .why(format!("`{}` could not be read", file.display()))
            .next("check its name and its mode")
            .detail(error.to_string())
    };
    let (mut text, limit) = (String::new(), most as u64 + 1);
    if file == Path::new("-") {
        std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let opened = std::fs::File::open(file).map_err(failed)?;
        opened.take(limit).read_to_string(&mut text).map_err(failed)?;
    }
    if text.len() > most {
        return Err(Failure::new(Code::TooLarge, what).detail(format!("{most} bytes are the most")));
    }
    Ok(text)
}
