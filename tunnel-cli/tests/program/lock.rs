//! The owner's keys, requests, and permits: files on one machine, without any server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::lock::{Lock, Permit};

use crate::login::{ANA, DAY, Fleet};
use crate::place::{Place, Run};

/// Runs `tunnel --json lock` in the place's directory.
fn lock(place: &Place, args: &[&str]) -> Run {
    let mut command = place.command(&["--json", "lock"]);
    Run::of(command.args(args).current_dir(place.path("")).output().unwrap())
}

#[track_caller]
fn answer(run: &Run) -> Value {
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    serde_json::from_str(&run.stdout).unwrap()
}

/// Checks that a run was refused as wrong use, with this in its reason.
#[track_caller]
fn refused(run: &Run, why: &str) {
    assert_eq!(run.code, 2, "{}", run.stderr);
    let error = run.error();
    assert_eq!(error["code"], "E_BAD_REQUEST");
    assert!(error["why"].as_str().unwrap().contains(why), "{error}");
    assert!(!error["next"].as_str().unwrap().is_empty());
}

/// A place with three keys, of which two sign, and ana's login.
fn with_lock() -> Place {
    let place = Place::new();
    answer(&lock(&place, &["init", "--keys", "3", "--threshold", "2"]));
    Fleet::new().log_in(&place, ANA, SystemClock.now(), DAY);
    place
}

fn read<T: std::str::FromStr<Err: std::fmt::Debug>>(file: &Path) -> T {
    std::fs::read_to_string(file).unwrap().parse().unwrap()
}

#[test]
fn keys_are_made_once_and_for_their_owner_alone() {
    let place = with_lock();
    for number in 1..=3 {
        let key = place.path(&format!("lock-{number}.key"));
        let mode = key.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(std::fs::read_to_string(&key).unwrap().starts_with("tnlkey1_"));
    }
    let made: Lock = read(&place.path("fleet.lock"));
    assert_eq!((made.threshold(), made.keys().len()), (2, 3));
    let shown = answer(&lock(&place, &["show", "fleet.lock"]));
    assert_eq!(
        (&shown["threshold"], shown["keys"].as_array().unwrap().len()),
        (&2.into(), 3)
    );

    refused(
        &lock(&place, &["init", "--keys", "1", "--threshold", "1"]),
        "is there already",
    );
    refused(
        &lock(
            &place,
            &["init", "--keys", "2", "--threshold", "3", "--out", "state"],
        ),
        "threshold",
    );
    assert!(!place.path("state/lock-1.key").exists(), "nothing is left of it");
    assert_eq!(read::<Lock>(&place.path("fleet.lock")), made);
    assert_eq!(
        lock(&place, &["init", "--keys", "17", "--threshold", "2"]).code,
        2
    );
}

#[test]
fn a_request_becomes_a_permit_by_enough_signatures() {
    let place = with_lock();
    let request = [
        "request", "pump-17", "plc", "ssh", "plc", "--for", "2h", "--after", "1h",
    ];
    let shown = answer(&lock(&place, &request));
    assert_eq!(shown["file"], "pump-17.permit");
    assert_eq!(
        (&shown["operator"], &shown["device"]),
        (&"ana".into(), &"pump-17".into())
    );
    assert_eq!(shown["services"], serde_json::json!(["plc", "ssh"]));
    let (from, until) = (shown["from"].as_u64().unwrap(), shown["until"].as_u64().unwrap());
    assert_eq!(until - from, 7200);
    assert!(from > SystemClock.now().as_secs() + 3000);
    refused(&lock(&place, &request), "is there already");

    let opens = || {
        let shown = answer(&lock(&place, &["show", "pump-17.permit", "--lock", "fleet.lock"]));
        let signers = shown["signed_by"].as_array().unwrap().len();
        (signers, shown["opens"].as_bool().unwrap())
    };
    assert_eq!(opens(), (0, false));
    for (key, expected) in [
        ("lock-3.key", (1, false)),
        ("lock-3.key", (1, false)),
        ("lock-1.key", (2, true)),
    ] {
        answer(&lock(&place, &["sign", "pump-17.permit", "--key", key]));
        assert_eq!(opens(), expected, "{key}");
    }
    let (permit, made): (Permit, Lock) = (
        read(&place.path("pump-17.permit")),
        read(&place.path("fleet.lock")),
    );
    assert_eq!(made.verify(&permit), Ok(()));
    let key: String = permit.access().unwrap().holder_key.to_string();
    assert_eq!(shown["holder_key"], key.as_str());
}

#[test]
fn another_root_is_asked_for_by_its_certificate() {
    let (place, next) = (with_lock(), Fleet::new());
    std::fs::write(place.path("next.pem"), &next.root).unwrap();
    let shown = answer(&lock(&place, &["request-root", "next.pem"]));
    assert_eq!(
        (&shown["permits"], &shown["file"]),
        (&"new root".into(), &"root.permit".into())
    );
    let keys = ["--key", "lock-1.key", "--key", "lock-2.key"];
    answer(&lock(&place, &[&["sign", "root.permit"][..], &keys].concat()));
    let (permit, made): (Permit, Lock) = (read(&place.path("root.permit")), read(&place.path("fleet.lock")));
    let root = tunnel_certs::Trust::from_pem(&next.root).unwrap().fingerprint();
    assert_eq!(made.opens_root(&permit, &root, SystemClock.now()), Ok(()));
    refused(
        &lock(&place, &["request-root", "fleet.lock", "--out", "x"]),
        "is no root",
    );
}

#[test]
fn wrong_files_are_refused_and_stay_as_they_are() {
    let place = with_lock();
    answer(&lock(&place, &["request", "pump-17", "plc"]));
    let request = std::fs::read(place.path("pump-17.permit")).unwrap();
    let key = place.path("lock-1.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let sign = ["sign", "pump-17.permit", "--key"];
    let with = |key| lock(&place, &[&sign[..], &[key]].concat());
    refused(&with("lock-1.key"), "644");
    refused(&with("nothing.key"), "nothing.key");
    refused(&with("fleet.lock"), "`tnlkey1_`");
    refused(
        &lock(&place, &["sign", "fleet.lock", "--key", "lock-2.key"]),
        "`tnlpermit1_`",
    );
    refused(&lock(&place, &["show", "lock-2.key"]), "`tnlpermit1_`");
    refused(
        &lock(&place, &["request", "pump-18", "plc", "--for", "32d"]),
        "31 days",
    );
    assert_eq!(std::fs::read(place.path("pump-17.permit")).unwrap(), request);
    assert!(!place.path("pump-18.permit").exists());
    let bad = place.run(&["--json", "connect", "pump-17", "plc", "--permit", "/nothing"]);
    refused(&bad, "/nothing");
    let bad = place.run(&["--json", "ssh", "--permit", "/nothing", "pump-17"]);
    assert_eq!(
        (bad.code, bad.error()["code"].as_str()),
        (255, Some("E_BAD_REQUEST"))
    );
}
