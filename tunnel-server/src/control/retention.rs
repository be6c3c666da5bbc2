//! Drops audit records that are older than they are kept.

use std::sync::Arc;
use std::time::Duration;

use tunnel_proto::Code;

use super::Control;

/// How often the server looks for records that are too old.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Drops what is too old, until the server stops.
pub(crate) async fn watch(control: Arc<Control>) {
    let Some(kept) = control.audit_kept else {
        return control.stopping().await;
    };
    while !control.is_stopping() {
        // A failure was logged, and is tried again.
        let _ = control.drop_audit(kept).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = control.stopping() => {}
        }
    }
}

impl Control {
    /// Drops the records that are older, and returns how many. A clock that has jumped drops nothing.
    ///
    /// # Errors
    /// Returns the code of what could not be written.
    pub(crate) async fn drop_audit(self: &Arc<Self>, kept: Duration) -> Result<u64, Code> {
        let mut all = 0;
        loop {
            let moment = self.moment();
            if !moment.steady || self.is_stopping() {
                return Ok(all);
            }
            let owner = self.clone();
            let before = moment.now.before(kept).as_secs().saturating_mul(1000);
            let sign =
                Box::new(move |dropped: &tunnel_proto::audit::Dropped| dropped.sign(&owner.keys.audit_key));
            let dropped = self.store.drop_audit(before, moment.now, sign).await;
            match dropped.map_err(|error| self.store_failed(&error))? {
                0 => return Ok(all),
                count => all += count,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::audit::{Dropped, Fault, Head, verify};

    use super::*;
    use crate::audit::Event;
    use crate::tunnels::tests::server_that;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// What is dropped for its age leaves a signed statement, and what is left continues it.
    #[tokio::test]
    async fn what_is_dropped_stays_proven() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let store = &control.store;
        assert_eq!(control.drop_audit(DAY).await, Ok(0), "nothing is that old");
        assert_eq!(store.audit_dropped().await.unwrap(), None);

        let mut before = store.audit_head().await.unwrap();
        for round in 0..2 {
            if round > 0 {
                store
                    .record(Event::EnrolGuessed {
                        count: 1,
                        last_source: "192.0.2.1".into(),
                    })
                    .await
                    .unwrap();
                before = store.audit_head().await.unwrap();
            }
            // As if all that there is were from before: what is dropped, and the record of it, are one transaction.
            let owner = control.clone();
            let sign = Box::new(move |dropped: &Dropped| dropped.sign(&owner.keys.audit_key));
            let now = control.now();
            let all = now.after(DAY).as_secs() * 1000;
            assert!(store.drop_audit(all, now, sign).await.unwrap() > 0);
            let statement = store.audit_dropped().await.unwrap().unwrap();
            let dropped = Dropped::verify(&statement, &control.keys.audit_key.verifying_key()).unwrap();
            assert_eq!(dropped.head(), before);
            let left = store.audit(0, 100).await.unwrap();
            assert_eq!(
                left.iter().map(|record| record.kind.as_str()).collect::<Vec<_>>(),
                ["audit.dropped"]
            );
            assert_eq!(verify(dropped.head(), &left).unwrap().seq, before.seq + 1);
            let broken = verify(Head::START, &left).unwrap_err();
            assert!(matches!(broken.fault, Fault::Gap { .. }), "{broken}");
            let Some(Event::AuditDropped { last, count, .. }) = Event::read(&left[0].kind, &left[0].body)
            else {
                panic!("{left:?}")
            };
            assert_eq!(
                (last, count),
                (before.seq, if round == 0 { before.seq } else { 2 })
            );
        }
        server.shutdown().await;
    }
}
