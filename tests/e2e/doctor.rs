//! `tunnel doctor` and `tunnel-agent check --net`: the right thing is named, and nothing else.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tunnel_e2e::dns::{Mood, Zone};
use tunnel_e2e::process::{Output, run, run_with};
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::wait::SOON;
use tunnel_e2e::{Agent, Server, needs};

use crate::hostile::{OPEN, PORTAL, Portal, break_ipv6, link};
use crate::world::{NAME, NAT, SITE, TECHNICIAN, World};

/// Measuring takes some seconds, and more where nothing answers.
const PATIENCE: Duration = Duration::from_secs(60);

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.text()).unwrap_or_else(|error| panic!("{error}: {}", output.said()))
}

/// The things of a page that are not as they should be.
fn bad(page: &Value) -> Vec<String> {
    let rows = page["findings"].as_array().or(page["checks"].as_array()).unwrap();
    let bad = rows.iter().filter(|row| {
        let level = row["level"].as_str().or(row["status"].as_str()).unwrap();
        level != "ok"
    });
    bad.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

fn text_of<'p>(page: &'p Value, name: &str) -> &'p str {
    let rows = page["findings"].as_array().or(page["checks"].as_array()).unwrap();
    let row = rows.iter().find(|row| row["name"] == name);
    let row = row.unwrap_or_else(|| panic!("no `{name}` in {page}"));
    row["what"].as_str().or(row["text"].as_str()).unwrap()
}

fn doctor(world: &World, words: &[&str]) -> (Output, Value) {
    doctor_with(world, words, |command| command)
}

fn doctor_with(
    world: &World,
    words: &[&str],
    change: impl FnOnce(&mut Command) -> &mut Command,
) -> (Output, Value) {
    let mut command = world.fleet.admin.cli(&[&["--json", "doctor"], words].concat());
    let output = run(change(&mut command), PATIENCE);
    let page = json(&output);
    (output, page)
}

fn check_net(agent: &Agent) -> (Output, Value) {
    let output = agent.run("check", &["--net", "--json"]);
    let page = json(&output);
    (output, page)
}

fn with_agent(world: &World) -> (Service, Agent) {
    let service = Service::echo(world.fleet.devices_place());
    let agent = world
        .fleet
        .link(world.fleet.device("pump-17").service("echo", &service.target()));
    (service, agent)
}

#[test]
fn a_clean_network_has_no_findings_and_the_link_stays() {
    needs!(Need::Namespaces);
    let world = World::new(NAT);
    let (_service, agent) = with_agent(&world);
    let before = link(&world);

    let (output, page) = doctor(&world, &["pump-17"]);
    assert_eq!((output.code, bad(&page)), (0, vec![]), "{page}");
    assert_eq!(page["ok"], true);
    assert!(text_of(&page, "nat").starts_with("none"), "{page}");
    assert!(text_of(&page, "device").contains("over udp"), "{page}");
    let udp = &page["facts"]["udp"];
    assert_eq!(udp["rtt_millis"]["samples"], 15, "{page}");
    assert!(
        udp["packets"].as_u64() > Some(100) && udp["mtu"].as_u64() >= Some(1400),
        "{page}"
    );
    assert!(
        udp["clock_ahead_millis"]
            .as_i64()
            .is_some_and(|ahead| ahead.abs() < 1000),
        "{page}"
    );
    assert_eq!(page["facts"]["websocket"]["works"], true, "{page}");

    let (output, page) = check_net(&agent);
    assert_eq!((output.code, bad(&page)), (0, vec![]), "{page}");
    assert!(text_of(&page, "nat").starts_with("yes"), "{page}");
    assert!(text_of(&page, "link").contains("over udp"), "{page}");
    let seen = page["facts"]["udp"]["seen_as"].as_str().unwrap();
    assert!(seen.starts_with("203.0.113.20:"), "{page}");

    // Who measures has not taken the place of who is linked.
    assert_eq!(link(&world)["since"], before["since"]);
    let human = world.fleet.admin.tunnel(&["doctor"]).ok();
    assert!(
        human.contains("udp: works: round trip") && !human.contains("warning"),
        "{human}"
    );
}

#[test]
fn each_fault_of_a_line_is_named_and_no_other() {
    needs!(Need::Namespaces);
    let world = World::new(NAT);
    let (_service, agent) = with_agent(&world);
    for (setting, undo, expected) in [
        ("block=udp", "block=none", "udp"),
        ("block=tcp", "block=none", "websocket"),
        ("loss=15%", "loss=0%", "loss"),
        ("mtu=1300", "mtu=1500", "mtu"),
    ] {
        if setting.starts_with("mtu") {
            world.lab.set(SITE, "pmtud=false");
        }
        world.lab.set(SITE, setting);
        let (output, page) = check_net(&agent);
        world.lab.set(SITE, undo);
        assert_eq!(
            (output.code, bad(&page)),
            (0, vec![expected.to_owned()]),
            "{setting}: {page}"
        );
    }
    world.lab.cut(SITE);
    let (output, page) = check_net(&agent);
    assert_eq!((output.code, &page["ok"]), (4, &Value::Bool(false)), "{page}");
    assert_eq!(bad(&page), ["udp", "websocket"], "{page}");

    // The technician's own way is good, and the device is not there.
    let mut agent = agent;
    agent.kill();
    world.fleet.server.process();
    let (output, page) = doctor(&world, &["nobody-1"]);
    assert_ne!(output.code, 0, "{page}");
    assert_eq!(bad(&page), ["device"], "{page}");
}

#[test]
fn what_stands_in_the_way_is_named() {
    needs!(Need::Namespaces);
    let zone = Zone::default();
    zone.set(NAME, &["198.51.100.1"]);
    let (world, _dns) = World::named(&format!("{OPEN}{PORTAL}"), &zone);
    let server = world.fleet.server.address();
    let _portal = Portal::start(&world.lab.host("portal"), server.port());
    let (_, page) = doctor(&world, &[]);
    assert_eq!(bad(&page), Vec::<String>::new(), "{page}");

    zone.mood(Mood::Fails);
    let (output, page) = doctor(&world, &[]);
    assert_eq!((output.code, bad(&page)), (0, vec!["dns".to_owned()]), "{page}");
    assert!(
        text_of(&page, "dns").contains("198.51.100.1"),
        "the last good address: {page}"
    );
    zone.mood(Mood::Answers);

    zone.set(NAME, &["198.51.100.66"]);
    let (output, page) = doctor(&world, &[]);
    assert_eq!(output.code, 0, "{page}");
    assert_eq!(bad(&page), ["dns-lies", "captive-portal"], "{page}");
    zone.set(NAME, &["10.9.9.9"]);
    let (output, page) = doctor(&world, &[]);
    assert_eq!(
        (output.code, bad(&page)),
        (0, vec!["dns-lies".to_owned()]),
        "{page}"
    );
    zone.set(NAME, &["198.51.100.1"]);

    let proxy = |command: &mut Command| {
        command.env("HTTPS_PROXY", "http://ana:secret@198.51.100.66:9");
    };
    let (output, page) = doctor_with(&world, &[], |command| {
        proxy(command);
        command
    });
    assert_eq!(
        (output.code, bad(&page)),
        (0, vec!["proxy".to_owned(), "websocket".to_owned()]),
        "{page}"
    );
    let text = text_of(&page, "proxy");
    assert!(
        text.contains("HTTPS_PROXY") && !output.said().contains("secret"),
        "{text}"
    );

    // Another fleet's server in the place of ours is what an interception looks like.
    let directory = world.fleet.directory().join("interceptor");
    std::fs::create_dir(&directory).unwrap();
    let other = Server::start(
        &world.lab.host("portal"),
        "198.51.100.66".parse().unwrap(),
        &directory,
    );
    intercept(&world, &format!("198.51.100.66:{}", other.address().port()));
    let (output, page) = doctor(&world, &[]);
    assert_eq!(
        (output.code, bad(&page)),
        (0, vec!["tls-interception".to_owned(), "websocket".to_owned()]),
        "{page}"
    );
    assert!(
        text_of(&page, "tls-interception").contains("certificate that is shown is by `"),
        "{page}"
    );
    world.lab.set(TECHNICIAN, "block=udp");
    let (output, page) = doctor(&world, &[]);
    assert_eq!(
        (output.code, &page["ok"]),
        (3, &Value::Bool(false)),
        "trust is refused: {page}"
    );
}

#[test]
fn a_broken_family_is_named() {
    needs!(Need::Namespaces);
    let zone = Zone::default();
    zone.set(NAME, &["198.51.100.1"]);
    let (world, _dns) = World::named(OPEN, &zone);
    break_ipv6(&world.lab, TECHNICIAN);
    zone.set(NAME, &["198.51.100.1", "2001:db8:dead::1"]);
    let (output, page) = doctor(&world, &[]);
    assert_eq!((output.code, bad(&page)), (0, vec!["ipv6".to_owned()]), "{page}");
}

/// Leads the technician's TCP to the server elsewhere.
fn intercept(world: &World, to: &str) {
    let rules = format!(
        "table ip intercept {{
            chain output {{
                type nat hook output priority -100;
                ip daddr 198.51.100.1 meta l4proto tcp dnat to {to}
            }}
        }}"
    );
    let mut nft = world.lab.host(TECHNICIAN).command("nft");
    run_with(nft.args(["-f", "-"]), rules.as_bytes(), SOON).ok();
}
