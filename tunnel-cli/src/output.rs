//! Where a command's data and talk go: data to stdout, as text or JSON, and everything else to stderr.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use tunnel_proto::Code;

use crate::escape::{escape, escape_json};
use crate::failure::Failure;

/// The form in which a command speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether data and errors are JSON.
    pub json: bool,
}

impl Output {
    /// Writes a command's result: the value with `--json`, else the text.
    ///
    /// # Errors
    /// Tells that stdout cannot be written.
    pub fn result(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json {
            self.json_line(value)
        } else {
            write_stdout(&text())
        }
    }

    /// Writes one value as one line of JSON.
    ///
    /// # Errors
    /// Tells that stdout cannot be written.
    pub fn json_line(self, value: &impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string(value).map_err(|error| {
            Failure::new(Code::Internal, "could not write the result").detail(error.to_string())
        })?;
        write_stdout(&format!("{}\n", escape_json(&json)))
    }

    /// Tells something on stderr that is no error; with `--json` nobody would read it, so nothing is said.
    pub fn note(self, text: &str) {
        if !self.json {
            write_stderr(&format!("{}\n", escape(text)));
        }
    }

    /// Tells a failure on stderr.
    pub fn failure(self, failure: &Failure) {
        if !failure.is_quiet() {
            write_stderr(&if self.json {
                failure.to_json()
            } else {
                failure.to_text()
            });
        }
    }
}

/// Writes data to stdout, at once.
///
/// # Errors
/// Tells that stdout cannot be written. A reader that has left ends the command quietly.
pub fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                Failure::nobody_reads()
            } else {
                Failure::new(Code::Unavailable, "could not write the result")
                    .why("stdout does not take it")
                    .next("check where the output goes, and its free space")
                    .detail(error.to_string())
                    .exit(tunnel_proto::code::Exit::Failed as u8)
            }
        })
}

/// Writes talk to stderr. There is nowhere to complain if it fails.
pub fn write_stderr(text: &str) {
    let mut stderr = io::stderr().lock();
    // Under `ssh`, the terminal may be one that does not return to the start of the line by itself.
    let _ = if stderr.is_terminal() {
        stderr.write_all(text.replace('\n', "\r\n").as_bytes())
    } else {
        stderr.write_all(text.as_bytes())
    };
}

/// Lays rows out in columns, each cell escaped; the last column is not padded.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let cells: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| escape(cell).into_owned()))
        .collect();
    let mut widths = head.map(|title| title.chars().count());
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(&cells) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Lays out a list of names and values, each value escaped.
pub fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    rows.iter().fold(String::new(), |text, (name, value)| {
        let line = format!("{:width$} {}", format!("{name}:"), escape(value));
        text + line.trim_end() + "\n"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [
            ["pump-17".into(), "ssh".into()],
            ["a".into(), String::new()],
            ["\u{1b}".into(), "x".into()],
        ];
        assert_eq!(
            table(["DEVICE", "SERVICES"], &rows),
            "DEVICE   SERVICES\npump-17  ssh\na\n\\u{1b}   x\n"
        );
    }
}
