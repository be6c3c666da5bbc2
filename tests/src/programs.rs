//! Where the programs are that the tests start, and that they are current.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Says that the programs were built just now, by whoever started the tests.
const BUILT: &str = "TUNNEL_E2E_BUILT";

const PACKAGES: [&str; 4] = ["tunnel-server", "tunnel-agent", "tunnel-cli", "netlab"];

/// Returns the path of a program of this workspace; the first call builds them all.
///
/// # Panics
/// When they cannot be built.
pub fn path(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let path = DIRECTORY.get_or_init(build).join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace --bins`",
        path.display()
    );
    path
}

/// Builds the programs with the profile of this test into its target directory; where they are.
fn build() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    // target/<profile>/deps/<test>, or target/<profile>/<program> for a program that uses the harness
    let directory = test.parent().expect("a program lies in a directory");
    let directory = if directory.ends_with("deps") {
        directory.parent()
    } else {
        Some(directory)
    };
    let directory = directory.expect("a test lies in the target directory");
    if env::var_os(BUILT).is_some() {
        return directory.to_owned();
    }
    let target = directory
        .parent()
        .expect("a profile lies in the target directory");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--bins", "--target-dir"]).arg(target);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    PACKAGES.iter().for_each(|package| {
        command.args(["-p", package]);
    });
    if directory.ends_with("release") {
        command.arg("--release");
    }
    // What cargo tells this test about its own package would have dependencies that ask for such things built anew.
    let of_this_test = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(of_this_test) {
            command.env_remove(name);
        }
    }
    let output = command.output().expect("cargo runs");
    assert!(
        output.status.success(),
        "the programs do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    directory.to_owned()
}
