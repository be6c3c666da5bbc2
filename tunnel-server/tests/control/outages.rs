//! What devices tell of times without a link, and how many of them come back at once.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel_proto::api::Outage;
use tunnel_proto::message::{FromAgent, FromServer};
use tunnel_proto::outage::{self, Cause, Seen};
use tunnel_proto::{Code, UnixTime};

use crate::agent::Agent;
use crate::world::{World, now};

fn outage(id: u64) -> outage::Outage {
    let from = UnixTime::from_secs(1_700_000_000 + id % 10_000);
    let until = from.after(std::time::Duration::from_secs(600));
    outage::Outage {
        id,
        from,
        until,
        attempts: 7,
        starts: 1,
        causes: vec![Seen {
            cause: Cause::Dns,
            count: 7,
            first: from,
            last: until,
            detail: Some("no such name".into()),
        }],
    }
}

async fn tell(agent: &mut Agent, outages: Vec<outage::Outage>) -> Vec<u64> {
    agent.say(&FromAgent::Outages(outages)).await;
    match agent.next().await {
        FromServer::OutagesKept(ids) => ids,
        other => panic!("{other:?} is no answer"),
    }
}

#[tokio::test]
async fn an_outage_is_kept_once_and_shown_to_who_may_see_the_device() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    assert_eq!(tell(&mut agent, vec![outage(1), outage(2)]).await, [1, 2]);
    // The answer may have been lost, so it is told again.
    assert_eq!(
        tell(&mut agent, vec![outage(2), outage(u64::MAX)]).await,
        [2, u64::MAX]
    );
    let told: Vec<Outage> = api.get("/v1/outages?device=pump").await.good();
    assert_eq!(told.len(), 3);
    assert_eq!(
        (told[1].device.as_str(), told[1].attempts, told[1].starts),
        ("pump", 7, 1)
    );
    assert_eq!(told[1].causes[0].cause, "dns");
    assert_eq!(told[1].causes[0].detail.as_deref(), Some("no such name"));
    let all: Vec<Outage> = api.get("/v1/outages").await.good();
    assert_eq!(all, told);
    let late: Vec<Outage> = api.get("/v1/outages?last_secs=60").await.good();
    let is_late = |outage: &Outage| outage.until + 60 >= now().as_secs();
    assert!(late.iter().all(is_late), "{late:?}");

    api.get("/v1/outages?device=none").await.refused(Code::NotFound);
    api.get("/v1/outages?device=..%2F").await.refused(Code::BadName);
    world
        .api_of_nobody()
        .get("/v1/outages")
        .await
        .refused(Code::Unauthenticated);
    // Without a policy that shows the device, there is nothing to be seen of it.
    let guest = world.operator("guest", "guests").await;
    let guest = world.api(&guest);
    assert!(guest.get("/v1/outages").await.good::<Vec<Outage>>().is_empty());
    guest.get("/v1/outages?device=pump").await.refused(Code::NotFound);
    world.server.shutdown().await;
}

/// THREATS SRV-23.
#[tokio::test]
async fn a_device_that_tells_without_end_fills_nothing() {
    let world = World::new().await;
    let (pump, pond) = (world.device("pump").await, world.device("pond").await);
    let api = world.api(&world.admin);
    let mut quiet = Agent::link(&world, &pond).await;
    tell(&mut quiet, vec![outage(1)]).await;
    let mut loud = Agent::link(&world, &pump).await;
    for start in (0..400).step_by(outage::PER_MESSAGE) {
        let mut many: Vec<_> = (start..start + 8).map(outage).collect();
        // Beyond what a message may have; what is not kept is not confirmed.
        many.push(outage(9_999));
        let kept = tell(&mut loud, many).await;
        assert_eq!(kept.len(), outage::PER_MESSAGE);
    }
    let told: Vec<Outage> = api.get("/v1/outages?device=pump").await.good();
    assert_eq!(told.len(), 100);
    assert_eq!(told[0].from, 1_700_000_399, "the newest are kept");
    let others: Vec<Outage> = api.get("/v1/outages?device=pond").await.good();
    assert_eq!(others.len(), 1, "and nobody else's are lost for it");
    world.server.shutdown().await;
}

/// THREATS SRV-08.
#[tokio::test]
async fn more_than_the_rate_are_told_when_to_come_back() {
    let world = World::with(|config| config.returns_per_sec = 1).await;
    let api = world.api(&world.admin);
    let (mut devices, mut linked) = (Vec::new(), Vec::new());
    let away = loop {
        let device = world.device(&format!("pump-{}", devices.len())).await;
        match Agent::link_with(&world, &device, &[]).await {
            Ok(agent) => linked.push(agent),
            Err(away) => break away,
        }
        devices.push(device);
        assert!(devices.len() < 100, "nobody is sent away");
    };
    assert!(away.contains("Goodbye") && away.contains("Busy"), "{away}");
    // Who has a live tunnel does not wait.
    let (opened, offer) = linked[0].opened(&api, "pump-0").await;
    assert_eq!(opened.status, 200);
    let first = linked.remove(0);
    drop(first);
    assert!(
        Agent::link_with(&world, &devices[0], &[offer.tunnel])
            .await
            .is_ok()
    );
    world.server.shutdown().await;
}

/// THREATS SRV-08: one that links without end uses up its own allowance, and not that of the fleet.
#[tokio::test]
async fn a_device_that_links_without_end_keeps_nobody_away() {
    let world = World::with(|config| config.returns_per_sec = 10).await;
    let (loud, quiet) = (world.device("pump").await, world.device("pond").await);
    let mut attempts = 0;
    while Agent::link_with(&world, &loud, &[]).await.is_ok() {
        attempts += 1;
        assert!(attempts < 1000, "it is never sent away");
    }
    for _ in 0..30 {
        drop(Agent::link_with(&world, &loud, &[]).await);
    }
    let linked = Agent::link_with(&world, &quiet, &[]).await;
    assert!(linked.is_ok(), "{:?}", linked.err());
    world.server.shutdown().await;
}

/// THREATS SRV-19.
#[tokio::test]
async fn figures_are_read_on_their_own_listener_and_name_nobody() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, _) = agent.opened(&api, "pump").await;
    let opened: tunnel_proto::api::OpenedTunnel = opened.good();
    api.close(opened.tunnel).await;
    let figures = metrics(&world, "/metrics").await;
    for line in [
        "HTTP/1.1 200",
        "tunnel_links 1\n",
        "tunnel_tunnels{state=\"open\"} 0\n",
        "tunnel_tunnels_ended_total{code=\"E_TUNNEL_CLOSED\"} 1\n",
        "tunnel_binds_refused_total{cause=\"wrong_key\"} 0\n",
        "tunnel_forwarded_bytes_total 0\n",
    ] {
        assert!(figures.contains(line), "no {line:?} in {figures}");
    }
    for name in ["pump", "root", "fleet.test", "127.0.0.1"] {
        assert!(!figures.contains(name), "{name} is named: {figures}");
    }
    assert!(metrics(&world, "/v1/devices").await.starts_with("HTTP/1.1 404"));
    // And the public listener has none.
    api.get("/metrics").await.refused(Code::NotFound);
    world.server.shutdown().await;
}

async fn metrics(world: &World, path: &str) -> String {
    let mut stream = TcpStream::connect(world.server.metrics_addr().unwrap())
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_wrong_query_is_refused() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    api.get("/v1/outages?devices=pump")
        .await
        .refused(Code::BadRequest);
    let none: Vec<Outage> = api.get("/v1/outages").await.good();
    assert_eq!(json!(none), json!([]));
    world.server.shutdown().await;
}
