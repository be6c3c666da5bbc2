//! What happens while records cannot be written: nothing new opens, what has ended waits to be recorded, and in strict mode
//! what is alive ends too (THREATS AUD-03).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tunnel_proto::Code;
use tunnel_proto::message::FromServer;

use super::Control;
use super::gathered::Gathered;
use crate::audit::Event;
use crate::failure::chain;
use crate::store::SessionRecord;

/// How often the server looks whether records can be written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long live tunnels go on unrecorded in strict mode (THREATS AUD-03).
const GRACE: Duration = Duration::from_secs(60);

/// How often refusals that were gathered are recorded: what a crash may lose.
const GATHER_EVERY: Duration = Duration::from_secs(60);

/// Ends of sessions that wait to be recorded: some times as many as there can be tunnels to busy devices.
const MAX_WAITING: usize = 100_000;

/// Who ends what is cut for want of records.
const BY: &str = "server";

/// What waits to be recorded.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Whether live tunnels end if records cannot be written for long.
    pub(crate) strict: bool,
    paused: AtomicBool,
    waiting: Mutex<VecDeque<SessionRecord>>,
    lost: AtomicU64,
    gathered: Mutex<Gathered>,
}

impl Evidence {
    /// Begins with nothing waiting.
    pub(crate) fn new(strict: bool) -> Self {
        Self {
            strict,
            ..Self::default()
        }
    }

    /// Says whether nothing new may open, since it could not be recorded.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Keeps a session whose end could not be recorded.
    pub(crate) fn keep(&self, session: SessionRecord) {
        let mut waiting = self.waiting();
        if waiting.len() >= MAX_WAITING {
            self.lost.fetch_add(1, Ordering::Relaxed);
        } else {
            waiting.push_back(session);
        }
    }

    /// Counts a refusal that gets no record of its own.
    pub(crate) fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<SessionRecord>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks whether records can be written, until the server stops.
pub(crate) async fn watch(control: Arc<Control>) {
    let mut gather = Instant::now() + GATHER_EVERY;
    let mut since = None;
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = control.stopping() => {}
        }
        let now = Instant::now();
        if now >= gather || control.is_stopping() {
            gather = now + GATHER_EVERY;
            control.record_gathered().await;
        }
        match control.store.failing(now) {
            Some(failing) => {
                let since = *since.get_or_insert(now.checked_sub(failing).unwrap_or(now));
                control.pause(now.saturating_duration_since(since)).await;
            }
            None if control.evidence.is_paused() || !control.evidence.waiting().is_empty() => {
                let failing = since
                    .take()
                    .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                control.resume(failing).await;
            }
            None => since = None,
        }
    }
}

impl Control {
    /// Lets nothing new open, and in strict mode nothing go on for long. Tries whether records can be written again.
    async fn pause(self: &Arc<Self>, failing: Duration) {
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
        if !self.store.is_stuck(Instant::now()) {
            // A write that works tells the store that it is well.
            let _ = self.store.probe().await;
        }
    }

    /// Records what has waited, and lets sessions open again. What fails again waits on.
    async fn resume(self: &Arc<Self>, failing: Duration) {
        let mut waited = 0;
        loop {
            let Some(session) = self.evidence.waiting().pop_front() else {
                break;
            };
            if let Err(error) = self.store.session(session.clone()).await {
                tracing::warn!(error = %chain(&error), "a session waits on to be recorded");
                self.evidence.waiting().push_front(session);
                return;
            }
            waited += 1;
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
            control.pause(GRACE - LOOK_EVERY).await;
            assert!(control.evidence.is_paused());
            assert_eq!(live(), 3);
            control.pause(GRACE).await;
            assert_eq!(live(), if strict { 0 } else { 3 });
            control.resume(GRACE).await;
            assert!(!control.evidence.is_paused());
            server.shutdown().await;
        }
    }
}
