//! The ends of tunnels.

use serde_json::json;
use tunnel_proto::api::{OpenedTunnel, Tunnel};
use tunnel_proto::bind::{Kind, Role};
use tunnel_proto::{Code, TunnelId};

use crate::agent::Agent;
use crate::leg::Leg;
use crate::world::World;

#[tokio::test]
async fn a_closed_tunnel_is_closed_at_the_relay_at_the_device_and_in_the_record() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let attached = agent.attach(&offer).await.unwrap();
    let mut leg = Leg::new(
        world.server.udp_addr(),
        attached.circuit,
        Role::Destination,
        attached.leg_key,
    )
    .await;
    leg.bind().await;

    let (waited, closed, told) = tokio::join!(
        api.end_of(opened.tunnel),
        api.close(opened.tunnel),
        agent.ended(opened.tunnel)
    );
    assert_eq!(waited, "E_TUNNEL_CLOSED");
    assert_eq!(told, Code::TunnelClosed);
    let closed: Tunnel = closed.good();
    assert_eq!(
        (closed.state.as_str(), closed.end_reason.as_deref()),
        ("ended", Some("E_TUNNEL_CLOSED"))
    );
    let ended = leg.control().await;
    assert_eq!(
        (ended.kind, Code::from_number(ended.value)),
        (Kind::Ended, Code::TunnelClosed)
    );

    // What has ended stays so.
    api.attach(opened.tunnel, &opened.token)
        .await
        .refused(Code::TunnelClosed);
    assert_eq!(
        api.close(opened.tunnel)
            .await
            .good::<Tunnel>()
            .end_reason
            .as_deref(),
        Some("E_TUNNEL_CLOSED")
    );
    let live: Vec<Tunnel> = api.get("/v1/tunnels").await.good();
    let all: Vec<Tunnel> = api.get("/v1/tunnels?all=true&limit=10").await.good();
    assert_eq!((live.len(), all.len()), (0, 1));
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_tunnel_ends_when_its_time_is_over() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let wish = json!({ "device": "pump", "services": ["ssh"], "ttl_secs": 1 });
    let (opened, offer) = tokio::join!(api.post("/v1/tunnels", &wish), agent.accept());
    let opened: OpenedTunnel = opened.good();
    let (waited, told) = tokio::join!(api.end_of(opened.tunnel), agent.ended(offer.tunnel));
    assert_eq!(waited, "E_TUNNEL_EXPIRED");
    assert_eq!(told, Code::TunnelExpired);
    assert!(matches!(
        agent.attach(&offer).await,
        Err(Code::TunnelClosed | Code::TunnelExpired)
    ));
    world.server.shutdown().await;
}

#[tokio::test]
async fn the_device_may_end_its_own_tunnels_and_no_others() {
    let world = World::new().await;
    let (pump, pond) = (world.device("pump").await, world.device("pond").await);
    let api = world.api(&world.admin);
    let (mut pump, mut pond) = (Agent::link(&world, &pump).await, Agent::link(&world, &pond).await);
    let (of_pump, _) = pump.opened(&api, "pump").await;
    let (of_pond, _) = pond.opened(&api, "pond").await;
    let (of_pump, of_pond): (OpenedTunnel, OpenedTunnel) = (of_pump.good(), of_pond.good());
    pump.end(of_pond.tunnel, Code::AccessOff).await;
    pump.end(TunnelId::from_bytes([9; 16]), Code::AccessOff).await;
    pump.end(of_pump.tunnel, Code::TunnelIdle).await;
    assert_eq!(api.end_of(of_pump.tunnel).await, "E_TUNNEL_IDLE");
    assert_eq!(api.tunnel(of_pond.tunnel).await.state, "opening");
    world.server.shutdown().await;
}

/// THREATS SRV-13.
#[tokio::test]
async fn the_tunnels_of_others_are_as_ones_that_are_not_there() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, _) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let (other, missing) = (world.api(&tess), TunnelId::from_bytes([9; 16]));
    for (method, path) in [("GET", ""), ("DELETE", ""), ("GET", "/end")] {
        let method: hyper::Method = method.parse().unwrap();
        let hidden = other
            .send(method.clone(), &path_of(opened.tunnel, path), None)
            .await;
        let missing = other.send(method, &path_of(missing, path), None).await;
        hidden.refused(Code::NotFound);
        assert_eq!(hidden.body, missing.body);
    }
    assert_eq!(
        other
            .get("/v1/tunnels?all=true")
            .await
            .good::<Vec<Tunnel>>()
            .len(),
        0
    );
    assert_eq!(api.tunnel(opened.tunnel).await.state, "opening");
    world.server.shutdown().await;
}

fn path_of(id: TunnelId, rest: &str) -> String {
    format!("/v1/tunnels/{id}{rest}")
}
