use super::*;
use tunnel_proto::UnixTime;
use tunnel_proto::api::audit_hash;
use tunnel_proto::cose::SigningKey;
use tunnel_proto::keys::Secret;

fn chain(count: u64) -> Vec<AuditRecord> {
    let mut prev = [0; 32];
    (1..=count)
        .map(|seq| {
            let body = format!("{{\"operator\":\"o{seq}\"}}");
            let hash = audit_hash(&prev, seq, seq, "access.denied", &body);
            let record = AuditRecord {
                seq,
                time_millis: seq,
                kind: "access.denied".into(),
                body,
                prev: hex(&prev),
                hash: hex(&hash),
            };
            prev = hash;
            record
        })
        .collect()
}

fn json(records: &[AuditRecord]) -> Vec<String> {
    let line = |record| serde_json::to_string(record).unwrap();
    records.iter().map(line).collect()
}

fn ocsf_lines(records: &[AuditRecord]) -> Vec<String> {
    records
        .iter()
        .map(|record| ocsf::event(record).to_string())
        .collect()
}

/// The head of a chain as `tunnel audit head --save` keeps it.
fn pin(records: &[AuditRecord]) -> String {
    let key = SigningKey::from_seed(&Secret::new([5; 32])).unwrap();
    let last = records.last().unwrap();
    let signed = Checkpoint {
        seq: last.seq,
        hash: unhex(&last.hash).unwrap(),
        time: UnixTime::from_secs(9),
    };
    let text = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        signed.sign(&key),
    );
    serde_json::json!({ "seq": signed.seq, "hash": last.hash, "time": 9, "checkpoint": text,
        "key": hex(key.verifying_key().as_bytes()) })
    .to_string()
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, lines: &[String]) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        path
    }

    fn verify(&self, lines: &[String], pin: Option<&[String]>) -> Result<Proof, Failure> {
        let file = self.write("export", lines);
        let pins = pin.map(|lines| super::pins(&self.write("pins", lines)));
        let known = Known {
            witness: None,
            pins: pins.transpose()?.unwrap_or_default(),
        };
        offline(&known, &file)
    }
}

#[track_caller]
fn assert_broken(outcome: Result<Proof, Failure>, text: &str) {
    let failure = outcome.unwrap_err();
    assert_eq!(
        (failure.code(), failure.exit_code()),
        ("E_AUDIT_BROKEN", 1),
        "{}",
        failure.to_text()
    );
    assert!(failure.to_text().contains(text), "{}", failure.to_text());
}

#[test]
fn a_part_of_a_chain_is_verified_from_its_beginning() {
    let place = Place::new();
    for lines in [json(&chain(9)[3..]), ocsf_lines(&chain(9)[3..])] {
        let proof = place.verify(&lines, None).unwrap();
        assert_eq!((proof.records, proof.first, proof.last), (6, 4, 9));
    }
}

/// THREATS AUD-01.
#[test]
fn what_was_done_to_an_export_is_named() {
    let place = Place::new();
    for write in [json, ocsf_lines] {
        let good = write(&chain(9));
        let with = |edit: &dyn Fn(&mut Vec<String>)| {
            let mut lines = good.clone();
            edit(&mut lines);
            place.verify(&lines, None)
        };
        assert_broken(
            with(&|lines| lines[4] = lines[4].replace("o5", "ox")),
            "audit record 5 was changed",
        );
        assert_broken(
            with(&|lines| drop(lines.remove(4))),
            "audit record 5 is missing: record 6",
        );
        assert_broken(
            with(&|lines| lines.swap(3, 5)),
            "audit record 4 is out of its order: record 6",
        );
        assert_broken(
            with(&|lines| lines[5] = lines[2].clone()),
            "audit record 6 is not what follows: record 3",
        );
        assert_eq!(with(&|_| {}).unwrap().last, 9);
    }
}

/// THREATS AUD-01: the fields that a reader of the events sees are bound to the record.
#[test]
fn a_field_of_an_event_that_is_not_the_records_is_found() {
    let place = Place::new();
    let mut lines = ocsf_lines(&chain(9));
    let mut event: Value = serde_json::from_str(&lines[4]).unwrap();
    event["severity_id"] = 1.into();
    lines[4] = event.to_string();
    assert_broken(place.verify(&lines, None), "audit record 5 was changed");
    event["metadata"]["log_version"] = "0".into();
    lines[4] = event.to_string();
    assert_eq!(place.verify(&lines, None).unwrap().not_compared, 1);
}

/// THREATS AUD-02.
#[test]
fn a_cut_tail_and_another_chain_are_found_by_a_pinned_head() {
    let (place, records) = (Place::new(), chain(9));
    let pins = [pin(&records[..2]), pin(&records[..7])];
    let verify = |lines: &[String]| place.verify(lines, Some(&pins));
    assert_eq!(verify(&json(&records)).unwrap().pinned, Some(7));
    assert_eq!(verify(&json(&records[..7])).unwrap().pinned, Some(7));
    assert_eq!(verify(&json(&records[6..])).unwrap().pinned, Some(7));
    assert_broken(
        verify(&json(&records[..6])),
        "audit record 7 is missing: the trail ends with record 6",
    );
    assert_broken(
        verify(&json(&records[..1])),
        "audit record 2 is missing: the trail ends with record 1",
    );
    let anew: Vec<_> = chain(9).into_iter().take(1).collect();
    let mut other = anew.clone();
    let (mut prev, mut seq) = (unhex(&anew[0].hash).unwrap(), 1);
    while seq < 9 {
        seq += 1;
        let hash = audit_hash(&prev, seq, seq, "kind", "{}");
        other.push(AuditRecord {
            seq,
            time_millis: seq,
            kind: "kind".into(),
            body: "{}".into(),
            prev: hex(&prev),
            hash: hex(&hash),
        });
        prev = hash;
    }
    assert_broken(
        verify(&json(&other)),
        "audit record 2 differs from the signed checkpoint",
    );
    // All heads are older than the file: that proves nothing, and is said.
    assert_eq!(verify(&json(&records[8..])).unwrap_err().exit_code(), 2);
}

#[test]
fn a_head_that_was_changed_is_refused() {
    let (place, records) = (Place::new(), chain(9));
    let good = pin(&records);
    for bad in [
        good.replace("\"seq\":9", "\"seq\":8"),
        good.replace(&records[8].hash, &records[7].hash),
        "{}".to_owned(),
        String::new(),
    ] {
        let failure = place.verify(&json(&records), Some(&[bad])).unwrap_err();
        assert_eq!(failure.exit_code(), 2, "{}", failure.to_text());
    }
    assert!(place.verify(&json(&records), Some(&[good])).is_ok());
}

#[test]
fn another_record_than_this_machine_verified_is_found() {
    let records = chain(9);
    let known = |hash: &str, seq| Known {
        witness: Some(Witness {
            key: String::new(),
            seq,
            hash: hash.to_owned(),
        }),
        pins: Vec::new(),
    };
    let check = |known: &Known| {
        let mut walk = Walk::new(known);
        records.iter().try_for_each(|record| walk.step(record)).unwrap();
        known.check_witness(&walk)
    };
    assert_eq!(check(&known(&records[4].hash, 5)).unwrap(), Some(5));
    assert!(
        check(&known(&records[3].hash, 5))
            .unwrap_err()
            .to_text()
            .contains("audit record 5 ")
    );
    assert!(
        check(&known(&records[8].hash, 12))
            .unwrap_err()
            .to_text()
            .contains("audit record 10 is missing")
    );
}

/// THREATS AUD-02: whoever holds the server signs that all was dropped, and writes the rest anew.
#[test]
fn behind_a_statement_of_drops_something_known_has_to_be_met() {
    let (place, records) = (Place::new(), chain(9));
    let witness = |seq: usize| Witness {
        key: String::new(),
        seq: seq as u64,
        hash: records[seq - 1].hash.clone(),
    };
    let check = |witness: Option<Witness>, heads: &[usize]| {
        let heads: Vec<_> = heads.iter().map(|last| pin(&records[..*last])).collect();
        let pins = match heads.is_empty() {
            true => Vec::new(),
            false => super::pins(&place.write("pins", &heads)).unwrap(),
        };
        let known = Known { witness, pins };
        let mut walk = Walk::new(&known);
        // The first four are dropped.
        walk.begin_at(Head {
            seq: 4,
            hash: unhex(&records[3].hash).unwrap(),
        });
        records[4..]
            .iter()
            .try_for_each(|record| walk.step(record))
            .unwrap();
        known.check_online(&walk)
    };
    let met = check(Some(witness(4)), &[]).unwrap();
    assert_eq!((met.witness, met.pinned, met.pins_skipped), (Some(4), None, 0));
    let met = check(Some(witness(3)), &[2, 6]).unwrap();
    assert_eq!((met.witness, met.pinned, met.pins_skipped), (None, Some(6), 1));
    assert!(check(None, &[]).is_ok(), "nothing was known");
    for (witness, heads) in [
        (Some(witness(3)), &[][..]),
        (Some(witness(3)), &[2]),
        (Some(witness(8)), &[2, 3]),
        (None, &[2]),
    ] {
        let failure = check(witness, heads).unwrap_err();
        assert_eq!(failure.exit_code(), 2, "{}", failure.to_text());
        assert!(failure.to_text().contains("`--pin`"), "{}", failure.to_text());
    }
}
