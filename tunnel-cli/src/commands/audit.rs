//! `tunnel audit`: reading the trail, following it, and proving that it is whole.

pub mod verify;

use std::time::Duration;

use jiff::Timestamp;
use tunnel_proto::Code;
use tunnel_proto::api::{AuditPage, AuditRecord};
use tunnel_proto::audit::Checkpoint;
use tunnel_proto::cose::VerifyingKey;
use tunnel_proto::ids::unhex;

use super::Context;
use crate::api::Api;
use crate::args;
use crate::escape::escape;
use crate::failure::Failure;
use crate::output::{Output, write_stdout};
use crate::signals::Signals;

/// Records in one request (THREATS part 5).
const PAGE: u32 = 500;

/// How many records are listed when nothing else is said.
const LAST: u64 = 50;

/// How often a follower asks for what is new.
const FOLLOW: Duration = Duration::from_secs(1);

/// Runs one of the commands.
///
/// # Errors
/// Tells what the server refuses, or which record is wrong.
pub async fn audit(context: &Context, args: args::Audit) -> Result<(), Failure> {
    match args.command {
        Some(args::AuditCommand::Verify(verify)) => verify::verify(context, verify).await,
        Some(args::AuditCommand::List(list)) => self::list(context, list).await,
        None => list(context, args.list).await,
    }
}

async fn list(context: &Context, args: args::AuditList) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let (_, mut api) = context.api()?;
    tokio::select! {
        result = print(context.output, &mut api, args) => result,
        () = signals.any() => Err(Failure::interrupted()),
    }
}

async fn print(output: Output, api: &mut Api, args: args::AuditList) -> Result<(), Failure> {
    let mut after = match args.after {
        Some(after) => after,
        None => head(api).await?.saturating_sub(args.last.unwrap_or(LAST)),
    };
    loop {
        let page = page(api, after, PAGE).await?;
        for record in &page.records {
            if output.json {
                output.json_line(record)?
            } else {
                write_stdout(&line(record))?
            }
            after = after.max(record.seq);
        }
        if page.records.is_empty() {
            if !args.follow {
                return Ok(());
            }
            tokio::time::sleep(FOLLOW).await;
        }
    }
}

/// Reads a page of the trail that goes forward.
pub(super) async fn page(api: &mut Api, after: u64, limit: u32) -> Result<AuditPage, Failure> {
    let page = api
        .audit(after, limit)
        .await
        .map_err(|error| error.into_failure("could not read the audit trail"))?;
    // A page that does not go forward would be asked for without end.
    if page.records.iter().any(|record| record.seq <= after) {
        return Err(Failure::new(Code::Protocol, "could not read the audit trail")
            .detail("the pages do not go forward"));
    }
    Ok(page)
}

/// Returns the number of the last record, from the checkpoint that comes with every page.
async fn head(api: &mut Api) -> Result<u64, Failure> {
    let page = page(api, u64::from(u32::MAX), PAGE).await?;
    Ok(checkpoint(&page)?.map_or(0, |checkpoint| checkpoint.seq))
}

/// Reads the checkpoint of a page and checks its signature.
fn checkpoint(page: &AuditPage) -> Result<Option<Checkpoint>, Failure> {
    let what = "could not read the audit trail";
    let Some(text) = &page.checkpoint else {
        return Ok(None);
    };
    let key = unhex(&page.checkpoint_key).map(VerifyingKey::from_bytes);
    let key = key.ok_or_else(|| Failure::new(Code::Protocol, what).detail("the checkpoint's key is none"))?;
    let message = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text)
        .map_err(|_| Failure::new(Code::TokenMalformed, what).detail("the checkpoint cannot be read"))?;
    Checkpoint::verify(&message, &key)
        .map(Some)
        .map_err(|code| Failure::new(code, what).why("the checkpoint is not signed by its key"))
}

/// Writes a record on one line: number, time, kind, and the fields of its event.
fn line(record: &AuditRecord) -> String {
    let time = i64::try_from(record.time_millis)
        .ok()
        .and_then(|millis| Timestamp::from_millisecond(millis).ok())
        .map_or_else(|| record.time_millis.to_string(), |time| format!("{time:.3}"));
    format!(
        "{:>6}  {time}  {:<20}  {}\n",
        record.seq,
        escape(&record.kind),
        fields(&record.body)
    )
}

/// Writes the event's fields as `name=value`; a body that is no object is written as it is.
fn fields(body: &str) -> String {
    let Ok(serde_json::Value::Object(map)) = serde_json::from_str(body) else {
        return escape(body).into_owned();
    };
    let field = |(name, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(format!("{}={}", escape(name), value_text(text))),
        other => Some(format!("{}={}", escape(name), escape(&other.to_string()))),
    };
    map.iter().filter_map(field).collect::<Vec<_>>().join(" ")
}

/// Quotes a value in which a reader could take a part for another field.
fn value_text(text: &str) -> String {
    let safe = escape(text);
    if safe.contains([' ', '=', '"']) || safe.is_empty() {
        format!("\"{}\"", safe.replace('"', "\\\""))
    } else {
        safe.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// THREATS AUD-04: a name cannot forge a second line or a second field.
    #[test]
    fn a_record_is_one_line() {
        let record = AuditRecord {
            seq: 7,
            time_millis: 1_800_000_000_123,
            kind: "tunnel.opened".into(),
            // In the order of the alphabet, which is that of the map unless a feature of another crate keeps the text's.
            body:
                "{\"device\":\"pump-17\",\"n\":3,\"none\":null,\"reason\":\"x\\n8 operator=eve\\u001b[2J\"}"
                    .into(),
            prev: String::new(),
            hash: String::new(),
        };
        assert_eq!(
            line(&record),
            "     7  2027-01-15T08:00:00.123Z  tunnel.opened         device=pump-17 n=3 \
             reason=\"x\\n8 operator=eve\\u{1b}[2J\"\n"
        );
    }
}
