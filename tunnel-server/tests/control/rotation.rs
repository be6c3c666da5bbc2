//! Fresh keys for the legs of a live tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::net::UdpSocket;
use tunnel_proto::api::{AttachedTunnel, OpenedTunnel, RotatedTunnel, TunnelEnd};
use tunnel_proto::bind::{Control, Kind, Role};
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::message::{FromServer, Offer};
use tunnel_proto::{CircuitId, Code, TunnelId};

use crate::agent::Agent;
use crate::api::Api;
use crate::leg::Leg;
use crate::world::World;

/// A tunnel with both legs bound.
struct Bound {
    id: TunnelId,
    here: Leg,
    there: Leg,
    keys: [Secret; 2],
    circuit: CircuitId,
}

async fn bound(world: &World, api: &Api, agent: &mut Agent) -> Bound {
    let (opened, offer) = agent.opened(api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let destination = agent.attach(&offer).await.unwrap();
    let source = api.attach_to(&opened).await;
    let key = Secret::new(unhex(&source.leg_key).unwrap());
    let relay = world.server.udp_addr();
    let keys = [key.clone(), destination.leg_key.clone()];
    let mut here = Leg::new(relay, source.circuit, Role::Source, key).await;
    let mut there = Leg::new(relay, source.circuit, Role::Destination, destination.leg_key).await;
    here.bind().await;
    there.bind().await;
    here.reaches(&there).await;
    Bound {
        id: opened.tunnel,
        here,
        there,
        keys,
        circuit: source.circuit,
    }
}

/// Redeems the token that the long poll brings.
async fn next_source_key(api: &Api, id: TunnelId) -> AttachedTunnel {
    let news: TunnelEnd = api.get(&format!("/v1/tunnels/{id}/end")).await.good();
    api.attach(id, &news.rotate.expect("a token")).await.good()
}

/// Redeems the token that the link brings.
async fn next_destination_key(agent: &mut Agent) -> Secret {
    let FromServer::Rotate(rotate) = agent.next().await else {
        panic!("no rotation")
    };
    let offer = Offer {
        grant: Vec::new(),
        token: rotate.token,
        tunnel: rotate.tunnel,
        permit: None,
    };
    agent.attach(&offer).await.unwrap().leg_key
}

/// Somebody who has stolen a leg's key binds from an address of its own; says whether the relay answered at all.
async fn thief_is_answered(relay: SocketAddr, circuit: CircuitId, role: Role, key: &Secret) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(relay).await.unwrap();
    let key = LegKey::new(key.clone());
    let mut answer = [0; 2000];
    for counter in 1000..1005 {
        let bind = Control {
            kind: Kind::Bind,
            circuit,
            role,
            counter,
            value: 0,
        };
        socket.send(&bind.encode(&key)).await.unwrap();
        let received = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut answer));
        if received.await.is_ok() {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn an_old_key_binds_nothing_after_a_rotation_and_the_session_goes_on() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let mut tunnel = bound(&world, &api, &mut agent).await;
    let relay = world.server.udp_addr();
    for (role, key) in [Role::Source, Role::Destination].into_iter().zip(&tunnel.keys) {
        assert!(
            thief_is_answered(relay, tunnel.circuit, role, key).await,
            "the thief's keys are good before"
        );
    }
    let path = format!("/v1/tunnels/{}/rotate", tunnel.id);
    let both = json!({});
    let (rotated, source, destination) = tokio::join!(
        api.post(&path, &both),
        async {
            let attached = next_source_key(&api, tunnel.id).await;
            // What goes on is not held up by who takes its time.
            tunnel.here.reaches(&tunnel.there).await;
            tunnel.there.reaches(&tunnel.here).await;
            let key = Secret::new(unhex(&attached.leg_key).unwrap());
            tunnel.here.rekey(key.clone());
            tunnel.here.bind().await;
            key
        },
        next_destination_key(&mut agent),
    );
    let rotated: RotatedTunnel = rotated.good();
    assert_eq!(rotated.legs.len(), 2);
    assert!(rotated.legs[0].bound_micros.is_some());
    assert!(rotated.legs[1].bound_micros.is_none(), "it has not bound yet");
    tunnel.there.rekey(destination.clone());
    tunnel.there.bind().await;
    tunnel.here.reaches(&tunnel.there).await;
    tunnel.there.reaches(&tunnel.here).await;
    for (role, key) in [Role::Source, Role::Destination].into_iter().zip(&tunnel.keys) {
        assert!(!thief_is_answered(relay, tunnel.circuit, role, key).await);
    }
    assert!(source != tunnel.keys[0] && destination != tunnel.keys[1]);
    tunnel.here.reaches(&tunnel.there).await;

    // Only who may cut rotates for others, and what has ended is not rotated.
    let tess = world.operator("tess", "technicians").await;
    world
        .api(&tess)
        .post(&path, &json!({}))
        .await
        .refused(Code::NotFound);
    api.close(tunnel.id).await.good::<serde_json::Value>();
    assert_ne!(api.post(&path, &json!({})).await.status, 200);
    world.server.shutdown().await;
}

/// A crash after the rotation is on the disk and before an end has heard of it: the end is asked again, and gets the key.
#[tokio::test]
async fn a_rotation_that_a_restart_interrupts_is_brought_to_its_end() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let tunnel = bound(&world, &api, &mut agent).await;
    let path = format!("/v1/tunnels/{}/rotate", tunnel.id);
    let rotated: RotatedTunnel = api.post(&path, &json!({})).await.good();
    assert!(rotated.legs.iter().all(|leg| leg.bound_micros.is_none()));

    let world = world.restart().await;
    let (api, relay) = (world.api(&world.admin), world.server.udp_addr());
    for (role, key) in [Role::Source, Role::Destination].into_iter().zip(&tunnel.keys) {
        assert!(!thief_is_answered(relay, tunnel.circuit, role, key).await);
    }
    let mut agent = Agent::link_with(&world, &device, &[tunnel.id]).await.unwrap();
    let destination = next_destination_key(&mut agent).await;
    // An answer that got lost is asked for again, and is the same key.
    let lost = next_source_key(&api, tunnel.id).await;
    let source = next_source_key(&api, tunnel.id).await;
    assert_eq!(lost.leg_key, source.leg_key);
    let key = Secret::new(unhex(&source.leg_key).unwrap());
    let mut here = Leg::new(relay, tunnel.circuit, Role::Source, key).await;
    let mut there = Leg::new(relay, tunnel.circuit, Role::Destination, destination).await;
    here.bind().await;
    there.bind().await;
    here.reaches(&there).await;
    world.server.shutdown().await;
}

/// Who asks for a rotation while one is under way is given that one: each end hears of one key, and is asked for one.
#[tokio::test]
async fn two_rotations_at_once_are_one() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let mut tunnel = bound(&world, &api, &mut agent).await;
    let path = format!("/v1/tunnels/{}/rotate", tunnel.id);
    let both = json!({});
    let (first, second, ()) = tokio::join!(api.post(&path, &both), api.post(&path, &both), async {
        let destination = next_destination_key(&mut agent).await;
        let source = next_source_key(&api, tunnel.id).await;
        // By the time that the first two have come here this one finds both under way, too.
        let third: RotatedTunnel = api.post(&path, &both).await.good();
        assert!(third.legs.iter().all(|leg| leg.bound_micros.is_none()));
        let again = next_source_key(&api, tunnel.id).await;
        assert_eq!(source.leg_key, again.leg_key);
        tunnel.there.rekey(destination);
        tunnel.there.bind().await;
        tunnel.here.rekey(Secret::new(unhex(&source.leg_key).unwrap()));
        tunnel.here.bind().await;
    });
    for rotated in [first, second] {
        assert_eq!(rotated.good::<RotatedTunnel>().legs.len(), 2);
    }
    tunnel.here.reaches(&tunnel.there).await;
    world.server.shutdown().await;
}

/// Asking costs the server a write and the device a message, so nobody may ask as often as it likes.
#[tokio::test]
async fn who_rotates_too_often_is_refused() {
    let world = World::new().await;
    let tess = world.operator("tess", "technicians").await;
    let (api, other) = (world.api(&tess), world.api(&world.admin));
    let path = format!("/v1/tunnels/{}/rotate", TunnelId::from_bytes([7; 16]));
    let both = json!({});
    let asked = api.post_until(&path, &both, |answer| answer.status != 404);
    asked.await.refused(Code::Limit);
    other.post(&path, &both).await.refused(Code::NotFound);
    world.server.shutdown().await;
}
