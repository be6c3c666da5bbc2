//! `tunnel audit verify`: proves that the trail is what was written, online or from a file.
//!
//! The chain shows every change in its middle. What it cannot show by itself, a tail that was cut or a server that was
//! set back, shows against what was known before: the head that this machine verified last, which is its witness, and
//! heads that were kept elsewhere (THREATS AUD-02).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunnel_proto::Code;
use tunnel_proto::api::AuditRecord;
use tunnel_proto::audit::{Broken, Checkpoint, Fault, Head};
use tunnel_proto::code::Exit;
use tunnel_proto::ids::{hex, unhex};

use super::ocsf;
use super::pin::{Pin, pins};
use super::read::{PAGE, checkpoint, dropped, page};
use crate::args;
use crate::commands::Context;
use crate::failure::Failure;
use crate::home::Home;
use crate::output;

/// File of the witness in the state directory.
const WITNESS: &str = "audit-witness.toml";

/// Longest line of a file, in bytes. A record's texts are bounded by the server's.
const MAX_LINE: u64 = 1024 * 1024;

/// The head that was verified last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Witness {
    /// The key that signed its checkpoint.
    key: String,
    /// Number of the record.
    seq: u64,
    /// Hash of the record.
    hash: String,
}

/// What was proven.
#[derive(Debug, Serialize)]
struct Proof {
    records: u64,
    first: u64,
    last: u64,
    hash: String,
    /// The record that the server's signed checkpoint names; `null` offline.
    checkpoint: Option<u64>,
    /// The last record that was dropped for its age, by the server's signed statement.
    dropped: Option<u64>,
    /// The record up to which this machine had verified before.
    witness: Option<u64>,
    /// The last record of which a pinned head tells that it was there.
    pinned: Option<u64>,
    /// How many pinned heads are older than the first record, so that they could not be looked at.
    pins_skipped: u64,
    /// Lines of another mapping than this program's, whose fields were not compared with their records.
    not_compared: u64,
}

/// Goes along the chain, and remembers the hashes that others know of.
struct Walk {
    begin: Option<Head>,
    head: Head,
    records: u64,
    wanted: BTreeSet<u64>,
    found: BTreeMap<u64, [u8; 32]>,
}

impl Walk {
    fn new(known: &Known) -> Self {
        let mut wanted: BTreeSet<_> = known.pins.iter().map(|(_, pin)| pin.seq).collect();
        wanted.extend(known.witness.as_ref().map(|witness| witness.seq));
        Self {
            begin: None,
            head: Head::START,
            records: 0,
            wanted,
            found: BTreeMap::new(),
        }
    }

    /// Begins after a record that others vouch for.
    fn begin_at(&mut self, head: Head) {
        self.begin = Some(head);
        self.head = head;
        self.keep();
    }

    fn step(&mut self, record: &AuditRecord) -> Result<(), Broken> {
        if self.begin.is_none() {
            // A part of the trail is checked from its own beginning on.
            let seq = record.seq;
            let hash = unhex(&record.prev).ok_or(Broken {
                seq,
                fault: Fault::Link,
            })?;
            self.begin_at(match seq {
                0 | 1 => Head::START,
                _ => Head { seq: seq - 1, hash },
            });
        }
        self.head = self.head.then(record)?;
        self.records += 1;
        self.keep();
        Ok(())
    }

    fn keep(&mut self) {
        if self.wanted.contains(&self.head.seq) {
            self.found.insert(self.head.seq, self.head.hash);
        }
    }

    /// Says whether a record is older than the first that there is.
    fn is_before(&self, seq: u64) -> bool {
        self.begin.is_some_and(|begin| seq < begin.seq)
    }
}

/// What to do when all that was known is of records that the server has dropped.
const NEXT_ONLINE: &str = "give a later head that was kept elsewhere, with `--pin`; if there is none, find out why so much was \
                           dropped, and only then remove `audit-witness.toml` from the state directory to begin anew";

/// What of the known was met in the chain.
#[derive(Debug)]
struct Met {
    witness: Option<u64>,
    pinned: Option<u64>,
    pins_skipped: u64,
}

/// What was known before.
struct Known {
    witness: Option<Witness>,
    pins: Vec<(Pin, Checkpoint)>,
}

impl Known {
    fn read(home: &Home, pin: Option<&Path>) -> Result<Self, Failure> {
        Ok(Self {
            witness: read_witness(home)?,
            pins: pin.map_or(Ok(Vec::new()), pins)?,
        })
    }

    /// As [`Known::read`], for a file: that needs no login, and where there is one, what it knows helps.
    fn offline(home: &Home, pin: Option<&Path>) -> Result<Self, Failure> {
        Ok(Self {
            witness: read_witness(home).unwrap_or_default(),
            pins: pin.map_or(Ok(Vec::new()), pins)?,
        })
    }

    /// Checks that the server signs with the key that it had.
    fn same_key(&self, key: &str, last: u64) -> Result<(), Failure> {
        let witness = self.witness.as_ref().map(|witness| witness.key.as_str());
        let pinned = self.pins.iter().map(|(pin, _)| pin.key.as_str());
        match witness.into_iter().chain(pinned).all(|known| known == key) {
            true => Ok(()),
            false => Err(broken(Broken {
                seq: last,
                fault: Fault::Checkpoint,
            })
            .why("the server signs checkpoints with another key than before")
            .next(format!(
                "if the server was set up anew, remove `{WITNESS}` from the state directory, and keep heads anew"
            ))),
        }
    }

    /// Checks that the witness's record is there; returns its number if it could be looked at.
    fn check_witness(&self, walk: &Walk) -> Result<Option<u64>, Failure> {
        let Some(witness) = self.witness.as_ref().filter(|witness| witness.seq > 0) else {
            return Ok(None);
        };
        if walk.is_before(witness.seq) {
            return Ok(None);
        }
        match walk.found.get(&witness.seq) {
            Some(found) if hex(found) == witness.hash => Ok(Some(witness.seq)),
            Some(_) => Err(broken(Broken {
                seq: witness.seq,
                fault: Fault::Content,
            })
            .detail("this machine verified another record in its place before")),
            None => Err(broken(Broken {
                seq: walk.head.seq + 1,
                fault: Fault::Tail { last: walk.head.seq },
            })
            .detail(format!(
                "this machine has verified {} records before, and there are {}",
                witness.seq, walk.head.seq
            ))),
        }
    }

    /// Checks that all pinned records are there; returns the last that could be looked at, and how many could not. If
    /// there are pins and none could, that proves nothing.
    fn check_pins(&self, walk: &Walk, next: &str) -> Result<(Option<u64>, u64), Failure> {
        let (mut last, mut skipped) = (None, 0);
        for (_, pin) in &self.pins {
            if walk.is_before(pin.seq) {
                skipped += 1;
                continue;
            }
            let found = match pin.seq {
                0 => Some([0; 32]),
                seq => walk.found.get(&seq).copied(),
            };
            pin.fits_record(found, walk.head.seq).map_err(|fault| {
                broken(fault).detail(format!("record {} was pinned on {}", pin.seq, pin.time))
            })?;
            last = last.max(Some(pin.seq));
        }
        if skipped > 0 && last.is_none() {
            let first = walk.begin.map_or(1, |begin| begin.seq + 1);
            return Err(
                Failure::new(Code::BadRequest, "could not prove the trail by the pinned heads")
                    .why(format!(
                        "it begins with record {first}, and all of them are older"
                    ))
                    .next(next),
            );
        }
        Ok((last, skipped))
    }

    /// Checks the server's whole trail, online. What stands behind a statement of drops has to meet what was known before:
    /// whoever holds the server can sign that all of it was dropped, and write the rest anew.
    fn check_online(&self, walk: &Walk) -> Result<Met, Failure> {
        let witness = self.check_witness(walk)?;
        let (pinned, pins_skipped) = self.check_pins(walk, NEXT_ONLINE)?;
        let before = self.witness.as_ref().map(|witness| witness.seq);
        if let Some(before) = before.filter(|before| walk.is_before(*before))
            && pinned.is_none()
        {
            let begin = walk.begin.map_or(0, |begin| begin.seq);
            return Err(
                Failure::new(Code::BadRequest, "could not prove that the trail goes on from before")
                    .why(format!(
                        "this machine has verified it up to record {before}, and the server has dropped all up to {begin}"
                    ))
                    .next(NEXT_ONLINE),
            );
        }
        Ok(Met {
            witness,
            pinned,
            pins_skipped,
        })
    }
}

/// Verifies the server's chain, or a file.
///
/// # Errors
/// Names the first record that is not what was written.
pub async fn verify(context: &Context, args: args::AuditVerify) -> Result<(), Failure> {
    let proof = match args.file {
        Some(file) => offline(&Known::offline(&context.home, args.pin.as_deref())?, &file)?,
        None => online(context, args.pin.as_deref()).await?,
    };
    context.output.result(&proof, || text(&proof))
}

async fn online(context: &Context, pin: Option<&Path>) -> Result<Proof, Failure> {
    let (_, mut api) = context.api()?;
    let known = Known::read(&context.home, pin)?;
    let mut walk = Walk::new(&known);
    let mut gone = None;
    let (signed, key) = loop {
        let page = page(&mut api, walk.head.seq, PAGE).await?;
        if walk.begin.is_none() {
            // Online, nothing may be missing at the start but what the server has signed as dropped.
            gone = dropped(&page)?;
            walk.begin_at(gone.map_or(Head::START, |gone| gone.head()));
        }
        // What was dropped since the page was read is vouched for.
        let begin = walk.begin.map_or(0, |begin| begin.seq);
        page.records
            .iter()
            .filter(|record| record.seq > begin)
            .try_for_each(|record| walk.step(record))
            .map_err(broken)?;
        if page.records.is_empty() {
            break (checkpoint(&page)?, page.checkpoint_key);
        }
    };
    known.same_key(&key, walk.head.seq)?;
    let met = known.check_online(&walk)?;
    // The checkpoint comes with the page that is empty, so it can only be of this head or of one a moment later.
    if let Some(signed) = signed
        && signed.seq <= walk.head.seq
        && (signed.seq, signed.hash) != (walk.head.seq, walk.head.hash)
    {
        return Err(broken(Broken {
            seq: signed.seq,
            fault: Fault::Checkpoint,
        }));
    }
    let (seq, hash) = (walk.head.seq, hex(&walk.head.hash));
    let file = format!("key = {key:?}\nseq = {seq}\nhash = {hash:?}\n");
    context.home.write(WITNESS, file.as_bytes())?;
    Ok(Proof {
        checkpoint: signed.map(|signed| signed.seq),
        dropped: gone.map(|gone| gone.last),
        witness: met.witness,
        pinned: met.pinned,
        pins_skipped: met.pins_skipped,
        ..walk.proof()
    })
}

fn offline(known: &Known, file: &Path) -> Result<Proof, Failure> {
    let mut lines = Lines::open(file)?;
    let mut walk = Walk::new(known);
    let mut not_compared = 0;
    while let Some(line) = lines.next(walk.head.seq)? {
        if let Err(fault) = walk.step(&line.record) {
            return Err(broken(fault.with_rest(lines.numbers())));
        }
        match line.mapped {
            Mapped::Same => {}
            Mapped::Unknown => not_compared += 1,
            Mapped::Changed => {
                return Err(broken(Broken {
                    seq: line.record.seq,
                    fault: Fault::Content,
                })
                .detail("the fields of the event are not those of the record in its `raw_data`"));
            }
        }
    }
    if walk.records == 0 {
        return Err(lines.unreadable("it has no record".to_owned()));
    }
    // What this machine verified may be of a later time than the file: only another record in its place is a fault.
    let seen = known
        .witness
        .as_ref()
        .filter(|witness| witness.seq <= walk.head.seq);
    let witness = seen.map_or(Ok(None), |_| known.check_witness(&walk))?;
    let next = "export from an earlier record on, with `--after`";
    let (pinned, pins_skipped) = known.check_pins(&walk, next)?;
    Ok(Proof {
        witness,
        pinned,
        pins_skipped,
        not_compared,
        ..walk.proof()
    })
}

/// A line of an export.
struct Line {
    record: AuditRecord,
    mapped: Mapped,
}

/// How the fields of a line go with the record in it.
enum Mapped {
    Same,
    Changed,
    Unknown,
}

impl Line {
    fn read(text: &str) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_str(text)?;
        let Some(raw) = value.get("raw_data").and_then(Value::as_str) else {
            let record = serde_json::from_value(value)?;
            return Ok(Self {
                record,
                mapped: Mapped::Same,
            });
        };
        let record = serde_json::from_str(raw)?;
        let mapped = match &value["metadata"]["log_version"] {
            Value::String(mapping) if mapping != ocsf::MAPPING => Mapped::Unknown,
            _ if ocsf::event(&record) == value => Mapped::Same,
            _ => Mapped::Changed,
        };
        Ok(Self { record, mapped })
    }
}

/// The lines of a file.
struct Lines {
    reader: BufReader<File>,
    what: String,
}

impl Lines {
    fn open(file: &Path) -> Result<Self, Failure> {
        let what = format!("could not read `{}`", file.display());
        let opened = File::open(file).map_err(|error| {
            Failure::new(Code::BadRequest, &what)
                .why("the file could not be opened")
                .next("check its name and its mode")
                .detail(error.to_string())
        })?;
        Ok(Self {
            reader: BufReader::new(opened),
            what,
        })
    }

    fn unreadable(&self, detail: String) -> Failure {
        Failure::new(Code::BadRequest, &self.what)
            .why("it does not hold one record of JSON on each line")
            .next("write it with `tunnel audit export`")
            .detail(detail)
    }

    /// Reads the next line; `after` is the record before it, for who has to look for a bad one.
    fn next(&mut self, after: u64) -> Result<Option<Line>, Failure> {
        let mut text = String::new();
        loop {
            text.clear();
            let read = (&mut self.reader).take(MAX_LINE).read_line(&mut text);
            let bad = |error: String| self.unreadable(format!("after record {after}: {error}"));
            match read.map_err(|error| bad(error.to_string()))? {
                0 => return Ok(None),
                _ if text.trim().is_empty() => {}
                _ => {
                    return Line::read(&text)
                        .map(Some)
                        .map_err(|error| bad(error.to_string()));
                }
            }
        }
    }

    /// Returns the numbers of the records that follow, as far as they can be read.
    fn numbers(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.next(0).ok().flatten())
            .map(|line| line.record.seq)
            .collect()
    }
}

impl Walk {
    fn proof(&self) -> Proof {
        Proof {
            records: self.records,
            first: self.begin.map_or(0, |begin| begin.seq + 1),
            last: self.head.seq,
            hash: hex(&self.head.hash),
            checkpoint: None,
            dropped: None,
            witness: None,
            pinned: None,
            pins_skipped: 0,
            not_compared: 0,
        }
    }
}

fn read_witness(home: &Home) -> Result<Option<Witness>, Failure> {
    if !home.dir().exists() {
        return Ok(None);
    }
    let Some(text) = home.read_optional(WITNESS)? else {
        return Ok(None);
    };
    toml::from_str(&text).map(Some).map_err(|error| {
        Failure::new(
            Code::BadRequest,
            "could not read what this machine verified before",
        )
        .why(format!("`{WITNESS}` in the state directory is damaged"))
        .next("find out who changed it; remove it to start anew")
        .detail(error.message().to_owned())
    })
}

/// Makes the failure of a chain that is not what was written.
fn broken(broken: Broken) -> Failure {
    Failure::new(Code::Protocol, "the audit trail is not whole")
        .code_text("E_AUDIT_BROKEN")
        .why(broken.to_string())
        .next("keep a copy of the store and of this output, and find out who could write to it")
        .exit(Exit::Failed as u8)
}

fn text(proof: &Proof) -> String {
    let mut rows = vec![
        (
            "verified",
            format!(
                "{} records, from {} to {}",
                proof.records, proof.first, proof.last
            ),
        ),
        ("head", proof.hash.clone()),
    ];
    if let Some(last) = proof.dropped {
        rows.push((
            "dropped",
            format!("records 1 to {last} for their age, as the server has signed"),
        ));
    }
    match proof.checkpoint {
        Some(seq) => rows.push(("signed", format!("up to record {seq}"))),
        None => rows.push(("signed", "not checked: the file has no checkpoint".to_owned())),
    }
    if let Some(seq) = proof.pinned {
        rows.push(("pinned", format!("up to record {seq}")));
    }
    if proof.pins_skipped > 0 {
        let text = format!(
            "{} heads, which are older than the first record",
            proof.pins_skipped
        );
        rows.push(("not checked", text));
    }
    match proof.witness {
        Some(seq) => rows.push((
            "same as before",
            format!("up to record {seq}, which this machine had verified"),
        )),
        None => rows.push((
            "same as before",
            "not known: this machine has verified none of these before".to_owned(),
        )),
    }
    if proof.not_compared > 0 {
        let text = format!(
            "the fields of {} events, which another release wrote",
            proof.not_compared
        );
        rows.push(("not compared", text));
    }
    output::fields(&rows)
}

#[cfg(test)]
#[path = "verify/tests.rs"]
mod tests;
