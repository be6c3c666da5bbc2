//! Tests that need what a machine may lack: they say so, are counted, and in the continuous checks they fail.

use std::io::Write;
use std::path::Path;

/// Names a file that gets one line for each skipped test.
const LIST: &str = "TUNNEL_E2E_SKIPPED";

/// What a test may need.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// The rights of root, network namespaces, TUN devices, and the programs `ip` and `nft`.
    Namespaces,
    /// The rights of root.
    Root,
    /// A program, and the Debian package that brings it.
    Program(&'static str, &'static str),
}

impl Need {
    /// Tells what is missing, if anything is, and whether it could be installed.
    fn missing(self) -> Option<(String, bool)> {
        match self {
            Need::Root => (!is_root()).then(|| ("the rights of root".to_owned(), false)),
            Need::Namespaces => {
                let tools = [Need::Program("ip", "iproute2"), Need::Program("nft", "nftables")];
                if !is_root() || !Path::new("/dev/net/tun").exists() || !may_create_namespaces() {
                    return Some(("root, network namespaces and /dev/net/tun".to_owned(), false));
                }
                tools.into_iter().find_map(Need::missing)
            }
            Need::Program(name, package) => {
                (find(name).is_none()).then(|| (format!("`{name}` of the Debian package {package}"), true))
            }
        }
    }
}

/// Tells whether a test must be skipped, and counts it if so.
///
/// # Panics
/// With `CI=true`, when something is missing that could have been installed.
pub fn must_skip(test: &str, needs: &[Need]) -> bool {
    let Some((what, installable)) = needs.iter().copied().find_map(Need::missing) else {
        return false;
    };
    assert!(
        !(installable && in_ci()),
        "{test} needs {what}, and the checks run all tests"
    );
    let line = format!("skipped: {test} needs {what}");
    say(&line);
    if let Some(path) = std::env::var_os(LIST) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // The list serves the summary only.
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
    true
}

/// Ends a test early where the machine lacks what it needs.
#[macro_export]
macro_rules! needs {
    ($($need:expr),+ $(,)?) => {
        if $crate::skip::must_skip($crate::test_name!(), &[$($need),+]) {
            return;
        }
    };
}

/// The path of the function that is being compiled.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        name.trim_end_matches("::here")
    }};
}

/// Writes a line past the test runner, which keeps what tests print to itself.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Tells whether this is a run of the continuous checks.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// Tells whether the test runs with the rights of root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Finds a program as the shell would, and where only root's shell would.
pub fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn may_create_namespaces() -> bool {
    std::process::Command::new("unshare")
        .args(["--net", "true"])
        .status()
        .is_ok_and(|status| status.success())
}
