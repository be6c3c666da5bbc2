//! What can go wrong, and when it does: all of it follows from a seed.

use std::time::Duration;

use crate::bytes;

/// Where a fault strikes: a link of the emulated network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Site {
    /// The server's.
    Server,
    /// The technician's.
    Technician,
    /// That of the NAT in front of the device.
    Device,
}

impl Site {
    /// All of them.
    pub const ALL: [Site; 3] = [Site::Server, Site::Technician, Site::Device];

    const ENDS: [Site; 2] = [Site::Technician, Site::Device];

    /// Returns the word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Site::Server => "server",
            Site::Technician => "technician",
            Site::Device => "device",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The server is killed, and started again after a while.
    Kill,
    /// The server is asked to end, and started again after a while.
    Restart,
    /// The device's agent is restarted as a service is, and hands its tunnels over.
    AgentRestart,
    /// The agent's supervisor is killed and started again; the worker with the tunnels lives on.
    AgentCrash,
    /// UDP does not pass.
    BanUdp,
    /// TCP does not pass, and WebSocket with it.
    BanWebSocket,
    /// The machine gets another address and knows it.
    Move,
    /// The NAT in front of the device gets another address and forgets its mappings; the device is not told.
    Rebind,
    /// Both ends move at once.
    MoveBoth,
    /// Nothing passes, and nobody is told.
    Cut,
    /// One packet of ten is lost in each direction.
    Loss,
    /// Three packets of ten are lost on the way out, and none on the way in.
    LossOut,
    /// One packet of five overtakes others.
    Reorder,
    /// Packets of more than 1,280 bytes are answered with ICMP.
    Mtu1280,
    /// Packets of more than 1,000 bytes vanish.
    Mtu1000,
    /// The line carries 2 Mbit/s and keeps packets for up to two seconds.
    Bufferbloat,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 16] = [
        Kind::Kill,
        Kind::Restart,
        Kind::AgentRestart,
        Kind::AgentCrash,
        Kind::BanUdp,
        Kind::BanWebSocket,
        Kind::Move,
        Kind::Rebind,
        Kind::MoveBoth,
        Kind::Cut,
        Kind::Loss,
        Kind::LossOut,
        Kind::Reorder,
        Kind::Mtu1280,
        Kind::Mtu1000,
        Kind::Bufferbloat,
    ];

    /// Returns the words for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Kill => "relay kill -9",
            Kind::Restart => "relay restart",
            Kind::AgentRestart => "agent restart",
            Kind::AgentCrash => "agent supervisor kill -9",
            Kind::BanUdp => "UDP banned",
            Kind::BanWebSocket => "WebSocket banned",
            Kind::Move => "address change",
            Kind::Rebind => "NAT rebinding",
            Kind::MoveBoth => "both ends move",
            Kind::Cut => "network cut",
            Kind::Loss => "loss of 10 %",
            Kind::LossOut => "loss of 30 % on the way out",
            Kind::Reorder => "reordering of 20 %",
            Kind::Mtu1280 => "MTU of 1280",
            Kind::Mtu1000 => "MTU of 1000, a black hole",
            Kind::Bufferbloat => "bufferbloat of 2 s",
        }
    }

    const fn is_relay(self) -> bool {
        matches!(self, Kind::Kill | Kind::Restart)
    }

    const fn is_agent(self) -> bool {
        matches!(self, Kind::AgentRestart | Kind::AgentCrash)
    }

    /// Whether it is over as soon as it has happened.
    pub const fn is_instant(self) -> bool {
        matches!(
            self,
            Kind::Move | Kind::Rebind | Kind::MoveBoth | Kind::AgentRestart | Kind::AgentCrash
        )
    }

    /// Where it can strike.
    pub const fn sites(self) -> &'static [Site] {
        match self {
            Kind::Kill | Kind::Restart => &[Site::Server],
            Kind::Move | Kind::MoveBoth => &Site::ENDS,
            Kind::Rebind | Kind::AgentRestart | Kind::AgentCrash => &[Site::Device],
            _ => &Site::ALL,
        }
    }

    /// How often it comes beside the others.
    const fn weight(self) -> u64 {
        match self {
            Kind::Kill => 5,
            Kind::Restart | Kind::BanUdp | Kind::BanWebSocket | Kind::Move | Kind::Rebind | Kind::Cut => 3,
            Kind::MoveBoth | Kind::Mtu1280 | Kind::Mtu1000 | Kind::AgentRestart => 2,
            Kind::AgentCrash | Kind::Loss | Kind::LossOut | Kind::Reorder | Kind::Bufferbloat => 1,
        }
    }
}

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// Where.
    pub site: Site,
    /// For how long; nothing for what is over at once.
    pub hold: Duration,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at the {}", self.kind.as_str(), self.site.as_str())?;
        if self.hold > Duration::ZERO {
            write!(f, " for {:.1} s", self.hold.as_secs_f64())?;
        }
        Ok(())
    }
}

/// Some faults that overlap, and what comes after them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    /// The faults, with the time from the start of the round at which each begins.
    pub faults: Vec<(Duration, Fault)>,
    /// Whether all sessions must be at work again before the next round.
    pub settle: bool,
    /// The pause after it.
    pub pause: Duration,
}

/// When something of a round begins or ends: the fault's number, and whether it begins.
pub type Event = (Duration, usize, bool);

impl Round {
    /// Makes a round of one fault that must be got over.
    pub fn of(fault: Fault) -> Self {
        Self {
            faults: vec![(Duration::ZERO, fault)],
            settle: true,
            pause: Duration::ZERO,
        }
    }

    /// Returns what begins and ends, in the order of time.
    pub fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (number, (at, fault)) in self.faults.iter().enumerate() {
            events.push((*at, number, true));
            if !fault.kind.is_instant() {
                events.push((*at + fault.hold, number, false));
            }
        }
        events.sort();
        events
    }
}

/// The rounds that a seed stands for, without end.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: Random,
    longest: Duration,
    unsettled: u32,
}

/// Most rounds in a row after which nobody waits for the sessions.
const UNSETTLED: u32 = 3;

impl Schedule {
    /// Starts the rounds of a seed. No outage is longer than `longest`.
    pub fn new(seed: u64, longest: Duration) -> Self {
        Self {
            random: Random::new(seed),
            longest,
            unsettled: 0,
        }
    }

    fn fault(&mut self, others: &[(Duration, Fault)]) -> Option<Fault> {
        let sum: u64 = Kind::ALL.iter().map(|kind| kind.weight()).sum();
        let mut at = self.random.below(sum);
        let kind = Kind::ALL.into_iter().find(|kind| {
            let found = at < kind.weight();
            at = at.saturating_sub(kind.weight());
            found
        })?;
        let sites = kind.sites();
        let site = sites[self.random.below(sites.len() as u64) as usize];
        let hold = self.hold(kind);
        let clashes = others.iter().any(|(_, other)| {
            (other.kind == kind && other.site == site)
                || (other.kind.is_relay() && kind.is_relay())
                || (other.kind.is_agent() && kind.is_agent())
        });
        (!clashes).then_some(Fault { kind, site, hold })
    }

    fn hold(&mut self, kind: Kind) -> Duration {
        let millis = match kind {
            _ if kind.is_instant() => 0,
            Kind::Kill | Kind::Restart => self.random.below(1500),
            // One of twelve lasts as long as it may.
            Kind::Cut if self.random.below(12) == 0 => u64::MAX,
            Kind::Cut | Kind::BanUdp | Kind::BanWebSocket | Kind::Mtu1000 => 200 + self.random.below(4000),
            _ => 500 + self.random.below(3000),
        };
        Duration::from_millis(millis).min(self.longest)
    }
}

impl Iterator for Schedule {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let count = [1, 1, 1, 2, 2, 3][self.random.below(6) as usize];
        let mut faults: Vec<(Duration, Fault)> = Vec::new();
        let mut at = Duration::ZERO;
        while faults.len() < count {
            if let Some(fault) = self.fault(&faults) {
                faults.push((at, fault));
                at += Duration::from_millis(self.random.below(1200));
            }
        }
        let settle = self.unsettled == UNSETTLED || self.random.below(2) == 0;
        self.unsettled = if settle { 0 } else { self.unsettled + 1 };
        let pause = Duration::from_millis(self.random.below(if settle { 300 } else { 1500 }));
        Some(Round {
            faults,
            settle,
            pause,
        })
    }
}

/// Random numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below a bound that is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let word = bytes::noise(8, self.0);
        self.0 = self.0.wrapping_add(bytes::STEP);
        word.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn a_seed_stands_for_its_faults() {
        let rounds = |seed| Schedule::new(seed, LONGEST).take(200).collect::<Vec<_>>();
        assert_eq!(rounds(1), rounds(1));
        assert_ne!(rounds(1), rounds(2));
    }

    #[test]
    fn every_kind_comes_everywhere_it_can() {
        let faults: Vec<Fault> = Schedule::new(3, LONGEST)
            .take(2000)
            .flat_map(|round| round.faults.into_iter().map(|(_, fault)| fault))
            .collect();
        for kind in Kind::ALL {
            for &site in kind.sites() {
                let there = faults
                    .iter()
                    .any(|fault| fault.kind == kind && fault.site == site);
                assert!(there, "{kind:?} at {site:?}");
            }
        }
        assert!(faults.iter().any(|fault| fault.hold == LONGEST));
    }

    #[test]
    fn what_begins_ends_and_what_excludes_each_other_does_not_meet() {
        for round in Schedule::new(4, LONGEST).take(2000) {
            let mut under_way = 0;
            for (_, _, begins) in round.events() {
                under_way += if begins { 1 } else { -1 };
            }
            let instant = round
                .faults
                .iter()
                .filter(|(_, fault)| fault.kind.is_instant())
                .count();
            assert_eq!(under_way, instant as i32, "{round:?}");
            let relay = round.faults.iter().filter(|(_, fault)| fault.kind.is_relay());
            assert!(relay.count() <= 1, "{round:?}");
        }
    }
}
