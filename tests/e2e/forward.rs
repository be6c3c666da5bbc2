//! `tunnel forward` and `tunnel connect`: many connections, each by itself.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use tunnel_e2e::Fleet;
use tunnel_e2e::bytes::noise;
use tunnel_e2e::service::Service;

const PATIENCE: Duration = Duration::from_secs(30);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn hundreds_of_connections_work_at_once() {
    const COUNT: usize = 300;
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let forward = fleet.admin.forward("pump-17", "echo");

    let all_there = Barrier::new(COUNT);
    std::thread::scope(|scope| {
        for number in 0..COUNT {
            let (all_there, address) = (&all_there, forward.address());
            scope.spawn(move || {
                let mut stream = connect(address);
                let message = noise(4096, number as u64);
                let mut answer = vec![0; message.len()];
                stream.write_all(&message).unwrap();
                stream.read_exact(&mut answer).unwrap();
                assert!(answer == message, "connection {number} got another's bytes");
                // Nobody leaves before all are in.
                all_there.wait();
                stream.write_all(&message).unwrap();
                stream.read_exact(&mut answer).unwrap();
                assert!(answer == message, "connection {number} got another's bytes");
                stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&mut stream), b"");
            });
        }
    });
    assert_eq!(echo.count(), COUNT as u64);
}

#[test]
fn an_answer_after_the_end_of_the_question_arrives() {
    let fleet = Fleet::on_loopback();
    let service = Service::answers_at_the_end(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("count", &service.target()));

    let forward = fleet.admin.forward("pump-17", "count");
    let mut stream = connect(forward.address());
    stream.write_all(&noise(1 << 20, 1)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream), b"1048576 bytes\n");

    let output = fleet
        .admin
        .tunnel_with(&["connect", "pump-17", "count"], &noise(1 << 20, 2));
    assert_eq!(output.ok(), "1048576 bytes\n");
}

#[test]
fn a_question_after_the_end_of_the_answer_arrives() {
    let fleet = Fleet::on_loopback();
    let service = Service::ends_first_and_listens(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("talk", &service.target()));

    let forward = fleet.admin.forward("pump-17", "talk");
    let mut stream = connect(forward.address());
    assert_eq!(read_to_end(&mut stream), b"done\n");
    stream.write_all(&noise(1 << 20, 1)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    tunnel_e2e::until("all that was sent after the answer's end", PATIENCE, || {
        (service.count() == 1 << 20).then_some(())
    });
}

#[test]
fn a_unix_socket_is_a_service_too() {
    let fleet = Fleet::on_loopback();
    let path = fleet.directory().join("service.socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let _agent = fleet.link(
        fleet
            .device("pump-17")
            .service("local", &format!("unix:{}", path.display())),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let bytes = read_to_end(&mut stream);
            stream.write_all(&bytes).unwrap();
        });
        assert_eq!(
            fleet
                .admin
                .tunnel_with(&["connect", "pump-17", "local"], b"hello")
                .ok(),
            "hello"
        );
    });
}

#[test]
fn a_service_that_refuses_says_so_at_once() {
    let fleet = Fleet::alone_on_loopback();
    let (echo, refuses) = (Service::echo(fleet.devices_place()), Service::refuses());
    let device = fleet
        .device("pump-17")
        .service("echo", &echo.target())
        .service("dead", &refuses.target());
    let _agent = fleet.link(device);

    let good = fleet.admin.tunnel_with(&["connect", "pump-17", "echo"], b"");
    assert_eq!(good.code, 0, "{}", good.said());
    let refusal = fleet.admin.refusal(&["connect", "pump-17", "dead"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (1, "E_TARGET_REFUSED"),
        "{}",
        refusal.text
    );
    // As fast as a session that works, give or take the noise of two cores.
    assert!(
        refusal.took < good.took + Duration::from_millis(500),
        "{:?} beside {:?}",
        refusal.took,
        good.took
    );
}

#[test]
fn a_service_that_does_not_answer_is_given_up_and_delays_nobody() {
    let fleet = Fleet::alone_on_loopback();
    let (echo, hangs) = (Service::echo(fleet.devices_place()), Service::hangs());
    let device = fleet
        .device("pump-17")
        .service("echo", &echo.target())
        .service("hangs", &hangs.target());
    let _agent = fleet.link(device);

    let forward = fleet.admin.forward_all("pump-17", &["echo", "hangs"]);
    let mut stuck: Vec<_> = (0..20).map(|_| connect(forward.address_of(1))).collect();
    for stream in &mut stuck {
        stream.write_all(b"is anybody there?").unwrap();
    }
    // Sessions of the other service, in the same tunnel, do not notice.
    for _ in 0..20 {
        let start = Instant::now();
        let mut stream = connect(forward.address_of(0));
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "{:?}",
            start.elapsed()
        );
    }
    let refusal = fleet.admin.refusal(&["connect", "pump-17", "hangs"]);
    assert_eq!(
        (refusal.exit, refusal.code.as_str()),
        (1, "E_TARGET_TIMEOUT"),
        "{}",
        refusal.text
    );
    assert!(refusal.took < Duration::from_secs(12), "{:?}", refusal.took);
}

#[test]
fn a_connection_ends_when_its_service_goes_away() {
    let fleet = Fleet::on_loopback();
    let service = Service::start(fleet.devices_place(), |mut stream, _| {
        // Leaves without reading what is there: the kernel resets the connection.
        let _ = stream.read(&mut [0; 1]);
    });
    let _agent = fleet.link(fleet.device("pump-17").service("rude", &service.target()));
    let forward = fleet.admin.forward("pump-17", "rude");
    let mut stream = connect(forward.address());
    stream.write_all(&noise(100_000, 1)).unwrap();
    let start = Instant::now();
    let _ = stream.read_to_end(&mut Vec::new());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// No timer of Nagle's or of delayed acknowledgements stands between two small messages.
#[test]
fn small_messages_do_not_stall() {
    const COUNT: u32 = 200;
    let fleet = Fleet::alone_on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let forward = fleet.admin.forward("pump-17", "echo");
    let mut stream = connect(forward.address());
    stream.set_nodelay(true).unwrap();
    let mut times: Vec<_> = (0..COUNT)
        .map(|_| {
            let start = Instant::now();
            // Two writes, so that the second one waits for the first one's acknowledgement where Nagle rules.
            stream.write_all(b"he").unwrap();
            stream.write_all(b"llo").unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    // Such a timer would take its 40 ms every time; a busy machine takes its own now and then.
    let quarter = times[times.len() / 4];
    assert!(
        quarter < Duration::from_millis(20),
        "three quarters of the round trips on loopback took {quarter:?} and more"
    );
}
