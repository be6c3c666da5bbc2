//! Networks that work against us: DNS that lies or fails, one family of IP that is broken, IPv6 alone, NATs that forget,
//! lines that lose on one side, overtake or queue for seconds.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tunnel_e2e::bytes::{noise, sha256};
use tunnel_e2e::dns::{Dns, Mood, Zone};
use tunnel_e2e::operator::Interactive;
use tunnel_e2e::process::run_with;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::NEEDS;
use tunnel_e2e::translator::Translator;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Agent, Lab, Place, needs, until};

use crate::world::{DEVICE, NAME, NAT, SITE, TECHNICIAN, World};

/// Where a captive portal is, where there is one.
pub(crate) const PORTAL: &str = "[host.portal]\naddress = \"198.51.100.66\"\n";

/// All hosts in the open.
pub(crate) const OPEN: &str = r#"
    [host.server]
    address = "198.51.100.1"
    [host.technician]
    address = "203.0.113.10"
    [host.device]
    address = "203.0.113.20"
"#;

/// Answers as a captive portal does: a page for TCP, and rubbish for UDP.
pub(crate) struct Portal(Arc<AtomicBool>);

impl Portal {
    pub(crate) fn start(place: &Place, port: u16) -> Self {
        let at = SocketAddr::from(([198, 51, 100, 66], port));
        let (tcp, udp) = place.on(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        tcp.set_nonblocking(true).unwrap();
        // To wait for a datagram is the pause between two looks for a connection.
        udp.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((mut stream, _)) = tcp.accept() {
                    let page =
                        "HTTP/1.1 302 Found\r\nLocation: http://portal.test/\r\nContent-Length: 0\r\n\r\n";
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
                    let _ = stream.read(&mut buffer);
                    let _ = stream.write_all(page.as_bytes());
                }
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..length.min(60)], from);
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn link(world: &World) -> Value {
    world.fleet.admin.device("pump-17").unwrap()["link"].clone()
}

/// The carriers of both legs of the open tunnel, once both are bound.
fn legs(world: &World) -> (Value, Value) {
    until("an open tunnel with bound legs", SOON, || {
        let tunnels = world.fleet.admin.tunnels();
        let open = tunnels.into_iter().find(|tunnel| tunnel["state"] == "open")?;
        let traffic = &open["traffic"];
        let legs = (
            traffic["source_carrier"].clone(),
            traffic["destination_carrier"].clone(),
        );
        (legs.0.is_string() && legs.1.is_string()).then_some(legs)
    })
}

/// Connects to the service `echo`, and shows that it echoes.
fn echo(world: &World, name: &str) -> Interactive {
    let errors = world.fleet.directory().join(format!("{name}.stderr"));
    let mut command = world.fleet.admin.cli(&["connect", "pump-17", "echo"]);
    let mut session = Interactive::start(&mut command, &errors);
    say(&mut session, "hello\n", &errors);
    session
}

fn say(session: &mut Interactive, line: &str, errors: &Path) {
    session.stdin().unwrap().write_all(line.as_bytes()).unwrap();
    assert_eq!(
        session.line(),
        line,
        "{}",
        fs::read_to_string(errors).unwrap_or_default()
    );
}

fn with_echo(world: &World) -> (Service, Agent) {
    let service = Service::echo(world.fleet.devices_place());
    let agent = world
        .fleet
        .link(world.fleet.device("pump-17").service("echo", &service.target()));
    (service, agent)
}

/// THREATS AGT-17, CLI-13: what worked before still works, and whoever answers in the server's place is not trusted.
#[test]
fn dns_that_fails_hangs_or_lies_does_not_keep_the_ends_apart() {
    needs!(Need::Namespaces);
    let zone = Zone::default();
    zone.set(NAME, &["198.51.100.1"]);
    let (world, _dns) = World::named(&format!("{NAT}{PORTAL}"), &zone);
    let port = world.fleet.server.address().port();
    let _portal = Portal::start(&world.lab.host("portal"), port);
    let (_service, mut agent) = with_echo(&world);
    drop(echo(&world, "before"));

    for (case, mood, addresses) in [
        ("fails", Mood::Fails, "198.51.100.1"),
        ("hangs", Mood::Hangs, "198.51.100.1"),
        ("lies-captive", Mood::Answers, "198.51.100.66"),
        ("lies-private", Mood::Answers, "10.9.9.9"),
    ] {
        zone.mood(mood);
        zone.set(NAME, &[addresses]);
        assert_eq!(agent.stop(), 0, "{case}");
        agent.start();
        world.fleet.admin.wait_for_link("pump-17");
        drop(echo(&world, case));
        assert_eq!(link(&world)["carrier"], "udp", "{case}");
    }

    // Without an address from before, the captive portal is named and gets nothing.
    zone.mood(Mood::Answers);
    zone.set(NAME, &["198.51.100.66"]);
    fs::remove_file(world.fleet.admin.home().join("addresses")).unwrap();
    let refusal = world.fleet.admin.refusal(&["devices"]);
    assert_eq!(refusal.exit, 4, "{}", refusal.text);
    assert!(refusal.text.contains("captive portal"), "{}", refusal.text);
    let kept = world.fleet.admin.home().join("addresses");
    assert!(
        !kept.exists(),
        "an address is kept only after the server was proven there"
    );
}

/// Gives a host a broken way for IPv6: packets leave and nothing comes back.
pub(crate) fn break_ipv6(lab: &Lab, host: &str) {
    lab.ip(
        host,
        "address add 2001:db8:9::9/128 dev wan0 nodad\nroute add ::/0 dev wan0\n",
    );
}

/// RFC 8305: a family that is broken costs a moment, not the patience with a whole carrier.
#[test]
fn broken_ipv6_costs_a_moment() {
    needs!(Need::Namespaces);
    let zone = Zone::default();
    zone.set(NAME, &["198.51.100.1"]);
    let (world, _dns) = World::named(OPEN, &zone);
    for host in [TECHNICIAN, DEVICE] {
        break_ipv6(&world.lab, host);
    }
    zone.set(NAME, &["2001:db8:dead::1", "198.51.100.1"]);
    let start = Instant::now();
    let (_service, _agent) = with_echo(&world);
    let _session = echo(&world, "echo");
    assert_eq!(
        link(&world)["carrier"],
        "udp",
        "a UDP that waits for IPv6 would have lost to WebSocket"
    );
    assert_eq!(legs(&world), ("udp".into(), "udp".into()));
    // Enrolment, link, commands: one wait of 5 s for IPv6 each would be far more.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn broken_ipv4_costs_a_moment() {
    needs!(Need::Namespaces);
    let zone = Zone::default();
    zone.set(NAME, &["2001:db8::1"]);
    let (world, _dns) = World::named(crate::world::IPV6, &zone);
    for host in [TECHNICIAN, DEVICE] {
        world.lab.ip(
            host,
            "address add 203.0.113.9/32 dev wan0\nroute add default dev wan0\n",
        );
    }
    let service = Service::echo(world.fleet.devices_place());
    let mut agent = world
        .fleet
        .enrol(world.fleet.device("pump-17").service("echo", &service.target()));
    zone.set(NAME, &["198.51.100.250", "2001:db8::1"]);
    // IPv4 worked before, so it is what is tried first.
    for directory in [agent.state(), world.fleet.admin.home()] {
        let mut options = fs::File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = file.open(directory.join("addresses")).unwrap();
        write!(file, "{NAME}\n198.51.100.250\n").unwrap();
    }
    agent.start();
    world.fleet.admin.wait_for_link("pump-17");
    let _session = echo(&world, "echo");
    assert_eq!(link(&world)["carrier"], "udp");
    assert_eq!(legs(&world), ("udp".into(), "udp".into()));
}

/// RFC 6052, RFC 7050: the server has an IPv4 address and no name, and the device has IPv6 alone.
#[test]
fn a_device_with_ipv6_alone_reaches_an_ipv4_address_through_nat64() {
    needs!(Need::Namespaces);
    let network = r#"
        [host.server]
        address = "198.51.100.1"
        [host.technician]
        address = "203.0.113.10"
        [host.translator]
        address = "203.0.113.30"
        [host.device]
        address = "2001:db8::20"
    "#;
    let lab = Lab::up(network);
    lab.ask_own_dns();
    let zone = Zone::default();
    zone.set(
        "ipv4only.arpa",
        &[
            "192.0.0.170",
            "192.0.0.171",
            "64:ff9b::192.0.0.170",
            "64:ff9b::192.0.0.171",
        ],
    );
    let _dns = Dns::start(&lab.host(DEVICE), &zone);
    lab.ip(DEVICE, "address add 64:ff9b::198.51.100.1/128 dev lo nodad\n");
    let world = World::within(lab, network, None, false);
    let server = world.fleet.server.address();
    let held: Ipv6Addr = "64:ff9b::198.51.100.1".parse().unwrap();
    let (inside, outside) = (world.lab.host(DEVICE), world.lab.host("translator"));
    let _translator = Translator::start(
        &inside,
        SocketAddr::new(held.into(), server.port()),
        &outside,
        server,
    );

    let (_service, agent) = with_echo(&world);
    let _session = echo(&world, "echo");
    assert_eq!(link(&world)["carrier"], "udp");
    assert_eq!(legs(&world).1, "udp");
    let said = agent.run("check", &["--net"]);
    assert!(
        said.text().contains("translates IPv4 under `64:ff9b::/96`"),
        "{}",
        said.said()
    );
}

/// A link that had to take WebSocket goes back by itself, with the same connection: presence and sessions have no gap.
#[test]
fn a_link_goes_back_to_udp_when_it_passes_again() {
    needs!(Need::Namespaces);
    let world = World::new(NAT);
    world.lab.set(SITE, "block=udp");
    let (_service, _agent) = with_echo(&world);
    let errors = world.fleet.directory().join("echo.stderr");
    let mut session = echo(&world, "echo");
    let before = link(&world);
    assert_eq!(before["carrier"], "websocket");
    world.lab.set(SITE, "block=none");
    let after = until("the link to use UDP", Duration::from_secs(90), || {
        let link = link(&world);
        assert!(!link.is_null(), "the link was never away");
        (link["carrier"] == "udp").then_some(link)
    });
    assert_eq!(after["since"], before["since"]);
    say(&mut session, "still there?\n", &errors);
    // The server reaches the device over the new way, and a new tunnel opens.
    drop(echo(&world, "again"));
    let events = world.fleet.admin.audit();
    let text = serde_json::to_string(&events).unwrap();
    assert!(
        !text.contains("device_unlinked") && !text.contains("device-unlinked"),
        "{text}"
    );
}

/// A NAT that forgets after 30 s: the keepalive learns it, whether the NAT then takes the same port again or another, and
/// nothing ends.
#[test]
fn a_nat_that_forgets_in_30_s_and_keeps_the_port_is_learnt_of() {
    needs!(Need::Namespaces);
    forgets_in_30_s("");
}

#[test]
fn a_nat_that_forgets_in_30_s_and_takes_another_port_is_learnt_of() {
    needs!(Need::Namespaces);
    forgets_in_30_s("symmetric = true");
}

fn forgets_in_30_s(more: &str) {
    let nat = format!("[nat.site]\n    udp_timeout = \"30s\"\n    {more}");
    let world = World::new(&NAT.replace("[nat.site]", &nat));
    let (_service, _agent) = with_echo(&world);
    let errors = world.fleet.directory().join("echo.stderr");
    let mut session = echo(&world, "echo");
    let since = link(&world)["since"].clone();
    let within = || link(&world)["proof_within_secs"].as_u64().unwrap();
    until(
        "the keepalive to try more than 30 s",
        Duration::from_secs(60),
        || (within() > 30).then_some(()),
    );
    until(
        "the keepalive to learn that it was too long",
        Duration::from_secs(90),
        || (within() < 30).then_some(()),
    );
    assert_eq!(link(&world)["since"], since);
    say(&mut session, "still there?\n", &errors);
    // The server reaches the device.
    drop(echo(&world, "again"));
    assert_eq!(link(&world)["since"], since);
}

/// Loss on one side only, and packets that overtake others: nothing is lost or doubled, over UDP.
#[test]
fn loss_on_one_side_and_overtaking_harm_nothing() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    let sshd = world.fleet.sshd("sshd");
    let _agent = world.fleet.link(world.fleet.device("pump-17").sshd(&sshd));
    let input = noise(1 << 20, 9);
    for (side, setting) in [
        ("site.up", "loss=5%"),
        ("site.down", "loss=5%"),
        ("site", "reorder=10%"),
    ] {
        for setting in ["loss=0%", "reorder=0%", "delay=10ms", setting] {
            world
                .lab
                .set(if setting.starts_with("delay") { SITE } else { side }, setting);
        }
        let mut command = world
            .fleet
            .admin
            .ssh_command("pump-17", &sshd, &[], &["sha256sum"]);
        let output = run_with(&mut command, &input, Duration::from_secs(90));
        assert!(
            output.text().starts_with(&sha256(&input)),
            "{side} {setting}: {}",
            output.said()
        );
        world.lab.set(SITE, "loss=0%");
        assert_eq!(link(&world)["carrier"], "udp", "{side} {setting}");
    }
}
