//! The audit trail under those who would change it, cut it, stop it, bury what they did in it, or forge lines of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tunnel_e2e::api::Api;
use tunnel_e2e::operator::Operator;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::{Fleet, needs, until_ok};

use crate::world::{PATIENCE, api, bodies, scaled, wait_for};

/// A file of a test, by its path as text.
struct File(PathBuf);

impl File {
    fn new(fleet: &Fleet, name: &str) -> Self {
        Self(fleet.directory().join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn write(&self, lines: &[String]) {
        std::fs::write(&self.0, lines.join("\n") + "\n").unwrap();
    }
}

fn export(operator: &Operator, format: &str) -> Vec<String> {
    let text = operator.tunnel(&["audit", "export", "--format", format]).ok();
    text.lines().map(str::to_owned).collect()
}

fn open(api: &Api, device: &str) -> Value {
    let wish = json!({ "device": device, "services": ["ssh"] });
    api.request("POST", "/v1/tunnels", Some(&wish)).unwrap().body
}

#[test]
fn aud_01_every_edit_of_an_export_is_found() {
    let fleet = Fleet::on_loopback();
    fleet.technician("ana");
    let (file, heads) = (File::new(&fleet, "export"), File::new(&fleet, "heads"));
    fleet
        .admin
        .tunnel(&["audit", "head", "--save", heads.path()])
        .ok();
    for format in ["json", "ocsf"] {
        let good = export(&fleet.admin, format);
        let verify = ["audit", "verify", "--file", file.path(), "--pin", heads.path()];
        file.write(&good);
        fleet.admin.tunnel(&verify).ok();
        for number in 0..scaled(12) as usize {
            let (mut bad, at) = (good.clone(), number * 7 % good.len());
            let next = (at + 1) % good.len();
            match number % 6 {
                0 => bad[at] = with_another_digit(&good[at]),
                1 => drop(bad.remove(at)),
                2 => bad.insert(at, good[at].clone()),
                3 => bad.swap(at, next),
                4 => bad[at] = good[next].clone(),
                _ => bad.truncate(at),
            }
            assert_ne!(bad, good);
            file.write(&bad);
            let output = fleet.admin.tunnel(&verify);
            assert_ne!(output.code, 0, "{format}, edit {number}: {}", output.said());
        }
    }
}

/// Changes the first digit of a line.
fn with_another_digit(line: &str) -> String {
    let at = line.find(|c: char| c.is_ascii_digit()).unwrap();
    let digit = (line.as_bytes()[at] - b'0' + 1) % 10;
    format!("{}{digit}{}", &line[..at], &line[at + 1..])
}

#[test]
fn aud_02_a_cut_end_and_an_older_copy_are_found_by_a_head_that_was_kept() {
    let mut fleet = Fleet::on_loopback();
    let heads = File::new(&fleet, "heads");
    let copy = fleet.directory().join("copy");
    fleet.server.stop();
    copy_store(&fleet.server.data(), &copy);
    fleet.server.restart();
    fleet.technician("mallory");
    let verify = ["audit", "verify", "--pin", heads.path()];
    fleet
        .admin
        .tunnel(&["audit", "head", "--save", heads.path()])
        .ok();
    fleet.admin.tunnel(&verify).ok();
    let length = export(&fleet.admin, "json").len();

    fleet.server.stop();
    copy_store(&copy, &fleet.server.data());
    fleet.server.restart();
    // Until it is as long as it was, the end is missing; then other records stand there.
    let said = fleet.admin.tunnel(&verify).said();
    assert!(
        said.contains("E_AUDIT_BROKEN") && said.contains("the trail ends with"),
        "{said}"
    );
    while export(&fleet.admin, "json").len() <= length {
        fleet.server.enrol_code(&["--device", "pump-17"]);
    }
    let said = fleet.admin.tunnel(&verify).said();
    assert!(
        said.contains("E_AUDIT_BROKEN") && !said.contains("the trail ends with"),
        "{said}"
    );
    // An export that is empty proves nothing.
    let file = File::new(&fleet, "empty");
    std::fs::write(&file.0, "").unwrap();
    let said = fleet
        .admin
        .refusal(&["audit", "verify", "--file", file.path(), "--pin", heads.path()]);
    assert_eq!(said.code, "E_BAD_REQUEST");
}

/// Copies the store with its companions.
fn copy_store(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(to.join(name));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[test]
fn aud_03_a_full_disk_opens_nothing_new_and_what_ended_meanwhile_is_recorded() {
    needs!(Need::Root);
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let ana = fleet.technician("ana");
    let mut agent = fleet.enrol(fleet.device("pump-17").like_sshd(&echo.target()));
    fleet.server.stop();
    fleet.server.restart_on_small_disk();
    agent.start();
    fleet.admin.wait_for_link("pump-17");
    let forward = ana.forward("pump-17", "ssh");
    let say = |stream: &mut TcpStream| -> std::io::Result<()> {
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    };
    let connect = || {
        let stream = TcpStream::connect(forward.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let (mut before, mut ends) = (connect(), connect());
    say(&mut before).unwrap();
    say(&mut ends).unwrap();

    let filler = fleet.server.fill_disk();
    let api = api(&fleet, &ana);
    until_ok("openings to be refused", PATIENCE, || {
        match open(&api, "pump-17")["code"].as_str() {
            Some("E_AUDIT_UNAVAILABLE") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // In a tunnel that is open nothing new begins either, and what is there goes on.
    until_ok("sessions to be refused", PATIENCE, || {
        let mut stream = connect();
        say(&mut stream).err().map(drop).ok_or("a session began")
    });
    say(&mut before).unwrap();
    drop(ends);

    std::fs::remove_file(filler).unwrap();
    until_ok("openings to work again", PATIENCE, || {
        let opened = open(&api, "pump-17");
        opened["tunnel"].as_str().map(drop).ok_or(opened.to_string())
    });
    until_ok("sessions to begin again", PATIENCE, || say(&mut connect()));
    say(&mut before).unwrap();
    let restored = wait_for(&fleet.admin, "evidence.restored", 1);
    assert_eq!(restored[0]["lost"], 0, "{restored:?}");
    // The session that ended while nothing could be written has its record.
    let sessions = wait_for(&fleet.admin, "session.ended", 1);
    assert!(
        sessions.iter().any(|session| session["bytes_in"] == 5),
        "{sessions:?}"
    );
    fleet.admin.tunnel(&["audit", "verify"]).ok();
}

#[test]
fn aud_04_names_that_forge_lines_stay_in_their_record() {
    let fleet = Fleet::on_loopback();
    let ana = fleet.technician("ana");
    let api = api(&fleet, &ana);
    let forged = "x\"}\n     9  2027-01-15T08:00:00Z  policy.changed  by=operator/root\u{1b}[2J\u{202e}\r";
    let ask = |reason: &str| {
        let wish = json!({ "device": "pump-17", "services": ["ssh"], "reason": reason });
        api.request("POST", "/v1/tunnels", Some(&wish)).unwrap().body
    };
    assert_eq!(ask(forged)["code"], "E_NOT_FOUND");
    assert_eq!(ask(&"x".repeat(60_000))["code"], "E_BAD_REQUEST");
    let denied = wait_for(&fleet.admin, "tunnel.denied", 1);
    assert_eq!((denied.len(), denied[0]["reason"].as_str()), (1, Some(forged)));
    let count = fleet.admin.audit().len();
    for words in [
        &["audit", "list", "--after", "0"][..],
        &["audit", "export"],
        &["audit", "export", "--format", "ocsf"],
    ] {
        let text = fleet.admin.tunnel(words).ok();
        assert_eq!(text.lines().count(), count, "{words:?}: one line for each record");
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\r']), "{words:?}");
    }
}

#[test]
fn aud_05_a_flood_of_refusals_is_gathered_and_buries_nothing() {
    let mut fleet = Fleet::on_loopback();
    let eve = fleet.technician("eve");
    let before = trail_bytes(&fleet);
    let asked = scaled(600);
    std::thread::scope(|scope| {
        let flood: Vec<_> = (0..4)
            .map(|_| {
                let api = api(&fleet, &eve);
                scope.spawn(move || {
                    for _ in 0..asked / 4 {
                        let code = open(&api, "pump-17")["code"].clone();
                        assert!(code == "E_NOT_FOUND" || code == "E_LIMIT", "{code}");
                    }
                })
            })
            .collect();
        // What somebody with a right does meanwhile is recorded at once.
        fleet
            .admin
            .tunnel(&["group", "add", "watched", "operator/eve"])
            .ok();
        flood.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(bodies(&fleet.admin, "group.changed").len(), 1);
    // At its stop the server writes what it has gathered.
    fleet.server.stop();
    fleet.server.restart();
    let each = bodies(&fleet.admin, "tunnel.denied").len() as u64;
    let gathered = bodies(&fleet.admin, "denials.gathered");
    let count: u64 = gathered
        .iter()
        .map(|gathered| gathered["count"].as_u64().unwrap())
        .sum();
    assert_eq!(each + count, asked / 4 * 4, "{gathered:?}");
    assert!((100..=asked / 2).contains(&each), "{each} records of their own");
    assert!(
        gathered.len() <= 2 && gathered[0]["by"] == "operator/eve",
        "{gathered:?}"
    );
    assert_eq!(gathered[0]["source"], "127.0.0.1");
    let grown = trail_bytes(&fleet) - before;
    assert!(grown < 1_000_000, "{grown} bytes for {asked} refusals");
    fleet.admin.tunnel(&["audit", "verify"]).ok();
}

fn trail_bytes(fleet: &Fleet) -> usize {
    export(&fleet.admin, "json").iter().map(String::len).sum()
}

#[test]
fn aud_06_a_kill_while_two_write_leaves_a_whole_trail() {
    let mut fleet = Fleet::on_loopback();
    let eve = fleet.technician("eve");
    let made = bodies(&fleet.admin, "enrol.code_made").len();
    for _ in 0..3 {
        let api = api(&fleet, &eve);
        std::thread::scope(|scope| {
            let server = &mut fleet.server;
            let writers: Vec<_> = (0..3)
                .map(|_| {
                    let api = api.clone();
                    scope.spawn(move || {
                        let wish = json!({ "device": "pump-17", "services": ["ssh"] });
                        (0..40)
                            .take_while(|_| api.request("POST", "/v1/tunnels", Some(&wish)).is_ok())
                            .count()
                    })
                })
                .collect();
            // Another process writes too.
            server.enrol_code(&["--device", "pump-18"]);
            server.kill();
            let answered: usize = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
            assert!(answered <= 120);
            server.restart();
        });
        fleet.admin.tunnel(&["audit", "verify"]).ok();
    }
    let numbers: Vec<_> = fleet
        .admin
        .audit()
        .iter()
        .map(|record| record["seq"].as_u64().unwrap())
        .collect();
    assert!(
        numbers
            .iter()
            .zip(1..)
            .all(|(number, expected)| *number == expected)
    );
    // A start without a stop before it tells of each kill.
    let kinds: Vec<_> = fleet
        .admin
        .audit()
        .iter()
        .map(|record| record["kind"].clone())
        .collect();
    let count = |kind: &str| kinds.iter().filter(|found| *found == kind).count();
    assert_eq!((count("server.started"), count("server.stopped")), (4, 0));
    assert_eq!(count("enrol.code_made"), made + 3, "one in each round");
}

#[test]
fn aud_07_what_is_done_and_refused_has_its_record_once_and_complete() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").like_sshd(&echo.target()));
    let ana = fleet.technician("ana");
    let admin = |words: &[&str]| fleet.admin.tunnel(words).ok();
    // Refused: a right that is not there, a device that is not there, a code that is none.
    ana.refusal(&["audit"]);
    ana.refusal(&["connect", "pump-99", "ssh"]);
    let stolen = fleet.server.enrol_code(&["--operator", "eve"]);
    let login = |home: &str, code: &str| {
        let mut command = ana.command("tunnel");
        command
            .env("TUNNEL_HOME", fleet.directory().join(home))
            .args(["login", code]);
        tunnel_e2e::process::run(&mut command, PATIENCE)
    };
    assert_eq!(login("thief", &stolen).code, 0);
    assert_ne!(login("late", &stolen).code, 0, "a code works once");
    // Done: each change of trust and right.
    ana.tunnel_with(&["connect", "pump-17", "ssh", "--reason", "INC-7"], b"hello")
        .ok();
    admin(&["facts", "set", "pump-17", "site=north"]);
    admin(&["group", "add", "pumps", "device/pump-17"]);
    admin(&["quarantine", "pump-17"]);
    admin(&["release", "pump-17"]);
    admin(&["disable", "ana"]);
    admin(&["enable", "ana"]);
    admin(&["cut", "--device", "pump-17"]);
    admin(&["revoke", "operator/eve", "--reason", "stolen"]);
    wait_for(&fleet.admin, "session.ended", 1);
    wait_for(&fleet.admin, "tunnel.ended", 1);

    let mut found = BTreeMap::<String, Vec<Value>>::new();
    for record in fleet.admin.audit() {
        let body = serde_json::from_str(record["body"].as_str().unwrap()).unwrap();
        found
            .entry(record["kind"].as_str().unwrap().to_owned())
            .or_default()
            .push(body);
    }
    let opening = ["tunnel", "operator", "device", "opening"];
    for (kind, count, fields) in [
        ("access.denied", 1, &["operator", "action", "source"][..]),
        (
            "tunnel.denied",
            1,
            &[
                "operator",
                "device",
                "services",
                "code",
                "policy_revision",
                "source",
            ],
        ),
        ("enrol.guessed", 1, &["count", "last_source"]),
        (
            "tunnel.opened",
            1,
            &[
                "tunnel",
                "operator",
                "holder_key",
                "device",
                "services",
                "reason",
                "policies",
                "grant",
                "source",
            ],
        ),
        ("tunnel.connected", 1, &["tunnel", "operator", "device", "paths"]),
        ("tunnel.attached", 2, &["tunnel", "operator", "device", "role"]),
        ("session.ended", 1, &opening),
        ("tunnel.ended", 1, &opening),
        ("facts.changed", 1, &["device", "set", "by"]),
        ("group.changed", 1, &["member", "group", "by"]),
        ("device.quarantined", 1, &["device", "by"]),
        ("device.released", 1, &["device", "by"]),
        ("operator.disabled", 1, &["operator", "by"]),
        ("operator.enabled", 1, &["operator", "by"]),
        ("cut.ordered", 1, &["target", "by"]),
        ("identity.revoked", 1, &["identity", "reason", "by"]),
    ] {
        let bodies = found.get(kind).map_or(&[][..], Vec::as_slice);
        assert_eq!(bodies.len(), count, "{kind}: {bodies:?}");
        for body in bodies {
            let missing = fields.iter().find(|field| body[**field].is_null());
            assert_eq!(missing, None, "{kind}: {body}");
        }
    }
    // Every kind that a server writes is told of in the manual.
    let manual =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/audit.md")).unwrap();
    for kind in found.keys() {
        assert!(
            manual.contains(&format!("`{kind}`")),
            "docs/audit.md does not tell of `{kind}`"
        );
    }
}

#[test]
fn aud_08_no_secret_is_in_any_output() {
    let mut fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let code = fleet.server.enrol_code(&["--device", "pump-17"]);
    let mut agent = fleet.device("pump-17").like_sshd(&echo.target()).enrol(&code);
    agent.start();
    fleet.admin.wait_for_link("pump-17");
    let ana = fleet.technician("ana");
    let planted = "planted-in-a-session-5f1c2a";
    ana.tunnel_with(&["connect", "pump-17", "ssh"], planted.as_bytes())
        .ok();
    let wish = json!({ "device": "pump-17", "services": ["ssh"] });
    let opened = api(&fleet, &ana)
        .request("POST", "/v1/tunnels", Some(&wish))
        .unwrap()
        .body;
    let tunnel = opened["tunnel"].as_str().unwrap();
    let token = opened["token"].as_str().unwrap().to_owned();
    let attached = api(&fleet, &ana)
        .request(
            "POST",
            &format!("/v1/tunnels/{tunnel}/attach"),
            Some(&json!({ "token": token })),
        )
        .unwrap()
        .body;
    wait_for(&fleet.admin, "session.ended", 1);

    let read = |path: PathBuf| {
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let key = |text: String| text.lines().nth(1).unwrap().to_owned();
    let data = fleet.server.data();
    let secrets = [
        ("the code", code.trim_start_matches("tnl1_")[60..].to_owned()),
        ("what was said in a session", planted.to_owned()),
        ("the token", token),
        ("the leg's key", attached["leg_key"].as_str().unwrap().to_owned()),
        ("the operator's key", key(read(ana.home().join("key.pem")))),
        ("the issuing key", key(read(data.join("issuing-key.pem")))),
        ("the server's key", key(read(data.join("server-key.pem")))),
    ];
    let mut outputs = vec![
        ("the server's log".to_owned(), fleet.server.process().said()),
        ("the agent's log".to_owned(), agent.process().said()),
    ];
    for words in [
        &["--json", "audit", "--after", "0"][..],
        &["audit", "export", "--format", "ocsf"],
        &["--json", "sessions"],
        &["--json", "tunnels", "--all"],
        &["--json", "devices"],
        &["--json", "status"],
        &["--verbose", "audit", "verify"],
    ] {
        outputs.push((words.join(" "), fleet.admin.tunnel(words).said()));
    }
    fleet.server.stop();
    for name in ["store.db", "store.db-wal"] {
        let bytes = std::fs::read(data.join(name)).unwrap_or_default();
        outputs.push((name.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
    }
    for (output, text) in &outputs {
        for (secret, value) in &secrets {
            assert!(!text.contains(value), "{secret} is in {output}");
        }
        assert!(!text.contains("PRIVATE KEY"), "a key is in {output}");
    }
    // The search finds what is there.
    assert!(outputs.iter().any(|(_, text)| text.contains("pump-17")));
}
