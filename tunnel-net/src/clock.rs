//! Wall clocks, given to whatever verifies certificates and grants.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tunnel_proto::UnixTime;

/// No program of this release ran earlier than this: 2026-11-01. Raised with each release.
pub const BUILD_FLOOR: UnixTime = UnixTime::from_secs(1_793_491_200);

/// Something that knows the time of day.
pub trait Clock: Send + Sync + Debug + 'static {
    /// Returns the time.
    fn now(&self) -> UnixTime;
}

/// The machine's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixTime {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        UnixTime::from_secs(since.as_secs())
    }
}

/// A clock that is never earlier than what is proven: the machine's clock where that is later, and else the last proven
/// time plus what has gone by since.
///
/// Devices boot in 1970. With such a clock, what has expired would look valid and what is valid would look like the
/// future (DESIGN section 5).
#[derive(Debug)]
pub struct FloorClock {
    system: Box<dyn Clock>,
    floor: Mutex<Floor>,
}

/// A proven time, and when it was proven.
#[derive(Clone, Copy, Debug)]
struct Floor {
    proven: UnixTime,
    at: Instant,
}

impl Floor {
    fn now(self) -> UnixTime {
        self.proven.after(self.at.elapsed())
    }
}

impl FloorClock {
    /// Makes a clock over the machine's one. `proven` is the last proven time that was kept over a restart.
    pub fn new(proven: Option<UnixTime>) -> Self {
        Self::over(Box::new(SystemClock), proven)
    }

    /// Makes a clock over another one.
    pub fn over(system: Box<dyn Clock>, proven: Option<UnixTime>) -> Self {
        let proven = proven.unwrap_or_default().max(BUILD_FLOOR);
        Self {
            system,
            floor: Mutex::new(Floor {
                proven,
                at: Instant::now(),
            }),
        }
    }

    /// Raises the floor to a time that an authenticated peer told. An earlier one changes nothing.
    pub fn prove(&self, time: UnixTime) {
        let mut floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        if time > floor.now() {
            *floor = Floor {
                proven: time,
                at: Instant::now(),
            };
        }
    }

    /// Returns the earliest time that it can be: what is kept over a restart.
    pub fn floor(&self) -> UnixTime {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner).now()
    }

    /// Returns how far the machine's clock is behind the floor: zero where it is not known to be wrong.
    pub fn behind(&self) -> Duration {
        self.floor().since(self.system.now())
    }
}

impl Clock for FloorClock {
    fn now(&self) -> UnixTime {
        self.system.now().max(self.floor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Stopped(UnixTime);

    impl Clock for Stopped {
        fn now(&self) -> UnixTime {
            self.0
        }
    }

    fn at(offset: u64) -> UnixTime {
        BUILD_FLOOR.after(Duration::from_secs(offset))
    }

    #[test]
    fn a_device_that_boots_in_1970_is_not_before_its_build() {
        let clock = FloorClock::over(Box::new(Stopped(UnixTime::from_secs(12))), None);
        assert!(clock.now() >= BUILD_FLOOR);
        assert!(clock.behind() >= BUILD_FLOOR.since(UnixTime::from_secs(12)));
    }

    #[test]
    fn a_right_clock_is_taken_as_it_is() {
        let clock = FloorClock::over(Box::new(Stopped(at(9_000))), Some(at(500)));
        assert_eq!(clock.now(), at(9_000));
        assert_eq!(clock.behind(), Duration::ZERO);
    }

    #[test]
    fn a_proven_time_raises_the_floor_and_never_lowers_it() {
        let clock = FloorClock::over(Box::new(Stopped(UnixTime::from_secs(0))), Some(at(500)));
        assert!(clock.now() >= at(500));
        clock.prove(at(10_000));
        assert!(clock.now() >= at(10_000));
        clock.prove(at(100));
        assert!(clock.now() >= at(10_000));
    }

    #[test]
    fn the_system_clock_is_of_this_century() {
        assert!(SystemClock.now() > UnixTime::from_secs(946_684_800));
    }
}
