//! What is proven about a control link, apart from sockets and clocks.

use std::time::{Duration, Instant};

use tunnel_proto::UnixTime;
use tunnel_proto::api::LinkState;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::defaults::{KEEPALIVE_ANSWER, KEEPALIVE_FIRST};
use tunnel_proto::message::Ping;

/// What a link has proven, and when the next proof is due.
///
/// A link is not "there" because a connection exists: it is there because a message of ours came back.
#[derive(Clone, Debug)]
pub(crate) struct Presence {
    since: UnixTime,
    skew_secs: i64,
    proven: Proof,
    /// The proof of the last answer, which the next ping echoes.
    awaited: Option<u64>,
    due: Instant,
    /// After how long the next proof comes at the latest.
    within: Duration,
    cost: Option<Cost>,
}

/// What a link has cost, as its agent counts it.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// At the first keepalive: what came before is the cost of the link's beginning.
    first: (Instant, u64),
    last: (Instant, u64),
}

impl Cost {
    /// Returns what a day costs at this rate; nothing is known before two keepalives.
    fn per_day(self) -> Option<u64> {
        let span = self.last.0.saturating_duration_since(self.first.0);
        let bytes = self.last.1.saturating_sub(self.first.1) as f64;
        (!span.is_zero()).then(|| (bytes * DAY.as_secs_f64() / span.as_secs_f64()) as u64)
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, Debug)]
struct Proof {
    at: Instant,
    rtt: Duration,
}

impl Presence {
    /// Starts with the handshake, which is the first proven round trip of every link.
    pub(crate) fn new(now: Instant, since: UnixTime, rtt: Duration, agent_clock: UnixTime) -> Self {
        let skew_secs = i64::try_from(agent_clock.as_secs())
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        Self {
            since,
            skew_secs,
            proven: Proof { at: now, rtt },
            awaited: None,
            due: now + KEEPALIVE_FIRST + KEEPALIVE_ANSWER,
            within: KEEPALIVE_FIRST,
            cost: None,
        }
    }

    /// Takes a ping in. `answer` is the random proof of the pong that goes out.
    pub(crate) fn handle_ping(&mut self, now: Instant, ping: &Ping, answer: u64) {
        if self.awaited.is_some_and(|awaited| awaited == ping.proof) {
            let rtt = ping
                .rtt_millis
                .map_or(self.proven.rtt, |millis| Duration::from_millis(millis.into()));
            self.proven = Proof { at: now, rtt };
        }
        self.awaited = Some(answer);
        self.within = Duration::from_secs(ping.next_secs.into());
        self.due = now + self.within + KEEPALIVE_ANSWER;
        if let Some(bytes) = ping.cost_bytes {
            let first = self.cost.map_or((now, bytes), |cost| cost.first);
            let last = (now, bytes);
            self.cost = Some(Cost { first, last });
        }
    }

    /// Notes that the agent answered something that went out `rtt` ago.
    pub(crate) fn handle_answer(&mut self, now: Instant, rtt: Duration) {
        self.proven = Proof { at: now, rtt };
    }

    /// Returns the state as the API shows it.
    pub(crate) fn state(&self, now: Instant, carrier: Carrier) -> LinkState {
        LinkState {
            carrier: carrier.as_str().to_owned(),
            since: self.since.as_secs(),
            proven_millis_ago: Some(millis(now.saturating_duration_since(self.proven.at))),
            rtt_millis: Some(millis(self.proven.rtt)),
            clock_skew_secs: self.skew_secs,
            overdue: now > self.due,
            proof_within_secs: self.within.as_secs(),
            cost_bytes: self.cost.map(|cost| cost.last.1),
            cost_bytes_per_day: self.cost.and_then(Cost::per_day),
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping(seq: u64, proof: u64, rtt_millis: Option<u32>) -> Ping {
        Ping {
            seq,
            proof,
            next_secs: 25,
            rtt_millis,
            cost_bytes: None,
            echo_after_millis: None,
        }
    }

    fn fresh(now: Instant) -> Presence {
        let since = UnixTime::from_secs(1000);
        Presence::new(now, since, Duration::from_millis(3), UnixTime::from_secs(940))
    }

    #[test]
    fn the_handshake_is_the_first_proof() {
        let now = Instant::now();
        let state = fresh(now).state(now + Duration::from_millis(20), Carrier::Udp);
        assert_eq!(state.proven_millis_ago, Some(20));
        assert_eq!(state.rtt_millis, Some(3));
        assert_eq!(state.clock_skew_secs, -60);
        assert!(!state.overdue);
    }

    #[test]
    fn only_an_echoed_proof_proves() {
        let start = Instant::now();
        let mut presence = fresh(start);
        let now = start + Duration::from_secs(10);
        presence.handle_ping(now, &ping(0, 0, None), 77);
        assert_eq!(presence.state(now, Carrier::Udp).proven_millis_ago, Some(10_000));
        presence.handle_ping(now, &ping(1, 78, Some(9)), 79);
        assert_eq!(presence.state(now, Carrier::Udp).proven_millis_ago, Some(10_000));
        presence.handle_ping(now, &ping(2, 79, Some(9)), 80);
        let state = presence.state(now, Carrier::WebSocket);
        assert_eq!((state.proven_millis_ago, state.rtt_millis), (Some(0), Some(9)));
        assert_eq!(state.carrier, "websocket");
    }

    #[test]
    fn a_day_costs_what_the_time_since_the_first_keepalive_did() {
        let now = Instant::now();
        let mut presence = fresh(now);
        let mut costs = |secs, bytes| {
            let at = now + Duration::from_secs(secs);
            let ping = Ping {
                cost_bytes: Some(bytes),
                echo_after_millis: None,
                ..ping(0, 0, None)
            };
            presence.handle_ping(at, &ping, 1);
            let state = presence.state(at, Carrier::Udp);
            (state.cost_bytes, state.cost_bytes_per_day)
        };
        assert_eq!(costs(1, 9_000), (Some(9_000), None));
        assert_eq!(costs(101, 9_500), (Some(9_500), Some(432_000)));
        assert_eq!(
            costs(201, 10),
            (Some(10), Some(0)),
            "a number that makes no sense does no harm"
        );
    }

    #[test]
    fn a_missing_ping_is_overdue() {
        let now = Instant::now();
        let mut presence = fresh(now);
        presence.handle_ping(now, &ping(0, 0, None), 1);
        let late = now + Duration::from_secs(25) + KEEPALIVE_ANSWER;
        assert!(!presence.state(late, Carrier::Udp).overdue);
        assert!(
            presence
                .state(late + Duration::from_millis(1), Carrier::Udp)
                .overdue
        );
    }
}
