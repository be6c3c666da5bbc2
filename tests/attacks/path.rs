//! A hostile relay or network between the ends: it can delay and drop, and no wrong byte gets through.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tunnel_certs::Trust;
use tunnel_e2e::bytes::{noise, sha256};
use tunnel_e2e::middle::{Fate, Middle, Passing, Way, pass};
use tunnel_e2e::needs;
use tunnel_e2e::operator::{Interactive, Refusal};
use tunnel_e2e::process::{run, run_with};
use tunnel_e2e::puppet::credentials;
use tunnel_e2e::raw::Raw;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Agent, Fleet};
use tunnel_net::clock::{Clock, SystemClock};
use tunnel_net::tls::{self, Credentials};
use tunnel_proto::bind;

use crate::quic::TUNNEL_ID;

const PATIENCE: Duration = Duration::from_secs(90);

/// A fleet whose relay is reached through a man in the middle.
fn behind() -> (Middle, Fleet, Service, Agent) {
    behind_with(Middle::new())
}

fn behind_with(middle: Middle) -> (Middle, Fleet, Service, Agent) {
    let fleet = Fleet::behind(&middle);
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    (middle, fleet, echo, agent)
}

/// Random numbers that depend on a seed only.
fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut count = 0;
    move || {
        count += 1;
        let bytes = noise(8, seed << 32 | count);
        u64::from_le_bytes(bytes.try_into().unwrap()) >> 8
    }
}

/// Says whether an end begins a control link: its first packets have ids of 20 bytes.
fn begins_link(passing: &Passing<'_>) -> bool {
    passing.way == Way::In
        && passing.bytes.first().is_some_and(|first| first & 0x80 != 0)
        && passing.bytes.get(5) == Some(&20)
}

fn one(passing: &Passing<'_>, after: Duration, bytes: Vec<u8>) -> Fate {
    vec![(after, passing.end, bytes)]
}

#[test]
fn dat_27_a_relay_that_drops_delays_doubles_swaps_cuts_and_mixes_changes_no_byte() {
    let middle = Middle::new();
    // The ends that are links; a link that the damage ended comes back as another.
    let links = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&links);
    let watched = move |mut rule: Box<dyn FnMut(&Passing<'_>) -> Fate + Send>| {
        let seen = Arc::clone(&seen);
        move |passing: &Passing<'_>| {
            if begins_link(passing) {
                seen.lock().unwrap().insert(passing.end);
            }
            rule(passing)
        }
    };
    middle.rule(watched(Box::new(pass)));
    let (middle, fleet, _echo, _agent) = behind_with(middle);
    let input = noise(60_000, 27);
    let transfer = |what: &str| {
        let mut command = fleet.admin.cli(&["connect", "pump-17", "echo"]);
        let output = run_with(&mut command, &input, PATIENCE);
        assert_eq!(output.code, 0, "{what}: {}", output.stderr);
        assert_eq!(sha256(&output.stdout), sha256(&input), "{what}");
    };
    for percent in [1, 5, 15] {
        let mut dice = dice(percent);
        middle.rule(watched(Box::new(move |passing| {
            if dice() % 100 < percent {
                Vec::new()
            } else {
                pass(passing)
            }
        })));
        transfer(&format!("{percent} % dropped"));
    }
    let mut delays = dice(2);
    middle.rule(watched(Box::new(move |passing| {
        one(
            passing,
            Duration::from_millis(delays() % 60),
            passing.bytes.to_vec(),
        )
    })));
    transfer("delayed and swapped");
    let mut doubles = dice(3);
    middle.rule(watched(Box::new(move |passing| {
        (0..=doubles() % 3).flat_map(|_| pass(passing)).collect()
    })));
    transfer("doubled");
    let mut damage = dice(4);
    middle.rule(watched(Box::new(move |passing| {
        let mut bytes = passing.bytes.to_vec();
        match damage() % 20 {
            0 => bytes.truncate(damage() as usize % bytes.len().max(1)),
            1 => {
                let place = damage() as usize % bytes.len().max(1);
                bytes[place] ^= 1 << (damage() % 8);
            }
            2 => bytes.extend(noise(30, damage())),
            _ => {}
        }
        one(passing, Duration::ZERO, bytes)
    })));
    transfer("cut, flipped and lengthened");
    // Each packet goes to every other end too, as if it were of its circuit.
    middle.rule(watched(Box::new(|passing| {
        let to = passing.end.saturating_sub(6)..=passing.end + 1;
        to.map(|end| (Duration::ZERO, end, passing.bytes.to_vec()))
            .collect()
    })));
    transfer("mixed up");
    // All is dropped but the device's link, which would hear of nothing else: the other carrier is taken for the tunnel.
    let spared = Arc::clone(&links);
    middle.rule(move |passing| {
        if begins_link(passing) {
            spared.lock().unwrap().insert(passing.end);
        }
        if spared.lock().unwrap().contains(&passing.end) {
            pass(passing)
        } else {
            Vec::new()
        }
    });
    transfer("everything dropped over UDP");
    middle.rule(pass);
    transfer("honest");
}

#[test]
fn dat_27_a_relay_that_drops_everything_is_named() {
    let (middle, fleet, _echo, _agent) = behind();
    let errors = fleet.directory().join("connect.stderr");
    let mut command = fleet.admin.cli(&["connect", "pump-17", "echo"]);
    let mut session = Interactive::start(&mut command, &errors);
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(session.line(), "hello\n");
    middle.rule(|_| Vec::new());
    middle.web(false);
    session
        .stdin()
        .unwrap()
        .write_all(b"is anybody there?\n")
        .unwrap();
    tunnel_e2e::until("the CLI to say that the relay is silent", SOON, || {
        let said = std::fs::read_to_string(&errors).unwrap();
        said.contains("the relay is silent").then_some(())
    });
    middle.rule(pass);
    middle.web(true);
    assert_eq!(session.line(), "is anybody there?\n");
}

/// Packets that anybody can forge who knows the ports: QUIC's and the kernel's word for "too large", "not here", "begin again".
#[test]
fn dat_19_forged_resets_retries_versions_and_icmp_change_nothing() {
    needs!(Need::Root);
    let fleet = Fleet::on_loopback();
    let echo = Service::echo(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").service("echo", &echo.target()));
    let errors = fleet.directory().join("connect.stderr");
    let mut command = fleet.admin.cli(&["connect", "pump-17", "echo"]);
    command.env("TUNNEL_CARRIER", "udp");
    let mut session = Interactive::start(&mut command, &errors);
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(session.line(), "hello\n");
    let SocketAddr::V4(relay) = fleet.server.address() else {
        panic!("loopback is IPv4 here")
    };
    let ends: Vec<_> = [session.pid(), agent.process().pid()]
        .into_iter()
        .flat_map(udp_ports)
        .map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
        .collect();
    assert!(ends.len() >= 3, "a leg each, and the link: {ends:?}");
    let raw = Raw::open();
    let forged = [
        // A version negotiation for versions that nobody has, a Retry, a handshake, and what might be a stateless reset.
        [
            &[0xc0, 0, 0, 0, 0, 8][..],
            &[1; 8],
            &[8],
            &[2; 8],
            &[0xff, 0, 0, 99],
        ]
        .concat(),
        [
            &[0xf0, 0, 0, 0, 1, 8][..],
            &[1; 8],
            &[16],
            &[2; 16],
            &noise(60, 1),
        ]
        .concat(),
        [&[0xe3, 0, 0, 0, 1, 12][..], &noise(200, 2)].concat(),
        [&[0x40][..], &noise(40, 3)].concat(),
        [&[0x7f][..], &noise(1199, 4)].concat(),
        vec![0x04; bind::SIZE],
        // "I was started anew": makes the agent ask the server once in ten seconds, whose answer says that it was not.
        bind::RESTARTED.to_vec(),
    ];
    let begun = Instant::now();
    for round in 0..20 {
        for &end in &ends {
            for forged in &forged {
                raw.udp(relay, end, forged);
                raw.udp(end, relay, forged);
            }
            for mtu in [0, 68, 500, 1199] {
                raw.too_big(relay, end, mtu);
                raw.too_big(end, relay, mtu);
            }
            raw.no_port(relay, end);
        }
        let line = format!("still there, {round}?\n");
        session.stdin().unwrap().write_all(line.as_bytes()).unwrap();
        assert_eq!(
            session.line(),
            line,
            "{}",
            std::fs::read_to_string(&errors).unwrap()
        );
    }
    let long = format!("{}\n", "x".repeat(100_000));
    let mut stdin = session.take_stdin().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(long.as_bytes()));
    assert_eq!(session.line().len(), 100_001);
    writer.join().unwrap().unwrap();
    let believed = agent.process().said().matches("started anew").count() as u64;
    let most = begun.elapsed().as_secs() / 10 + 1;
    assert!((1..=most).contains(&believed), "{believed} of {most}");
    let records = fleet.admin.audit();
    let links = records.iter().filter(|record| record["kind"] == "device.linked");
    assert_eq!(links.count(), 1, "the link stays");
}

/// The local ports of a process's UDP sockets.
fn udp_ports(pid: u32) -> Vec<u16> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links: Vec<_> = entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect();
    let is_of = |inode: &str| {
        links
            .iter()
            .any(|link| link.to_str() == Some(&format!("socket:[{inode}]")))
    };
    let list = std::fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap();
    list.lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            is_of(fields.get(9)?).then_some(())?;
            u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok()
        })
        .collect()
}

/// The relay answers in the device's place, with a certificate of the fleet that is not the device's.
#[test]
fn dat_28_a_relay_that_poses_as_the_device_is_refused() {
    let (middle, fleet, echo, _agent) = behind();
    let other = fleet.enrol(fleet.device("pump-18"));
    let (ends, neighbour) = credentials(&other.state());
    let server = {
        let read = |name: &str| std::fs::read_to_string(fleet.server.data().join(name)).unwrap();
        Credentials::load(&read("server.pem"), &read("server-key.pem")).unwrap()
    };
    let own = std::fs::read_to_string(fleet.admin.home().join("chain.pem")).unwrap();
    let root = std::fs::read_to_string(fleet.admin.home().join("root.pem")).unwrap();
    let operator = peer_of(&root, &own);
    for (who, credentials) in [("the relay", server), ("another device", neighbour)] {
        let tls = tls::tunnel_server(&ends, &credentials, operator.identity.clone(), operator.key);
        let (posed, address, shook) = pose(tls);
        let to_fake = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        to_fake.connect(address).unwrap();
        let (found, end) = mpsc::channel();
        let sending = Arc::clone(&to_fake);
        let mut victim = None;
        middle.rule(move |passing| {
            let bytes = passing.bytes;
            let first = bytes.len() > 5 && bytes[0] & 0xf0 == 0xc0 && usize::from(bytes[5]) == TUNNEL_ID;
            if passing.way == Way::In && victim.is_none() && first {
                victim = Some(passing.end);
                let _ = found.send(passing.end);
            }
            if victim == Some(passing.end) && !bind::is_control(bytes) {
                if passing.way == Way::In {
                    let _ = sending.send(bytes);
                }
                return Vec::new();
            }
            pass(passing)
        });
        let before = echo.count();
        let stop = AtomicBool::new(false);
        let (middle, to_fake, stop) = (&middle, &to_fake, &stop);
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                let Ok(end) = end.recv_timeout(SOON) else { return };
                while !stop.load(Ordering::Relaxed) {
                    if let Some(back) = tunnel_e2e::bare::receive(to_fake, Duration::from_millis(50)) {
                        middle.send(Way::Out, end, &back);
                    }
                }
            });
            let mut command = fleet.admin.cli(&["--json", "connect", "pump-17", "echo"]);
            let output = run(command.env("TUNNEL_CARRIER", "udp"), SOON);
            stop.store(true, Ordering::Relaxed);
            output
        });
        let refusal = Refusal::of(&output);
        assert_eq!(
            (refusal.code.as_str(), refusal.exit),
            ("E_CERT_NAME", 3),
            "{who}: {}",
            refusal.text
        );
        assert!(output.stdout.is_empty());
        assert_eq!(echo.count(), before, "{who}: the service was reached");
        assert!(!shook.load(Ordering::Relaxed), "{who}: the handshake succeeded");
        drop(posed);
        middle.rule(pass);
        assert_eq!(
            fleet
                .admin
                .tunnel_with(&["connect", "pump-17", "echo"], b"hello")
                .ok(),
            "hello"
        );
    }
}

/// Returns who a chain is of.
fn peer_of(root: &str, chain: &str) -> tunnel_certs::Peer {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(|certificate| certificate.unwrap())
        .collect();
    let trust = Trust::from_pem(root).unwrap();
    trust.verify(&certificates, SystemClock.now()).unwrap()
}

/// Starts a server that poses as a device; it ends with the runtime that is returned. The flag tells whether anybody shook
/// hands with it to the end.
fn pose(tls: rustls::ServerConfig) -> (tokio::runtime::Runtime, SocketAddr, Arc<AtomicBool>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let config = quinn::ServerConfig::with_crypto(tls::quic_server(tls));
    let (shook, address) = (Arc::new(AtomicBool::new(false)), (Ipv4Addr::LOCALHOST, 0).into());
    let endpoint = runtime.block_on(async { quinn::Endpoint::server(config, address).unwrap() });
    let (address, flag) = (endpoint.local_addr().unwrap(), Arc::clone(&shook));
    runtime.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            if incoming.await.is_ok() {
                flag.store(true, Ordering::Relaxed);
            }
        }
    });
    (runtime, address, shook)
}
