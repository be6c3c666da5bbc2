//! The device's black box: what it saw while it had no link, kept until the server has it.
//!
//! It is written to the disk seldom, since a device's flash wears out: an outage that is over soon is not written at all,
//! and a long one at ever longer intervals.

use std::collections::VecDeque;
use std::time::Duration;

use crate::frame;
use crate::outage::{Cause, Outage};
use crate::time::UnixTime;

/// Outages that wait for the server at most; the oldest makes room.
pub const MAX_WAITING: usize = 32;

/// What is over sooner without a failed attempt is no outage: the server or the agent was restarted.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// How long an outage lasts before it is written down first; after that whenever it has become twice as long.
const WORTH_WRITING: Duration = Duration::from_secs(30);

/// Longest time between two writings of one outage.
const WRITE_AT_LEAST: Duration = Duration::from_secs(3600);

/// What outlives the process.
#[derive(Clone, Debug, Default, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Kept {
    #[n(0)]
    current: Option<Outage>,
    #[n(1)]
    waiting: VecDeque<Outage>,
}

/// The black box of one device.
#[derive(Clone, Debug, Default)]
pub struct BlackBox {
    kept: Kept,
    /// When the current outage is to be written down next, counted from its start.
    write_after: Option<Duration>,
    /// Whether the disk has something, and whether what it has is out of date.
    on_disk: bool,
    stale: bool,
}

impl BlackBox {
    /// Goes on with what was kept. An outage that was under way goes on, with one more start of the agent in it; what
    /// cannot be read is as nothing.
    pub fn new(kept: &[u8], now: UnixTime) -> Self {
        let mut kept: Kept = frame::decode(kept).unwrap_or_default();
        kept.waiting.truncate(MAX_WAITING);
        let on_disk = kept.current.is_some() || !kept.waiting.is_empty();
        if let Some(outage) = &mut kept.current {
            outage.starts = outage.starts.saturating_add(1);
            outage.note(now, Cause::Start, "");
        }
        let write_after = kept.current.as_ref().map(|_| Duration::ZERO);
        Self {
            kept,
            write_after,
            on_disk,
            stale: false,
        }
    }

    /// The link was lost. `random` becomes the outage's id.
    pub fn handle_lost(&mut self, now: UnixTime, random: u64, cause: Cause, detail: &str) {
        self.current(now, random, None).note(now, cause, detail);
    }

    /// An attempt to get a link has failed. The first one after the agent's start begins an outage.
    pub fn handle_failed<'d>(
        &mut self,
        now: UnixTime,
        random: u64,
        causes: impl IntoIterator<Item = (Cause, &'d str)>,
    ) {
        let outage = self.current(now, random, Some(Cause::Start));
        outage.attempts = outage.attempts.saturating_add(1);
        for (cause, detail) in causes {
            outage.note(now, cause, detail);
        }
    }

    /// There is a link again, after `lasted` by a clock that nobody sets: it counts where the time of day says less.
    pub fn handle_linked(&mut self, now: UnixTime, lasted: Duration) {
        let Some(mut outage) = self.kept.current.take() else {
            return;
        };
        self.write_after = None;
        outage.until = now;
        outage.from = outage.from.min(now.before(lasted));
        let lasted = now.since(outage.from);
        if lasted < WORTH_TELLING && outage.attempts == 0 && outage.starts == 0 {
            return;
        }
        if self.kept.waiting.len() >= MAX_WAITING {
            self.kept.waiting.pop_front();
        }
        self.kept.waiting.push_back(outage);
        self.stale |= self.on_disk || lasted >= WORTH_WRITING;
    }

    /// Returns what the server does not have yet.
    pub fn waiting(&self) -> Vec<Outage> {
        self.kept.waiting.iter().cloned().collect()
    }

    /// The server has outages for good.
    pub fn handle_kept(&mut self, ids: &[u64]) {
        self.kept.waiting.retain(|outage| !ids.contains(&outage.id));
        self.stale |= self.on_disk;
    }

    /// Returns what is to be written to the disk, if it is time: after each other call, and while an outage lasts.
    pub fn poll_write(&mut self, now: UnixTime) -> Option<Vec<u8>> {
        if let (Some(after), Some(outage)) = (self.write_after, &self.kept.current)
            && now.since(outage.from) >= after
        {
            let lasted = now.since(outage.from).max(WORTH_WRITING / 2);
            self.write_after = Some(lasted + lasted.min(WRITE_AT_LEAST));
            self.stale = true;
        }
        if !std::mem::take(&mut self.stale) {
            return None;
        }
        self.on_disk = self.kept.current.is_some() || !self.kept.waiting.is_empty();
        let mut bytes = frame::encode(&self.kept);
        bytes.drain(..frame::HEADER);
        Some(bytes)
    }

    fn current(&mut self, now: UnixTime, random: u64, begins: Option<Cause>) -> &mut Outage {
        if self.kept.current.is_none() {
            self.write_after = Some(WORTH_WRITING);
        }
        self.kept.current.get_or_insert_with(|| {
            let mut outage = Outage {
                id: random,
                from: now,
                until: now,
                attempts: 0,
                starts: 0,
                causes: Vec::new(),
            };
            if let Some(cause) = begins {
                outage.starts = 1;
                outage.note(now, cause, "");
            }
            outage
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn at(secs: u64) -> UnixTime {
        START.after(Duration::from_secs(secs))
    }

    fn fail(black_box: &mut BlackBox, secs: u64) {
        black_box.handle_failed(
            at(secs),
            9,
            [(Cause::UdpSilent, ""), (Cause::Dns, "no such name")],
        );
    }

    #[test]
    fn an_outage_tells_what_was_seen_and_tried() {
        let mut black_box = BlackBox::new(&[], START);
        black_box.handle_lost(at(0), 7, Cause::LinkSilent, "no answer");
        fail(&mut black_box, 10);
        fail(&mut black_box, 20);
        black_box.handle_linked(at(25), Duration::from_secs(25));
        let [outage] = &black_box.waiting()[..] else {
            panic!("one outage")
        };
        assert_eq!((outage.id, outage.from, outage.until), (7, at(0), at(25)));
        assert_eq!((outage.attempts, outage.starts), (2, 0));
        let seen: Vec<_> = outage
            .causes
            .iter()
            .map(|seen| (seen.cause, seen.count))
            .collect();
        assert_eq!(
            seen,
            [(Cause::LinkSilent, 1), (Cause::UdpSilent, 2), (Cause::Dns, 2)]
        );
        assert_eq!(outage.causes[2].detail.as_deref(), Some("no such name"));
        assert_eq!((outage.causes[2].first, outage.causes[2].last), (at(10), at(20)));
    }

    #[test]
    fn what_is_told_is_told_until_it_is_kept() {
        let mut black_box = BlackBox::default();
        for (id, start) in [(1, 0), (2, 100)] {
            black_box.handle_lost(at(start), id, Cause::LinkBroken, "");
            black_box.handle_linked(at(start + 50), Duration::from_secs(50));
        }
        assert_eq!(black_box.waiting().len(), 2);
        assert_eq!(black_box.waiting().len(), 2, "nothing is lost with a message");
        black_box.handle_kept(&[1, 99]);
        let ids: Vec<_> = black_box.waiting().iter().map(|outage| outage.id).collect();
        assert_eq!(ids, [2]);
    }

    #[test]
    fn a_blink_is_no_outage() {
        let mut black_box = BlackBox::default();
        black_box.handle_lost(at(0), 7, Cause::Server, "the server stops");
        black_box.handle_linked(at(1), Duration::from_millis(900));
        assert_eq!(black_box.waiting(), []);
        assert_eq!(black_box.poll_write(at(1)), None);
    }

    #[test]
    fn a_reboot_inside_an_outage_is_told_too() {
        let mut black_box = BlackBox::default();
        black_box.handle_lost(at(0), 7, Cause::NoRoute, "");
        fail(&mut black_box, 40);
        let disk = black_box.poll_write(at(40)).unwrap();
        let mut after = BlackBox::new(&disk, at(90));
        fail(&mut after, 100);
        after.handle_linked(at(120), Duration::from_secs(30));
        let [outage] = &after.waiting()[..] else {
            panic!("one outage")
        };
        assert_eq!((outage.id, outage.from, outage.until), (7, at(0), at(120)));
        assert_eq!((outage.attempts, outage.starts), (2, 1));
        assert!(outage.causes.iter().any(|seen| seen.cause == Cause::Start));
        // And it outlives one more, until the server has it.
        let disk = after.poll_write(at(120)).unwrap();
        let mut last = BlackBox::new(&disk, at(130));
        assert_eq!(last.waiting(), after.waiting());
        last.handle_kept(&[7]);
        let disk = last.poll_write(at(131)).unwrap();
        assert_eq!(BlackBox::new(&disk, at(140)).waiting(), []);
    }

    #[test]
    fn the_disk_is_spared() {
        let mut black_box = BlackBox::default();
        black_box.handle_lost(at(0), 7, Cause::NoRoute, "");
        let mut writes = Vec::new();
        // A week without a network, with an attempt each minute.
        for secs in (0..7 * 24 * 3600).step_by(60) {
            fail(&mut black_box, secs);
            writes.extend(black_box.poll_write(at(secs)));
        }
        assert!((100..200).contains(&writes.len()), "{} writes", writes.len());
        assert!(writes.iter().all(|bytes| bytes.len() < 8_000));
        let mut short = BlackBox::default();
        short.handle_lost(at(0), 7, Cause::LinkBroken, "");
        fail(&mut short, 20);
        assert_eq!(short.poll_write(at(20)), None);
        short.handle_linked(at(21), Duration::from_secs(21));
        assert_eq!(short.poll_write(at(21)), None);
        short.handle_kept(&[7]);
        assert_eq!(short.poll_write(at(22)), None);
    }

    #[test]
    fn everything_is_bounded() {
        let mut black_box = BlackBox::default();
        for id in 0..200 {
            let start = id * 100;
            black_box.handle_lost(at(start), id, Cause::LinkBroken, &"x".repeat(10_000));
            for cause in Cause::ALL {
                black_box.handle_failed(at(start + 1), id, [(*cause, "y".repeat(10_000).as_str())]);
            }
            black_box.handle_linked(at(start + 50), Duration::from_secs(50));
        }
        let waiting = black_box.waiting();
        assert_eq!(waiting.len(), MAX_WAITING);
        assert_eq!(waiting.last().map(|outage| outage.id), Some(199));
        for some in waiting.chunks(crate::outage::PER_MESSAGE) {
            let message = crate::message::FromAgent::Outages(some.to_vec());
            assert!(frame::encode(&message).len() < crate::defaults::MAX_MESSAGE);
        }
    }

    #[test]
    fn what_cannot_be_read_is_as_nothing() {
        for bytes in [&b""[..], b"\xff\xff", b"not what was written"] {
            assert_eq!(BlackBox::new(bytes, START).waiting(), []);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_outage_shorter() {
        let mut black_box = BlackBox::default();
        black_box.handle_lost(at(5000), 7, Cause::LinkSilent, "");
        black_box.handle_linked(at(100), Duration::from_secs(60));
        let outage = &black_box.waiting()[0];
        assert_eq!(outage.until.since(outage.from), Duration::from_secs(60));
    }
}
