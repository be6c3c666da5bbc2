//! `tunnel audit`: reading the trail, following it, handing it on, and proving that it is whole.

mod export;
mod ocsf;
mod pin;
pub(crate) mod read;
pub mod verify;

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tunnel_proto::api::AuditRecord;

use self::read::{PAGE, Reader, checkpoint, page};
use super::Context;
use crate::api::Api;
use crate::args;
use crate::escape::escape;
use crate::failure::Failure;
use crate::output::{Output, write_stdout};
use crate::signals::Signals;

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
        Some(args::AuditCommand::Export(export)) => self::export::export(context, export).await,
        Some(args::AuditCommand::Head(head)) => pin::head(context, head).await,
        Some(args::AuditCommand::Verify(verify)) => verify::verify(context, verify).await,
        Some(args::AuditCommand::List(list)) => self::list(context, list).await,
        None => list(context, args.list).await,
    }
}

async fn list(context: &Context, args: args::AuditList) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let (_, mut api) = context.api()?;
    tokio::select! {
        result = print(context.output, &mut api, &args) => result,
        () = signals.any() => Err(Failure::interrupted()),
    }
}

async fn print(output: Output, api: &mut Api, args: &args::AuditList) -> Result<(), Failure> {
    let mut reader = Reader::new(api, &args.filter, args.after.unwrap_or(0)).await?;
    if args.after.is_none() {
        let count = args.last.unwrap_or(LAST);
        if reader.is_whole() {
            reader.go_to(head(api).await?.saturating_sub(count));
        } else {
            for record in last(api, &mut reader, count).await? {
                show(output, &record)?;
            }
        }
    }
    loop {
        match reader.next(api).await? {
            Some(records) => records.iter().try_for_each(|record| show(output, record))?,
            None if args.follow => tokio::time::sleep(FOLLOW).await,
            None => return Ok(()),
        }
    }
}

/// Returns the last records that fit.
async fn last(api: &mut Api, reader: &mut Reader, count: u64) -> Result<VecDeque<AuditRecord>, Failure> {
    let mut last = VecDeque::new();
    while let Some(records) = reader.next(api).await? {
        last.extend(records);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        last.drain(..last.len().saturating_sub(count));
    }
    Ok(last)
}

fn show(output: Output, record: &AuditRecord) -> Result<(), Failure> {
    match output.json {
        true => output.json_line(record),
        false => write_stdout(&line(record)),
    }
}

/// Returns the number of the last record, from the checkpoint that comes with every page.
async fn head(api: &mut Api) -> Result<u64, Failure> {
    let page = page(api, u64::from(u32::MAX), PAGE).await?;
    Ok(checkpoint(&page)?.map_or(0, |checkpoint| checkpoint.seq))
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
