//! `tunnel audit verify`: proves that the trail is what was written, online or from a file.
//!
//! The chain shows every change in its middle. What it cannot show by itself, a tail that was cut or a server that was
//! set back, shows against the witness: the head that this machine verified last.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tunnel_proto::Code;
use tunnel_proto::api::AuditRecord;
use tunnel_proto::audit::{Broken, Fault, Head};
use tunnel_proto::code::Exit;
use tunnel_proto::ids::{hex, unhex};

use super::{checkpoint, page};
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
    /// The record up to which this machine had verified before.
    witness: Option<u64>,
}

/// Goes along the chain, and looks out for the witness.
struct Walk {
    first: Option<u64>,
    head: Head,
    records: u64,
    witness: Option<Witness>,
    witnessed: bool,
}

impl Walk {
    fn new(witness: Option<Witness>) -> Self {
        Self {
            first: None,
            head: Head::START,
            records: 0,
            witness,
            witnessed: false,
        }
    }

    fn step(&mut self, record: &AuditRecord) -> Result<(), Failure> {
        if self.first.is_none() {
            self.first = Some(record.seq);
            // A part of the trail is checked from its own beginning on.
            if record.seq > 1 {
                let hash = unhex(&record.prev).ok_or_else(|| {
                    broken(Broken {
                        seq: record.seq,
                        fault: Fault::Link,
                    })
                })?;
                self.head = Head {
                    seq: record.seq - 1,
                    hash,
                };
            }
        }
        self.head = self.head.then(record).map_err(broken)?;
        self.records += 1;
        if let Some(witness) = self.witness.as_ref().filter(|witness| witness.seq == record.seq) {
            if witness.hash != record.hash {
                return Err(broken(Broken {
                    seq: record.seq,
                    fault: Fault::Content,
                })
                .detail("this machine verified another record in its place before"));
            }
            self.witnessed = true;
        }
        Ok(())
    }

    fn proof(&self, checkpoint: Option<u64>) -> Proof {
        Proof {
            records: self.records,
            first: self.first.unwrap_or_default(),
            last: self.head.seq,
            hash: hex(&self.head.hash),
            checkpoint,
            witness: self
                .witness
                .as_ref()
                .filter(|_| self.witnessed)
                .map(|witness| witness.seq),
        }
    }
}

/// Verifies the server's chain, or a file.
///
/// # Errors
/// Names the first record that is not what was written.
pub async fn verify(context: &Context, args: args::AuditVerify) -> Result<(), Failure> {
    let proof = match args.file {
        Some(file) => offline(&context.home, &file)?,
        None => online(context).await?,
    };
    context.output.result(&proof, || text(&proof))
}

async fn online(context: &Context) -> Result<Proof, Failure> {
    let (_, mut api) = context.api()?;
    let witness = read_witness(&context.home)?;
    let mut walk = Walk::new(witness.clone());
    let (checkpoint, key) = loop {
        let page = page(&mut api, walk.head.seq, super::PAGE).await?;
        // Online, nothing may be missing at the start.
        if walk.first.is_none() && page.records.first().is_some_and(|record| record.seq != 1) {
            let found = page.records.first().map_or(0, |record| record.seq);
            return Err(broken(Broken {
                seq: 1,
                fault: Fault::Number { found },
            }));
        }
        for record in &page.records {
            walk.step(record)?;
        }
        if page.records.is_empty() {
            break (checkpoint(&page)?, page.checkpoint_key);
        }
    };
    if let Some(witness) = &witness {
        if witness.key != key {
            return Err(broken(Broken {
                seq: walk.head.seq,
                fault: Fault::Checkpoint,
            })
            .why("the server signs checkpoints with another key than before")
            .next(format!(
                "if the server was set up anew, remove `{WITNESS}` from the state directory"
            )));
        }
        if !walk.witnessed && witness.seq > 0 {
            return Err(broken(Broken {
                seq: witness.seq,
                fault: Fault::Checkpoint,
            })
            .detail(format!(
                "this machine has verified {} records before, and there are {}",
                witness.seq, walk.head.seq
            )));
        }
    }
    // The checkpoint comes with the page that is empty, so it can only be of this head or of one a moment later.
    match checkpoint {
        Some(signed) if signed.seq == walk.head.seq && signed.hash != walk.head.hash => {
            return Err(broken(Broken {
                seq: signed.seq,
                fault: Fault::Checkpoint,
            }));
        }
        Some(signed) if signed.seq < walk.head.seq => {
            return Err(broken(Broken {
                seq: signed.seq,
                fault: Fault::Checkpoint,
            })
            .detail("the checkpoint is older than the chain"));
        }
        _ => {}
    }
    let new = Witness {
        key,
        seq: walk.head.seq,
        hash: hex(&walk.head.hash),
    };
    let file = format!("key = {:?}\nseq = {}\nhash = {:?}\n", new.key, new.seq, new.hash);
    context.home.write(WITNESS, file.as_bytes())?;
    Ok(walk.proof(checkpoint.map(|checkpoint| checkpoint.seq)))
}

fn offline(home: &Home, file: &Path) -> Result<Proof, Failure> {
    let what = format!("could not read `{}`", file.display());
    let unreadable = |detail: String| {
        Failure::new(Code::BadRequest, &what)
            .why("it does not hold one record of JSON on each line")
            .next("write it with `tunnel --json audit list --after 0`")
            .detail(detail)
    };
    let opened = File::open(file).map_err(|error| {
        Failure::new(Code::BadRequest, &what)
            .why("the file could not be opened")
            .next("check its name and its mode")
            .detail(error.to_string())
    })?;
    let mut reader = BufReader::new(opened);
    let mut walk = Walk::new(read_witness(home).unwrap_or_default());
    let mut line = String::new();
    loop {
        line.clear();
        let length = (&mut reader)
            .take(MAX_LINE)
            .read_line(&mut line)
            .map_err(|error| unreadable(error.to_string()))?;
        if length == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let record: AuditRecord = serde_json::from_str(&line)
            .map_err(|error| unreadable(format!("after record {}: {error}", walk.head.seq)))?;
        walk.step(&record)?;
    }
    if walk.records == 0 {
        return Err(unreadable("it has no record".to_owned()));
    }
    Ok(walk.proof(None))
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
    match proof.checkpoint {
        Some(seq) => rows.push(("signed", format!("up to record {seq}"))),
        None => rows.push(("signed", "not checked: the file has no checkpoint".to_owned())),
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
    output::fields(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunnel_proto::api::audit_hash;

    fn chain(count: u64) -> Vec<AuditRecord> {
        let mut prev = [0; 32];
        (1..=count)
            .map(|seq| {
                let hash = audit_hash(&prev, seq, seq, "kind", "{}");
                let record = AuditRecord {
                    seq,
                    time_millis: seq,
                    kind: "kind".into(),
                    body: "{}".into(),
                    prev: hex(&prev),
                    hash: hex(&hash),
                };
                prev = hash;
                record
            })
            .collect()
    }

    fn walk(records: &[AuditRecord], witness: Option<Witness>) -> Result<Proof, Failure> {
        let mut walk = Walk::new(witness);
        records.iter().try_for_each(|record| walk.step(record))?;
        Ok(walk.proof(None))
    }

    #[test]
    fn a_part_of_a_chain_is_verified_from_its_beginning() {
        let proof = walk(&chain(9)[3..], None).unwrap();
        assert_eq!((proof.records, proof.first, proof.last), (6, 4, 9));
    }

    /// THREATS AUD-01, AUD-02.
    #[test]
    fn what_was_changed_is_named() {
        let mut records = chain(9);
        records[4].body = "{\"a\":1}".into();
        let failure = walk(&records, None).unwrap_err();
        assert_eq!((failure.code(), failure.exit_code()), ("E_AUDIT_BROKEN", 1));
        assert!(
            failure.to_text().contains("audit record 5 "),
            "{}",
            failure.to_text()
        );
        let witness = Witness {
            key: String::new(),
            seq: 5,
            hash: hex(&[1; 32]),
        };
        assert!(
            walk(&chain(9), Some(witness))
                .unwrap_err()
                .to_text()
                .contains("audit record 5 ")
        );
        let good = Witness {
            key: String::new(),
            seq: 5,
            hash: chain(5)[4].hash.clone(),
        };
        assert_eq!(walk(&chain(9), Some(good)).unwrap().witness, Some(5));
    }
}
