//! The machine on paths that are made of numbers.

use proptest::prelude::*;

use super::*;

mod world;

use world::{Link, MBIT, MTU, World};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a connection got of the rate of a path, alone on it and after its start, and what queue it kept.
fn settled(link: Link) -> (f64, World) {
    let mut world = World::alone(link);
    world.run(secs(6));
    let got = world.run(secs(14))[0] / link.rate;
    (got, world)
}

#[test]
fn a_path_is_full_and_its_queue_short() {
    for (mbit, round_trip, target) in [(1.0, 80, 40), (10.0, 80, 12), (10.0, 10, 7), (4.0, 300, 50)] {
        for queue in [100, 2000] {
            let (got, world) = settled(Link::new(mbit, round_trip, queue));
            assert!(got > 0.95, "{:?}: {got:.2} of the rate", world.link);
            assert!(
                world.mean_wait() < millis(target),
                "{:?}: {:?}",
                world.link,
                world.mean_wait()
            );
            assert!(
                world.longest_queue < millis(round_trip) / 2 + millis(10),
                "{:?}: {:?}",
                world.link,
                world.longest_queue
            );
        }
    }
}

#[test]
fn what_a_radio_loses_costs_no_more_than_itself() {
    for loss in [0.01, 0.02] {
        let (got, world) = settled(Link::new(10.0, 80, 100).losing(loss));
        assert!(got > 0.95 - loss, "{loss}: {got:.2} of the rate");
        assert!(world.mean_wait() < millis(12), "{loss}: {:?}", world.mean_wait());
    }
}

#[test]
fn a_path_that_loses_much_is_given_room_and_still_used() {
    let (got, world) = settled(Link::new(10.0, 80, 100).losing(0.1));
    assert!((0.05..0.4).contains(&got), "{got:.2} of the rate");
    assert_eq!(world.longest_queue.as_millis() / 10, 0);
}

#[test]
fn a_queue_too_short_for_the_target_is_not_kept_overflowing() {
    let (got, world) = settled(Link::new(10.0, 80, 3));
    assert!(got > 0.8, "{got:.2} of the rate");
    assert!(world.dropped < 0.05, "{:.3} of the packets lost", world.dropped);
}

#[test]
fn late_packets_are_not_taken_for_a_queue() {
    let link = Link {
        jitter: millis(15),
        ..Link::new(10.0, 80, 200)
    };
    let (got, world) = settled(link);
    assert!(got > 0.85, "{got:.2} of the rate");
    assert!(world.mean_wait() < millis(25), "{:?}", world.mean_wait());
}

#[test]
fn a_rate_that_falls_or_rises_tenfold_is_followed() {
    for (before, after) in [(10.0, 1.0), (1.0, 10.0)] {
        let mut world = World::alone(Link::new(before, 80, 2000));
        world.run(secs(8));
        world.link.rate = after * MBIT;
        world.run(secs(4));
        let got = world.run(secs(4))[0] / world.link.rate;
        assert!(got > 0.9, "{before} to {after}: {got:.2} of the rate");
        assert!(
            world.mean_wait() < millis(30),
            "{before} to {after}: {:?}",
            world.mean_wait()
        );
    }
}

#[test]
fn some_of_a_kind_share_alike_and_keep_the_queue_short() {
    for count in [2, 4] {
        let mut world = World::alone(Link::new(10.0, 80, 500));
        for _ in 1..count {
            world.run(secs(5));
            world.add_ours();
        }
        world.run(secs(30));
        for got in world.run(secs(20)) {
            let got = got / world.link.rate * f64::from(count);
            assert!((0.6..1.5).contains(&got), "{got:.2} of a fair share of {count}");
        }
        assert!(world.mean_wait() < millis(45), "{count}: {:?}", world.mean_wait());
    }
}

/// What ours gets of the rate beside CUBIC, whichever of them was there first.
#[test]
fn beside_cubic_neither_starves() {
    for (mbit, round_trip, queue) in [(10.0, 80, 50), (10.0, 80, 100), (50.0, 20, 20), (50.0, 20, 50)] {
        for first in [true, false] {
            let mut world = World::new(Link::new(mbit, round_trip, queue));
            let add = [World::add_ours, World::add_cubic];
            add[usize::from(!first)](&mut world);
            world.run(secs(8));
            add[usize::from(first)](&mut world);
            world.run(secs(20));
            let got = world.run(secs(40))[usize::from(!first)] / world.link.rate;
            assert!(
                (0.15..0.7).contains(&got),
                "{:?}, first: {first}: {got:.2} of the rate",
                world.link
            );
        }
    }
}

#[test]
fn when_cubic_goes_the_queue_goes_with_it() {
    let mut world = World::alone(Link::new(10.0, 80, 300));
    world.run(secs(8));
    world.add_cubic();
    world.run(secs(20));
    assert!(world.mean_wait() > millis(50), "the queue is not that of others");
    world.flows[1].left = Some(0);
    world.run(secs(12));
    let got = world.run(secs(8))[0] / world.link.rate;
    assert!(got > 0.9, "{got:.2} of the rate");
    assert!(world.mean_wait() < millis(12), "{:?}", world.mean_wait());
}

#[test]
fn a_new_path_is_learnt_anew_beside_what_is_under_way_on_the_old_one() {
    let (_, mut world) = settled(Link::new(10.0, 40, 500));
    let (now, stuck) = (world.now, world.flows[0].in_flight());
    let ours = world.ours_mut();
    ours.handle_new_path(now);
    assert_eq!(ours.window(), stuck + ours.first_window());
    // On the longer path the old round trip would make the new one look like a queue.
    world.link = Link::new(10.0, 160, 500);
    world.run(secs(4));
    let got = world.run(secs(4))[0] / world.link.rate;
    assert!(got > 0.9, "{got:.2} of the rate");
    assert!(world.longest_queue < millis(90), "{:?}", world.longest_queue);
}

#[test]
fn what_is_lost_on_an_old_path_makes_room_and_is_no_loss_of_the_new_one() {
    let start = Instant::now();
    let mut ours = Congestion::new(start, MTU as u16);
    let old = 8 * MTU;
    ours.handle_sent(old);
    let moved = start + millis(50);
    ours.handle_new_path(moved);
    ours.handle_sent(MTU);
    ours.handle_loss(moved + millis(80), start, old, true);
    assert_eq!(ours.window(), ours.first_window());
    assert_eq!(ours.losses.share(), 0.0);
}

#[test]
fn who_sends_little_keeps_a_small_window() {
    let mut world = World::alone(Link::new(10.0, 80, 500));
    for _ in 0..300 {
        world.flows[0].left = Some(2);
        world.run(millis(100));
    }
    assert!(
        world.flows[0].window() <= 20 * MTU,
        "{} bytes",
        world.flows[0].window()
    );
}

#[test]
fn persistent_loss_begins_anew() {
    let (_, mut world) = settled(Link::new(10.0, 80, 100));
    let now = world.now;
    let ours = world.ours_mut();
    let in_flight = ours.in_flight;
    ours.handle_loss(now, now, in_flight, true);
    assert_eq!(ours.window(), ours.first_window());
}

/// What is lost because it was too large leaves neither a small window nor losses to remember.
#[test]
fn packets_that_became_too_large_are_no_congestion() {
    for (mtu, forgets) in [(MTU as u16, false), (1200, true)] {
        let (_, mut world) = settled(Link::new(10.0, 20, 100));
        world.link.loss = 1.0;
        world.run(millis(50));
        world.link.loss = 0.0;
        world.run(millis(100));
        let ours = world.ours_mut();
        assert!(ours.losses.excess() > 0.0, "{:?}", ours.losses);
        ours.window = LEAST_PACKETS * MTU;
        ours.handle_mtu(mtu);
        assert_eq!(ours.window() >= ours.first_window(), forgets, "{mtu}");
        assert_eq!(ours.losses.excess() == 0.0, forgets, "{mtu}");
    }
}

#[test]
fn one_moment_of_loss_is_forgotten_and_a_radio_that_loses_is_not() {
    for (losing, excess) in [(false, 0.0), (true, 1.0)] {
        let mut losses = Losses::default();
        losses.add(0, 400 * MTU, MTU);
        for round in 0..20 {
            losses.add(4 * MTU, if losing && round % 3 == 0 { MTU } else { 0 }, MTU);
            losses.end_round();
        }
        assert_eq!(losses.excess(), excess, "{losses:?}");
    }
}

#[test]
fn packets_that_are_late_by_themselves_do_not_starve_a_connection() {
    let link = Link {
        jitter: millis(30),
        ..Link::new(10.0, 20, 100)
    };
    let (got, world) = settled(link);
    assert!(world.flows[0].window() >= FIRST_PACKETS * MTU);
    assert!(got > 0.2, "{got:.2} of the rate");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is acknowledged, lost or marked in whatever order: the window stays within its bounds.
    #[test]
    fn the_window_stays_within_its_bounds(
        events in prop::collection::vec((0u8..6, 0u64..400, 0u64..600, 0u64..200_000), 1..400)
    ) {
        let mut now = Instant::now();
        let mut ours = Congestion::new(now, MTU as u16);
        let mut acked = 0;
        for (kind, wait, ago, bytes) in events {
            now += millis(wait);
            let sent = now.checked_sub(millis(ago)).unwrap_or(now);
            match kind {
                0 => ours.handle_sent(bytes),
                1 | 2 => {
                    acked += bytes;
                    ours.handle_ack(now, sent, bytes);
                    ours.handle_acked(now, bytes / 2);
                }
                3 => ours.handle_loss(now, sent, bytes, bytes % 50 == 0),
                4 => ours.handle_new_path(now),
                _ => ours.handle_mtu(1200 + (bytes % 300) as u16),
            }
            prop_assert!(ours.window >= LEAST_PACKETS * ours.mtu.min(MTU));
            let most = 4 * (acked + ours.first_window()) + ours.stale;
            prop_assert!(ours.window() <= most, "{} of {most}", ours.window());
        }
    }
}
