//! The program from outside: help, results, files, exit codes.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tunnel_proto::enrol::EnrolCode;

fn server(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tunnel-server"))
        .args(words)
        .env_remove("TUNNEL_SERVER_DATA")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    assert_eq!(stderr(output), "");
    stdout(output)
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Checks that a command is refused as wrong use, and returns the error.
#[track_caller]
fn refused(words: &[&str]) -> String {
    let output = server(words);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{words:?}: {}{}",
        stdout(&output),
        stderr(&output)
    );
    assert_eq!(stdout(&output), "", "{words:?}");
    stderr(&output)
}

/// A server that was made, in a directory that goes with it.
struct Made {
    directory: TempDir,
    said: Value,
}

impl Made {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let words = [
            "init",
            "--data",
            data.to_str().unwrap(),
            "--address",
            "relay.example:8443",
            "--json",
        ];
        let said = json(&done(&server(&words)));
        Self { directory, said }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn words<'a>(&self, command: &'a str, data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&[command, "--data", data], more].concat()
    }

    #[track_caller]
    fn run(&self, command: &str, more: &[&str]) -> Output {
        let data = self.data();
        server(&self.words(command, data.to_str().unwrap(), more))
    }

    #[track_caller]
    fn refused(&self, command: &str, more: &[&str]) -> String {
        let data = self.data();
        refused(&self.words(command, data.to_str().unwrap(), more))
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn help_names_every_command() {
    let help = done(&server(&["--help"]));
    for command in ["init", "run", "enrol-code", "check", "openapi", "policy-schema"] {
        assert!(help.contains(&format!("  {command} ")), "{help}");
        let own = done(&server(&[command, "--help"]));
        assert!(own.contains("Usage: tunnel-server"), "{own}");
    }
    assert_eq!(
        done(&server(&["--version"])),
        format!("tunnel-server {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_use_ends_with_2() {
    for words in [
        &[][..],
        &["dance"],
        &["--verbose"],
        &["init", "--data", "x"],
        &["init", "--data", "x", "--address", "no-port"],
        &["init", "--data", "x", "--address", "h:1", "--listen", "h:1"],
        &["init", "--data", "x", "--address", "h:1", "--node", "Not A Name"],
        &["init", "--data", "x", "--address", "h:1", "--trust-domain", "-"],
        &["enrol-code", "--data", "x", "--device", "-oProxyCommand=id"],
        &["enrol-code", "--data", "x", "--device", "a", "--operator", "b"],
        &["enrol-code", "--data", "x", "--device", "a", "--kind", "device"],
        &["enrol-code", "--data", "x", "--device", "a", "--uses", "0"],
        &["enrol-code", "--data", "x", "--device", "a", "--ttl", "soon"],
        &["check", "extra"],
    ] {
        assert!(
            refused(words).contains("error: ") || words.is_empty(),
            "{words:?}"
        );
    }
}

#[test]
fn errors_say_what_why_and_what_next_and_as_json_too() {
    let text = refused(&["check"]);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.starts_with("error: ") && text.contains("\n  why: ") && text.contains("\n  next: "),
        "{text}"
    );
    let error = json(&refused(&["check", "--json"]));
    assert_eq!(error["error"]["code"], "E_USAGE");
    assert_eq!(error["error"]["exit"], 2);
}

#[test]
fn init_makes_everything_for_the_owner_alone() {
    let made = Made::new();
    assert_eq!(mode(&made.data()), 0o700);
    let mut names: Vec<String> = std::fs::read_dir(made.data())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
            entry.file_name().into_string().unwrap()
        })
        .collect();
    names.sort_unstable();
    let expected = [
        "audit-key",
        "grant-key",
        "issuing-key.pem",
        "issuing.pem",
        "relay-secret",
        "root-key.pem",
        "root.pem",
        "server-key.pem",
        "server.pem",
        "server.toml",
        "store.db",
    ];
    assert_eq!(names, expected);
    assert_eq!(made.said["trust_domain"], "relay.example");
    assert_eq!(made.said["listen"], "[::]:8443");
    let invite = EnrolCode::from_text(made.said["invite"].as_str().unwrap()).unwrap();
    assert_eq!(invite.server, "relay.example:8443");
    assert_eq!(invite.fingerprint_text(), made.said["root_fingerprint"]);
    assert_eq!(made.said["invite_for"], "admin");
}

#[test]
fn init_tells_people_what_to_do_next() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("deep/data");
    let words = [
        "init",
        "--data",
        data.to_str().unwrap(),
        "--address",
        "192.0.2.1:443",
        "--node",
        "relay-1",
    ];
    let text = done(&server(&words));
    for part in [
        "`relay-1`",
        "`fleet.internal`",
        "tunnel-server run --data",
        "tunnel login tnl1_",
        "root-key.pem",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn init_never_writes_over_anything() {
    let made = Made::new();
    let before = std::fs::read(made.data().join("root.pem")).unwrap();
    let error = made.refused("init", &["--address", "relay.example:8443"]);
    assert!(error.contains("E_INIT") && error.contains("already"), "{error}");
    std::fs::remove_file(made.data().join("server.toml")).unwrap();
    let error = made.refused("init", &["--address", "relay.example:8443"]);
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(std::fs::read(made.data().join("root.pem")).unwrap(), before);
}

#[test]
fn an_enrolment_code_is_one_word_and_its_secret_is_stored_nowhere() {
    let made = Made::new();
    let text = done(&made.run("enrol-code", &["--device", "pump-17"]));
    let code = EnrolCode::from_text(&text).unwrap();
    assert_eq!(text, format!("{}\n", code.to_text()));
    for entry in std::fs::read_dir(made.data()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(32).any(|window| window == code.secret.expose()));
    }
    let again = done(&made.run("enrol-code", &["--device", "pump-17"]));
    assert_ne!(again, text);
}

#[test]
fn an_enrolment_code_as_json_says_what_it_is_good_for() {
    let made = Made::new();
    let words = [
        "--device",
        "a",
        "--device",
        "b",
        "--group",
        "pumps",
        "--ttl",
        "30m",
        "--replace",
        "--json",
    ];
    let said = json(&done(&made.run("enrol-code", &words)));
    assert!(said["code"].as_str().unwrap().starts_with("tnl1_"));
    assert_eq!(said["ids"], serde_json::json!(["a", "b"]));
    assert_eq!(
        (&said["kind"], &said["group"], &said["uses"]),
        (&"device".into(), &"pumps".into(), &2.into())
    );
    assert_eq!(said["replace"], true);
    let group = json(&done(&made.run(
        "enrol-code",
        &["--group", "technicians", "--kind", "operator", "--json"],
    )));
    assert_eq!((&group["kind"], &group["uses"]), (&"operator".into(), &1.into()));
    for words in [&[][..], &["--group", "pumps"], &["--kind", "device"]] {
        assert!(made.refused("enrol-code", words).contains("E_USAGE"), "{words:?}");
    }
}

#[test]
fn the_data_directory_can_be_named_by_the_environment() {
    let made = Made::new();
    let output = Command::new(env!("CARGO_BIN_EXE_tunnel-server"))
        .args(["enrol-code", "--device", "pump-17"])
        .env("TUNNEL_SERVER_DATA", made.data())
        .output()
        .unwrap();
    assert!(done(&output).starts_with("tnl1_"));
}

#[test]
fn a_directory_without_a_server_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let error = refused(&["enrol-code", "--data", data, "--device", "a"]);
    assert!(
        error.contains("E_CONFIG") && error.contains("tunnel-server init"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing was made"
    );
}

#[test]
fn check_finds_a_good_server_good() {
    let made = Made::new();
    let text = done(&made.run("check", &[]));
    assert_eq!(
        text.lines().filter(|line| line.starts_with("ok ")).count(),
        5,
        "{text}"
    );
    let said = json(&done(&made.run("check", &["--json"])));
    assert_eq!(said["ok"], true);
    assert_eq!(said["checks"].as_array().unwrap().len(), 5);
}

/// Breaks a server, and returns what `check` says of it.
fn broken(breaking: impl FnOnce(&Path)) -> String {
    let made = Made::new();
    breaking(&made.data());
    let output = made.run("check", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    stdout(&output)
}

/// THREATS T16, ENR-09.
#[test]
fn check_finds_a_key_that_others_can_read() {
    let said = broken(|data| {
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(data.join("issuing-key.pem"), open).unwrap();
    });
    assert!(
        said.contains("FAIL  keys") && said.contains("chmod 600"),
        "{said}"
    );
}

#[test]
fn check_finds_what_is_missing_or_damaged() {
    let said = broken(|data| std::fs::remove_file(data.join("grant-key")).unwrap());
    assert!(
        said.contains("FAIL  keys") && said.contains("grant-key"),
        "{said}"
    );
    let said = broken(|data| std::fs::write(data.join("relay-secret"), "short").unwrap());
    assert!(said.contains("64 hexadecimal digits"), "{said}");
    let said = broken(|data| std::fs::remove_file(data.join("store.db")).unwrap());
    assert!(said.contains("FAIL  store"), "{said}");
    let said = broken(|data| std::fs::write(data.join("server.toml"), "node = 7\nnod = 1\n").unwrap());
    assert!(said.contains("line 1") && said.contains("line 2"), "{said}");
    let said = broken(|data| {
        let text = std::fs::read_to_string(data.join("server.toml")).unwrap();
        std::fs::write(
            data.join("server.toml"),
            text.replace("relay.example\"", "other.example\""),
        )
        .unwrap();
    });
    assert!(said.contains("other.example"), "{said}");
}

/// A process that does not outlive its test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_server_runs_until_it_is_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    done(&server(&[
        "init",
        "--data",
        data,
        "--address",
        "127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--json",
    ]));
    let run = Command::new(env!("CARGO_BIN_EXE_tunnel-server"))
        .args(["run", "--data", data])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let mut run = Running(run.unwrap());
    let mut said = BufReader::new(run.0.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(said.any(|line| line.contains("listening")));
    // Its commands work beside it, on the same store.
    assert!(done(&server(&["enrol-code", "--data", data, "--device", "a"])).starts_with("tnl1_"));
    done(&server(&["check", "--data", data]));
    let pid = rustix::process::Pid::from_raw(i32::try_from(run.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let rest: Vec<String> = said.collect();
    assert_eq!(run.0.wait().unwrap().code(), Some(0), "{rest:?}");
}

#[test]
fn run_without_a_server_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = refused(&["run", "--data", directory.path().to_str().unwrap()]);
    assert!(
        error.contains("E_CONFIG") && error.contains("tunnel-server init"),
        "{error}"
    );
}

#[test]
fn the_api_is_described() {
    let document = json(&done(&server(&["openapi"])));
    assert!(document["openapi"].as_str().unwrap().starts_with('3'));
    assert!(document["paths"]["/v1/tunnels"].is_object());
}

#[test]
fn the_schema_of_policies_is_printed() {
    let text = done(&server(&["policy-schema"]));
    assert!(text.contains("action connect appliesTo"), "{text}");
}
