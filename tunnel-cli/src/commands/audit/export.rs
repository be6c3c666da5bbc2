//! `tunnel audit export`: the trail as lines of JSON.

use tunnel_proto::Code;
use tunnel_proto::api::AuditRecord;

use super::read::Reader;
use super::{FOLLOW, ocsf};
use crate::api::Api;
use crate::args::{self, Format};
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::{Output, write_stdout};
use crate::signals::Signals;

/// Writes the records.
///
/// # Errors
/// Tells what the server refuses.
pub(super) async fn export(context: &Context, args: args::AuditExport) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let (_, mut api) = context.api()?;
    tokio::select! {
        result = write(context.output, &mut api, &args) => result,
        () = signals.any() => Err(Failure::interrupted()),
    }
}

async fn write(output: Output, api: &mut Api, args: &args::AuditExport) -> Result<(), Failure> {
    let mut reader = Reader::new(api, &args.filter, args.after).await?;
    if !reader.is_whole() {
        output.note("this is a part of the trail: no chain can be proven by it");
    }
    loop {
        match reader.next(api).await? {
            Some(records) => write_stdout(&lines(&records, args.format)?)?,
            None if args.follow => tokio::time::sleep(FOLLOW).await,
            None => return Ok(()),
        }
    }
}

fn lines(records: &[AuditRecord], format: Format) -> Result<String, Failure> {
    let mut text = String::new();
    for record in records {
        let line = match format {
            Format::Json => serde_json::to_string(record),
            Format::Ocsf => serde_json::to_string(&ocsf::event(record)),
        };
        let line = line.map_err(|error| {
            Failure::new(Code::Internal, "could not write a record").detail(error.to_string())
        })?;
        text.push_str(&crate::escape::escape_json(&line));
        text.push('\n');
    }
    Ok(text)
}
