//! What comes of a batch on a device, as it is shown: lines as they come, or an object of JSON for each command.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use tunnel_proto::batch::{Batch, BatchHash, CommandEnd, Ran};
use tunnel_proto::{Code, DeviceId};

use crate::batch::line;
use crate::escape::escape_lines;
use crate::failure::Failure;
use crate::output::{Output, write_stderr, write_stdout};

/// Longest line that is waited for, in bytes; a longer one is shown in parts.
const MAX_LINE: usize = 8 * 1024;

/// One device, and what has come of it.
#[derive(Debug)]
pub(super) struct Device {
    name: DeviceId,
    several: bool,
    commands: Vec<Vec<String>>,
    batch: BatchHash,
    to: Output,
    /// Of the command that runs: all of it for JSON, else what is no whole line yet.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Why not all went well.
    failure: Option<Failure>,
}

impl Device {
    /// Begins with a device of which nothing has come; `several` if it is not the only one.
    pub(super) fn new(name: DeviceId, several: bool, batch: &Batch, to: Output) -> Self {
        Self {
            name,
            several,
            commands: batch.commands().to_vec(),
            batch: batch.hash(),
            to,
            stdout: Vec::new(),
            stderr: Vec::new(),
            failure: None,
        }
    }

    /// Shows what came of a command.
    ///
    /// # Errors
    /// Tells that it cannot be written.
    pub(super) fn ran(&mut self, ran: Ran) -> Result<(), Failure> {
        self.stdout.extend(ran.stdout.unwrap_or_default());
        self.stderr.extend(ran.stderr.unwrap_or_default());
        if !self.to.json {
            self.show_lines(ran.end.is_some())?;
        }
        match ran.end {
            Some(end) => self.ended(ran.command, &end),
            None => Ok(()),
        }
    }

    /// Takes in how the device's part ended.
    ///
    /// # Errors
    /// Tells that it cannot be written.
    pub(super) fn done(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        let Err(failure) = result else { return Ok(()) };
        if !self.to.json {
            self.show_lines(true)?;
        }
        if !failure.is_quiet() {
            if self.to.json {
                self.to.json_line(&Failed {
                    device: self.name.as_str(),
                    batch: self.batch,
                    error: failure.body(),
                })?;
            } else if self.several {
                self.to.failure(&failure);
            }
        }
        self.failure.get_or_insert(failure);
        Ok(())
    }

    fn ended(&mut self, command: u32, end: &CommandEnd) -> Result<(), Failure> {
        // What is out of order was refused before.
        let words = self.commands.get(command as usize).cloned().unwrap_or_default();
        let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
        if self.to.json {
            self.to.json_line(&Ended {
                device: self.name.as_str(),
                batch: self.batch,
                command: command + 1,
                words: &words,
                exit: end.exit,
                signal: end.signal,
                code: end.why.as_ref().map(|why| why.code),
                detail: end.why.as_ref().and_then(|why| why.detail.as_deref()),
                millis: end.millis,
                stdout: Text::of(&stdout),
                stderr: Text::of(&stderr),
            })?;
        }
        if end.is_good() {
            return Ok(());
        }
        let failure = failure(&self.name, command + 1, &words, end);
        if self.several || self.failure.is_some() {
            self.to.note(&failure.to_line());
        }
        self.failure.get_or_insert(failure);
        Ok(())
    }

    fn show_lines(&mut self, all: bool) -> Result<(), Failure> {
        let prefix = if self.several {
            format!("{}: ", self.name)
        } else {
            String::new()
        };
        let text = lines(&mut self.stdout, &prefix, all);
        if !text.is_empty() {
            write_stdout(&text)?;
        }
        let text = lines(&mut self.stderr, &prefix, all);
        if !text.is_empty() {
            write_stderr(&text);
        }
        Ok(())
    }
}

/// Returns how all went: as the first device, in the order of the command line, of which not all is well.
pub(super) fn verdict(devices: Vec<Device>) -> Result<(), Failure> {
    let count = devices.len();
    let failures: Vec<_> = devices.into_iter().filter_map(|device| device.failure).collect();
    let (failed, first) = (failures.len(), failures.into_iter().next());
    match first {
        None => Ok(()),
        Some(first) if count == 1 => Err(first),
        Some(first) => Err(first.within(&format!("not all went well on {failed} of {count} devices"))),
    }
}

fn failure(device: &DeviceId, number: u32, words: &[String], end: &CommandEnd) -> Failure {
    let what = format!("command {number} on `{device}` did not end well: {}", line(words));
    if let Some(why) = &end.why {
        return Failure::refused(why, what);
    }
    let why = match (end.exit, end.signal) {
        (Some(exit), _) => format!("it ended with exit code {exit}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "the device does not say how it ended".to_owned(),
    };
    Failure::new(Code::CommandFailed, what).why(why)
}

/// Takes the whole lines out of what has come, each escaped and with the device's name before it; what is left too if that
/// is `all`.
fn lines(bytes: &mut Vec<u8>, prefix: &str, all: bool) -> String {
    let mut text = String::new();
    let begun = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let whole = if all || bytes.len() - begun > MAX_LINE {
        bytes.len()
    } else {
        begun
    };
    let taken: Vec<u8> = bytes.drain(..whole).collect();
    for line in taken.split_inclusive(|&byte| byte == b'\n') {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
        let line = line.strip_suffix('\r').unwrap_or(&line);
        text.push_str(prefix);
        text.push_str(&escape_lines(line));
        text.push('\n');
    }
    text
}

/// A command that has ended, for scripts.
#[derive(Serialize)]
struct Ended<'a> {
    device: &'a str,
    batch: BatchHash,
    /// Counts from 1.
    command: u32,
    words: &'a [String],
    exit: Option<i32>,
    signal: Option<i32>,
    code: Option<Code>,
    detail: Option<&'a str>,
    millis: u64,
    stdout: Text<'a>,
    stderr: Text<'a>,
}

/// A device on which it came to nothing, or was broken off.
#[derive(Serialize)]
struct Failed<'a, E: Serialize> {
    device: &'a str,
    batch: BatchHash,
    error: E,
}

/// An output: text, or what is no UTF-8 in base64.
#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Plain(&'a str),
    Bytes { base64: String },
}

impl<'a> Text<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self::Plain(text),
            Err(_) => Self::Bytes {
                base64: STANDARD.encode(bytes),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_with_their_device_and_harmless() {
        let mut bytes = b"one\ntw".to_vec();
        assert_eq!(lines(&mut bytes, "pump-17: ", false), "pump-17: one\n");
        bytes.extend(b"o\r\n\n\x1b[2J\xff\nlast");
        assert_eq!(
            lines(&mut bytes, "p: ", false),
            "p: two\np: \np: \\u{1b}[2J\u{fffd}\n"
        );
        assert_eq!(lines(&mut bytes, "", true), "last\n");
        assert_eq!(lines(&mut bytes, "", true), "");
        let mut long = vec![b'x'; MAX_LINE + 1];
        assert_eq!(lines(&mut long, "", false).len(), MAX_LINE + 2);
    }

    #[test]
    fn a_line_is_not_parted_because_many_came_before_it() {
        let wrote: String = (0..2000).map(|number| format!("line {number:05}\n")).collect();
        assert!(wrote.len() > 20 * 1024);
        let (mut bytes, mut shown) = (Vec::new(), String::new());
        for chunk in wrote.as_bytes().chunks(16 * 1024) {
            bytes.extend(chunk);
            shown.push_str(&lines(&mut bytes, "", false));
        }
        assert_eq!(shown, wrote);
    }

    #[test]
    fn the_first_device_that_failed_gives_the_exit_code() {
        let batch = Batch::new(vec![vec!["/bin/a".into()]]).unwrap();
        let to = Output { json: false };
        let device = |name: &str, failure: Option<Code>| {
            let mut device = Device::new(name.parse().unwrap(), true, &batch, to);
            device.failure = failure.map(|code| Failure::new(code, name));
            device
        };
        assert!(verdict(vec![device("a", None), device("b", None)]).is_ok());
        let failed = vec![
            device("a", None),
            device("b", Some(Code::DeviceOffline)),
            device("c", Some(Code::BatchDenied)),
        ];
        let failure = verdict(failed).unwrap_err();
        assert_eq!((failure.exit_code(), failure.code()), (4, "E_DEVICE_OFFLINE"));
        assert!(
            failure.to_text().contains("2 of 3 devices"),
            "{}",
            failure.to_text()
        );
    }

    #[test]
    fn what_a_command_ended_with_has_its_code() {
        let device = "pump-17".parse().unwrap();
        let end = |exit, signal, why: Option<Code>| CommandEnd {
            exit,
            signal,
            why: why.map(Into::into),
            millis: 1,
        };
        for (end, exit, text) in [
            (end(Some(3), None, None), 1, "exit code 3"),
            (end(None, Some(11), None), 1, "signal 11"),
            (
                end(None, Some(9), Some(Code::CommandTimeout)),
                5,
                "E_COMMAND_TIMEOUT",
            ),
        ] {
            let failure = failure(&device, 1, &["/bin/a".into()], &end);
            assert_eq!(failure.exit_code(), exit);
            assert!(failure.to_text().contains(text), "{}", failure.to_text());
        }
    }
}
