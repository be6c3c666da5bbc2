//! Asking the fleet's own authoriser about a tunnel that policy permits. It can forbid it, or say facts that policies weigh;
//! without a definite answer nothing opens.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tunnel_policy::Question;
use tunnel_proto::ids::hex;
use tunnel_proto::names::{FactName, FactValue};
use tunnel_proto::{Code, UnixTime};

use super::Control;
use crate::audit::{Consulted, bounded};
use crate::config;
use crate::webhook::{Client, Message, TargetError, rfc3339};

/// What the service is asked when somebody wants a tunnel.
pub(crate) const TUNNEL_ASKED: &str = "tunnel.asked";
/// What it is asked when somebody wants to know how many have to agree to one.
pub(crate) const APPROVAL_ASKED: &str = "approval.asked";
/// What it is asked when somebody wants to know what it would say.
pub(crate) const WHY_ASKED: &str = "why.asked";
/// Requests at once: what more there is waits, and its time runs.
const AT_ONCE: usize = 64;
/// Questions at once that open nothing, beside those.
const WHY_AT_ONCE: usize = 4;
/// Most facts in an answer.
const MAX_FACTS: usize = 32;

/// The service that is asked, and how it is reached.
#[derive(Debug)]
pub(crate) struct Authoriser {
    client: Client,
    deadline: Duration,
    turns: Semaphore,
    /// Of questions that open nothing: they take no turn of one that does.
    turns_of_why: Semaphore,
}

/// What the authoriser said of a request that it does not forbid.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) facts: BTreeMap<FactName, FactValue>,
    pub(crate) consulted: Consulted,
}

/// A request that goes no further, with what is recorded of it.
#[derive(Debug)]
pub(crate) struct Forbidden {
    pub(crate) code: Code,
    pub(crate) consulted: Consulted,
}

/// An answer as it is written. What is not known is refused: a misspelt field would else be passed over in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    decision: Verdict,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    facts: BTreeMap<FactName, FactValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allow,
    Forbid,
}

impl Authoriser {
    /// Makes ready to ask.
    ///
    /// # Errors
    /// Returns what is wrong with its key or roots.
    pub(crate) fn new(config: &config::Authoriser, data: &Path) -> Result<Self, TargetError> {
        Ok(Self {
            client: Client::new(&config.target, data)?,
            deadline: config.deadline,
            turns: Semaphore::new(AT_ONCE),
            turns_of_why: Semaphore::new(WHY_AT_ONCE),
        })
    }

    /// Asks about a tunnel, or an approval of one.
    ///
    /// # Errors
    /// Returns [`Code::AuthoriserDeny`] if it forbids the tunnel, and [`Code::Authoriser`] if it says nothing that can be
    /// used: in time, of the documented form and with a status of success.
    pub(crate) async fn ask(
        &self,
        event: &'static str,
        id: String,
        question: &Question,
        now: UnixTime,
    ) -> Result<Said, Forbidden> {
        let started = Instant::now();
        let body = json!({ "type": event, "timestamp": rfc3339(now), "data": question });
        let message = Message {
            id: id.clone(),
            body: body.to_string().into(),
        };
        let answer = tokio::time::timeout(self.deadline, self.in_turn(event, &message, now)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {} ms", self.deadline.as_millis())));
        let consulted = |answer: String| Consulted {
            request: id,
            millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            answer: bounded(&answer),
        };
        match answer {
            Ok(answer) => match answer.decision {
                Verdict::Allow => Ok(Said {
                    facts: answer.facts,
                    consulted: consulted(told("allow", &answer.reason)),
                }),
                Verdict::Forbid => Err(Forbidden {
                    code: Code::AuthoriserDeny,
                    consulted: consulted(told("forbid", &answer.reason)),
                }),
            },
            Err(why) => {
                tracing::error!(
                    why,
                    "the authoriser gave no answer that can be used, so nothing was opened"
                );
                Err(Forbidden {
                    code: Code::Authoriser,
                    consulted: consulted(format!("none: {why}")),
                })
            }
        }
    }

    async fn in_turn(&self, event: &str, message: &Message, now: UnixTime) -> Result<Answer, String> {
        let turns = match event {
            WHY_ASKED => &self.turns_of_why,
            _ => &self.turns,
        };
        let _turn = turns.acquire().await.map_err(|error| error.to_string())?;
        let sent = self.client.send(message, now, self.deadline).await;
        let body = sent.map_err(|error| error.to_string())?;
        read(&body)
    }
}

impl Control {
    /// Asks the authoriser.
    ///
    /// # Errors
    /// As [`Authoriser::ask`].
    pub(crate) async fn consult(
        &self,
        authoriser: &Authoriser,
        event: &'static str,
        question: &Question,
    ) -> Result<Said, Forbidden> {
        let id = format!("ask_{}", hex(&self.random::<16>()));
        authoriser.ask(event, id, question, self.now()).await
    }
}

fn read(body: &[u8]) -> Result<Answer, String> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is not of the documented form ({error})"))?;
    if answer.facts.len() > MAX_FACTS {
        return Err(format!("the answer has more than {MAX_FACTS} facts"));
    }
    Ok(answer)
}

fn told(decision: &str, reason: &str) -> String {
    match reason {
        "" => decision.to_owned(),
        reason => format!("{decision}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_it_means_or_nothing() {
        let good = read(br#"{"decision":"allow","reason":"fine","facts":{"risk":"3"}}"#).unwrap();
        assert!(matches!(good.decision, Verdict::Allow) && good.facts.len() == 1);
        assert!(matches!(
            read(br#"{"decision":"forbid"}"#).unwrap().decision,
            Verdict::Forbid
        ));
        let many: BTreeMap<_, _> = (0..=MAX_FACTS).map(|at| (format!("f{at}"), "x")).collect();
        let many = json!({ "decision": "allow", "facts": many }).to_string();
        for bad in [
            "",
            "{}",
            "[]",
            "allow",
            r#"{"decision":"Allow"}"#,
            r#"{"decision":"permit"}"#,
            r#"{"decision":"allow","fact":{"risk":"9"}}"#,
            r#"{"decision":"allow","decision":"forbid"}"#,
            r#"{"decision":"allow","facts":{"risk":9}}"#,
            r#"{"decision":"allow","facts":{"Risk":"9"}}"#,
            r#"{"decision":"allow","facts":{"risk":"a\nb"}}"#,
            r#"{"decision":"allow"} {"decision":"forbid"}"#,
            &many,
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
