//! The relay is blind: what goes through it is neither in its memory nor in any packet at its wire (THREATS I2).

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tunnel_e2e::bytes::noise;
use tunnel_e2e::needs;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;

use crate::world::{NAT, SERVER, TECHNICIAN, World};

/// Looks through the memory of a running process, all mappings that can be read; how often the marker is there, and how
/// many bytes were looked at.
fn search_memory(pid: u32, marker: &[u8]) -> (usize, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut found, mut looked) = (0, 0);
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let parse = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (mut at, end) = (parse(start), parse(end));
        // A marker on the border of two blocks is seen in the second one, which starts early enough.
        let mut block = vec![0; 1 << 20];
        while at < end {
            let length = block.len().min(usize::try_from(end - at).unwrap());
            // A mapping may be gone in the meantime.
            let Ok(read @ 1..) = memory.read_at(&mut block[..length], at) else {
                break;
            };
            found += count(&block[..read], marker);
            looked += read as u64;
            let step = read.saturating_sub(marker.len() - 1).max(1);
            at += if at + (read as u64) < end {
                step as u64
            } else {
                read as u64
            };
        }
    }
    (found, looked)
}

fn count(bytes: &[u8], marker: &[u8]) -> usize {
    let (mut found, mut rest) = (0, bytes);
    loop {
        // The standard library looks for a byte much faster than a loop of an unoptimised test.
        let from = rest;
        let passed = rest.skip_until(marker[0]).unwrap();
        if passed == 0 {
            return found;
        }
        found += usize::from(from[passed - 1..].starts_with(marker));
    }
}

fn a_blind_relay(blocked: Option<&str>) {
    let world = World::new(NAT);
    if let Some(setting) = blocked {
        world.lab.set(SERVER, setting);
    }
    let fleet = &world.fleet;
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let forward = fleet.admin.forward("pump-17", "echo");
    // A marker that this process does not write down anywhere else, least of all in a command line.
    let marker = noise(
        32,
        u64::from(std::process::id()) ^ (std::ptr::from_ref(&world) as u64),
    );
    let capture = world.lab.capture(SERVER);
    let address = forward.address();
    let mut stream = world
        .lab
        .host(TECHNICIAN)
        .on(|| TcpStream::connect(address).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();

    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Many copies at once, so that packets full of them are under way while the memory is read.
            let message = marker.repeat(512);
            let mut answer = vec![0; message.len()];
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&message).unwrap();
                stream.read_exact(&mut answer).unwrap();
                assert!(answer == message);
                rounds.fetch_add(1, Ordering::Relaxed);
                // Enough to be always under way, and not so much that the capture fills the disk.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let relay = fleet.server.process().pid();
        for look in 1..=5 {
            let before = rounds.load(Ordering::Relaxed);
            tunnel_e2e::until("data to flow", Duration::from_secs(20), || {
                (rounds.load(Ordering::Relaxed) > before + 20).then_some(())
            });
            let (found, looked) = search_memory(relay, &marker);
            assert!(
                looked > 1 << 20,
                "only {looked} bytes of the relay's memory can be read"
            );
            assert_eq!(found, 0, "look {look}: the marker is in the relay's memory");
        }
        // The same search finds it where it must be, and finds in the relay what it must know.
        let seen = (0..20).any(|_| search_memory(agent.process().pid(), &marker).0 > 0);
        assert!(
            seen,
            "the search would not find the marker in the agent, which has it"
        );
        assert!(
            search_memory(relay, b"relay-1").0 > 0,
            "the search would not find the relay's own name"
        );
        stop.store(true, Ordering::Relaxed);
    });

    // Something that is not protected passes too, to prove that the capture would show it.
    let plain = noise(32, 99);
    world.lab.host(TECHNICIAN).on(|| {
        let mut bare = TcpStream::connect(fleet.server.address()).unwrap();
        bare.write_all(&plain).unwrap();
        let _ = bare.read(&mut [0; 16]);
    });
    world.lab.end_capture(SERVER);
    let packets = std::fs::read(capture).unwrap();
    assert!(
        packets.len() > 500_000,
        "only {} bytes were captured",
        packets.len()
    );
    assert!(
        count(&packets, &plain) > 0,
        "the capture would not show the marker"
    );
    assert_eq!(
        count(&packets, &marker),
        0,
        "the marker is in a packet of the relay"
    );
}

#[test]
fn a_marker_is_neither_in_the_relays_memory_nor_on_its_wire_over_udp() {
    needs!(Need::Namespaces);
    a_blind_relay(None);
}

#[test]
fn a_marker_is_neither_in_the_relays_memory_nor_on_its_wire_over_websocket() {
    needs!(Need::Namespaces);
    a_blind_relay(Some("block=udp"));
}
