//! Drops audit records that are older than they are kept.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tunnel_proto::{Code, UnixTime};

use super::Control;
use crate::store::DROPPED_AT_ONCE;

/// How often the server looks for records that are too old.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// How long the clock must have gone evenly, and how near to the trail's own times it must be: what is dropped is gone.
const EVEN_FOR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Drops what is too old, until the server stops.
pub(crate) async fn watch(control: Arc<Control>) {
    let Some(kept) = control.audit_kept else {
        return control.stopping().await;
    };
    loop {
        // Not at the start: a machine that has just come up may not have its time yet.
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = control.stopping() => return,
        }
        if let Some(now) = control.even_time() {
            // A failure was logged, and is tried again.
            let _ = control.drop_audit(kept, now).await;
        }
    }
}

/// Says whether a clock may be believed about the age of records, by the newest that is a day old or more: the trail must
/// have gone on under this clock for a day. After a gap, or a start with a wrong clock, it has not; records that the wrong
/// clock itself has dated do not help. Pure.
fn is_believed(now: UnixTime, day_old: UnixTime) -> bool {
    now.since(day_old) <= DAY * 2
}

/// Returns up to which time records are dropped in one look: those of a day at most, by their own times. In good order there
/// is an hour's worth to drop. Pure.
fn bounded(before: UnixTime, first: UnixTime) -> UnixTime {
    before.min(first.after(DAY))
}

impl Control {
    /// Returns the time if the clock has gone evenly for long.
    fn even_time(&self) -> Option<UnixTime> {
        let moment = self.moment();
        let clock = self.steadiness.lock().unwrap_or_else(PoisonError::into_inner);
        (moment.steady && clock.even_for(Instant::now()) >= EVEN_FOR).then_some(moment.now)
    }

    /// Drops the records that are older, of a day of the trail at most, and returns how many. A clock that has jumped, or that
    /// is far from what the trail says, drops nothing; one that stays wrong is believed after a day, and takes the trail no
    /// faster than somebody can see it (THREATS AUD-02).
    ///
    /// # Errors
    /// Returns the code of what could not be written.
    pub(crate) async fn drop_audit(self: &Arc<Self>, kept: Duration, now: UnixTime) -> Result<u64, Code> {
        let day_old = self.store.audit_time_before(now.before(DAY)).await;
        match day_old.map_err(|error| self.store_failed(&error))? {
            None => return Ok(0),
            Some(day_old) if !is_believed(now, day_old) => {
                tracing::warn!(
                    gap_hours = now.since(day_old).as_secs() / 3600,
                    "no record is dropped for its age until the trail has gone on for a day: check the clock"
                );
                return Ok(0);
            }
            Some(_) => {}
        }
        let Some(first) = (self.store.audit_oldest().await).map_err(|error| self.store_failed(&error))?
        else {
            return Ok(0);
        };
        let before = bounded(now.before(kept), first).as_secs().saturating_mul(1000);
        let mut all = 0;
        while self.moment().steady && !self.is_stopping() {
            let owner = self.clone();
            let sign =
                Box::new(move |dropped: &tunnel_proto::audit::Dropped| dropped.sign(&owner.keys.audit_key));
            let dropped = self.store.drop_audit(before, now, sign).await;
            let count = dropped.map_err(|error| self.store_failed(&error))?;
            all += count;
            if count < DROPPED_AT_ONCE {
                break;
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions as _, Connection as _};
    use tunnel_proto::audit::{Dropped, Fault, Head, verify};

    use super::*;
    use crate::audit::Event;
    use crate::tunnels::tests::server_that;

    #[tokio::test]
    async fn a_clock_that_is_far_from_the_trail_or_new_drops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let now = control.now();
        // The server's clock is right, and has not gone for long.
        assert_eq!(control.even_time(), None);
        // A start with a clock of ten years ahead: its own records are of then, and as young as they should be.
        assert_eq!(control.drop_audit(DAY, now.after(DAY * 3650)).await, Ok(0));
        assert_eq!(control.drop_audit(DAY, now.after(DAY * 2 + DAY / 2)).await, Ok(0));
        assert_eq!(control.store.audit_dropped().await.unwrap(), None);
        // The same records, by a clock to which the trail reaches.
        assert!(control.drop_audit(DAY, now.after(DAY + DAY / 2)).await.unwrap() > 0);
        assert!(control.store.audit_dropped().await.unwrap().is_some());
        server.shutdown().await;
    }

    #[test]
    fn a_wrong_clocks_own_records_do_not_confirm_it_before_a_day() {
        let (last, hour) = (UnixTime::from_secs(1_800_000_000), Duration::from_secs(3600));
        let wrong = last.after(DAY * 400);
        // The newest record of a day ago: the last of before, until the wrong clock's own are a day old.
        for (now, newest, believed) in [
            (last.after(DAY), last, true),
            (last.after(DAY * 2), last, true),
            (last.after(DAY * 2 + hour), last, false),
            (wrong, last, false),
            (wrong.after(hour * 23), last, false),
            (wrong.after(DAY), wrong, true),
        ] {
            assert_eq!(is_believed(now, newest), believed, "{now} {newest}");
        }
    }

    /// THREATS AUD-02: a clock of years ahead that the trail has come to believe takes a day of it in an hour.
    #[tokio::test]
    async fn of_the_trail_no_more_than_a_day_goes_at_once() {
        let first = UnixTime::from_secs(1_800_000_000);
        for (before, until) in [
            (first.before(DAY), first.before(DAY)),
            (first.after(DAY / 2), first.after(DAY / 2)),
            (first.after(DAY * 400), first.after(DAY)),
        ] {
            assert_eq!(bounded(before, first), until);
        }
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let now = control.now();
        let path = crate::config::DataDir::new(directory.path().join("data")).store();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut other = options.connect().await.unwrap();
        for _ in 0..4 {
            control.gather("operator/eve", "192.0.2.1", "access.denied");
            let events = control.evidence.gathered().take();
            for event in events {
                control.store.record(event).await.unwrap();
            }
        }
        // Four records, of 100, 99.5, 98 and 50 days ago; what else there is is older than the first, by a minute.
        let times = "DROP TRIGGER audit_is_not_changed;
             UPDATE audit SET time_millis = time_millis - 1000 * (100 * 86400 + 60);
             CREATE TEMP TABLE four AS SELECT seq FROM audit ORDER BY seq DESC LIMIT 4;
             UPDATE audit SET time_millis = time_millis + 1000 * (60 + 43200 * CASE
                (SELECT count(*) FROM four WHERE four.seq < audit.seq) WHEN 0 THEN 0 WHEN 1 THEN 1 WHEN 2 THEN 4 ELSE 100 END)
             WHERE seq IN (SELECT seq FROM four);";
        sqlx::raw_sql(times).execute(&mut other).await.unwrap();
        other.close().await.unwrap();
        control
            .store
            .record(Event::EnrolGuessed {
                count: 1,
                last_source: "192.0.2.1".into(),
            })
            .await
            .unwrap();
        let left = async || control.store.audit(0, 1_000).await.unwrap().len();
        let all = left().await;
        // All but the newest is old enough; the trail goes on for a day under this clock.
        let clock = now.after(DAY + DAY / 2);
        let (kept, mut each) = (DAY * 10, Vec::new());
        for _ in 0..4 {
            each.push(control.drop_audit(kept, clock).await.unwrap());
        }
        // Those of the first day are all that is older, and two of the four.
        assert_eq!(each, [all as u64 - 3, 1, 1, 0]);
        server.shutdown().await;
    }

    /// What is dropped for its age leaves a signed statement, and what is left continues it.
    #[tokio::test]
    async fn what_is_dropped_stays_proven() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, false).await;
        let control = server.control();
        let store = &control.store;
        assert_eq!(
            control.drop_audit(DAY, control.now()).await,
            Ok(0),
            "nothing is that old"
        );
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
