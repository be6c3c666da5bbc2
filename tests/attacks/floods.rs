//! Members who use more than their share, and legs that never stand still.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tunnel_e2e::Fleet;
use tunnel_e2e::bare::{BareCircuit, packet};
use tunnel_e2e::process::Memory;

use crate::world::{scaled, world};

/// Round trips through a circuit of which each must be back within two seconds; those that were, sorted.
fn round_trips(circuit: &BareCircuit, count: u32) -> Vec<Duration> {
    let mut times: Vec<_> = (0..count)
        .filter_map(|number| {
            let (there, back) = (packet(number, 100), packet(number | 1 << 30, 100));
            let start = Instant::now();
            circuit.source.send(&there);
            let wait = |leg: &tunnel_e2e::bare::BareLeg, wanted: &[u8]| {
                while let Some(left) = Duration::from_secs(2).checked_sub(start.elapsed()) {
                    if leg.try_receive(left.max(Duration::from_millis(1)))? == wanted {
                        return Some(());
                    }
                }
                None
            };
            wait(&circuit.destination, &there)?;
            circuit.destination.send(&back);
            wait(&circuit.source, &back)?;
            Some(start.elapsed())
        })
        .collect();
    times.sort();
    times
}

#[test]
fn dat_24_a_thousand_moves_double_nothing_and_swap_nothing() {
    let (fleet, mut puppet) = world();
    let mut circuit = BareCircuit::bound(&fleet, &mut puppet);
    let moves = scaled(1_000);
    for number in 0..moves {
        let ip = Ipv4Addr::new(127, 3, (number >> 8) as u8, number as u8);
        let (moved, still) = if number % 2 == 0 {
            (&mut circuit.source, &circuit.destination)
        } else {
            (&mut circuit.destination, &circuit.source)
        };
        let old = moved.move_to(ip.into());
        moved.bind();
        let mark = packet(number as u32, 100);
        // What was sent from where it was just before counts; it comes once, and what comes back goes where it is.
        old.send(&mark).unwrap();
        assert_eq!(still.receive(), mark, "move {number}");
        still.send(&mark);
        assert_eq!(moved.receive(), mark, "move {number}");
        assert!(tunnel_e2e::bare::drain(&old).is_empty(), "move {number}");
        assert!(
            still.drain().is_empty() && moved.drain().is_empty(),
            "move {number}"
        );
    }
    circuit.check();
}

#[test]
fn dat_25_one_with_many_circuits_does_not_starve_the_quiet() {
    let (fleet, mut puppet) = world();
    let quiet: Vec<_> = (0..3).map(|_| BareCircuit::bound(&fleet, &mut puppet)).collect();
    let loud: Vec<_> = (0..scaled(60))
        .map(|_| BareCircuit::bound(&fleet, &mut puppet))
        .collect();
    const COUNT: u32 = 200;
    let before: usize = quiet
        .iter()
        .map(|circuit| round_trips(circuit, COUNT).len())
        .sum();
    assert_eq!(before, quiet.len() * COUNT as usize);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let data = packet(1, 1200);
            while !stop.load(Ordering::Relaxed) {
                for circuit in &loud {
                    for _ in 0..20 {
                        circuit.source.send(&data);
                    }
                    std::thread::yield_now();
                }
            }
        });
        tunnel_e2e::until("the loud ones to be loud", Duration::from_secs(30), || {
            let counted = loud[0].traffic(&fleet);
            (counted["datagrams_in"].as_u64()? > 500).then_some(())
        });
        let during: usize = quiet
            .iter()
            .map(|circuit| round_trips(circuit, COUNT).len())
            .sum();
        stop.store(true, Ordering::Relaxed);
        assert!(during * 10 >= before * 9, "{during} of {before} round trips");
    });
    for circuit in quiet.iter().chain(&loud).take(10) {
        circuit.check();
    }
}

/// Sends for a while; the datagrams that the relay forwarded and dropped.
fn spray(fleet: &Fleet, circuit: &BareCircuit, length: usize, time: Duration) -> (u64, u64, Duration) {
    let count = |name: &str| circuit.traffic(fleet)[name].as_u64().unwrap();
    let (forwarded, dropped, start) = (count("datagrams_in"), count("dropped"), Instant::now());
    let data = packet(1, length);
    while start.elapsed() < time {
        for _ in 0..100 {
            circuit.source.send(&data);
        }
    }
    (
        count("datagrams_in") - forwarded,
        count("dropped") - dropped,
        start.elapsed(),
    )
}

#[test]
fn dat_26_tiny_datagrams_have_a_rate_and_data_has_none() {
    let (fleet, mut puppet) = world();
    let circuit = BareCircuit::bound(&fleet, &mut puppet);
    let other = BareCircuit::bound(&fleet, &mut puppet);
    let before = Memory::of(fleet.server.process().pid()).now;
    let (full, dropped, _) = spray(&fleet, &circuit, 1200, Duration::from_secs(1));
    assert!(
        full > 1_000 && dropped == 0,
        "{full} forwarded, {dropped} dropped of data"
    );
    // What nobody reads waits at the receiver, and is nobody's loss but its own.
    let (tiny, dropped, time) = spray(&fleet, &circuit, 10, Duration::from_secs(2));
    // 50,000 a second, and what a quarter of a second saves up, and what data that went before has paid.
    let most = 50_000.0 * (time.as_secs_f64() + 0.5);
    assert!(
        (tiny as f64) < most,
        "{tiny} forwarded, {dropped} dropped in {time:?}"
    );
    let trips = round_trips(&other, 100);
    assert!(trips.len() >= 90, "{} of 100 round trips beside it", trips.len());
    let grown = Memory::of(fleet.server.process().pid())
        .peak
        .saturating_sub(before);
    assert!(grown < 16 << 20, "the server has grown by {} kB", grown / 1024);
    circuit.check();
}
