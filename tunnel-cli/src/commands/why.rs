//! `tunnel why`: what decides about a service, and what is missing.

use tunnel_proto::api::{AskWhy, Limits, Why, WhyRule};

use super::{Context, bytes_text, list_text};
use crate::args;
use crate::escape::escape_lines;
use crate::failure::Failure;
use crate::output;
use crate::ssh;
use crate::ttl::Span;

/// Asks the server and shows the answer.
///
/// # Errors
/// Tells what the server refuses.
pub async fn why(context: &Context, args: args::Why) -> Result<(), Failure> {
    let device = ssh::device(&args.device)?;
    let (_, mut api) = context.api()?;
    let what = format!("could not explain `{}` on `{device}`", args.service);
    let request = AskWhy {
        device: device.to_string(),
        service: args.service.to_string(),
        operator: args.operator.map(|name| name.to_string()),
        source: args.source.map(|source| source.to_string()),
        reason: args.reason,
        ttl_secs: args.ttl.map(|ttl| ttl.0.as_secs()),
        batch: args.batch,
    };
    let why = api
        .why(&request)
        .await
        .map_err(|error| error.into_failure(what))?;
    context.output.result(&why, || text(&why))
}

fn text(why: &Why) -> String {
    let outcome = match why.outcome.as_str() {
        "allow" => "allowed",
        "approval" => "allowed once somebody approves it",
        _ => "denied",
    };
    let mut rows = vec![
        ("operator", why.operator.clone()),
        ("service", format!("{} on {}", why.service, why.device)),
        ("outcome", outcome.to_owned()),
        ("decided by", list_text(&why.policies)),
    ];
    if why.outcome == "allow" {
        rows.push(("limits", limits_text(&why.limits)));
    }
    if !why.missing.is_empty() {
        rows.push(("missing", why.missing.join(" and ")));
    }
    rows.push(("groups", list_text(&why.groups)));
    for (name, value) in &why.facts {
        rows.push(("fact", format!("{name} is {value}")));
    }
    if let Some(authoriser) = &why.authoriser {
        let unasked = "was not asked; it is when a tunnel is asked for that policy permits";
        rows.push((
            "authoriser",
            authoriser.answer.clone().unwrap_or_else(|| unasked.to_owned()),
        ));
        let said = authoriser.facts.iter();
        rows.extend(said.map(|(name, value)| ("authoriser", format!("{name} is {value}"))));
    }
    let mut text = output::fields(&rows);
    text.push_str(&rules("decided by", &why.rules));
    text.push_str(&rules("would permit it under other conditions", &why.near));
    text
}

fn rules(title: &str, rules: &[WhyRule]) -> String {
    let each = rules
        .iter()
        .map(|rule| format!("\n{title}:\n{}\n", escape_lines(&rule.text)));
    each.collect()
}

fn limits_text(limits: &Limits) -> String {
    let span = |secs| Span(std::time::Duration::from_secs(secs)).to_string();
    let all = [
        limits
            .lifetime_secs
            .map(|secs| format!("lifetime {}", span(secs))),
        limits.sessions.map(|count| format!("{count} sessions at once")),
        limits.tunnels.map(|count| format!("{count} tunnels at once")),
        limits.bytes.map(bytes_text),
        limits
            .bytes_per_sec
            .map(|bytes| format!("{}/s", bytes_text(bytes))),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::api::WhyAuthoriser;

    use super::*;

    #[test]
    fn an_answer_is_shown_without_what_it_could_do_to_a_terminal() {
        let why = Why {
            operator: "ana".into(),
            device: "pump-17".into(),
            service: "ssh".into(),
            outcome: "deny".into(),
            missing: vec!["a reason".into()],
            near: vec![WhyRule {
                name: "x".into(),
                permits: true,
                text: "permit (\n\u{1b}[2J);".into(),
            }],
            ..Why::default()
        };
        let text = text(&why);
        assert!(
            text.contains("denied") && text.contains("a reason") && !text.contains('\u{1b}'),
            "{text}"
        );
        let asked = |answer: Option<&str>| Why {
            authoriser: Some(WhyAuthoriser {
                asked: answer.is_some(),
                answer: answer.map(str::to_owned),
                facts: answer.map(|_| ("risk".into(), "9".into())).into_iter().collect(),
            }),
            ..Why::default()
        };
        let told = super::text(&asked(Some("forbid: no\u{1b} ticket")));
        assert!(
            told.contains("forbid: no") && told.contains("risk is 9") && !told.contains('\u{1b}'),
            "{told}"
        );
        assert!(super::text(&asked(None)).contains("was not asked"));
        let limits = Limits {
            lifetime_secs: Some(1800),
            bytes: Some(1 << 30),
            ..Limits::default()
        };
        assert_eq!(limits_text(&limits), "lifetime 30m, 1.0 GiB");
    }
}
