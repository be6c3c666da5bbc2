//! Programs as children of a test: what they say is kept, their end is waited for, and they end with the test.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::until;

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; 128 and the signal's number, if a signal ended it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Returns the standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns the standard output as text, after the program has done its work.
    ///
    /// # Panics
    /// When it has failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.code == 0,
            "exit code {}: {}{}",
            self.code,
            self.text(),
            self.stderr
        );
        self.text()
    }

    /// Returns what it said on both outputs.
    pub fn said(&self) -> String {
        format!("{}{}", self.text(), self.stderr)
    }
}

/// A program that runs beside the test; its outputs go into a file. It ends with this value.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose outputs go to a new file in `directory`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> Self {
        let log = (0..)
            .map(|number| directory.join(format!("{name}-{number}.log")))
            .find(|path| !path.exists())
            .expect("there is always another number");
        let out = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let err = out
            .try_clone()
            .unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns all that it has said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has said something.
    ///
    /// # Panics
    /// When it ends before that, or does not say it in time.
    #[track_caller]
    pub fn wait_to_say(&mut self, words: &str, deadline: Duration) {
        let start = Instant::now();
        while !self.said().contains(words) {
            if let Some(status) = self.ended() {
                panic!(
                    "{} ended ({status}) before it said `{words}`:\n{}",
                    self.name,
                    self.said()
                );
            }
            assert!(
                start.elapsed() < deadline,
                "waited {deadline:?} for {} to say `{words}`; it said:\n{}",
                self.name,
                self.said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells how it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end; its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> i32 {
        let what = format!("the end of {}", self.name);
        let status = until(&what, deadline, || self.ended());
        code(status)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // One that has ended needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it at once, without a chance to tidy up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns its resident memory, in bytes: at this moment, and at most so far.
    pub fn memory(&self) -> Memory {
        Memory::of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let running = self.ended().is_none();
        self.signal(Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(3);
        while running && self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        if std::thread::panicking() {
            let mut text = self.said();
            let start = text.len().saturating_sub(8000);
            let start = (start..text.len())
                .find(|&at| text.is_char_boundary(at))
                .unwrap_or(0);
            text.replace_range(..start, "");
            crate::skip::say(&format!("--- {} said:\n{text}", self.name));
        }
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// At this moment.
    pub now: u64,
    /// The most so far.
    pub peak: u64,
}

impl Memory {
    /// Reads the memory of a process.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let field = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .expect("the kernel tells it");
            line.split_whitespace()
                .nth(1)
                .and_then(|number| number.parse::<u64>().ok())
                .expect("a number")
                * 1024
        };
        Self {
            now: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }
}

/// Returns the processes of this machine with their command lines.
pub fn all() -> Vec<(u32, Vec<String>)> {
    let entries = fs::read_dir("/proc").expect("the kernel tells it").flatten();
    let processes = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // One that ends meanwhile is none.
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Some((
            pid,
            words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
        ))
    });
    processes.collect()
}

/// Runs a program to its end.
///
/// # Panics
/// When it cannot be started, or does not end in time; it is killed then.
#[track_caller]
pub fn run(command: &mut Command, deadline: Duration) -> Output {
    run_with(command, b"", deadline)
}

/// Runs a program to its end, with `input` on its standard input.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_with(command: &mut Command, input: &[u8], deadline: Duration) -> Output {
    let start = Instant::now();
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    // A program may end without reading its input.
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status,
            None if start.elapsed() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                let said = [stdout.join(), stderr.join()].map(|out| out.unwrap_or_default());
                let said = said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                panic!(
                    "waited {deadline:?} for the end of {command:?}; it said:\n{}",
                    said.concat()
                );
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let took = start.elapsed();
    let _ = writer.join();
    let stdout = stdout.join().expect("reading does not panic");
    let stderr = stderr.join().expect("reading does not panic");
    Output {
        code: code(status),
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        took,
    }
}

fn drain(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}
