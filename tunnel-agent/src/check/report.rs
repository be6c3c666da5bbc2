//! What a check found, for people and for scripts.

use std::fmt::Write as _;

use tunnel_net::measure::{self, Level};
use tunnel_proto::code::Exit;

use crate::failure::{Failure, plain};

/// How one thing stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// It works.
    Ok,
    /// It works, and should be looked at.
    Warning,
    /// It does not work.
    Failed,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The thing.
    pub name: String,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub text: String,
    /// Why it matters, where that is not plain.
    pub why: Option<&'static str>,
    /// What mends it.
    pub mend: Option<String>,
    /// The stable code, where it does not work.
    pub code: Option<&'static str>,
    exit: Exit,
}

/// Everything that was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
    /// What was measured, if anything was.
    pub facts: Option<serde_json::Value>,
}

impl Report {
    /// Notes what works.
    pub fn ok(&mut self, name: &str, text: impl Into<String>) {
        self.push(name, Status::Ok, text.into(), None);
    }

    /// Notes what works and should be looked at.
    pub fn warning(&mut self, name: &str, text: impl Into<String>, mend: impl Into<String>) {
        self.push(name, Status::Warning, text.into(), Some(mend.into()));
    }

    /// Notes what does not work.
    pub fn failed(&mut self, name: &str, failure: &Failure) {
        let text = format!("{}: {}", failure.what, failure.why);
        self.push(name, Status::Failed, text, Some(failure.next.clone()));
        if let Some(finding) = self.findings.last_mut() {
            (finding.code, finding.exit) = (Some(failure.code), failure.exit);
        }
    }

    /// Notes what a measurement means.
    pub fn measured(&mut self, finding: &measure::Finding) {
        let status = match finding.level {
            Level::Ok => Status::Ok,
            Level::Warning => Status::Warning,
            Level::Failed => Status::Failed,
        };
        self.push(
            finding.name,
            status,
            finding.what.clone(),
            finding.next.map(str::to_owned),
        );
        if let Some(last) = self.findings.last_mut() {
            last.why = finding.why;
            if let Some(code) = finding.code {
                (last.code, last.exit) = (Some(code.as_str()), code.exit());
            }
        }
    }

    fn push(&mut self, name: &str, status: Status, text: String, mend: Option<String>) {
        self.findings.push(Finding {
            name: name.into(),
            status,
            text,
            why: None,
            mend,
            code: None,
            exit: Exit::Done,
        });
    }

    /// Returns the exit code: that of the first thing that does not work.
    pub fn exit(&self) -> Exit {
        let failed = self
            .findings
            .iter()
            .find(|finding| finding.status == Status::Failed);
        failed.map_or(Exit::Done, |finding| finding.exit)
    }

    /// Writes one line for each finding, and the mend below it. What was found can hold words of whoever answered.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let _ = writeln!(
                text,
                "{:7} {}: {}",
                finding.status.as_str(),
                finding.name,
                plain(&finding.text)
            );
            if let Some(why) = finding.why {
                let _ = writeln!(text, "        why: {why}");
            }
            if let Some(mend) = &finding.mend {
                let _ = writeln!(text, "        next: {mend}");
            }
        }
        text
    }

    /// Writes one JSON object.
    pub fn to_json(&self) -> String {
        let checks: Vec<_> = self
            .findings
            .iter()
            .map(|finding| {
                serde_json::json!({
                    "name": finding.name,
                    "status": finding.status.as_str(),
                    "text": finding.text,
                    "why": finding.why,
                    "next": finding.mend,
                    "code": finding.code,
                })
            })
            .collect();
        let mut json = serde_json::json!({ "ok": self.exit() == Exit::Done, "checks": checks });
        if let (Some(facts), Some(fields)) = (&self.facts, json.as_object_mut()) {
            fields.insert("facts".into(), facts.clone());
        }
        format!("{json}\n")
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::Code;

    use super::*;

    #[test]
    fn the_first_failure_gives_the_exit_code() {
        let mut report = Report::default();
        report.ok("a", "works");
        report.warning("b", "nearly", "look at it");
        assert_eq!(report.exit(), Exit::Done);
        report.failed("c", &Failure::of(Code::ServerUnreachable, "no answer"));
        report.failed("d", &Failure::of(Code::PolicyDeny, "no"));
        assert_eq!(report.exit(), Exit::Unreachable);
        let text = report.to_text();
        assert!(
            text.contains(
                "ok      a: works\nwarning b: nearly\n        next: look at it\nfailed  c: no answer: "
            ),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(
            (json["ok"].as_bool(), json["checks"][2]["code"].as_str()),
            (Some(false), Some("E_SERVER_UNREACHABLE"))
        );
    }

    /// THREATS CLI-01: whoever answers the check chooses its words, and none of them reaches the terminal as a command.
    #[test]
    fn cli_01_words_of_others_move_no_cursor() {
        let mut report = Report::default();
        report.measured(&measure::Finding {
            name: "udp",
            level: Level::Failed,
            what: "closed by peer: \u{1b}[2J\u{1b}]0;title\u{7}\nok      udp: all is well \u{202e}".into(),
            why: None,
            next: None,
            code: Some(Code::ServerUnreachable),
        });
        report.ok("websocket", "ä works");
        let text = report.to_text();
        assert!(
            text.lines().count() == 2 && text.ends_with("ok      websocket: ä works\n"),
            "{text:?}"
        );
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(bad), "{text:?}");
    }
}
