//! Emulated networks around a test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::place::Place;
use crate::process;
use crate::programs;

/// How long the laboratory may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network of namespaces; it ends with this value, and so does what runs in it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: TempDir,
}

impl Lab {
    /// Builds the network that a file of `netlab` describes.
    ///
    /// # Panics
    /// When it cannot be built.
    pub fn up(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = TempDir::with_prefix("tunnel-lab-").expect("a temporary directory");
        let lab = Self {
            name: format!("e2e{}-{count}", std::process::id()),
            directory,
        };
        let file = lab.directory.path().join(format!("{}.toml", lab.name));
        std::fs::write(&file, text).expect("a temporary file");
        lab.ask(&[Path::new("up"), &file]);
        lab
    }

    /// Names a host of it.
    pub fn host(&self, host: &str) -> Place {
        Place::Host {
            lab: self.name.clone(),
            host: host.to_owned(),
        }
    }

    /// Lets programs on all hosts ask the DNS server on their own loopback.
    ///
    /// # Panics
    /// When the laboratory is gone.
    pub fn ask_own_dns(&self) {
        let file = Path::new("/run/netlab").join(&self.name).join("resolv.conf");
        std::fs::write(file, "nameserver 127.0.0.1\n").expect("a running laboratory");
    }

    /// Runs a batch of `ip` commands on a host.
    ///
    /// # Panics
    /// When they are refused.
    pub fn ip(&self, host: &str, commands: &str) {
        let mut command = self.host(host).command("ip");
        process::run_with(
            command.args(["-batch", "-"]),
            commands.as_bytes(),
            Duration::from_secs(20),
        )
        .ok();
    }

    /// Changes a link, as `lab.set("mobile", "block=udp")`.
    pub fn set(&self, link: &str, setting: &str) {
        self.ask(&["set", link, setting]);
    }

    /// Changes several properties of a link at once.
    pub fn set_all(&self, link: &str, settings: &[&str]) {
        let words = [&["set", link], settings].concat();
        // On a machine that is very busy an answer may be late; to set the same once more does no harm.
        let late = || process::run(self.command().args(&words), PATIENCE).code != 0;
        if late() && late() {
            self.ask(&words);
        }
    }

    /// Stops all traffic of a link, without a word to anybody.
    pub fn cut(&self, link: &str) {
        self.ask(&["cut", link]);
    }

    /// Gives a host or a NAT another public address; a NAT forgets its mappings.
    pub fn rebind(&self, link: &str) {
        self.ask(&["rebind", link]);
    }

    /// Starts to keep a copy of each packet that a host sends or receives.
    pub fn capture(&self, link: &str) -> PathBuf {
        let file = self.directory.path().join(format!("{link}.pcap"));
        self.ask(&[Path::new("capture"), Path::new(link), &file]);
        file
    }

    /// Ends the copying; the file is whole after that.
    pub fn end_capture(&self, link: &str) {
        self.ask(&["capture", link, "none"]);
    }

    /// Returns counters and states of the links.
    pub fn status(&self) -> String {
        self.ask(&["status"])
    }

    fn ask<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> String {
        process::run(self.command().args(words), PATIENCE).ok()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(programs::path("netlab"));
        command.env("NETLAB", &self.name);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command().arg("down").output();
    }
}
