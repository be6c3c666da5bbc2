//! Ends of sessions, which a device tells until it hears that the record is on the disk.

use std::collections::BTreeSet;

use serde_json::Value;
use tunnel_proto::api::{OpenedTunnel, Session};
use tunnel_proto::message::{EndsDropped, FromAgent, FromServer, SessionEnded, SessionKey};
use tunnel_proto::{Code, TunnelId};

use crate::agent::Agent;
use crate::api::Api;
use crate::world::World;

fn ended(tunnel: TunnelId, number: u64) -> SessionEnded {
    SessionEnded {
        tunnel,
        service: "ssh".into(),
        refused: None,
        millis: 5,
        bytes_in: number.wrapping_add(1000),
        bytes_out: 20,
        end: None,
        number: Some(number),
        dropped: None,
    }
}

async fn say(agent: &mut Agent, ended: SessionEnded) {
    agent.say(&FromAgent::SessionEnded(ended)).await;
}

/// Waits until so many were confirmed, and returns their numbers.
async fn kept(agent: &mut Agent, tunnel: TunnelId, count: usize) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    while numbers.len() < count {
        let FromServer::SessionsKept(keys) = agent.next().await else {
            panic!("no answer to the end of a session")
        };
        for SessionKey { tunnel: of, number } in keys {
            assert_eq!(of, tunnel);
            numbers.insert(number);
        }
    }
    numbers
}

/// The bytes by which the recorded sessions are told apart.
async fn recorded(api: &Api) -> Vec<u64> {
    let sessions: Vec<Session> = api.get("/v1/sessions").await.good();
    let mut bytes: Vec<_> = sessions.iter().map(|session| session.bytes_in).collect();
    bytes.sort_unstable();
    bytes
}

async fn linked_with_a_tunnel(world: &World, api: &Api) -> (Agent, TunnelId) {
    let device = world.device("pump").await;
    let mut agent = Agent::link(world, &device).await;
    assert!(agent.welcome.keeps_sessions);
    let (opened, _) = agent.opened(api, "pump").await;
    let tunnel = opened.good::<OpenedTunnel>().tunnel;
    (agent, tunnel)
}

/// THREATS I9: what is told twice has one record, in whichever order it comes, after a restart of the server too.
#[tokio::test]
async fn a_session_is_confirmed_each_time_and_recorded_once() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let api = world.api(&world.admin);
    let mut agent = Agent::link(&world, &device).await;
    let (opened, _) = agent.opened(&api, "pump").await;
    let tunnel = opened.good::<OpenedTunnel>().tunnel;
    for number in [0, 1, 0, 2, 2, 1] {
        say(&mut agent, ended(tunnel, number)).await;
    }
    assert_eq!(kept(&mut agent, tunnel, 3).await, [0, 1, 2].into());
    assert_eq!(recorded(&api).await, [1000, 1001, 1002]);

    drop(agent);
    let world = world.restart().await;
    let api = world.api(&world.admin);
    let mut agent = Agent::link_with(&world, &device, &[tunnel]).await.unwrap();
    for number in [2, 3, 0] {
        say(&mut agent, ended(tunnel, number)).await;
    }
    assert_eq!(kept(&mut agent, tunnel, 3).await, [0, 2, 3].into());
    assert_eq!(recorded(&api).await, [1000, 1001, 1002, 1003]);
    // Told again when the tunnel is over.
    api.close(tunnel).await.good::<Value>();
    assert_eq!(agent.ended(tunnel).await, Code::TunnelClosed);
    say(&mut agent, ended(tunnel, 1)).await;
    say(&mut agent, ended(tunnel, 4)).await;
    assert_eq!(kept(&mut agent, tunnel, 2).await, [1, 4].into());
    assert_eq!(recorded(&api).await, [1000, 1001, 1002, 1003, 1004]);
    world.server.shutdown().await;
}

/// One of before says no number, and neither hears nor needs an answer.
#[tokio::test]
async fn the_sessions_of_an_agent_of_before_are_recorded_as_they_are_told() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    let (mut agent, tunnel) = linked_with_a_tunnel(&world, &api).await;
    for _ in 0..2 {
        let number = None;
        say(
            &mut agent,
            SessionEnded {
                number,
                ..ended(tunnel, 7)
            },
        )
        .await;
    }
    // What no device counts up to is no number either.
    say(&mut agent, ended(tunnel, u64::MAX)).await;
    agent.end(tunnel, Code::TunnelIdle).await;
    assert_eq!(api.end_of(tunnel).await, "E_TUNNEL_IDLE");
    say(&mut agent, ended(tunnel, 8)).await;
    assert_eq!(kept(&mut agent, tunnel, 1).await, [8].into(), "the first answer");
    assert_eq!(recorded(&api).await.len(), 4);
    world.server.shutdown().await;
}

/// What the device could not keep is in the record of the next that it could.
#[tokio::test]
async fn what_a_device_dropped_is_said_in_the_record() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    let (mut agent, tunnel) = linked_with_a_tunnel(&world, &api).await;
    let (sessions, refusals) = (3, 40);
    let dropped = Some(EndsDropped { sessions, refusals });
    say(
        &mut agent,
        SessionEnded {
            dropped,
            ..ended(tunnel, 0)
        },
    )
    .await;
    kept(&mut agent, tunnel, 1).await;
    let told: Vec<Session> = api.get("/v1/sessions").await.good();
    let dropped = told[0].dropped.unwrap();
    assert_eq!((dropped.sessions, dropped.refusals), (3, 40));
    let body = crate::audit::wait_for(&world, "session.ended").await;
    assert_eq!(
        (&body["number"], &body["dropped"]["sessions"]),
        (&0.into(), &3.into())
    );
    world.server.shutdown().await;
}

/// THREATS AUD-05: refusals beyond the quota are confirmed as well, so that a device does not tell them for ever; what is not
/// this device's to tell is confirmed and gets no record.
#[tokio::test]
async fn every_refusal_is_confirmed_and_few_have_a_record() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    let (mut agent, tunnel) = linked_with_a_tunnel(&world, &api).await;
    let refused = Some(Code::TargetRefused);
    for round in 0..2 {
        for number in 0..400 {
            say(
                &mut agent,
                SessionEnded {
                    refused,
                    ..ended(tunnel, number)
                },
            )
            .await;
        }
        assert_eq!(kept(&mut agent, tunnel, 400).await.len(), 400);
        let count = recorded(&api).await.len();
        assert!((100..300).contains(&count), "{count} in round {round}");
    }
    let unknown = TunnelId::from_bytes([9; 16]);
    let before = recorded(&api).await;
    say(&mut agent, ended(unknown, 5)).await;
    assert_eq!(kept(&mut agent, unknown, 1).await, [5].into());
    assert_eq!(recorded(&api).await, before);
    world.server.shutdown().await;
}

/// Another device cannot take a number in a tunnel that is not its own.
#[tokio::test]
async fn a_device_takes_no_number_of_anothers_tunnel() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    let (mut agent, tunnel) = linked_with_a_tunnel(&world, &api).await;
    let mut other = Agent::link(&world, &world.device("pond").await).await;
    say(&mut other, ended(tunnel, 0)).await;
    kept(&mut other, tunnel, 1).await;
    assert!(recorded(&api).await.is_empty());
    say(&mut agent, ended(tunnel, 0)).await;
    kept(&mut agent, tunnel, 1).await;
    assert_eq!(recorded(&api).await, [1000]);
    world.server.shutdown().await;
}
