//! What reaches OpenSSH's programs: argument vectors, and what OpenSSH itself makes of them.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::place::Place;
use tunnel_cli::ssh::Setup;
use tunnel_cli::ssh::args::{ScpCall, SshCall};
use tunnel_cli::ssh::options::{scp_arguments, ssh_arguments};

fn setup() -> Setup {
    Setup {
        exe: "/opt/my tools/tunnel".into(),
        home: "/home/ana b/.config/tunnel".into(),
        service: "ssh".parse().unwrap(),
    }
}

fn words(line: &str) -> Vec<OsString> {
    line.split(' ')
        .filter(|word| !word.is_empty())
        .map(OsString::from)
        .collect()
}

/// Returns the user's part of an argument vector: what stands between the fixed options and after the defaults.
fn ssh_tail(line: &str) -> Result<String, u8> {
    let call = SshCall::parse(&words(line)).map_err(|failure| failure.exit_code())?;
    let all = ssh_arguments(&setup(), call).unwrap();
    tail(&all, 12)
}

fn scp_tail(line: &str) -> Result<String, u8> {
    let call = ScpCall::parse(&words(line)).map_err(|failure| failure.exit_code())?;
    let fixed = if call.devices.len() == 1 { 12 } else { 11 };
    let all = scp_arguments(&setup(), call).unwrap();
    tail(&all, fixed)
}

fn tail(all: &[OsString], fixed: usize) -> Result<String, u8> {
    let text: Vec<&str> = all.iter().map(|word| word.to_str().unwrap()).collect();
    for pair in text[..fixed * 2].chunks(2) {
        assert_eq!(pair[0], "-o");
        assert!(!pair[1].starts_with("Forward"));
    }
    let rest = text[fixed * 2..].join(" ");
    Ok(rest.replace(
        "-o ForwardAgent=no -o ForwardX11=no -o PermitLocalCommand=no -- ",
        "| ",
    ))
}

/// THREATS CLI-03.
#[test]
fn arguments_of_ssh_come_out_as_they_went_in() {
    for (line, expected) in [
        ("pump-17", "| pump-17.tunnel"),
        ("pump-17.tunnel", "| pump-17.tunnel"),
        ("ana@pump-17", "| ana@pump-17.tunnel"),
        ("pump-17 uname -a", "| pump-17.tunnel uname -a"),
        ("pump-17 -- uname -a", "| pump-17.tunnel uname -a"),
        ("pump-17 -- -weird", "| pump-17.tunnel -weird"),
        ("-- pump-17 -v", "| pump-17.tunnel -v"),
        ("-v -p 22 pump-17", "-v -p 22 | pump-17.tunnel"),
        ("-vvp22 pump-17 ls -l", "-vvp22 | pump-17.tunnel ls -l"),
        (
            "pump-17 -L 8080:localhost:80 -N",
            "-L 8080:localhost:80 -N | pump-17.tunnel",
        ),
        ("-l root pump-17 -t top", "-l root -t | pump-17.tunnel top"),
        (
            "-o Compression=yes -A pump-17",
            "-o Compression=yes -A | pump-17.tunnel",
        ),
        ("-i -- pump-17", "-i -- | pump-17.tunnel"),
        (
            "-i key -F none pump-17 -- rsync --server . /x",
            "-i key -F none | pump-17.tunnel rsync --server . /x",
        ),
        (
            "pump-17 ls -o ProxyCommand=x",
            "| pump-17.tunnel ls -o ProxyCommand=x",
        ),
    ] {
        assert_eq!(ssh_tail(line).as_deref(), Ok(expected), "{line}");
    }
}

/// THREATS CLI-02, CLI-04: neither a name nor an option leads around the tunnel or around the check of who answers.
#[test]
fn what_would_lead_elsewhere_is_refused() {
    for line in [
        "",
        "-v",
        "-p",
        "--",
        "-- -oProxyCommand=id",
        "-oProxyCommand=id pump-17",
        "-o proxycommand=id pump-17",
        "-o ProxyJump=evil pump-17",
        "-vo StrictHostKeyChecking=no pump-17",
        "pump-17 -oUserKnownHostsFile=/dev/null",
        "-oKnownHostsCommand=x pump-17",
        "-o HostKeyAlias=x pump-17",
        "-J evil pump-17",
        "-Jevil pump-17",
        "-vJ evil pump-17",
        "-P tag pump-17",
        "--json pump-17",
        "pump-17;id",
        "$(id)",
        "`id`",
        "../pump",
        "PUMP",
        "%h",
        "ssh://pump-17",
        "pump-17:22",
        "-oUser=x@pump-17",
        "@pump-17",
        "-l@pump-17",
        "a;b@pump-17",
        "-x@pump-17 id",
    ] {
        assert_eq!(ssh_tail(line), Err(2), "{line}");
    }
    for text in ["a b", "a\nb", "a\u{1b}", "", "x\0"] {
        assert!(SshCall::parse(&[OsString::from(text)]).is_err(), "{text:?}");
    }
}

/// THREATS CLI-03.
#[test]
fn operands_of_scp_name_devices_and_files() {
    for (line, expected) in [
        ("a pump-17:b", "| a pump-17.tunnel:b"),
        ("pump-17:/etc/x .", "| pump-17.tunnel:/etc/x ."),
        ("-r -p dir ana@pump-17:", "-r -p | dir ana@pump-17.tunnel:"),
        ("-rl 100 ./a:b pump-17:x:y", "-rl 100 | ./a:b pump-17.tunnel:x:y"),
        ("-- -file pump-17:x", "| -file pump-17.tunnel:x"),
        ("pump-17:a pump-18:b", "| pump-17.tunnel:a pump-18.tunnel:b"),
        (":odd pump-17:x", "| :odd pump-17.tunnel:x"),
    ] {
        assert_eq!(scp_tail(line).as_deref(), Ok(expected), "{line}");
    }
    for line in [
        "a b",
        "a",
        "pump-17:x",
        "a -x:y",
        "a $(id):y",
        "-J x a pump-17:y",
        "-oProxyCommand=id a pump-17:y",
        "scp://pump-17/x y",
        "[pump-17]:x y",
        "-Z a pump-17:y",
        "a a;b@pump-17:y",
    ] {
        assert_eq!(scp_tail(line), Err(2), "{line}");
    }
}

#[test]
fn the_fixed_options_come_first_and_name_the_device() {
    let all = ssh_arguments(&setup(), SshCall::parse(&words("pump-17")).unwrap()).unwrap();
    let text: Vec<&str> = all.iter().map(|word| word.to_str().unwrap()).collect();
    assert_eq!(
        text[1],
        "ProxyCommand='/opt/my tools/tunnel' connect --host-keys -- pump-17.tunnel ssh"
    );
    assert!(text.contains(&"UserKnownHostsFile=\"/home/ana b/.config/tunnel/known_hosts/pump-17.tunnel\""));
    assert!(text.contains(&"HostKeyAlias=pump-17.tunnel"));
    assert!(text.contains(&"StrictHostKeyChecking=yes"));
}

/// Asks OpenSSH what it would do; `None` where it is not installed.
fn what_ssh_says(args: &[OsString]) -> Option<String> {
    let mut all = vec![OsString::from("-G")];
    all.extend_from_slice(args);
    let output = Command::new("ssh").args(all).output().ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

fn write_config(dir: &Path, text: &str) -> OsString {
    let file = dir.join("config");
    std::fs::write(&file, text).unwrap();
    file.into()
}

/// THREATS CLI-04, CLI-05: a hostile or careless file of the user changes nothing.
#[test]
fn openssh_takes_our_values_over_those_of_a_file() {
    let place = Place::new();
    let config = write_config(
        &place.path(""),
        "Host *\n ForwardAgent yes\n ForwardX11 yes\n ProxyJump evil\n StrictHostKeyChecking no\n HostKeyAlias x\n\
         UserKnownHostsFile /dev/null\n KnownHostsCommand /bin/echo\n VerifyHostKeyDNS yes\n UpdateHostKeys yes\n",
    );
    let mut args = ssh_arguments(&setup(), SshCall::parse(&words("-v ana@pump-17 -- id")).unwrap()).unwrap();
    args.splice(0..0, [OsString::from("-F"), config]);
    let Some(said) = what_ssh_says(&args) else {
        eprintln!("skipped: OpenSSH is not installed");
        return;
    };
    for line in [
        "user ana",
        "hostname pump-17.tunnel",
        "proxycommand '/opt/my tools/tunnel' connect --host-keys -- pump-17.tunnel ssh",
        "stricthostkeychecking true",
        "hostkeyalias pump-17.tunnel",
        "userknownhostsfile /home/ana b/.config/tunnel/known_hosts/pump-17.tunnel",
        "globalknownhostsfile /dev/null",
        "forwardagent no",
        "forwardx11 no",
        "verifyhostkeydns false",
        "updatehostkeys false",
        "permitlocalcommand no",
    ] {
        assert!(said.lines().any(|found| found == line), "`{line}` in\n{said}");
    }
    assert!(!said.contains("proxyjump"), "{said}");
    assert!(
        !said.lines().any(|line| line == "knownhostscommand /bin/echo"),
        "{said}"
    );
}

#[test]
fn openssh_lets_a_person_ask_for_more_on_the_command_line() {
    let mut args = ssh_arguments(&setup(), SshCall::parse(&words("-A pump-17")).unwrap()).unwrap();
    args.splice(0..0, words("-F none"));
    let Some(said) = what_ssh_says(&args) else {
        eprintln!("skipped: OpenSSH is not installed");
        return;
    };
    assert!(said.lines().any(|line| line == "forwardagent yes"), "{said}");
}

#[test]
fn the_stanza_is_for_devices_only() {
    let place = Place::new();
    let run = place.run(&["ssh-config"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let config = write_config(&place.path(""), &run.stdout);
    let ask = |host: &str| what_ssh_says(&[OsString::from("-F"), config.clone(), host.into()]);
    let Some(said) = ask("pump-17.tunnel") else {
        eprintln!("skipped: OpenSSH is not installed");
        return;
    };
    let home = place.home();
    let home = home.to_str().unwrap();
    let exe = env!("CARGO_BIN_EXE_tunnel");
    // ssh shows the command as it stands in the file, and the file with its host.
    let command = format!("proxycommand {exe} --home {home} connect --host-keys -- '%n' ssh");
    assert!(said.lines().any(|line| line == command), "`{command}` in\n{said}");
    assert!(
        said.contains(&format!("userknownhostsfile {home}/known_hosts/")),
        "{said}"
    );
    assert!(
        said.lines().any(|line| line == "stricthostkeychecking true"),
        "{said}"
    );
    for host in ["pump-17", "pump-17.example"] {
        assert!(!ask(host).unwrap().contains("proxycommand"), "{host}");
    }
}

#[test]
fn the_stanza_is_json_when_asked() {
    let place = Place::new();
    let json: serde_json::Value = serde_json::from_str(&place.run(&["--json", "ssh-config"]).stdout).unwrap();
    assert_eq!(json["stanza"], place.run(&["ssh-config"]).stdout);
}
