//! Connections that only measure: answered for members of the fleet, within bounds, and without any effect.

use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use serde_json::json;
use tunnel_net::stream::{read_message, write_message};
use tunnel_proto::message::{FromAgent, FromServer, Ping, Probe, Probed};

use crate::agent::{self, Agent};
use crate::api::SOON;
use crate::world::{Member, World};

/// A member that measures.
struct Prober {
    said: Probed,
    talk: (SendStream, RecvStream),
    connection: (Endpoint, Connection),
}

impl Prober {
    /// Begins; `None` where the server does not let it.
    async fn begin(world: &World, member: &Member) -> Option<Self> {
        let connection = agent::connect(world, member).await.ok()?;
        let mut talk = connection.1.open_bi().await.ok()?;
        let version = "0.1.0".to_owned();
        let FromServer::Probed(said) = ask(&mut talk, &FromAgent::Probe(Probe { version })).await? else {
            return None;
        };
        Some(Self {
            said,
            talk,
            connection,
        })
    }

    async fn ask(&mut self, message: &FromAgent) -> Option<FromServer> {
        ask(&mut self.talk, message).await
    }
}

/// Says something and waits for the answer; `None` when the server has hung up.
async fn ask(talk: &mut (SendStream, RecvStream), message: &FromAgent) -> Option<FromServer> {
    write_message(&mut talk.0, message).await.ok()?;
    let answer = tokio::time::timeout(SOON, read_message(&mut talk.1)).await;
    answer.expect("an answer or an end in time").ok()
}

fn ping(seq: u64) -> FromAgent {
    FromAgent::Ping(Ping {
        seq,
        proof: 0,
        next_secs: 25,
        rtt_millis: None,
        cost_bytes: None,
        echo_after_millis: None,
    })
}

#[tokio::test]
async fn members_measure_and_a_link_that_is_up_stays() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut linked = Agent::link(&world, &device).await;
    for (member, has_link) in [(&device, true), (&world.admin, false)] {
        let mut prober = Prober::begin(&world, member).await.unwrap();
        assert_eq!(prober.said.link.is_some(), has_link);
        let answer = prober.ask(&ping(7)).await.unwrap();
        let FromServer::Pong(pong) = answer else {
            panic!("{answer:?}");
        };
        assert!(
            pong.seq == 7
                && pong
                    .seen_as
                    .as_ref()
                    .is_some_and(|seen| seen.starts_with("127.0.0.1:")),
            "{pong:?}"
        );
    }
    linked.say(&ping(0)).await;
    assert!(
        matches!(linked.next().await, FromServer::Pong(_)),
        "the link was not displaced"
    );
    world.server.shutdown().await;
}

#[tokio::test]
async fn measuring_is_bounded_and_nothing_else_is_answered() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut endless = Prober::begin(&world, &device).await.unwrap();
    let mut answered = 0;
    while endless.ask(&ping(answered)).await.is_some() {
        answered += 1;
        assert!(answered < 5000, "there is no end");
    }
    assert!(answered > 300, "{answered}");
    let mut other = Prober::begin(&world, &device).await.unwrap();
    assert!(other.ask(&FromAgent::Renew(vec![1, 2, 3])).await.is_none());
    world.server.shutdown().await;
}

/// THREATS I4: who is not trusted any more measures nothing.
#[tokio::test]
async fn the_revoked_do_not_measure() {
    let world = World::new().await;
    let device = world.device("pump").await;
    assert!(Prober::begin(&world, &device).await.is_some());
    let revoke = json!({ "identity": device.identity.to_string() });
    world.api(&world.admin).post("/v1/revocations", &revoke).await;
    assert!(Prober::begin(&world, &device).await.is_none());
    world.server.shutdown().await;
}

/// THREATS SRV-07: those who measure do so beside each other, a few of each.
#[tokio::test]
async fn one_that_measures_without_end_keeps_nobody_from_measuring() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut held = Vec::new();
    while let Some(prober) = Prober::begin(&world, &device).await {
        held.push(prober);
        assert!(held.len() < 100, "there is no end");
    }
    assert!(
        held.len() >= 7,
        "all addresses and both carriers at once: {}",
        held.len()
    );
    assert!(Prober::begin(&world, &world.admin).await.is_some());
    let linked = Agent::link_with(&world, &device, &[]).await;
    assert!(linked.is_ok(), "its link has nothing to do with it");
    drop(held);
    while Prober::begin(&world, &device).await.is_none() {
        tokio::task::yield_now().await;
    }
    world.server.shutdown().await;
}

/// Who says nothing any more does not keep its place.
#[tokio::test]
async fn who_falls_silent_is_hung_up_on() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let prober = Prober::begin(&world, &device).await.unwrap();
    let (_endpoint, connection) = &prober.connection;
    let closed = tokio::time::timeout(Duration::from_secs(25), connection.closed()).await;
    assert!(closed.is_ok(), "the place is kept");
    world.server.shutdown().await;
}

/// THREATS I4: nor does who has lost its trust for a time.
#[tokio::test]
async fn the_suspended_do_not_measure() {
    let world = World::new().await;
    let (device, guest) = (
        world.device("pump").await,
        world.operator("guest", "guests").await,
    );
    assert!(Prober::begin(&world, &device).await.is_some());
    assert!(Prober::begin(&world, &guest).await.is_some());
    let api = world.api(&world.admin);
    for member in [&device, &guest] {
        let request = json!({ "identity": member.identity.to_string() });
        assert_eq!(api.post("/v1/suspensions", &request).await.status, 200);
    }
    assert!(Prober::begin(&world, &device).await.is_none());
    assert!(Prober::begin(&world, &guest).await.is_none());
    assert!(Prober::begin(&world, &world.admin).await.is_some());
    world.server.shutdown().await;
}
