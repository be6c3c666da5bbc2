//! What a person at a terminal feels.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tunnel_e2e::needs;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;

use crate::world::{NAT, TECHNICIAN, World};

/// One way of the technician's link, and of the device's.
const DELAY: Duration = Duration::from_millis(10);
const KEYSTROKES: usize = 150;
const BETWEEN: Duration = Duration::from_millis(50);
/// What a bulk transfer may add to a keystroke.
const ADDED: Duration = Duration::from_millis(150);

/// Round trips of keystrokes on a session, one each [`BETWEEN`]; in order of length.
fn keystrokes(stream: &mut TcpStream, count: usize) -> Vec<Duration> {
    let mut times: Vec<_> = (0..count)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(b"k").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            let took = start.elapsed();
            // Somebody types at this pace.
            std::thread::sleep(BETWEEN.saturating_sub(took));
            took
        })
        .collect();
    times.sort();
    times
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

#[test]
fn a_keystroke_during_a_bulk_upload_stays_quick() {
    needs!(Need::Namespaces);
    let delay = DELAY.as_millis();
    let world = World::alone(&format!("link = {{ delay = \"{delay}ms\" }}\n{NAT}"));
    let place = world.fleet.devices_place();
    let (echo, sink) = (Service::echo(place), Service::answers_at_the_end(place));
    let device = world
        .fleet
        .device("pump-17")
        .service("echo", &echo.target())
        .service("sink", &sink.target());
    let _agent = world.fleet.link(device);
    let forward = world.fleet.admin.forward_all("pump-17", &["echo", "sink"]);
    let technician = world.lab.host(TECHNICIAN);
    let connect = |number: usize| {
        let address = forward.address_of(number);
        let stream = technician.on(|| TcpStream::connect(address).unwrap());
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    world.lab.set(TECHNICIAN, "rate=10mbit");
    let mut typing = connect(0);
    keystrokes(&mut typing, 5);
    let idle = percentile(&keystrokes(&mut typing, 40), 50);

    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut bulk = connect(1);
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            let block = [0x42; 16384];
            while !stop.load(Ordering::Relaxed) && bulk.write_all(&block).is_ok() {
                written.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
        });
        tunnel_e2e::until("the upload to be in full swing", Duration::from_secs(20), || {
            (sink.count() > 2_000_000).then_some(())
        });
        let (start, before) = (Instant::now(), sink.count());
        let times = keystrokes(&mut typing, KEYSTROKES);
        let rate = (sink.count() - before) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6;
        stop.store(true, Ordering::Relaxed);
        assert!(rate > 6.0, "the upload itself runs at {rate:.1} Mbit/s of 10");
        times
    });
    let p95 = percentile(&loaded, 95);
    tunnel_e2e::skip::say(&format!(
        "keystroke: idle p50 {idle:?}, during a bulk upload p95 {p95:?}"
    ));
    assert!(p95 < idle + ADDED, "p95 {p95:?} with an idle p50 of {idle:?}");
}

/// A reason travels as fast as an answer: it is there when a session would be, and not a timeout later.
#[test]
fn the_reason_of_a_refused_target_needs_no_more_than_the_way() {
    needs!(Need::Namespaces);
    let delay = DELAY.as_millis();
    let world = World::alone(&format!("link = {{ delay = \"{delay}ms\" }}\n{NAT}"));
    let echo = Service::echo(world.fleet.devices_place());
    // Port 1 of the device: nobody listens there.
    let device = world
        .fleet
        .device("pump-17")
        .service("echo", &echo.target())
        .service("dead", "tcp:127.0.0.1:1");
    let _agent = world.fleet.link(device);
    let admin = &world.fleet.admin;
    let quickest = |work: &dyn Fn() -> Duration| (0..3).map(|_| work()).min().unwrap();

    // The first byte of an answer, and then the end of the command.
    let good = quickest(&|| {
        let output = admin.tunnel_with(&["connect", "pump-17", "echo"], b"hello");
        assert_eq!(output.text(), "hello", "{}", output.stderr);
        output.took
    });
    let refused = quickest(&|| {
        let refusal = admin.refusal(&["connect", "pump-17", "dead"]);
        assert_eq!(refusal.code, "E_TARGET_REFUSED", "{}", refusal.text);
        refusal.took
    });
    let round_trip = DELAY * 8;
    assert!(
        refused < good + round_trip,
        "refused after {refused:?}, answered after {good:?}"
    );
}
