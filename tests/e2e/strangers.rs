//! Those who have no business with the server, and what they get: nothing (THREATS I8, DAT-01, DAT-08, DAT-20).

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use tunnel_e2e::Fleet;
use tunnel_e2e::bytes::noise;
use tunnel_e2e::service::Service;

/// Bytes that come back within a moment.
fn answers(socket: &UdpSocket) -> usize {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut buffer = [0; 65536];
    let mut sum = 0;
    while let Ok(length) = socket.recv(&mut buffer) {
        sum += length;
    }
    sum
}

#[test]
fn datagrams_of_strangers_get_no_more_back_than_they_are() {
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    // The first byte says what a datagram wants to be: a bind message, a short header, a long one of QUIC.
    for first in [0x00, 0x01, 0x10, 0x3f, 0x40, 0x5a, 0x80, 0xc0, 0xc3, 0xff] {
        for length in [1, 40, 64, 100, 1200, 1400] {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(fleet.server.address()).unwrap();
            let mut sent = 0;
            for seed in 0..20 {
                let mut datagram = noise(length, seed);
                datagram[0] = first;
                sent += socket.send(&datagram).unwrap();
            }
            // Before an address is proven, QUIC itself may send back less than is received of version negotiation.
            let back = answers(&socket);
            assert!(
                back <= sent,
                "first byte {first:#x}, length {length}: {back} bytes for {sent}"
            );
        }
    }
    assert_eq!(
        fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "echo"], b"hello")
            .ok(),
        "hello"
    );
}

#[test]
fn junk_on_the_tcp_port_ends_that_connection_only() {
    let fleet = Fleet::on_loopback();
    for seed in 0..50 {
        let mut stream = TcpStream::connect(fleet.server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(&noise(2000, seed));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 200, "{} bytes for junk", answer.len());
    }
    fleet.admin.tunnel(&["status"]).ok();
}

/// THREATS SRV-16, SRV-19: there is nothing to find without a certificate.
#[test]
fn without_a_certificate_the_api_tells_nothing() {
    let fleet = Fleet::on_loopback();
    let root = std::fs::read_to_string(fleet.server.data().join("root.pem")).unwrap();
    let api = tunnel_e2e::api::Api::with(fleet.server.address(), &root, None);
    for path in [
        "/v1/status",
        "/v1/devices",
        "/v1/devices/pump-17",
        "/v1/tunnels",
        "/v1/policy",
        "/v1/audit",
    ] {
        let answer = api.request("GET", path, None).unwrap();
        assert_eq!(answer.body["code"], "E_UNAUTHENTICATED", "{path}: {answer:?}");
    }
    for path in ["/", "/metrics", "/debug", "/v1/../v1/status", "/setup"] {
        let answer = api.request("GET", path, None).unwrap();
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
    }
}
