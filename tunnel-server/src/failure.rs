//! Failures of commands, as people and scripts read them: what failed, why, and what to do next.

use std::error::Error;
use std::fmt;

use tunnel_proto::code::Exit;

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
    /// Makes a failure of use or configuration.
    pub fn usage(
        code: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            code,
            exit: Exit::Usage,
            what: what.into(),
            why: why.into(),
            next: next.into(),
        }
    }

    /// Makes a failure of an operation.
    pub fn failed(
        code: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            exit: Exit::Failed,
            ..Self::usage(code, what, why, next)
        }
    }

    /// Returns the failure as one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "error": {
                "code": self.code, "what": self.what, "why": self.why, "next": self.next, "exit": self.exit as u8,
            }
        })
        .to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\n  why: {} ({})\n  next: {}",
            self.what, self.why, self.code, self.next
        )
    }
}

impl Error for Failure {}

/// Writes an error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_three_parts() {
        let failure = Failure::usage(
            "E_CONFIG",
            "could not start",
            "there is no `server.toml`",
            "run `init`",
        );
        let text = failure.to_string();
        assert_eq!(
            text,
            "error: could not start\n  why: there is no `server.toml` (E_CONFIG)\n  next: run `init`"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(json["error"]["exit"], 2);
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: inner")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(
            chain(&Outer(std::io::Error::other("other"))),
            "outer: inner: other"
        );
    }
}
