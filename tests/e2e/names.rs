//! Names that want to be something else: an option, a command, a pattern (THREATS CLI-02, CLI-03).

use tunnel_e2e::sshd::NEEDS;
use tunnel_e2e::{Fleet, needs};

/// The exit code for wrong use.
const USAGE: i32 = 2;
/// The exit code of what stands for OpenSSH's programs, whose own codes are the remote command's.
const USAGE_OF_SSH: i32 = 255;

fn hostile(marker: &str) -> Vec<String> {
    vec![
        format!("-oProxyCommand=touch {marker}"),
        format!("a;touch {marker}"),
        format!("$(touch {marker})"),
        format!("`touch {marker}`"),
        format!("a\ntouch {marker}"),
        "a b".into(),
        "%h".into(),
        "..".into(),
        "../../etc".into(),
        "*".into(),
        String::new(),
        "x".repeat(4096),
        "pump\u{202e}17".into(),
    ]
}

#[test]
fn hostile_device_names_are_wrong_use_everywhere() {
    needs!(NEEDS[0], NEEDS[1]);
    let fleet = Fleet::on_loopback();
    let marker = fleet.directory().join("marker");
    let file = fleet.directory().join("file");
    std::fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    for name in hostile(marker.to_str().unwrap()) {
        let (remote, forwarded) = (format!("{name}:/tmp/x"), "0:ssh");
        for words in [
            &["connect", &name, "ssh"][..],
            &["connect", "--", &name, "ssh"],
            &["ssh", &name, "true"],
            &["ssh", "--", &name, "true"],
            &["ssh", &format!("root@{name}"), "true"],
            &["scp", file, &remote],
            &["forward", "--", &name, forwarded],
        ] {
            // A colon-less operand of scp is a local file, and so is one that starts with a slash or a dot.
            if words[0] == "scp" && name.contains('/') {
                continue;
            }
            let output = fleet.admin.tunnel(words);
            let expected = if ["ssh", "scp"].contains(&words[0]) {
                USAGE_OF_SSH
            } else {
                USAGE
            };
            assert_eq!(output.code, expected, "{words:?}: {}", output.said());
            assert!(!marker.exists(), "{words:?}");
        }
    }
}

#[test]
fn hostile_names_are_refused_at_registration() {
    let fleet = Fleet::on_loopback();
    for name in hostile("/nowhere/marker") {
        for kind in ["--device", "--operator", "--group"] {
            let output = fleet.server.run("enrol-code", &[&format!("{kind}={name}")]);
            assert_eq!(output.code, USAGE, "{kind} {name:?}: {}", output.said());
        }
    }
}

/// THREATS CLI-01.
#[test]
fn text_for_people_is_escaped() {
    let fleet = Fleet::on_loopback();
    let output = fleet.admin.tunnel(&["connect", "a\u{1b}]52;c;eA==\u{7}", "ssh"]);
    assert!(!output.said().contains('\u{1b}'), "{:?}", output.said());
}
