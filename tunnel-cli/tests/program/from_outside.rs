//! The program from outside: help, wrong use, exit codes, and errors in both forms.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::place::{Place, Run};

const COMMANDS: &[&str] = &[
    "login",
    "logout",
    "status",
    "devices",
    "outages",
    "doctor",
    "ssh",
    "scp",
    "connect",
    "ssh-config",
    "forward",
    "run",
    "tunnels",
    "sessions",
    "describe",
    "close",
    "cut",
    "rotate",
    "request",
    "approvals",
    "approve",
    "deny",
    "withdraw",
    "policy",
    "why",
    "facts",
    "group",
    "audit",
    "lock",
    "notifications",
    "enrol-code",
    "revoke",
    "quarantine",
    "release",
    "disable",
    "enable",
];

/// Compares help with the texts beside this file; `TUNNEL_UPDATE_HELP=1` writes them anew.
#[test]
fn help_is_as_it_was() {
    let place = Place::new();
    let pages = COMMANDS.iter().map(|command| vec![*command]).chain([
        vec![],
        vec!["policy", "show"],
        vec!["policy", "check"],
        vec!["policy", "list"],
        vec!["policy", "diff"],
        vec!["policy", "apply"],
        vec!["policy", "rollback"],
        vec!["policy", "test"],
        vec!["policy", "replay"],
        vec!["facts", "set"],
        vec!["facts", "unset"],
        vec!["facts", "list"],
        vec!["group", "add"],
        vec!["group", "remove"],
        vec!["group", "list"],
        vec!["audit", "list"],
        vec!["audit", "export"],
        vec!["audit", "head"],
        vec!["audit", "verify"],
        vec!["notifications", "list"],
        vec!["notifications", "retry"],
        vec!["notifications", "drop"],
        vec!["lock", "init"],
        vec!["lock", "request"],
        vec!["lock", "request-root"],
        vec!["lock", "sign"],
        vec!["lock", "show"],
    ]);
    for page in pages {
        let run = place.run(&[page.as_slice(), &["--help"]].concat());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{page:?}");
        let name = if page.is_empty() {
            "tunnel".to_owned()
        } else {
            page.join("-")
        };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/help/{name}.txt"));
        if std::env::var_os("TUNNEL_UPDATE_HELP").is_some() {
            std::fs::write(&file, &run.stdout).unwrap();
        }
        assert_eq!(
            run.stdout,
            std::fs::read_to_string(&file).unwrap(),
            "{}",
            file.display()
        );
    }
}

#[test]
fn wrong_use_ends_with_2() {
    let place = Place::new();
    for args in [
        &["nonsense"][..],
        &["connect", "pump-17"],
        &["connect", "pump-17", "SSH"],
        &["connect", "pump-17", "ssh", "--ttl", "soon"],
        &["connect", "pump-17", "ssh", "--carrier", "pigeon"],
        &["connect", "-oProxyCommand=id", "ssh"],
        &["connect", "--", "-oProxyCommand=id", "ssh"],
        &["connect", "a;id", "ssh"],
        &["forward", "pump-17"],
        &["forward", "pump-17", "99999:web"],
        &["devices", "../x"],
        &["enrol-code"],
        &["enrol-code", "--device", "a", "--operator", "b"],
        &["policy"],
        &["login", "tnl1_x"],
        &["login", "hello"],
        &["login", "-"],
        &["close"],
    ] {
        let run = place.run(args);
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (2, ""),
            "{args:?}: {}",
            run.stderr
        );
        assert!(!run.stderr.is_empty());
        let json = place.run(&[&["--json"], args].concat());
        assert_eq!((json.code, json.stdout.as_str()), (2, ""), "{args:?}");
        for part in ["code", "what", "why"] {
            assert!(json.error()[part].is_string(), "{args:?}: {}", json.stderr);
        }
    }
}

/// THREATS CLI-12: no prompt, no hang, a distinct exit code, and what to do next.
#[test]
fn a_command_without_a_login_says_what_to_do() {
    let place = Place::new();
    for args in [
        &["status"][..],
        &["devices"],
        &["connect", "pump-17", "ssh"],
        &["forward", "pump-17", "web"],
        &["tunnels"],
        &["describe", "0123456789abcdef0123456789abcdef"],
        &["close", "0123"],
        &["policy", "show"],
        &["audit"],
        &["audit", "verify"],
        &["audit", "export"],
        &["audit", "head"],
        &["enrol-code", "--device", "pump-17"],
        &["revoke", "device/pump-17"],
    ] {
        let run = place.run(args);
        assert_eq!((run.code, run.stdout.as_str()), (3, ""), "{args:?}");
        assert!(
            run.stderr.contains("tunnel login CODE"),
            "{args:?}: {}",
            run.stderr
        );
        let error = place.run(&[&["--json"], args].concat()).error();
        assert_eq!(error["code"], "E_UNAUTHENTICATED", "{args:?}");
        assert_eq!(error["exit"], 3);
        assert!(error["next"].as_str().unwrap().contains("tunnel login"));
    }
    for program in ["ssh", "scp"] {
        let args: &[&str] = if program == "ssh" {
            &["ssh", "pump-17"]
        } else {
            &["scp", "a", "pump-17:"]
        };
        let run = place.run(args);
        assert_eq!(run.code, 255, "{}", run.stderr);
        assert!(run.stderr.contains("E_UNAUTHENTICATED"));
    }
}

/// THREATS CLI-02: after `--`, a host that looks like an option is a host, and a bad one.
#[test]
fn an_option_in_the_place_of_a_host_is_no_option() {
    let place = Place::new();
    for args in [
        ["ssh", "--", "-v"],
        ["ssh", "--", "-oProxyCommand=id"],
        ["ssh", "--", "--"],
    ] {
        let run = place.run(&args);
        assert_eq!(run.code, 255, "{args:?}");
        assert!(run.stderr.contains("E_BAD_NAME"), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn logging_out_twice_is_no_fault() {
    let place = Place::new();
    let run = place.run(&["--json", "logout"]);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (0, "{\"was_logged_in\":false}\n")
    );
}

/// THREATS CLI-06.
#[test]
fn a_loose_state_directory_is_refused_with_its_remedy() {
    let place = Place::new();
    std::fs::create_dir(place.home()).unwrap();
    std::fs::set_permissions(place.home(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for args in [&["status"][..], &["login", "tnl1_x"]] {
        let run = place.run(args);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains("chmod 700"), "{}", run.stderr);
    }
    std::fs::set_permissions(place.home(), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(place.run(&["status"]).code, 3);
    for (name, text) in [
        ("profile.toml", "server = \"localhost:1\"\nudp_port = 1\n"),
        ("root.pem", ""),
        ("key.pem", ""),
    ] {
        std::fs::write(place.home().join(name), text).unwrap();
        std::fs::set_permissions(place.home().join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let run = place.run(&["status"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("chmod 600"), "{}", run.stderr);
}

/// THREATS CLI-06.
#[test]
fn a_state_directory_that_is_a_link_is_refused() {
    let place = Place::new();
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    std::fs::set_permissions(place.path("elsewhere"), std::fs::Permissions::from_mode(0o700)).unwrap();
    symlink(place.path("elsewhere"), place.home()).unwrap();
    let run = place.run(&["login", "tnl1_x"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("not a plain directory"), "{}", run.stderr);
}

/// THREATS CLI-11, I11: a code that is refused is not repeated.
#[test]
fn a_code_is_never_shown() {
    let place = Place::new();
    let run = place.run(&["login", "tnl1_c2VjcmV0c2VjcmV0c2VjcmV0"]);
    assert!(!run.stderr.contains("c2VjcmV0"), "{}", run.stderr);
    assert_eq!(std::fs::read_dir(place.home()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_told() {
    let place = Place::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = Run::of(place.command(&["ssh-config"]).stdout(full).output().unwrap());
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("stdout"), "{}", run.stderr);
}

#[test]
fn a_reader_that_has_left_is_no_fault() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let run = Run::of(place.command(&["ssh-config"]).stdout(writer).output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
}

/// The table in the documentation has every code; `TUNNEL_UPDATE_HELP=1` writes it anew.
#[test]
fn every_code_is_documented() {
    let head = "| code | exit | why | next |\n| --- | --- | --- | --- |\n";
    let table = tunnel_proto::Code::ALL
        .iter()
        .fold(head.to_owned(), |table, code| {
            table
                + &format!(
                    "| `{code}` | {} | {} | {} |\n",
                    code.exit() as u8,
                    code.why(),
                    code.next_step()
                )
        });
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/exit-codes.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let before = text.split(head).next().unwrap();
    if std::env::var_os("TUNNEL_UPDATE_HELP").is_some() {
        std::fs::write(&file, format!("{before}{table}")).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("{before}{table}")
    );
}
