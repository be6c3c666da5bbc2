//! Networks that are not kind: UDP blocked, long and lossy lines, IPv6 only, a relay that falls silent.

use std::io::Write;
use std::time::{Duration, Instant};

use tunnel_e2e::bytes::{noise, sha256, sha256_of};
use tunnel_e2e::operator::{Interactive, ssh_options};
use tunnel_e2e::process::{run, run_with};
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::sshd::{NEEDS, user};
use tunnel_e2e::{Agent, Sshd, needs};

use crate::world::{IPV6, NAT, SERVER, SITE, TECHNICIAN, World};

/// From end to end a packet crosses four directions of links: 40 ms and 1 % one way, 80 ms both ways.
const LOSSY: &str = "link = { delay = \"10ms\", loss = \"0.25%\" }\n";

fn with_sshd(world: &World) -> (Sshd, Agent) {
    let sshd = world.fleet.sshd("sshd");
    let agent = world.fleet.link(world.fleet.device("pump-17").sshd(&sshd));
    (sshd, agent)
}

fn link_carrier(world: &World) -> String {
    world.fleet.admin.device("pump-17").unwrap()["link"]["carrier"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// The carriers of both legs of the tunnel that is open.
fn leg_carriers(world: &World) -> (String, String) {
    let open = tunnel_e2e::until("an open tunnel with bound legs", Duration::from_secs(20), || {
        let tunnels = world.fleet.admin.tunnels();
        let open = tunnels.into_iter().find(|tunnel| tunnel["state"] == "open")?;
        let traffic = &open["traffic"];
        (traffic["source_carrier"].is_string() && traffic["destination_carrier"].is_string()).then_some(open)
    });
    let carrier = |end: &str| open["traffic"][end].as_str().unwrap().to_owned();
    (carrier("source_carrier"), carrier("destination_carrier"))
}

fn session(world: &World, sshd: &Sshd, name: &str) -> Interactive {
    let errors = world.fleet.directory().join(format!("{name}.stderr"));
    let mut ssh = world.fleet.admin.ssh_command("pump-17", sshd, &[], &["cat"]);
    let mut session = Interactive::start(&mut ssh, &errors);
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(
        session.line(),
        "hello\n",
        "{}",
        std::fs::read_to_string(errors).unwrap()
    );
    session
}

#[test]
fn udp_is_what_is_used_where_it_passes() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    let (sshd, _agent) = with_sshd(&world);
    let _session = session(&world, &sshd, "ssh");
    assert_eq!(link_carrier(&world), "udp");
    assert_eq!(leg_carriers(&world), ("udp".into(), "udp".into()));
}

#[test]
fn a_device_without_udp_falls_back_by_itself() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    world.lab.set(SITE, "block=udp");
    let (sshd, _agent) = with_sshd(&world);
    let _session = session(&world, &sshd, "ssh");
    assert_eq!(link_carrier(&world), "websocket");
    assert_eq!(leg_carriers(&world), ("udp".into(), "websocket".into()));
}

#[test]
fn a_technician_without_udp_falls_back_by_itself() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    world.lab.set(TECHNICIAN, "block=udp");
    let (sshd, _agent) = with_sshd(&world);
    let _session = session(&world, &sshd, "ssh");
    assert_eq!(leg_carriers(&world), ("websocket".into(), "udp".into()));
}

#[test]
fn without_udp_at_either_end_everything_works() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    world.lab.set(SERVER, "block=udp");
    let (sshd, _agent) = with_sshd(&world);
    let input = noise(4 << 20, 1);
    let mut command = world
        .fleet
        .admin
        .ssh_command("pump-17", &sshd, &[], &["sha256sum"]);
    let output = run_with(&mut command, &input, Duration::from_secs(60));
    assert!(output.text().starts_with(&sha256(&input)), "{}", output.said());
}

#[test]
fn a_session_goes_on_when_udp_is_blocked_under_it() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    let (sshd, _agent) = with_sshd(&world);
    let mut session = session(&world, &sshd, "ssh");
    world.lab.set(SITE, "block=udp");
    session.stdin().unwrap().write_all(b"still there?\n").unwrap();
    let start = Instant::now();
    assert_eq!(session.line(), "still there?\n");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(leg_carriers(&world).1, "websocket");
}

#[test]
fn a_session_goes_back_to_udp_when_it_passes_again() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    world.lab.set(TECHNICIAN, "block=udp");
    let (sshd, _agent) = with_sshd(&world);
    let mut session = session(&world, &sshd, "ssh");
    assert_eq!(leg_carriers(&world).0, "websocket");
    world.lab.set(TECHNICIAN, "block=none");
    tunnel_e2e::until("the leg to use UDP", Duration::from_secs(60), || {
        (leg_carriers(&world).0 == "udp").then_some(())
    });
    session.stdin().unwrap().write_all(b"still there?\n").unwrap();
    assert_eq!(session.line(), "still there?\n");
}

#[test]
fn a_session_outlives_another_address_of_the_device_and_of_the_technician() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(NAT);
    let (sshd, _agent) = with_sshd(&world);
    let mut session = session(&world, &sshd, "ssh");
    for site in [SITE, TECHNICIAN] {
        world.lab.rebind(site);
        let line = format!("still there, {site}?\n");
        session.stdin().unwrap().write_all(line.as_bytes()).unwrap();
        let start = Instant::now();
        assert_eq!(session.line(), line);
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{site}: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_long_and_lossy_line_loses_nothing() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(&format!("{LOSSY}{NAT}"));
    let (sshd, _agent) = with_sshd(&world);
    let output = world
        .fleet
        .admin
        .ssh("pump-17", &sshd, &[], &["echo hello; exit 5"]);
    assert_eq!(
        (output.code, output.text().as_str()),
        (5, "hello\n"),
        "{}",
        output.stderr
    );

    let file = |name: &str| world.fleet.directory().join(name);
    std::fs::write(file("there"), noise(3 << 20, 2)).unwrap();
    let remote = format!("{}@pump-17:{}", user(), file("on-device").display());
    for (from, to) in [
        (file("there").display().to_string(), remote.clone()),
        (remote, file("back").display().to_string()),
    ] {
        let mut scp = world.fleet.admin.cli(&["scp"]);
        run(
            scp.args(ssh_options(&sshd)).args([from, to]),
            Duration::from_secs(120),
        )
        .ok();
    }
    assert_eq!(sha256_of(&file("back")), sha256_of(&file("there")));
}

#[test]
fn ipv6_is_enough() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(IPV6);
    let (sshd, _agent) = with_sshd(&world);
    let output = world
        .fleet
        .admin
        .ssh("pump-17", &sshd, &[], &["echo hello; exit 6"]);
    assert_eq!(
        (output.code, output.text().as_str()),
        (6, "hello\n"),
        "{}",
        output.stderr
    );
    assert_eq!(link_carrier(&world), "udp");
}

#[test]
fn ipv6_without_udp_is_enough_too() {
    needs!(Need::Namespaces, NEEDS[0], NEEDS[1]);
    let world = World::new(IPV6);
    world.lab.set(SERVER, "block=udp");
    let (sshd, _agent) = with_sshd(&world);
    let output = world
        .fleet
        .admin
        .ssh("pump-17", &sshd, &[], &["echo hello; exit 6"]);
    assert_eq!(
        (output.code, output.text().as_str()),
        (6, "hello\n"),
        "{}",
        output.stderr
    );
    assert_eq!(link_carrier(&world), "websocket");
}

/// A relay that no longer answers is noticed before anybody wonders, and forgiven when it answers again.
#[test]
fn a_silent_relay_is_noticed_within_15_s() {
    needs!(Need::Namespaces);
    let world = World::alone(NAT);
    let echo = Service::echo(world.fleet.devices_place());
    let _agent = world
        .fleet
        .link(world.fleet.device("pump-17").service("echo", &echo.target()));
    let errors = world.fleet.directory().join("connect.stderr");
    let mut session = Interactive::start(
        &mut world.fleet.admin.cli(&["connect", "pump-17", "echo"]),
        &errors,
    );
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(session.line(), "hello\n");

    world.lab.cut(SERVER);
    session
        .stdin()
        .unwrap()
        .write_all(b"is anybody there?\n")
        .unwrap();
    let said = || std::fs::read_to_string(&errors).unwrap();
    tunnel_e2e::until_ok(
        "the CLI to say that the relay is silent",
        Duration::from_secs(15),
        || {
            let said = said();
            if said.contains("silent") {
                Ok(())
            } else {
                Err(format!("it said: {said}"))
            }
        },
    );
    world.lab.set(SERVER, "cut=false");
    assert_eq!(session.line(), "is anybody there?\n", "{}", said());
}
