//! `tunnel audit head`: the trail's signed head, to be kept where the server cannot reach it. Whoever holds one can prove
//! later that the trail was cut, set back or written anew (THREATS AUD-02).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tunnel_proto::Code;
use tunnel_proto::audit::Checkpoint;
use tunnel_proto::ids::hex;

use super::read::{self, checkpoint, page};
use crate::api::Api;
use crate::args;
use crate::commands::{Context, time_text};
use crate::failure::Failure;
use crate::output;
use crate::signals::Signals;

/// How often a follower looks whether the trail has grown: what is written between two heads can still be cut off unseen.
const FOLLOW: Duration = Duration::from_secs(30);

/// Longest file of pins, in bytes: years of one a minute.
const MAX_FILE: u64 = 1024 * 1024 * 1024;

/// A signed head as a file keeps it: one line of JSON. Only what is signed counts; the rest is for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Pin {
    /// Number of the record.
    seq: u64,
    /// Its hash.
    hash: String,
    /// When it was signed, in seconds since 1970.
    time: u64,
    /// The signed checkpoint, base64url.
    checkpoint: String,
    /// The key that signed it.
    pub(super) key: String,
}

impl Pin {
    /// Reads what is signed.
    pub(super) fn signed(&self) -> Result<Checkpoint, Code> {
        let (message, key) = read::signed(&self.checkpoint, &self.key).map_err(|_| Code::TokenMalformed)?;
        let signed = Checkpoint::verify(&message, &key)?;
        match signed.seq == self.seq && hex(&signed.hash) == self.hash {
            true => Ok(signed),
            false => Err(Code::TokenSig),
        }
    }
}

/// Prints the head, and goes on if asked to.
///
/// # Errors
/// Tells why there is none.
pub(super) async fn head(context: &Context, args: args::AuditHead) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let (_, mut api) = context.api()?;
    tokio::select! {
        result = heads(context, &mut api, &args) => result,
        () = signals.any() => Err(Failure::interrupted()),
    }
}

async fn heads(context: &Context, api: &mut Api, args: &args::AuditHead) -> Result<(), Failure> {
    let mut last = None;
    loop {
        let pin = ask(api).await?;
        if last != Some(pin.seq) {
            last = Some(pin.seq);
            if let Some(file) = &args.save {
                save(file, &pin)?;
            }
            context.output.result(&pin, || text(&pin))?;
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW).await;
    }
}

async fn ask(api: &mut Api) -> Result<Pin, Failure> {
    // A page behind the end has no records, and the head all the same.
    let page = page(api, u64::from(u32::MAX), 1).await?;
    let signed = checkpoint(&page)?;
    let none = || Failure::new(Code::Protocol, read::WHAT).detail("the server gives no signed head");
    let signed = signed.ok_or_else(none)?;
    Ok(Pin {
        seq: signed.seq,
        hash: hex(&signed.hash),
        time: signed.time.as_secs(),
        checkpoint: page.checkpoint.ok_or_else(none)?,
        key: page.checkpoint_key,
    })
}

fn text(pin: &Pin) -> String {
    output::fields(&[
        ("records", pin.seq.to_string()),
        ("hash", pin.hash.clone()),
        ("signed", time_text(pin.time)),
        ("by key", pin.key.clone()),
    ])
}

fn save(file: &Path, pin: &Pin) -> Result<(), Failure> {
    let what = format!("could not add to `{}`", file.display());
    let failed = |detail: String| {
        Failure::new(Code::BadRequest, &what)
            .why("the file could not be written")
            .next("check its name, its mode and the free space")
            .detail(detail)
    };
    let line = serde_json::to_string(pin).map_err(|error| failed(error.to_string()))? + "\n";
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened
        .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| failed(error.to_string()))
}

/// Reads a file of pins, and checks the signature of each.
pub(super) fn pins(file: &Path) -> Result<Vec<(Pin, Checkpoint)>, Failure> {
    let what = format!("could not read `{}`", file.display());
    let bad = |why: &str, detail: String| {
        Failure::new(Code::BadRequest, &what)
            .why(why)
            .next("write it with `tunnel audit head --save FILE`")
            .detail(detail)
    };
    let unreadable = |error: std::io::Error| bad("the file could not be read", error.to_string());
    if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_FILE {
        return Err(bad("it is too large for a file of heads", String::new()));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let read = lines.map(|(line, number): (&str, usize)| {
        let pin: Pin = serde_json::from_str(line).map_err(|error| {
            bad(
                "it does not hold one head on each line",
                format!("line {number}: {error}"),
            )
        })?;
        let signed = pin.signed().map_err(|code| {
            bad(
                "a head in it is not what was signed",
                format!("line {number}: {code}"),
            )
        })?;
        Ok((pin, signed))
    });
    let pins = read.collect::<Result<Vec<_>, Failure>>()?;
    match pins.is_empty() {
        true => Err(bad("it holds no head", "there is no line".to_owned())),
        false => Ok(pins),
    }
}
