//! What a record is about, for those who want to be told of some only. Pure.

use std::str::FromStr;

use serde_json::Value;
use tunnel_proto::Code;
use tunnel_proto::api::AuditRecord;

/// A group of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topic {
    /// What was permitted and what was not.
    Decisions,
    /// What others were asked to agree to, and what they said.
    Approvals,
    /// Trust that was taken away, and tunnels that ended by it.
    Cuts,
    /// What somebody should look at.
    Alarms,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Decisions, Self::Approvals, Self::Cuts, Self::Alarms];

    /// Returns the name, as configurations write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decisions => "decisions",
            Self::Approvals => "approvals",
            Self::Cuts => "cuts",
            Self::Alarms => "alarms",
        }
    }

    /// Returns what a record is about; none for what is of no group.
    pub(crate) fn of(kind: &str, body: &str) -> Option<Self> {
        match kind {
            "tunnel.opened" | "tunnel.denied" | "access.denied" | "denials.gathered" => Some(Self::Decisions),
            "cut.ordered" | "cut.confirmed" | "identity.revoked" | "device.quarantined"
            | "operator.disabled" => Some(Self::Cuts),
            "tunnel.ended" => {
                let reason = field(body, "reason");
                reason
                    .is_some_and(|reason| Code::from_text(&reason).is_cut())
                    .then_some(Self::Cuts)
            }
            "cut.unconfirmed"
            | "glass.broken"
            | "key.reused"
            | "enrol.guessed"
            | "policy.failed"
            | "evidence.restored"
            | "notification.failed" => Some(Self::Alarms),
            kind if kind.starts_with("approval.") => Some(Self::Approvals),
            _ => None,
        }
    }
}

impl FromStr for Topic {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|topic| topic.as_str() == text)
            .ok_or(())
    }
}

/// Says whether a record is about the notifications of a target: telling it that would go round in a circle.
pub(crate) fn is_about(record: &AuditRecord, target: &str) -> bool {
    record.kind == "notification.failed" && field(&record.body, "target").as_deref() == Some(target)
}

fn field(body: &str, name: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    Some(body.get(name)?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_one_topic_or_none() {
        for (kind, body, topic) in [
            ("tunnel.denied", "{}", Some(Topic::Decisions)),
            ("approval.given", "{}", Some(Topic::Approvals)),
            ("tunnel.ended", r#"{"reason":"E_CUT"}"#, Some(Topic::Cuts)),
            ("tunnel.ended", r#"{"reason":"E_TUNNEL_CLOSED"}"#, None),
            ("tunnel.ended", "damaged", None),
            ("glass.broken", "{}", Some(Topic::Alarms)),
            ("device.linked", "{}", None),
        ] {
            assert_eq!(Topic::of(kind, body), topic, "{kind} {body}");
        }
        for topic in Topic::ALL {
            assert_eq!(topic.as_str().parse(), Ok(topic));
        }
    }

    #[test]
    fn a_target_is_not_told_of_its_own_failures() {
        let record = AuditRecord {
            seq: 1,
            time_millis: 0,
            kind: "notification.failed".into(),
            body: r#"{"target":"siem","seq":7}"#.into(),
            prev: String::new(),
            hash: String::new(),
        };
        assert!(is_about(&record, "siem") && !is_about(&record, "pager"));
    }
}
