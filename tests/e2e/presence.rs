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
