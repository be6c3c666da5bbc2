//! The machines of both ends and of the relay together, on a network that exists only as numbers: it loses, doubles and
//! reorders, moves ends, blocks carriers and forgets; the relay is killed and comes back. Time is what the simulation
//! says it is, so that days pass in seconds. After each step the invariants of the machines are checked.
//!
//! Everything follows from a seed, which a failure tells. `STEPS` and `SEED` in the environment run it for longer, or
//! again.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod address;
mod end;
mod link;
mod random;
mod relay;
mod world;

use random::Random;
use world::World;

/// Steps without a variable: what the unoptimised code does in a few seconds.
const STEPS: u64 = 300_000;

/// Steps of one world; then another one begins, with another seed.
const STEPS_OF_A_WORLD: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn both_ends_and_the_relay_get_over_everything() {
    let steps = number("STEPS").unwrap_or(STEPS);
    let first = number("SEED").unwrap_or(1);
    let (mut done, mut calm, mut hours) = (0, 0, 0.0);
    for seed in first.. {
        if done >= steps {
            break;
        }
        let mut world = World::new(seed);
        while world.steps < STEPS_OF_A_WORLD.min(steps - done) {
            world.run_wild();
            world.calm_down();
            calm += 1;
        }
        done += world.steps;
        hours += world.hours();
    }
    // What is asserted above is worth nothing where nothing has happened.
    assert!(calm > steps / STEPS_OF_A_WORLD, "{calm} times calm");
    assert!(hours > 0.0, "{hours} hours");
}

#[test]
fn a_seed_stands_for_its_steps() {
    let trace = |seed| {
        let mut world = World::new(seed);
        world.run_wild();
        world.calm_down();
        (world.steps, world.elapsed(), world.delivered())
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

/// A simulation whose relay never comes back must fail: what cannot fail shows nothing.
#[test]
#[should_panic(expected = "not heard within")]
fn a_relay_that_does_not_come_back_is_found_out() {
    let mut world = World::new(7);
    world.run_wild();
    world.lose_the_relay_for_good();
    world.calm_down();
}

/// What came with a circuit's own bind was taken for nobody else's before: a stranger on the way that repeats and forges
/// is among the things that happen.
#[test]
fn strangers_take_part() {
    let mut world = World::new(8);
    for _ in 0..5 {
        world.run_wild();
        world.calm_down();
    }
    assert!(world.attacks > 20, "{} attacks", world.attacks);
}

/// Link keepalive and backoff, on the same kind of network.
#[test]
fn a_control_link_comes_back_within_a_bound() {
    let mut random = Random::new(number("SEED").unwrap_or(1));
    for _ in 0..200 {
        link::run(&mut random);
    }
}
