//! The agent's control link: its keepalive finds out that the path is gone, and its backoff finds the server again.

use std::time::{Duration, Instant};

use tunnel_proto::backoff::Backoff;
use tunnel_proto::defaults::{BACKOFF_MAX, KEEPALIVE_ANSWER, KEEPALIVE_MAX};
use tunnel_proto::keepalive::{Action, Keepalive};

use crate::random::Random;

/// The longest time that an answer takes.
const ANSWER: Duration = Duration::from_secs(2);

/// A link that lives, dies without a word, and is made again.
pub(crate) fn run(random: &mut Random) {
    let start = Instant::now();
    let mut now = start;
    for _ in 0..20 {
        let mut keepalive = Keepalive::new(now);
        let binding = random.millis(20_000, 400_000);
        let dies = now + random.millis(0, 3_000_000);
        let found_out = live(&mut keepalive, random, &mut now, binding, dies);
        let bound = KEEPALIVE_MAX + KEEPALIVE_ANSWER + ANSWER;
        assert!(
            found_out <= bound,
            "a dead link was found out after {found_out:?}"
        );

        let back = now + random.millis(0, 600_000);
        let mut backoff = Backoff::default();
        let mut pauses = 0;
        while now < back {
            now += backoff.failed(random.word());
            pauses += 1;
            assert!(pauses < 5000, "it hammers the server");
        }
        assert!(now - back <= BACKOFF_MAX, "it came {:?} late", now - back);
    }
}

/// Lives until the link is found out to be dead; how long after its death.
fn live(
    keepalive: &mut Keepalive,
    random: &mut Random,
    now: &mut Instant,
    binding: Duration,
    dies: Instant,
) -> Duration {
    let (mut port, mut last) = (0, *now);
    let mut echo: Option<(Instant, u64)> = None;
    loop {
        if let Some((at, seq)) = echo.take_if(|(at, _)| *at <= keepalive.next_timeout()) {
            if at - last <= binding && at < dies {
                *now = at.max(*now);
                keepalive.handle_echo(*now, seq, random.chance(90));
                last = *now;
            }
            continue;
        }
        let due = keepalive.next_timeout();
        assert!(due >= *now || keepalive.interval() >= Duration::ZERO);
        *now = due.max(*now);
        match keepalive.handle_timeout(*now) {
            Some(Action::Dead) => return now.saturating_duration_since(dies),
            Some(Action::Ping { seq, echo_after }) if *now < dies => {
                port += u32::from(*now - last > binding);
                last = *now;
                echo = echo_after.map(|after| (*now + after, seq));
                let answer = *now + random.millis(1, ANSWER.as_millis() as u64);
                *now = answer;
                keepalive.handle_pong(answer, seq, &format!("192.0.2.1:{port}"));
                if random.chance(20) {
                    keepalive.probe(*now);
                }
            }
            Some(Action::Ping { .. }) | None => {}
        }
    }
}
