//! The audit trail: what is in it, and that nobody can edit it unseen (THREATS AUD).

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tunnel_e2e::service::Service;
use tunnel_e2e::{Fleet, Operator};
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::UnixTime;
use tunnel_server::config::{Config, DataDir};
use tunnel_server::run::Server;

#[test]
fn a_session_leaves_its_trail_in_order() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(
        fleet
            .device("pump-17")
            .like_sshd(&echo.target())
            .service("admin", &echo.target()),
    );
    let technician = fleet.technician("ana");
    technician
        .tunnel_with(&["connect", "pump-17", "ssh"], b"hello")
        .ok();
    technician.refusal(&["connect", "pump-17", "admin"]);

    let kinds = tunnel_e2e::until_ok("the whole trail", Duration::from_secs(20), || {
        let trail = fleet.admin.audit();
        let kinds: Vec<_> = trail
            .iter()
            .map(|record| record["kind"].as_str().unwrap().to_owned())
            .collect();
        let wanted = [
            "server.started",
            "operator.enrolled",
            "device.enrolled",
            "device.linked",
            "tunnel.opened",
            "tunnel.ended",
            "tunnel.denied",
        ];
        match wanted
            .iter()
            .find(|kind| !kinds.iter().any(|found| found == *kind))
        {
            None => Ok(kinds),
            Some(missing) => Err(format!("there is no `{missing}` in {kinds:?}")),
        }
    });
    let place = |kind: &str| kinds.iter().position(|found| found == kind).unwrap();
    assert!(place("device.enrolled") < place("tunnel.opened"), "{kinds:?}");
    assert!(place("tunnel.opened") < place("tunnel.ended"), "{kinds:?}");

    let trail = fleet.admin.audit();
    let numbers: Vec<_> = trail.iter().filter_map(|record| record["seq"].as_u64()).collect();
    assert!(
        numbers
            .iter()
            .zip(1..)
            .all(|(number, expected)| *number == expected),
        "{numbers:?}"
    );
    fleet.admin.tunnel(&["audit", "verify"]).ok();
}

/// THREATS I11, AUD-08: what is secret stays so.
#[test]
fn no_secret_is_in_logs_or_trail() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let code = fleet.server.enrol_code(&["--device", "pump-17"]);
    let mut agent = fleet
        .device("pump-17")
        .service("echo", &echo.target())
        .enrol(&code);
    agent.start();
    fleet.admin.wait_for_link("pump-17");
    fleet
        .admin
        .tunnel_with(&["connect", "pump-17", "echo"], b"hello")
        .ok();

    let trail = fleet.admin.tunnel(&["--json", "audit", "--after", "0"]).ok();
    let secret = code.trim_start_matches("tnl1_");
    for (name, text) in [
        ("server", fleet.server.process().said()),
        ("agent", agent.process().said()),
        ("trail", trail),
    ] {
        assert!(
            !text.contains(&secret[..40]),
            "the code is in what the {name} says"
        );
        assert!(!text.contains("PRIVATE KEY"), "a key is in what the {name} says");
    }
}

/// THREATS AUD-01.
#[test]
fn verify_names_the_record_that_was_edited_in_the_store() {
    let mut fleet = Fleet::on_loopback();
    for name in ["mallory-the-first", "bystander"] {
        fleet.technician(name);
    }
    fleet.admin.tunnel(&["audit", "verify"]).ok();
    let trail = fleet.admin.audit();
    let edited = trail
        .iter()
        .find(|record| record["body"].to_string().contains("mallory-the-first"))
        .unwrap();
    let number = edited["seq"].as_u64().unwrap();

    fleet.server.stop();
    let store = fleet.server.data().join("store.db");
    let bytes = std::fs::read(&store).unwrap();
    let changed = replace_all(&bytes, b"mallory-the-first", b"innocent-the-last");
    assert_ne!(bytes, changed, "the store holds the records in plain text");
    std::fs::write(&store, changed).unwrap();

    // A server that notices it at its start may refuse to serve; one that starts must let it be found.
    fleet.server.restart();
    let output = fleet.admin.tunnel(&["audit", "verify"]);
    assert_ne!(output.code, 0, "{}", output.said());
    assert!(
        output.said().contains(&number.to_string()),
        "{number}: {}",
        output.said()
    );
}

/// THREATS AUD-01, AUD-02: an export is proven without the server, in either form, and a tail that is cut off is found by a
/// head that was kept elsewhere.
#[test]
fn an_export_is_proven_by_a_kept_head_without_the_server() {
    let mut fleet = Fleet::on_loopback();
    fleet.technician("ana");
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fleet
        .admin
        .tunnel(&["audit", "head", "--save", &path("heads")])
        .ok();
    let exports = ["json", "ocsf"].map(|format| {
        let lines = fleet.admin.tunnel(&["audit", "export", "--format", format]).ok();
        std::fs::write(path(format), &lines).unwrap();
        lines
    });
    fleet
        .admin
        .tunnel(&["audit", "verify", "--pin", &path("heads")])
        .ok();
    fleet.server.stop();
    for (format, lines) in ["json", "ocsf"].into_iter().zip(exports) {
        let verify = [
            "audit",
            "verify",
            "--file",
            &path(format),
            "--pin",
            &path("heads"),
        ];
        fleet.admin.tunnel(&verify).ok();
        let last = lines.lines().count();
        let cut: String = lines
            .lines()
            .take(last - 3)
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(path(format), cut).unwrap();
        let said = fleet.admin.refusal(&verify);
        assert_eq!(said.code, "E_AUDIT_BROKEN");
        // Without the head, nothing shows.
        fleet.admin.tunnel(&verify[..4]).ok();
    }
}

#[test]
fn records_are_found_by_who_and_what_is_in_them() {
    let fleet = Fleet::on_loopback();
    for name in ["ana", "mariana"] {
        fleet.technician(name);
    }
    let list = |words: &[&str]| -> Vec<serde_json::Value> {
        let text = fleet
            .admin
            .tunnel(&[&["--json", "audit", "list"], words].concat())
            .ok();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let ana = list(&["--operator", "ana"]);
    assert!(!ana.is_empty());
    assert!(
        ana.iter()
            .all(|record| !record["body"].to_string().contains("mariana")),
        "{ana:?}"
    );
    assert!(
        ana.iter().any(|record| record["kind"] == "operator.enrolled"),
        "{ana:?}"
    );
    let enrolled = list(&["--kind", "operator.enrolled"]);
    assert_eq!(enrolled.len(), 3, "the first operator and two more: {enrolled:?}");
    assert_eq!(
        list(&["--kind", "operator.enrolled", "--last", "1"]),
        enrolled[2..]
    );
    assert_eq!(list(&["--kind", "operator", "--since", "1h"]).len(), 3);
    assert_eq!(list(&["--kind", "operator", "--until", "1h"]).len(), 0);
    assert_eq!(list(&["--device", "pump-17"]).len(), 0);
}

/// Each session's record speaks for itself: who, where, by which right, how much, and what ended it.
#[test]
fn a_session_has_its_whole_record_and_who_used_it_sees_it() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
    let (ana, eve) = (fleet.technician("ana"), fleet.technician("eve"));
    ana.tunnel_with(&["connect", "pump-17", "ssh", "--reason", "INC-7"], b"hello")
        .ok();
    let live = ana.forward("pump-17", "ssh");
    let mut held = std::net::TcpStream::connect(live.address()).unwrap();
    std::io::Write::write_all(&mut held, b"still here").unwrap();
    std::io::Read::read_exact(&mut held, &mut [0; 10]).unwrap();
    fleet.admin.tunnel(&["cut", "--device", "pump-17"]).ok();

    let sessions = tunnel_e2e::until("both sessions", Duration::from_secs(20), || {
        let sessions = ana.json(&["sessions"]);
        (sessions.as_array().unwrap().len() == 2).then_some(sessions)
    });
    let (cut, done) = (&sessions[0], &sessions[1]);
    assert_eq!(
        (&done["ended_by"], &done["cause"]),
        (&"both".into(), &serde_json::Value::Null)
    );
    assert_eq!(
        (&cut["ended_by"], &cut["cause"]),
        (&"tunnel".into(), &"E_CUT".into())
    );
    assert_eq!((&done["bytes_in"], &done["bytes_out"]), (&5.into(), &5.into()));
    assert_eq!(cut["bytes_in"], 10);
    for session in [cut, done] {
        assert_eq!(session["operator"], "ana");
        assert_eq!(session["device"], "pump-17");
        assert_eq!(session["service"], "ssh");
        let (started, ended) = (
            session["started_at"].as_u64().unwrap(),
            session["ended_at"].as_u64().unwrap(),
        );
        assert!(started <= ended + 1 && started > 1_700_000_000, "{session}");
        let opening = &session["opening"];
        assert_eq!(opening["policy_revision"], 1, "{session}");
        assert_eq!(opening["grant"].as_str().map(str::len), Some(64), "{session}");
        assert_eq!(opening["source"], "127.0.0.1");
        for leg in ["source", "destination"] {
            let paths = session["paths"].as_array().unwrap();
            let path = paths.iter().find(|path| path["leg"] == leg).unwrap();
            assert!(
                path["address"].as_str().unwrap().starts_with("127.0.0.1:"),
                "{session}"
            );
        }
    }
    assert_eq!(done["opening"]["reason"], "INC-7");
    // The same stands in the tunnel's own record.
    let trail = fleet.admin.audit();
    let ended = trail
        .iter()
        .rev()
        .find(|record| record["kind"] == "tunnel.ended")
        .unwrap();
    let ended: serde_json::Value = serde_json::from_str(ended["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&ended["reason"], &ended["opening"]),
        (&"E_CUT".into(), &cut["opening"])
    );
    assert!(
        !ended["traffic"]["paths"].as_array().unwrap().is_empty(),
        "{ended}"
    );
    // What is another's is as if it never was; an auditor sees all.
    assert_eq!(
        eve.json(&["sessions", "--device", "pump-17"]),
        serde_json::json!([])
    );
    assert_eq!(
        eve.json(&["sessions", "--operator", "ana"]),
        serde_json::json!([])
    );
    let seen = fleet
        .admin
        .json(&["sessions", "--operator", "ana", "--device", "pump-17"]);
    assert_eq!(seen, sessions);
    let long = ana.tunnel(&["sessions", "--long"]).ok();
    assert!(long.contains("INC-7") && long.contains("E_CUT"), "{long}");
}

/// Has the server drop what is older than a time, by its own retention on its own store; how many records.
fn drop_older(fleet: &Fleet, time: UnixTime) -> u64 {
    let data = DataDir::new(fleet.server.data());
    let config = Config::load(&data).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::start(&data, config).await.unwrap();
        let dropped = server.drop_audit(day, time.after(day)).await.unwrap();
        server.shutdown().await;
        dropped
    })
}

/// Takes one record out of the store, as who can write to its file does.
fn take_out(fleet: &Fleet, number: u64) {
    let store = SqliteConnectOptions::new().filename(fleet.server.data().join("store.db"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut store = store.connect().await.unwrap();
        for statement in [
            "DROP TRIGGER audit_is_not_deleted".to_owned(),
            format!("DELETE FROM audit WHERE seq = {number}"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&mut store)
                .await
                .unwrap();
        }
        store.close().await.unwrap();
    });
}

/// THREATS AUD-01, AUD-02: the server's signature vouches for what it dropped for its age, and for not one record more.
#[test]
fn what_was_dropped_for_its_age_is_vouched_for_and_one_record_more_is_missed() {
    let mut fleet = Fleet::on_loopback();
    fleet.technician("ana");
    let now = SystemClock.now();
    let later = tunnel_e2e::until("the next second", Duration::from_secs(20), || {
        (SystemClock.now() > now).then(|| SystemClock.now())
    });
    fleet.technician("bo");
    let code = fleet
        .server
        .enrol_code(&["--operator", "auditor", "--group", "admins"]);
    let whole = fleet.admin.json(&["audit", "verify"]);
    assert_eq!(
        (&whole["first"], &whole["dropped"]),
        (&1.into(), &serde_json::Value::Null)
    );
    fleet.server.stop();
    let dropped = drop_older(&fleet, later);
    assert!(dropped > 0);
    fleet.server.restart();

    let newcomer = Operator::login("auditor", fleet.devices_place(), fleet.directory(), &code);
    for auditor in [&fleet.admin, &newcomer] {
        let proof = auditor.json(&["audit", "verify"]);
        assert_eq!(
            (&proof["first"], &proof["dropped"]),
            (&(dropped + 1).into(), &dropped.into()),
            "{proof}"
        );
    }
    let said = fleet.admin.tunnel(&["audit", "verify"]).ok();
    assert!(
        said.contains(&format!("records 1 to {dropped} for their age")),
        "{said}"
    );
    let kinds = |kind: &str| {
        fleet
            .admin
            .audit()
            .iter()
            .filter(|record| record["kind"] == kind)
            .count()
    };
    assert_eq!(
        (kinds("audit.dropped"), kinds("operator.enrolled")),
        (1, 2),
        "bo and the newcomer are left"
    );

    fleet.server.stop();
    take_out(&fleet, dropped + 1);
    fleet.server.restart();
    // Who has verified it before is told, and so is who never has.
    std::fs::remove_file(newcomer.home().join("audit-witness.toml")).unwrap();
    for auditor in [&fleet.admin, &newcomer] {
        let refusal = auditor.refusal(&["audit", "verify"]);
        assert_eq!((refusal.exit, refusal.code.as_str()), (1, "E_AUDIT_BROKEN"));
        let named = format!(
            "record {} is missing: record {} stands in its place",
            dropped + 1,
            dropped + 2
        );
        assert!(refusal.text.contains(&named), "{}", refusal.text);
    }
}

fn replace_all(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut changed = bytes.to_vec();
    let mut at = 0;
    while let Some(place) = changed[at..]
        .windows(from.len())
        .position(|window| window == from)
    {
        changed[at + place..at + place + to.len()].copy_from_slice(to);
        at += place + to.len();
    }
    changed
}
