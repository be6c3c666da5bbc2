//! What happens while records cannot be written: nothing new opens, what has ended waits to be recorded, and in strict mode
//! what is alive ends too (THREATS AUD-03).

mod waiting;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tunnel_proto::message::{FromServer, SessionKey};
use tunnel_proto::{Code, DeviceId};

use self::waiting::{Most, Waiting};
use super::Control;
use super::gathered::Gathered;
use super::sessions::Told;
use crate::audit::Event;
use crate::failure::chain;
use crate::store::SessionRecord;

/// How often the server looks whether records can be written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long live tunnels go on unrecorded in strict mode (THREATS AUD-03).
const GRACE: Duration = Duration::from_secs(60);

/// How often refusals that were gathered are recorded: what a crash may lose.
const GATHER_EVERY: Duration = Duration::from_secs(60);

/// Ends of sessions that wait to be recorded, of each kind: some times as many as there can be tunnels to busy devices.
const MOST: Most = Most {
    count: 100_000,
    bytes: 64 * 1024 * 1024,
};

/// About what a session takes of which it is not known whose it was, beside the name of its service.
const TOLD_BYTES: usize = 512;

/// Sessions in one transaction: others wait for it.
const AT_ONCE: usize = 1_000;

/// How long the last records have when the server stops.
const AT_STOP: Duration = Duration::from_secs(5);

/// Who ends what is cut for want of records.
const BY: &str = "server";

/// What waits to be recorded.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// Whether live tunnels end if records cannot be written for long.
    pub(crate) strict: bool,
    paused: AtomicBool,
    waiting: Mutex<Waiting<SessionKey, SessionRecord>>,
    /// By the device that told, too: whether it is its to tell is not known yet.
    told: Mutex<Waiting<(DeviceId, SessionKey), Told>>,
    lost: AtomicU64,
    gathered: Mutex<Gathered>,
}

impl Evidence {
    /// Begins with nothing waiting.
    pub(crate) fn new(strict: bool) -> Self {
        Self {
            strict,
            paused: AtomicBool::default(),
            waiting: Mutex::new(Waiting::new(MOST)),
            told: Mutex::new(Waiting::new(MOST)),
            lost: AtomicU64::default(),
            gathered: Mutex::default(),
        }
    }

    /// Says whether nothing new may open, since it could not be recorded.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Keeps a session whose end could not be recorded, unless it waits already. One for which there is no room is lost, unless
    /// its device tells it again.
    pub(crate) fn keep(&self, session: SessionRecord) {
        let (key, bytes) = (session.key(), session.bytes());
        if !self.waiting().push(key, session, bytes) && key.is_none() {
            self.lose();
        }
    }

    /// Keeps what a device told of a session of which the store could not say whose it was, unless it waits already.
    pub(crate) fn keep_told(&self, session: Told) {
        let key = session.key();
        let is_told_again = key.is_some();
        let bytes = TOLD_BYTES + session.session.service.len();
        if !self.told().push(key, session, bytes) && !is_told_again {
            self.lose();
        }
    }

    /// Counts a session that gets no record.
    pub(crate) fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Says whether there are sessions that wait to be recorded.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting().is_empty() || !self.told().is_empty()
    }

    /// Takes what a device told longest ago of a session of which it is not known whose it was.
    fn next_told(&self) -> Option<Told> {
        let mut waiting = self.told();
        let (_, told) = waiting.take(1).pop()?;
        // If the store cannot say it this time either, it is kept again.
        waiting.forget(told.key());
        Some(told)
    }

    fn told(&self) -> MutexGuard<'_, Waiting<(DeviceId, SessionKey), Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the sessions that have waited longest, as many as are recorded at once.
    fn next(&self) -> Vec<(usize, SessionRecord)> {
        self.waiting().take(AT_ONCE)
    }

    /// Counts a refusal that gets no record of its own.
    pub(crate) fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are recorded.
    fn handle_recorded(&self, sessions: &[(usize, SessionRecord)]) {
        let mut waiting = self.waiting();
        for (_, session) in sessions {
            waiting.forget(session.key());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<SessionKey, SessionRecord>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks whether records can be written, until the server stops.
pub(crate) async fn watch(control: Arc<Control>) {
    let mut watch = Watch::new(Instant::now());
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = control.stopping() => {}
        }
        watch.turn(&control, Instant::now());
    }
    let rest = async {
        while watch.under_way.join_next().await.is_some() {}
        control.record_gathered().await;
    };
    if tokio::time::timeout(AT_STOP, rest).await.is_err() {
        tracing::warn!("refusals that were gathered are not recorded: the disk does not answer");
    }
}

/// What the watch knows between two looks. A look never waits: a disk that hangs must not hold up what follows from that.
#[derive(Debug)]
struct Watch {
    /// When gathered refusals are to be recorded.
    gather: Instant,
    /// Since when records have not been whole: from the first failure until all that waited is recorded.
    since: Option<Instant>,
    /// What waits for the disk: one thing at a time, so that a disk that hangs piles nothing up.
    under_way: JoinSet<()>,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self {
            gather: now + GATHER_EVERY,
            since: None,
            under_way: JoinSet::new(),
        }
    }

    fn turn(&mut self, control: &Arc<Control>, now: Instant) {
        while self.under_way.try_join_next().is_some() {}
        match control.store.failing(now) {
            Some(failing) => {
                let began = now.checked_sub(failing).unwrap_or(now);
                let since = *self.since.get_or_insert(began);
                control.pause(now.saturating_duration_since(since));
                if !control.store.is_stuck(now) {
                    // A write that works tells the store that it is well.
                    self.begin(
                        control,
                        |control| async move { drop(control.store.probe().await) },
                    );
                }
            }
            None if control.evidence.is_paused() || control.evidence.has_waiting() => {
                let failing = self
                    .since
                    .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                self.begin(
                    control,
                    move |control| async move { control.resume(failing).await },
                );
            }
            None => self.since = None,
        }
        if now >= self.gather && self.under_way.is_empty() {
            self.gather = now + GATHER_EVERY;
            self.begin(control, |control| async move { control.record_gathered().await });
        }
    }

    /// Begins what waits for the disk, unless something does so already.
    fn begin<F>(&mut self, control: &Arc<Control>, work: impl FnOnce(Arc<Control>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.under_way.is_empty() {
            self.under_way.spawn(work(control.clone()));
        }
    }
}

impl Control {
    /// Lets nothing new open, and in strict mode nothing go on for long. Waits for nothing.
    pub(super) fn pause(self: &Arc<Self>, failing: Duration) {
        if !self.evidence.paused.swap(true, Ordering::SeqCst) {
            tracing::error!("records cannot be written: no new session opens");
            self.tell_recording(false);
        }
        if self.evidence.strict && failing >= GRACE {
            let live = self.tunnels.table().live();
            if !live.is_empty() {
                tracing::error!(
                    tunnels = live.len(),
                    "live tunnels end, since nothing of them can be recorded"
                );
                // All are cut before the first is written down, which has to wait for the disk.
                let owner = self.clone();
                let ids = live.into_iter().map(|live| live.facts.id);
                let cuts: Vec<_> = ids
                    .filter_map(|id| self.cut(id, Code::AuditUnavailable))
                    .collect();
                self.spawn(async move { owner.record_ends(cuts, BY).await });
            }
        }
    }

    /// Records what has waited, and lets sessions open again. What fails again waits on.
    pub(super) async fn resume(self: &Arc<Self>, failing: Duration) {
        while let Some(told) = self.evidence.next_told() {
            if !self.session_told(told).await {
                return;
            }
        }
        let mut waited = 0;
        loop {
            let sessions = self.evidence.next();
            if sessions.is_empty() {
                break;
            }
            let records = sessions.iter().map(|(_, session)| session.clone()).collect();
            if let Err(error) = self.store.record_sessions(records).await {
                tracing::warn!(error = %chain(&error), sessions = sessions.len(), "sessions wait on to be recorded");
                self.evidence.waiting().put_back(sessions);
                return;
            }
            waited += sessions.len() as u64;
            self.evidence.handle_recorded(&sessions);
            for (_, session) in &sessions {
                if let Some(device) = &session.of.device {
                    self.confirm(device, session.key());
                }
            }
        }
        let event = Event::EvidenceRestored {
            failing_secs: failing.as_secs(),
            waited,
            lost: self.evidence.lost.load(Ordering::Relaxed),
        };
        if self.store.record(event).await.is_err() {
            return;
        }
        self.evidence.lost.store(0, Ordering::Relaxed);
        if self.evidence.paused.swap(false, Ordering::SeqCst) {
            tracing::warn!(
                failing_secs = failing.as_secs(),
                waited,
                "records can be written again"
            );
            self.tell_recording(true);
        }
    }

    /// Tells all agents whether sessions may begin.
    fn tell_recording(&self, recording: bool) {
        for link in self.links.all() {
            link.send(FromServer::Recording(recording));
        }
    }

    /// Records the refusals that were gathered; those that cannot be recorded are kept.
    async fn record_gathered(&self) {
        let mut events = self.evidence.gathered().take();
        while let Some(event) = events.pop() {
            if let Err(error) = self.store.record(event.clone()).await {
                tracing::warn!(error = %chain(&error), "refusals wait on to be recorded");
                events.push(event);
                self.evidence.gathered().put_back(events);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnels::tests::{put, server_that};

    /// THREATS AUD-03: in strict mode live tunnels have a minute; otherwise they go on.
    #[tokio::test]
    async fn live_tunnels_end_after_a_minute_without_records_in_strict_mode_alone() {
        for strict in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let server = server_that(&directory, strict).await;
            let control = server.control();
            for number in 0..3 {
                put(control, number, "ana", "pump");
            }
            let live = || control.tunnels.table().live().len();
            control.pause(GRACE - LOOK_EVERY);
            assert!(control.evidence.is_paused());
            assert_eq!(live(), 3);
            control.pause(GRACE);
            assert_eq!(live(), if strict { 0 } else { 3 });
            control.resume(GRACE).await;
            assert!(!control.evidence.is_paused());
            server.shutdown().await;
        }
    }

    /// THREATS AUD-03: a disk that hangs in the middle of the watch's own write holds up neither the pause nor the cuts.
    #[tokio::test]
    async fn a_disk_that_hangs_pauses_and_in_strict_mode_cuts_all_the_same() {
        for strict in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let server = server_that(&directory, strict).await;
            let control = server.control();
            (0..3).for_each(|number| put(control, number, "ana", "pump"));
            let live = || control.tunnels.table().live().len();
            let disk = control.store.hang().await;
            let start = Instant::now();
            let at = |secs| start + Duration::from_secs(secs);
            let mut watch = Watch::new(start);
            control.gather("operator/eve", "192.0.2.1", "access.denied");
            // What was gathered is being recorded, and does not come to its end.
            watch.turn(control, at(60));
            assert_eq!(watch.under_way.len(), 1);
            assert!(control.evidence.is_paused(), "no transaction takes a minute");
            for secs in 1..3 {
                watch.turn(control, at(GRACE.as_secs() + secs));
                assert_eq!(watch.under_way.len(), 1, "nothing piles up");
            }
            assert_eq!(live(), if strict { 0 } else { 3 });
            drop(disk);
            let patience = Instant::now() + Duration::from_secs(30);
            while control.evidence.is_paused() {
                assert!(
                    Instant::now() < patience,
                    "records are written, and nothing opens"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
                watch.turn(control, Instant::now());
            }
            server.shutdown().await;
        }
    }

    /// A disk that fails again before all is recorded has failed from the first time on.
    #[tokio::test]
    async fn failing_lasts_until_all_that_waited_is_recorded_in_few_transactions() {
        let directory = tempfile::tempdir().unwrap();
        let server = server_that(&directory, true).await;
        let control = server.control();
        let (mut watch, now) = (Watch::new(Instant::now()), Instant::now());
        for number in 0..2_500 {
            control.evidence.keep(session(number));
        }
        watch.since = Some(now);
        control.pause(Duration::ZERO);
        watch.turn(control, now + Duration::from_secs(7));
        assert_eq!(watch.since, Some(now), "it is being tried only");
        while watch.under_way.join_next().await.is_some() {}
        assert!(!control.evidence.is_paused());
        watch.turn(control, now + Duration::from_secs(8));
        assert_eq!(watch.since, None);

        let trail = control.store.audit(0, 10_000).await.unwrap();
        let millis: Vec<_> = trail
            .iter()
            .filter_map(|record| match Event::read(&record.kind, &record.body) {
                Some(Event::SessionEnded { millis, .. }) => Some(millis),
                _ => None,
            })
            .collect();
        assert_eq!(millis, (0..2_500).collect::<Vec<_>>(), "each once, in order");
        server.shutdown().await;
    }

    fn session(millis: u64) -> SessionRecord {
        SessionRecord {
            tunnel: tunnel_proto::TunnelId::from_bytes([7; 16]),
            service: "ssh".into(),
            refused: None,
            millis,
            bytes_in: 0,
            bytes_out: 0,
            of: crate::audit::SessionOf::default(),
        }
    }
}
