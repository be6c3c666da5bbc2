//! Runs the program in a place of its own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A home directory for one test.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// The exit code.
    pub(crate) code: i32,
    /// What stood on stdout.
    pub(crate) stdout: String,
    /// What stood on stderr.
    pub(crate) stderr: String,
}

impl Place {
    /// Makes an empty one.
    pub(crate) fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    /// Returns the state directory of the program.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Returns a path beside the state directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the command line of the program, away from the settings of this machine.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("TUNNEL_HOME", self.home())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }
}

impl Run {
    /// Reads what a program left.
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Returns the error on stderr as JSON; it is one line.
    #[track_caller]
    pub(crate) fn error(&self) -> serde_json::Value {
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        let value: serde_json::Value = serde_json::from_str(&self.stderr).unwrap();
        value["error"].clone()
    }
}
