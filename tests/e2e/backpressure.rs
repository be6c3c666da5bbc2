//! A reader that is slower than its sender: memory stays bounded on all three programs, and the sender is held back.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tunnel_e2e::operator::{CARRIER, Forward};
use tunnel_e2e::process::Memory;
use tunnel_e2e::service::Service;
use tunnel_e2e::{Agent, Fleet};

/// What a stream may cost each program at most.
const PER_STREAM: u64 = 10 << 20;
/// What may be under way between the ends: windows and the kernel's socket buffers on both sides.
const UNDER_WAY: u64 = 48 << 20;
/// How long nothing may move before a sender counts as held back.
const STILL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// The three programs, with their memory before the stream.
struct Watched {
    programs: Vec<(&'static str, u32, u64)>,
}

impl Watched {
    fn new(fleet: &Fleet, agent: &Agent, forward: &Forward) -> Self {
        let programs = [
            ("server", fleet.server.process().pid()),
            ("agent", agent.process().pid()),
            ("cli", forward.process().pid()),
        ];
        Self {
            programs: programs
                .map(|(name, pid)| (name, pid, Memory::of(pid).now))
                .into(),
        }
    }

    #[track_caller]
    fn assert_bounded(&self) {
        for (name, pid, before) in &self.programs {
            let grown = Memory::of(*pid).peak.saturating_sub(*before);
            assert!(grown <= PER_STREAM, "the {name} has grown by {} kB", grown / 1024);
        }
    }
}

/// Waits until a count no longer grows; what it is then.
#[track_caller]
fn settled(what: &str, count: impl Fn() -> u64) -> u64 {
    let (mut last, mut since) = (count(), Instant::now());
    tunnel_e2e::until(what, PATIENCE, || {
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (now > 0 && since.elapsed() > STILL).then_some(now)
    })
}

fn a_slow_operator(carrier: &str) {
    let fleet = Fleet::on_loopback();
    let pours = Service::pours(fleet.devices_place());
    let device = fleet
        .device("pump-17")
        .service("pours", &pours.target())
        .variable(CARRIER, carrier);
    let agent = fleet.link(device);
    let forward = fleet.admin.forward_over(carrier, "pump-17", &["pours"]);
    let watched = Watched::new(&fleet, &agent, &forward);

    let mut stream = TcpStream::connect(forward.address()).unwrap();
    let sent = settled("the service to be held back", || pours.count());
    assert!(sent < UNDER_WAY, "{sent} bytes are under way, and nobody reads");
    watched.assert_bounded();

    // Reading on, the stream goes on where it was.
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..64 {
        stream.read_exact(&mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0x5a));
    }
    assert!(pours.count() > sent);
    watched.assert_bounded();
}

#[test]
fn an_operator_that_does_not_read_holds_the_service_back_over_udp() {
    a_slow_operator("udp");
}

#[test]
fn an_operator_that_does_not_read_holds_the_service_back_over_websocket() {
    a_slow_operator("websocket");
}

#[test]
fn a_service_that_does_not_read_holds_the_operator_back() {
    let fleet = Fleet::on_loopback();
    let never = Service::never_reads(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").service("never", &never.target()));
    let forward = fleet.admin.forward("pump-17", "never");
    let watched = Watched::new(&fleet, &agent, &forward);

    let mut stream = TcpStream::connect(forward.address()).unwrap();
    stream.set_write_timeout(Some(STILL)).unwrap();
    let block = vec![0; 65536];
    let mut sent = 0;
    let error = loop {
        match stream.write(&block) {
            Ok(length) => sent += length as u64,
            Err(error) => break error,
        }
        assert!(sent < UNDER_WAY, "{sent} bytes are under way, and nobody reads");
    };
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    watched.assert_bounded();
}

#[test]
fn eight_slow_readers_cost_eight_times_as_much_at_most_and_stop_nobody() {
    const COUNT: u64 = 8;
    let fleet = Fleet::on_loopback();
    let (pours, echo) = (
        Service::pours(fleet.devices_place()),
        Service::echo(fleet.devices_place()),
    );
    let device = fleet
        .device("pump-17")
        .service("pours", &pours.target())
        .service("echo", &echo.target());
    let agent = fleet.link(device);
    let forward = fleet.admin.forward_all("pump-17", &["pours", "echo"]);
    let watched = Watched::new(&fleet, &agent, &forward);

    let _slow: Vec<_> = (0..COUNT)
        .map(|_| TcpStream::connect(forward.address_of(0)).unwrap())
        .collect();
    settled("the services to be held back", || pours.count());
    for (name, pid, before) in &watched.programs {
        let grown = Memory::of(*pid).peak.saturating_sub(*before);
        assert!(
            grown <= COUNT * PER_STREAM,
            "the {name} has grown by {} kB",
            grown / 1024
        );
    }
    // Another session of the same tunnel does not wait for the slow ones.
    let mut stream = TcpStream::connect(forward.address_of(1)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn eight_services_that_do_not_read_stop_nobody() {
    let fleet = Fleet::on_loopback();
    let (never, echo) = (
        Service::never_reads(fleet.devices_place()),
        Service::echo(fleet.devices_place()),
    );
    let device = fleet
        .device("pump-17")
        .service("never", &never.target())
        .service("echo", &echo.target());
    let _agent = fleet.link(device);
    let forward = fleet.admin.forward_all("pump-17", &["never", "echo"]);

    let block = vec![0; 65536];
    let _stuck: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(forward.address_of(0)).unwrap();
            stream
                .set_write_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            while stream.write(&block).is_ok() {}
            stream
        })
        .collect();
    let mut stream = TcpStream::connect(forward.address_of(1)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}
