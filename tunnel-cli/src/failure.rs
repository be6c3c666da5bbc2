//! What a command fails with: what failed, why, and what to do next.

use serde::Serialize;
use tunnel_proto::code::Exit;
use tunnel_proto::{Code, Refusal};

use crate::escape::{escape, escape_json};

/// The code of a command that the user interrupted.
const INTERRUPTED: &str = "E_INTERRUPTED";

/// Why a command failed, in three parts, with its stable code and exit code.
#[derive(Clone, Debug)]
pub struct Failure {
    what: String,
    code: &'static str,
    why: String,
    next: Option<String>,
    detail: Option<String>,
    exit: u8,
    quiet: bool,
}

impl Failure {
    /// Makes a failure of a code; `what` says what failed, as `could not open a tunnel to `pump-17``.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            code: code.as_str(),
            why: code.why().to_owned(),
            next: Some(code.next_step().to_owned()),
            detail: None,
            exit: code.exit() as u8,
            quiet: false,
        }
    }

    /// Makes the failure of a refusal.
    pub fn refused(refusal: &Refusal, what: impl Into<String>) -> Self {
        let failure = Self::new(refusal.code, what);
        match &refusal.detail {
            Some(detail) => failure.detail(detail),
            None => failure,
        }
    }

    /// Makes the failure of a command that a signal ended.
    pub fn interrupted() -> Self {
        Self {
            what: "interrupted".to_owned(),
            code: INTERRUPTED,
            why: "a signal ended the command".to_owned(),
            next: None,
            detail: None,
            exit: Exit::Interrupted as u8,
            quiet: true,
        }
    }

    /// Makes the failure of a command that nobody reads any more: it ends without a word.
    pub fn nobody_reads() -> Self {
        Self {
            exit: Exit::Done as u8,
            ..Self::interrupted()
        }
    }

    /// Says more exactly why.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// Says more exactly what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Adds the particulars of the case.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Replaces the code by one that only this program has.
    #[must_use]
    pub fn code_text(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// Replaces the exit code.
    #[must_use]
    pub fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// Returns the stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the exit code of the program.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }

    /// Says whether there is nothing to tell.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Says in what larger thing it failed.
    #[must_use]
    pub fn within(mut self, what: &str) -> Self {
        self.what = format!("{what}; {}", self.what);
        self
    }

    /// Returns what failed and why, in one line.
    pub fn to_line(&self) -> String {
        format!("{}: {} ({})", self.what, self.why, self.code)
    }

    /// Returns the failure as a part of a larger answer.
    pub fn body(&self) -> impl Serialize {
        Body {
            code: self.code,
            what: &self.what,
            why: &self.why,
            next: self.next.as_deref(),
            detail: self.detail.as_deref(),
            exit: self.exit,
        }
    }

    /// Returns the failure as people read it: one part to a line, each escaped.
    pub fn to_text(&self) -> String {
        let why = match &self.detail {
            Some(detail) => format!("{}: {}", self.why, detail),
            None => self.why.clone(),
        };
        let mut text = format!(
            "error: {}\n  why: {} ({})\n",
            escape(&self.what),
            escape(&why),
            self.code
        );
        if let Some(next) = &self.next {
            text.push_str(&format!("  next: {}\n", escape(next)));
        }
        text
    }

    /// Returns the failure as scripts read it: one line of JSON.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string(&Wrapper { error: self.body() }).unwrap_or_default();
        format!("{}\n", escape_json(&json))
    }
}

#[derive(Serialize)]
struct Wrapper<E> {
    error: E,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    what: &'a str,
    why: &'a str,
    next: Option<&'a str>,
    detail: Option<&'a str>,
    exit: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_three_parts() {
        let failure = Failure::new(Code::DeviceOffline, "could not open a tunnel to `pump-17`");
        assert_eq!(
            failure.to_text(),
            "error: could not open a tunnel to `pump-17`\n  why: the device is not linked to the server \
             (E_DEVICE_OFFLINE)\n  next: `tunnel devices` shows when it was last there\n"
        );
        assert_eq!(failure.exit_code(), 4);
    }

    /// THREATS CLI-01.
    #[test]
    fn text_of_others_is_escaped() {
        let failure = Failure::refused(&Refusal::new(Code::LocalPolicy, "\u{1b}[2J\nerror: fine"), "x");
        let text = failure.to_text();
        assert!(!text.contains('\u{1b}'));
        assert_eq!(text.lines().count(), 3, "{text}");
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(json["error"]["code"], "E_LOCAL_POLICY");
        assert_eq!(json["error"]["detail"], "\u{1b}[2J\nerror: fine");
    }
}
