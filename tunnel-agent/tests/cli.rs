//! The program from outside: help, exit codes, and errors in three parts.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Instant;

use common::{Fleet, Output, SOON, closed_port, finish, program, run, run_with_input, write_config};
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::keys::Secret;

/// Makes a code for a server that does not answer.
fn code() -> String {
    let server = format!("127.0.0.1:{}", closed_port());
    EnrolCode {
        server,
        root_fingerprint: [1; 32],
        secret: Secret::new([2; 32]),
    }
    .to_text()
}

/// Checks that an error has its three parts, and returns its text.
fn three_parts(output: &Output) -> &str {
    let lines: Vec<&str> = output.err.lines().collect();
    assert!(lines[0].starts_with("error: "), "{output:?}");
    assert!(lines.iter().any(|line| line.starts_with("  why: ")), "{output:?}");
    assert!(
        lines.iter().any(|line| line.starts_with("  next: ")),
        "{output:?}"
    );
    assert!(output.out.is_empty(), "{output:?}");
    &output.err
}

#[test]
fn help_is_as_written_down() {
    for (words, expected) in [
        (&["--help"][..], include_str!("help/main.txt")),
        (&["enrol", "--help"], include_str!("help/enrol.txt")),
        (&["run", "--help"], include_str!("help/run.txt")),
        (&["supervise", "--help"], include_str!("help/supervise.txt")),
        (&["check", "--help"], include_str!("help/check.txt")),
        (&["access", "--help"], include_str!("help/access.txt")),
        (&["who", "--help"], include_str!("help/who.txt")),
        (&["allow", "--help"], include_str!("help/allow.txt")),
        (&["deny", "--help"], include_str!("help/deny.txt")),
        (&["end", "--help"], include_str!("help/end.txt")),
    ] {
        let output = run(words);
        assert_eq!((output.code, output.out.as_str()), (0, expected), "{words:?}");
    }
    assert_eq!(
        run(&["--version"]).out,
        concat!("tunnel-agent ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn wrong_use_ends_with_2() {
    for words in [
        &[][..],
        &["dance"],
        &["enrol"],
        &["access"],
        &["run", "--no-such-flag"],
        &["enrol", "x", "--id", "A b"],
    ] {
        let output = run(words);
        assert_eq!(output.code, 2, "{words:?}: {output:?}");
        assert!(
            !output.err.is_empty() && output.out.is_empty(),
            "{words:?}: {output:?}"
        );
    }
}

#[test]
fn a_damaged_code_ends_with_2() {
    let good = code();
    for text in [
        "hello",
        "tnl1_",
        &good[..good.len() - 1],
        &good.replace("tnl1_", "tnl2_"),
    ] {
        let output = run(&["enrol", text]);
        assert_eq!(output.code, 2, "{output:?}");
        assert!(three_parts(&output).contains("enrolment code"), "{output:?}");
        assert!(
            !output.err.contains(text) || text.len() < 6,
            "a code is a secret: {output:?}"
        );
    }
}

#[test]
fn a_server_that_is_not_there_ends_with_4_and_the_key_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let code = code();
    let words = ["enrol", &code, "--id", "pump", "--state", state.to_str().unwrap()];
    let output = run(&words);
    assert_eq!(output.code, 4, "{output:?}");
    assert!(
        three_parts(&output).contains("could not enrol with `127.0.0.1:"),
        "{output:?}"
    );
    assert!(!output.err.contains(&code), "a code is a secret: {output:?}");
    let key = std::fs::read(state.join("key-pending.pem")).unwrap();
    let with_json: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
    let json: serde_json::Value = serde_json::from_str(&run(&with_json).err).unwrap();
    assert_eq!(json["error"]["code"], "E_SERVER_UNREACHABLE");
    assert_eq!(std::fs::read(state.join("key-pending.pem")).unwrap(), key);
    let from_input = run_with_input(
        &["enrol", "-", "--state", state.to_str().unwrap()],
        &format!(" {code}\n"),
    );
    assert_eq!(from_input.code, 4, "{from_input:?}");
}

#[test]
fn errors_of_the_configuration_come_with_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(
        dir.path(),
        "max_sesions = 1\n\n[services.ssh]\ntarget = \"22\"\nshell = true\n",
    );
    for words in [
        &["run"][..],
        &["run", "--check-config"],
        &["access", "status"],
        &["--print-config"],
    ] {
        let output = finish(program().args(words).arg("--config").arg(&config));
        assert_eq!(output.code, 2, "{words:?}: {output:?}");
        for line in ["line 1: ", "line 4: ", "line 5: "] {
            assert!(three_parts(&output).contains(line), "{words:?}: {output:?}");
        }
    }
    let absent = run(&["run", "--config", "/nonexistent/agent.toml"]);
    assert_eq!(absent.code, 2);
    three_parts(&absent);
}

#[test]
fn a_good_configuration_is_shown_with_its_origins() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[services.ssh]\ntarget = \"tcp:127.0.0.1:22\"\n");
    let output = finish(program().args(["run", "--check-config", "--config"]).arg(&config));
    assert_eq!(
        (output.code, output.out.as_str()),
        (0, "the configuration has no errors\n")
    );
    let shown = finish(
        program()
            .args(["--print-config", "--config"])
            .arg(&config)
            .env("TUNNEL_AGENT_STATE", "/srv/agent"),
    );
    assert!(
        shown
            .out
            .contains("state_dir = \"/srv/agent\"  # variable TUNNEL_AGENT_STATE\n"),
        "{shown:?}"
    );
    assert!(
        shown.out.contains("target = \"tcp:127.0.0.1:22\"  # "),
        "{shown:?}"
    );
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/agent.toml");
    assert!(tunnel_agent::config::Config::parse(&std::fs::read_to_string(example).unwrap()).is_ok());
}

#[test]
fn the_owners_switch_is_set_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let access = |action: &str| run(&["access", action, "--state", state]);
    assert_eq!(access("status").out, "access is on\n");
    assert!(access("off").out.starts_with("access is off"));
    assert!(access("status").out.starts_with("access is off"));
    let json = run(&["access", "status", "--state", state, "--json"]).out;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["access"],
        false
    );
    assert_eq!(access("on").out, "access is on\n");
    let absent = run(&["access", "off", "--state", "/nonexistent/state"]);
    assert_eq!(absent.code, 2);
    three_parts(&absent);
}

#[test]
fn check_names_what_is_broken_and_its_mend() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let text = format!(
        "state_dir = \"{}\"\n[services.ssh]\ntarget = \"tcp:127.0.0.1:{}\"\n",
        state.display(),
        closed_port()
    );
    let config = write_config(dir.path(), &text);
    let output = finish(program().args(["check", "--config"]).arg(&config));
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.out.contains("failed  service ssh: "), "{output:?}");
    assert!(output.out.contains("failed  identity: "), "{output:?}");
    assert!(
        output.out.contains("next: run `tunnel-agent enrol CODE`"),
        "{output:?}"
    );

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let text = format!(
        "state_dir = \"{}\"\n[services.web]\ntarget = \"tcp:{target}\"\n\
         [services.diag]\ntarget = \"exec:\"\nallow = [\"/bin/sh\"]\n\
         [services.gone]\ntarget = \"exec:\"\nallow = [\"/nonexistent/x\"]\n\
         [services.open]\ntarget = \"exec:\"\nallow = [\"/bin/sh -c\", \"/bin/sh *\"]\n\
         [services.any]\ntarget = \"exec:\"\nallow = [\"*\"]\n",
        state.display()
    );
    let config = write_config(dir.path(), &text);
    let server = format!("127.0.0.1:{}", closed_port()).parse().unwrap();
    Fleet::new().enrol(&state, "pump", &server, 2);
    let output = finish(program().args(["check", "--json", "--config"]).arg(&config));
    assert_eq!(output.code, 4, "{output:?}");
    let json: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    let status = |name: &str| {
        let checks = json["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .map(|check| check["status"].as_str().unwrap().to_owned())
    };
    assert_eq!(status("service web").as_deref(), Some("ok"));
    assert_eq!(status("service diag").as_deref(), Some("ok"));
    for warned in ["service gone", "service open", "service any"] {
        assert_eq!(status(warned).as_deref(), Some("warning"), "{warned}");
    }
    assert_eq!(output.out.matches("gets any arguments").count(), 2, "{output:?}");
    assert_eq!(
        status("certificate").as_deref(),
        Some("warning"),
        "it ends in two days"
    );
    assert_eq!(status("server over udp").as_deref(), Some("failed"));
    assert_eq!(status("server over websocket").as_deref(), Some("failed"));
}

// AGT-06
#[test]
fn loose_keys_stop_the_agent_with_the_mend() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[services.ssh]\ntarget = \"tcp:127.0.0.1:22\"\n");
    let path = dir.path().join("state");
    let state = Fleet::new().enrol(&path, "pump", &"127.0.0.1:1".parse().unwrap(), 90);
    let start = || {
        finish(
            program()
                .arg("run")
                .arg("--config")
                .arg(&config)
                .arg("--state")
                .arg(&path),
        )
    };
    std::fs::set_permissions(state.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = start();
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.err.contains("chmod 600"), "{output:?}");
    std::fs::set_permissions(state.key(), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let output = start();
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.err.contains("chmod 700"), "{output:?}");
}

// AGT-18, AGT-14
#[test]
fn a_running_agent_listens_on_nothing_and_ends_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[services.ssh]\ntarget = \"tcp:127.0.0.1:22\"\n");
    let path = dir.path().join("state");
    let server = format!("127.0.0.1:{}", closed_port()).parse().unwrap();
    Fleet::new().enrol(&path, "pump", &server, 90);
    let mut command = program();
    command
        .arg("run")
        .arg("--config")
        .arg(&config)
        .arg("--state")
        .arg(&path)
        .stderr(Stdio::piped());
    let mut agent = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(agent.0.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().contains("agent started")));
    assert!(
        lines
            .by_ref()
            .any(|line| line.unwrap().contains("no link to the server"))
    );
    assert_eq!(listening(agent.0.id()), Vec::<String>::new());
    let second = finish(
        program()
            .arg("run")
            .arg("--config")
            .arg(&config)
            .arg("--state")
            .arg(&path),
    );
    assert_eq!(second.code, 2);
    assert!(second.err.contains("an agent runs with it"), "{second:?}");
    agent.signal(rustix::process::Signal::TERM);
    assert!(lines.any(|line| line.unwrap().contains("agent stops")));
    assert_eq!(agent.wait(), Some(0));
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::yield_now();
        }
        panic!("the agent did not end in time");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the listening sockets of a process, by the kernel's own list.
fn listening(pid: u32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let own: Vec<String> = links
        .filter_map(|link| std::fs::read_link(link.unwrap().path()).ok())
        .filter_map(|link| {
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    let mut found = Vec::new();
    for (table, state, inode, listens) in [
        ("tcp", 3, 9, "0A"),
        ("tcp6", 3, 9, "0A"),
        ("unix", 3, 6, "00010000"),
    ] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if words.get(state) == Some(&listens)
                && own
                    .iter()
                    .any(|socket| words.get(inode) == Some(&socket.as_str()))
            {
                found.push(format!("{table}: {line}"));
            }
        }
    }
    found
}
