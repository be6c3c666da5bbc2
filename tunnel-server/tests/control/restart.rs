//! What outlives a restart.

use serde_json::json;
use tunnel_proto::api::OpenedTunnel;
use tunnel_proto::bind::Role;
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::Secret;
use tunnel_proto::message::FromServer;
use tunnel_proto::{Code, TunnelId};

use crate::agent::Agent;
use crate::leg::Leg;
use crate::world::World;

#[tokio::test]
async fn live_tunnels_outlive_a_restart_and_ended_ones_do_not() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (live, offer) = agent.opened(&api, "pump").await;
    let live: OpenedTunnel = live.good();
    let destination = agent.attach(&offer).await.unwrap();
    let source = api.attach_to(&live).await;
    let (closed, _) = agent.opened(&api, "pump").await;
    let closed: OpenedTunnel = closed.good();
    api.close(closed.tunnel).await.good::<serde_json::Value>();
    let wish = json!({ "device": "pump", "services": ["ssh"], "ttl_secs": 1 });
    let (short, _) = tokio::join!(api.post("/v1/tunnels", &wish), async {
        assert!(matches!(agent.next().await, FromServer::EndTunnel(_)));
        agent.accept().await
    });
    let short: OpenedTunnel = short.good();

    let (world, goodbye) = tokio::join!(world.restart(), agent.next());
    assert!(matches!(
        goodbye,
        FromServer::Goodbye(_) | FromServer::EndTunnel(_)
    ));
    let api = world.api(&world.admin);
    assert_eq!(api.end_of(short.tunnel).await, "E_TUNNEL_EXPIRED");
    assert_eq!(api.tunnel(live.tunnel).await.state, "opening");

    // The agent learns which of its tunnels are over.
    let unknown = TunnelId::from_bytes([9; 16]);
    let tunnels = [live.tunnel, closed.tunnel, unknown];
    let agent = Agent::link_with(&world, &device, &tunnels).await.unwrap();
    assert_eq!(agent.welcome.ended, [closed.tunnel, unknown]);

    // The legs find back with the keys that they have.
    let relay = world.server.udp_addr();
    let mut there = Leg::new(relay, destination.circuit, Role::Destination, destination.leg_key).await;
    let key = Secret::new(unhex(&source.leg_key).unwrap());
    let mut here = Leg::new(relay, source.circuit, Role::Source, key).await;
    there.bind().await;
    here.bind().await;
    here.reaches(&there).await;

    // What was redeemed before stays redeemed.
    api.attach(live.tunnel, &live.token)
        .await
        .refused(Code::TokenReplay);
    world.server.shutdown().await;
}

/// THREATS I6: a revocation holds after a restart.
#[tokio::test]
async fn a_revocation_outlives_a_restart() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let revoke = json!({ "identity": device.identity.to_string() });
    world
        .api(&world.admin)
        .post("/v1/revocations", &revoke)
        .await
        .good::<serde_json::Value>();
    let world = world.restart().await;
    assert!(Agent::link_with(&world, &device, &[]).await.is_err());
    world.server.shutdown().await;
}

/// An agent that was started anew has lost its tunnels, and says so by its list.
#[tokio::test]
async fn tunnels_that_an_agent_has_lost_are_ended() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (kept, _) = agent.opened(&api, "pump").await;
    let (lost, _) = agent.opened(&api, "pump").await;
    let (kept, lost): (OpenedTunnel, OpenedTunnel) = (kept.good(), lost.good());
    let mut again = Agent::link_with(&world, &device, &[kept.tunnel]).await.unwrap();
    let (fresh, _) = again.opened(&api, "pump").await;
    let fresh: OpenedTunnel = fresh.good();
    assert_eq!(api.end_of(lost.tunnel).await, "E_TUNNEL_LOST");
    for tunnel in [kept.tunnel, fresh.tunnel] {
        assert_eq!(api.tunnel(tunnel).await.state, "opening");
    }
    world.server.shutdown().await;
}
