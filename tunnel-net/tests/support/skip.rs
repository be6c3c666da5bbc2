//! Tests that need what a machine may lack: they say so, are counted, and in the continuous checks they fail.

use std::io::Write as _;
use std::path::PathBuf;

/// Tells whether a test must be skipped for want of the rights of root and of TUN devices, and says so.
pub(crate) fn without_namespaces(test: &str) -> bool {
    let there = rustix::process::geteuid().is_root() && PathBuf::from("/dev/net/tun").exists();
    if !there {
        say(&format!(
            "skipped: {test} needs root, network namespaces and /dev/net/tun"
        ));
    }
    !there || without_program(test, "ip", "iproute2")
}

/// Tells whether a test must be skipped for want of a program, and says so.
///
/// # Panics
/// With `CI=true`, since a program can be installed.
pub(crate) fn without_program(test: &str, name: &str, package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let there = std::env::split_paths(&path)
        .chain(more)
        .any(|dir| dir.join(name).is_file());
    if !there {
        let what = format!("{test} needs `{name}` of the Debian package {package}");
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{what}, and the checks run all tests"
        );
        say(&format!("skipped: {what}"));
    }
    !there
}

/// Says something past the test runner, and adds it to the list that is counted.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
    if let Some(path) = std::env::var_os("TUNNEL_E2E_SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}
