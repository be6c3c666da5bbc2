//! Telling services of the fleet's owner what was recorded: in order, each record at least once, also over `kill -9`.
//!
//! Each target goes through the audit chain at its own pace. How far it has got is in the store, and moves on only when a
//! record was taken or given up.

mod topic;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tunnel_proto::UnixTime;
use tunnel_proto::api::AuditRecord;

use crate::config::Notify;
use crate::control::Control;
use crate::failure::chain;
use crate::store::StoreError;

pub use self::topic::Topic;
use crate::webhook::{Client, Message, SendError, TargetError, rfc3339};

/// How often the chain is looked at for something new.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a target has to answer (THREATS SRV-15).
const DEADLINE: Duration = Duration::from_secs(5);
/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Records that are read at once.
const PAGE: u32 = 256;

/// One service that is told.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    topics: Vec<Topic>,
    tries: u32,
    client: Client,
}

impl Target {
    /// Makes ready to tell.
    ///
    /// # Errors
    /// Returns what is wrong with its key or roots.
    pub(crate) fn new(config: &Notify, data: &Path) -> Result<Self, TargetError> {
        Ok(Self {
            name: config.name.clone(),
            topics: config.topics.clone(),
            tries: config.tries,
            client: Client::new(&config.target, data)?,
        })
    }

    fn wants(&self, record: &AuditRecord) -> bool {
        let topic = Topic::of(&record.kind, &record.body);
        topic.is_some_and(|topic| self.topics.contains(&topic)) && !topic::is_about(record, &self.name)
    }

    /// Sends one record, once.
    ///
    /// # Errors
    /// Returns why it was not taken.
    pub(crate) async fn send(&self, record: &AuditRecord, now: UnixTime) -> Result<(), SendError> {
        let at = rfc3339(UnixTime::from_secs(record.time_millis / 1000));
        let body = json!({ "type": record.kind, "timestamp": at, "data": record });
        let message = Message {
            // The same for each attempt, and another one for each record of each server.
            id: format!("rec_{}_{}", record.seq, &record.hash[..record.hash.len().min(16)]),
            body: body.to_string().into(),
        };
        self.client.send(&message, now, DEADLINE).await.map(drop)
    }
}

/// Tells all targets, until the server stops.
pub(crate) async fn run(control: Arc<Control>) {
    let mut telling = JoinSet::new();
    for target in &control.notify {
        telling.spawn(keep_telling(control.clone(), target.clone()));
    }
    control.stopping().await;
    telling.shutdown().await;
}

/// Tells one target. What fails in the store is tried again.
async fn keep_telling(control: Arc<Control>, target: Arc<Target>) {
    loop {
        if let Err(error) = tell_all(&control, &target).await {
            tracing::error!(error = %chain(&error), target = target.name, "notifications wait for the store");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn tell_all(control: &Control, target: &Target) -> Result<(), StoreError> {
    let mut told = control.store.notified(&target.name).await?;
    loop {
        let records = control.store.audit(told, PAGE).await?;
        let Some(last) = records.last().map(|record| record.seq) else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        let mut written = told;
        for record in records.into_iter().filter(|record| target.wants(record)) {
            written = record.seq;
            tell(control, target, record).await?;
        }
        // What is passed over costs no write, until there is much of it.
        if last - written >= PAGE.into() || last - told >= PAGE.into() {
            control.store.notified_up_to(&target.name, last).await?;
        }
        told = last;
    }
}

/// Tells one record, until it is taken or given up. Nothing that comes later overtakes it.
async fn tell(control: &Control, target: &Target, record: AuditRecord) -> Result<(), StoreError> {
    let mut failures = 0;
    loop {
        let Err(error) = target.send(&record, control.now()).await else {
            return control.store.notified_up_to(&target.name, record.seq).await;
        };
        failures += 1;
        tracing::warn!(%error, target = target.name, seq = record.seq, failures, "a notification was not taken");
        if failures >= target.tries {
            let error = error.to_string();
            let given_up = control
                .store
                .give_up(&target.name, record, failures, &error, control.now());
            return given_up.await;
        }
        tokio::time::sleep(pause(failures, fastrand::f64())).await;
    }
}

/// Returns how long to wait after so many failures in a row: between half of a bound that doubles and the whole.
fn pause(failures: u32, random: f64) -> Duration {
    let bound = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    bound
        .min(LONGEST_PAUSE)
        .mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_never_nothing() {
        assert_eq!((pause(1, 0.0), pause(1, 1.0)), (FIRST_PAUSE / 2, FIRST_PAUSE));
        assert_eq!(pause(4, 1.0), FIRST_PAUSE * 8);
        assert_eq!(pause(u32::MAX, 1.0), LONGEST_PAUSE);
    }
}
