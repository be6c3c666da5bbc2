//! Who is truly there: ghosts that block nobody, sleepers that are waited for, links that died unseen.

use std::io::Write;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tunnel_e2e::operator::Interactive;
use tunnel_e2e::service::Service;
use tunnel_e2e::skip::Need;
use tunnel_e2e::{Fleet, needs};

use crate::world::{NAT, SITE, World};

/// A session that has said one line and heard it.
fn session(fleet: &Fleet, name: &str) -> Interactive {
    let errors = fleet.directory().join(format!("{name}.stderr"));
    let mut session = Interactive::start(&mut fleet.admin.cli(&["connect", "pump-17", "console"]), &errors);
    session.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(
        session.line(),
        "hello\n",
        "{}",
        std::fs::read_to_string(errors).unwrap()
    );
    session
}

fn signal(session: &Interactive, signal: Signal) {
    kill_process(Pid::from_raw(session.pid().cast_signed()).unwrap(), signal).unwrap();
}

/// A console takes one at a time. Who has died there blocks the next technician for less than a minute, and the server
/// knows soon after that nobody is there any more.
#[test]
fn a_dead_operator_blocks_the_next_one_for_less_than_a_minute() {
    let fleet = Fleet::on_loopback();
    let console = Service::echo(fleet.devices_place());
    let one_at_a_time =
        fleet
            .device("pump-17")
            .service_with("console", &console.target(), "max_sessions = 1");
    let _agent = fleet.link(one_at_a_time);
    let dead = session(&fleet, "dead");
    // While somebody is there, the console is taken.
    let refusal = fleet.admin.refusal(&["connect", "pump-17", "console"]);
    assert_eq!(refusal.code, "E_BUSY", "{}", refusal.text);
    let open = fleet.admin.tunnels();
    let ghost = open.iter().find(|tunnel| tunnel["state"] == "open").unwrap()["id"].clone();
    signal(&dead, Signal::KILL);

    tunnel_e2e::until("the console to be free", Duration::from_secs(60), || {
        let output = fleet
            .admin
            .tunnel_with(&["connect", "pump-17", "console"], b"next");
        (output.text() == "next").then_some(())
    });
    let ended = fleet.admin.json(&["describe", ghost.as_str().unwrap()]);
    assert_eq!(ended["end_reason"], "E_TUNNEL_LOST", "{ended}");
}

/// Without anybody who would take its place, even a dead one is found by the request that it broke off.
#[test]
fn a_dead_operator_is_no_longer_listed_after_a_minute() {
    let fleet = Fleet::on_loopback();
    let console = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("console", &console.target()));
    let dead = session(&fleet, "dead");
    let asleep = session(&fleet, "asleep");
    signal(&dead, Signal::KILL);
    signal(&asleep, Signal::STOP);
    let ended = tunnel_e2e::until("the dead one's tunnel to end", Duration::from_secs(100), || {
        let tunnels = fleet.admin.tunnels();
        let ended: Vec<_> = tunnels
            .into_iter()
            .filter(|tunnel| tunnel["state"] == "ended")
            .collect();
        (!ended.is_empty()).then_some(ended)
    });
    assert_eq!(ended.len(), 1, "a sleeper is waited for: {ended:?}");
    assert_eq!(ended[0]["end_reason"], "E_TUNNEL_LOST");

    // The sleeper has been silent for longer than the dead one, and goes on where it was.
    signal(&asleep, Signal::CONT);
    let mut asleep = asleep;
    asleep.stdin().unwrap().write_all(b"good morning\n").unwrap();
    assert_eq!(asleep.line(), "good morning\n");
}

/// USERS 18: a link whose packets vanish both ways, and a NAT that has forgotten everything.
#[test]
fn a_half_open_link_is_found_out_and_replaced() {
    needs!(Need::Namespaces);
    let world = World::new(NAT);
    let console = Service::echo(world.fleet.devices_place());
    let _agent = world.fleet.link(
        world
            .fleet
            .device("pump-17")
            .service("console", &console.target()),
    );
    let since = |world: &World| world.fleet.admin.device("pump-17").unwrap()["link"]["since"].clone();
    let first = since(&world);
    world.lab.cut(SITE);
    tunnel_e2e::until(
        "the link to be known as doubtful or gone",
        Duration::from_secs(90),
        || {
            let link = world.fleet.admin.device("pump-17")?["link"].clone();
            (link.is_null() || link["overdue"] == true).then_some(())
        },
    );
    let age = world.fleet.admin.tunnel(&["devices"]).ok();
    assert!(age.contains("ago"), "the age of what is known is shown: {age}");
    world.lab.rebind(SITE);
    world.lab.set(SITE, "cut=false");
    tunnel_e2e::until("another link", Duration::from_secs(90), || {
        let link = world.fleet.admin.device("pump-17")?["link"].clone();
        (!link.is_null() && link["overdue"] == false && link["since"] != first).then_some(())
    });
    let mut session = session(&world.fleet, "after");
    session.close_stdin();
    assert_eq!(session.wait(Duration::from_secs(20)), Some(0));
}

/// The device tells itself why it was out of reach, once it is back.
#[test]
fn a_black_box_tells_why_a_device_was_out_of_reach() {
    let mut fleet = Fleet::on_loopback();
    let console = Service::echo(fleet.devices_place());
    let agent = fleet.link(fleet.device("pump-17").service("console", &console.target()));
    fleet.server.kill();
    tunnel_e2e::until("some attempts to fail", Duration::from_secs(90), || {
        (agent.process().said().matches("no link to the server").count() > 3).then_some(())
    });
    fleet.server.restart();
    let told = tunnel_e2e::until("the black box to be read", Duration::from_secs(90), || {
        let told = fleet.admin.json(&["outages", "pump-17"]);
        (!told["outages"].as_array()?.is_empty()).then_some(told)
    });
    let outages = told["outages"].as_array().unwrap();
    assert_eq!(outages.len(), 1, "told once: {told}");
    let causes: Vec<_> = outages[0]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|seen| seen["cause"].as_str())
        .collect();
    assert!(
        causes.contains(&"udp-silent") && causes.contains(&"tcp-refused"),
        "{told}"
    );
    assert!(outages[0]["attempts"].as_u64() > Some(1), "{told}");
    assert!(!told["by_cause"].as_array().unwrap().is_empty());
    let text = fleet.admin.tunnel(&["describe", "pump-17"]).ok();
    assert!(
        text.contains("tcp-refused") && text.contains("presence"),
        "{text}"
    );
    // Another link tells nothing twice.
    fleet.server.kill();
    fleet.server.restart();
    // A server that was there for a moment only is not hurried: the pauses go on where they were.
    tunnel_e2e::until("the link of pump-17", Duration::from_secs(120), || {
        let devices = fleet.admin.json(&["devices"]);
        let linked = devices.as_array()?.iter().any(|device| !device["link"].is_null());
        linked.then_some(())
    });
    let again = fleet.admin.json(&["outages", "pump-17"]);
    assert!(again["outages"].as_array().unwrap().len() <= 2, "{again}");
}

/// An idle device hears of a crash, and does not find out by its next keepalive minutes later.
#[test]
fn an_idle_device_is_told_that_its_server_was_started_anew() {
    let mut fleet = Fleet::on_loopback();
    let agent = fleet.link(fleet.device("pump-17"));
    let anew = || agent.process().said().matches("started anew").count();
    // The record of a link comes after all that is kept of it.
    let linked = |fleet: &Fleet, times: usize| {
        tunnel_e2e::until("the link of pump-17", Duration::from_secs(60), || {
            let records = fleet.admin.audit();
            let links = records.iter().filter(|record| record["kind"] == "device.linked");
            (links.count() == times).then_some(())
        });
    };
    linked(&fleet, 1);
    for crash in 1..=2 {
        tunnel_e2e::until("the link to be idle", Duration::from_secs(60), || {
            let device = fleet.admin.device("pump-17")?;
            (device["link"]["proven_millis_ago"].as_u64()? > 1000).then_some(())
        });
        fleet.server.kill();
        fleet.server.restart();
        linked(&fleet, 1 + crash);
        assert_eq!(anew(), crash, "{}", agent.process().said());
    }
    // One that was told to come back is not told again.
    assert_eq!(fleet.server.stop(), 0);
    fleet.server.restart();
    linked(&fleet, 4);
    assert_eq!(anew(), 2, "{}", agent.process().said());
}

/// A server that stops in good order has its agents back, each at a moment of its own, while sessions wait for nobody.
#[test]
fn an_orderly_restart_brings_the_fleet_back_and_sessions_do_not_wait() {
    let mut fleet = Fleet::on_loopback();
    let console = Service::echo(fleet.devices_place());
    let _busy = fleet.link(fleet.device("pump-17").service("console", &console.target()));
    let others: Vec<_> = (0..20)
        .map(|number| fleet.link(fleet.device(&format!("idle-{number}"))))
        .collect();
    let mut live = session(&fleet, "live");
    assert_eq!(fleet.server.stop(), 0);
    fleet.server.restart();
    live.stdin().unwrap().write_all(b"still here\n").unwrap();
    assert_eq!(live.line(), "still here\n");
    let linked = |fleet: &Fleet| {
        let devices = fleet.admin.json(&["devices"]);
        let devices = devices.as_array().cloned().unwrap_or_default();
        devices.iter().filter(|device| !device["link"].is_null()).count()
    };
    tunnel_e2e::until("all agents to be back", Duration::from_secs(90), || {
        (linked(&fleet) == others.len() + 1).then_some(())
    });
    let moments: std::collections::BTreeSet<_> = others
        .iter()
        .map(|agent| {
            let said = agent.process().said();
            let at = said
                .find("after_millis=")
                .expect("the server said when to come back");
            said[at..].split_whitespace().next().unwrap().to_owned()
        })
        .collect();
    assert!(
        moments.len() > others.len() / 2,
        "each has a moment of its own: {moments:?}"
    );
}

/// What ended while the server was down does not come back with it.
#[test]
fn a_tunnel_whose_time_ends_in_an_outage_does_not_come_back() {
    let mut fleet = Fleet::on_loopback();
    let console = Service::echo(fleet.devices_place());
    let _agent = fleet.link(fleet.device("pump-17").service("console", &console.target()));
    let errors = fleet.directory().join("short.stderr");
    let mut command = fleet
        .admin
        .cli(&["connect", "--ttl", "15s", "pump-17", "console"]);
    let mut short = Interactive::start(&mut command, &errors);
    short.stdin().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(short.line(), "hello\n");
    let open = fleet.admin.tunnels();
    let until = open[0]["expires_at"].as_u64().unwrap();
    fleet.server.kill();
    tunnel_e2e::until("the tunnel's time to be over", Duration::from_secs(60), || {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        (now.as_secs() > until).then_some(())
    });
    fleet.server.restart();
    assert_ne!(short.wait(Duration::from_secs(60)), Some(0));
    let ended = fleet.admin.json(&["describe", open[0]["id"].as_str().unwrap()]);
    assert_eq!(
        (&ended["state"], &ended["end_reason"]),
        (&"ended".into(), &"E_TUNNEL_EXPIRED".into())
    );
}
