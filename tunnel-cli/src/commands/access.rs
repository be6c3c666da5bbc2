//! `tunnel enrol-code` and `tunnel revoke`: who gets in, and who is put out.

use serde::Serialize;
use tunnel_proto::api::{MakeEnrolCode, Revoke};
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, Identity};

use super::{Context, time_text};
use crate::args;
use crate::failure::Failure;
use crate::home::Login;

/// Makes a code, and prints it: it is shown once and stored nowhere.
///
/// # Errors
/// Tells what the server refuses.
pub async fn enrol_code(context: &Context, args: args::EnrolCode) -> Result<(), Failure> {
    let (_, mut api) = context.api()?;
    let is_operator =
        !args.operator.is_empty() || (args.device.is_empty() && args.kind == args::Kind::Operator);
    let devices = args.device.iter().map(ToString::to_string);
    let request = MakeEnrolCode {
        kind: if is_operator { "operator" } else { "device" }.to_owned(),
        ids: devices
            .chain(args.operator.iter().map(ToString::to_string))
            .collect(),
        group: args.group.map(|group| group.to_string()),
        uses: Some(args.uses),
        ttl_secs: Some(args.ttl.0.as_secs()),
        replace: args.replace,
    };
    let made = api
        .enrol_code(&request)
        .await
        .map_err(|error| error.into_failure("could not make an enrolment code"))?;
    context
        .output
        .result(&made, || format!("{}\n", crate::escape::escape(&made.code)))?;
    let next = if is_operator {
        "tunnel login CODE"
    } else {
        "tunnel-agent enrol CODE"
    };
    context.output.note(&format!(
        "usable until {}, with `{next}`; it is a secret until then",
        time_text(made.expires_at)
    ));
    Ok(())
}

/// Takes an identity's trust away.
///
/// # Errors
/// Tells what the server refuses.
pub async fn revoke(context: &Context, args: args::Revoke) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Done {
        identity: String,
        tunnels_cut: u64,
    }
    let (login, mut api) = context.api()?;
    let identity = identity(&login, &args.identity)?.to_string();
    let request = Revoke {
        identity: identity.clone(),
        reason: args.reason,
    };
    let what = format!("could not revoke `{identity}`");
    let revoked = api
        .revoke(&request)
        .await
        .map_err(|error| error.into_failure(what))?;
    let done = Done {
        identity,
        tunnels_cut: revoked.tunnels_cut,
    };
    context.output.result(&done, || {
        format!("revoked {}, {} tunnels cut\n", done.identity, done.tunnels_cut)
    })
}

/// Reads `device/ID`, `operator/NAME` or a whole SPIFFE id.
fn identity(login: &Login, text: &str) -> Result<Identity, Failure> {
    let whole = if text.starts_with("spiffe://") {
        text.to_owned()
    } else {
        format!("spiffe://{}/{text}", login.trust.trust_domain())
    };
    whole
        .parse::<Identity>()
        .ok()
        .filter(|identity| matches!(identity.subject, Subject::Device(_) | Subject::Operator(_)))
        .ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            Failure::new(Code::BadName, format!("`{shown}` is no device and no operator"))
                .next("write `device/ID`, `operator/NAME`, or the whole SPIFFE id")
        })
}
