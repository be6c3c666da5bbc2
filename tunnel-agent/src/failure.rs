//! Failures as people and scripts read them: what failed, why, and what to do next.

use std::fmt;
use std::process::ExitCode;

use tunnel_proto::code::{Code, Exit, Refusal};

/// A failure in three parts, with its stable code and the program's exit code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The stable code, as `E_CONFIG`.
    pub code: &'static str,
    /// How the program ends.
    pub exit: Exit,
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do next.
    pub next: String,
}

impl Failure {
    /// Makes a failure of use, configuration or the state of this machine.
    pub fn local(
        code: &'static str,
        what: impl Into<String>,
        why: impl fmt::Display,
        next: impl Into<String>,
    ) -> Self {
        Self {
            code,
            exit: Exit::Usage,
            what: what.into(),
            why: why.to_string(),
            next: next.into(),
        }
    }

    /// Makes a failure of what the code tells all of.
    pub fn of(code: Code, what: impl Into<String>) -> Self {
        Self {
            code: code.as_str(),
            exit: code.exit(),
            what: what.into(),
            why: code.why().into(),
            next: code.next_step().into(),
        }
    }

    /// Makes a failure from a refusal of the other side; its text is made safe for a terminal.
    pub fn refused(refusal: &Refusal, what: impl Into<String>) -> Self {
        let failure = Self::of(refusal.code, what);
        match &refusal.detail {
            Some(detail) => failure.because(format!("{}: {}", refusal.code.why(), plain(detail))),
            None => failure,
        }
    }

    /// Replaces the reason.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = why.to_string();
        self
    }

    /// Replaces the next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// Returns the exit code of the program.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }

    /// Returns the failure as one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "error": { "code": self.code, "what": self.what, "why": self.why, "next": self.next }
        })
        .to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\n  why: {}\n  next: {}",
            self.what, self.why, self.next
        )
    }
}

impl std::error::Error for Failure {}

/// Makes another party's text safe to show: control, format and line characters are escaped, and it is cut to a line.
pub fn plain(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let mut out = String::new();
    for c in text.chars().take(MAX_CHARS) {
        let format = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{61c}' | '\u{feff}' | '\u{ad}');
        if c.is_control() || format {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_three_parts() {
        let failure = Failure::local(
            "E_CONFIG",
            "could not read `a`",
            "it is a link",
            "name the file itself",
        );
        assert_eq!(
            failure.to_string(),
            "error: could not read `a`\n  why: it is a link\n  next: name the file itself"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(json["error"]["code"], "E_CONFIG");
    }

    #[test]
    fn text_of_others_is_made_plain() {
        let refusal = Refusal::new(Code::EnrolTaken, "\x1b[2Jpump\u{202e}\r\n");
        let failure = Failure::refused(&refusal, "could not enrol");
        assert_eq!(
            failure.why,
            "the id is taken by another key: \\u{1b}[2Jpump\\u{202e}\\r\\n"
        );
        assert_eq!(failure.exit, Exit::Denied);
        assert!(plain(&"x".repeat(1000)).len() <= 300);
    }
}
