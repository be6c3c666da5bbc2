//! Opening and attaching.

use serde_json::json;
use tunnel_proto::api::{AttachedTunnel, Device, OpenedTunnel};
use tunnel_proto::bind::Role;
use tunnel_proto::grant::Grant;
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::Secret;
use tunnel_proto::token::AccessToken;
use tunnel_proto::{Code, Refusal, TunnelId};

use crate::agent::{Agent, HOST_KEY};
use crate::leg::Leg;
use crate::world::World;

#[tokio::test]
async fn a_tunnel_opens_attaches_and_carries() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, mut agent) = (world.api(&tess), Agent::link(&world, &device).await);

    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    assert_eq!(opened.tunnel, offer.tunnel);
    assert_eq!(opened.device_identity, device.identity.to_string());
    assert_eq!(opened.ssh_host_keys, [HOST_KEY]);
    assert_eq!(opened.policies, ["technicians-ssh"]);
    let grant = Grant::verify(&offer.grant, &agent.welcome.grant_key).unwrap();
    assert_eq!(grant.nonce, agent.nonce);
    assert_eq!(grant.holder_key, tess.key);
    assert_eq!(
        (grant.operator_identity(), grant.device_identity()),
        (tess.identity.clone(), device.identity)
    );

    let attached = agent.attach(&offer).await.unwrap();
    let source: AttachedTunnel = api.attach_to(&opened).await;
    assert_eq!(attached.circuit, source.circuit);
    let relay = world.server.udp_addr();
    assert_eq!(source.udp_port, relay.port());
    let mut there = Leg::new(relay, attached.circuit, Role::Destination, attached.leg_key).await;
    let source_key = Secret::new(unhex(&source.leg_key).unwrap());
    let mut here = Leg::new(relay, source.circuit, Role::Source, source_key).await;
    assert_eq!(api.tunnel(opened.tunnel).await.state, "opening");
    there.bind().await;
    here.bind().await;
    here.reaches(&there).await;
    there.reaches(&here).await;
    crate::audit::wait_for(&world, "tunnel.connected").await;
    let tunnel = api.tunnel(opened.tunnel).await;
    assert_eq!(tunnel.state, "open");
    let traffic = tunnel.traffic.unwrap();
    assert_eq!((traffic.datagrams_in, traffic.datagrams_out), (1, 1));
    assert_eq!(traffic.source_carrier.as_deref(), Some("udp"));
    world.server.shutdown().await;
}

/// THREATS TOK-01.
#[tokio::test]
async fn a_token_is_redeemed_once_however_many_try_at_once() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let attempts = (0..10).map(|_| api.attach(opened.tunnel, &opened.token));
    let answers = futures_util::future::join_all(attempts).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.refused(Code::TokenReplay);
    }
    assert!(agent.attach(&offer).await.is_ok());
    assert_eq!(agent.attach(&offer).await.map(drop), Err(Code::TokenReplay));
    world.server.shutdown().await;
}

/// THREATS TOK-03, TOK-06.
#[tokio::test]
async fn a_token_is_worthless_to_anybody_else_and_for_anything_else() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let eve = world.operator("eve", "admins").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();

    world
        .api(&eve)
        .attach(opened.tunnel, &opened.token)
        .await
        .refused(Code::TokenHolder);
    api.attach(TunnelId::from_bytes([7; 16]), &opened.token)
        .await
        .refused(Code::TokenScope);
    api.attach(opened.tunnel, &opened.grant)
        .await
        .refused(Code::TokenAlg);
    api.attach(opened.tunnel, "not base64!")
        .await
        .refused(Code::TokenMalformed);
    api.attach(opened.tunnel, &"A".repeat(60_000))
        .await
        .refused(Code::TokenMalformed);
    let mut flipped = opened.token.clone().into_bytes();
    let last = flipped.len() - 10;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    api.attach(opened.tunnel, &String::from_utf8(flipped).unwrap())
        .await
        .refused(Code::TokenSig);

    // The destination's token in the hands of the operator, and the other way round.
    let stolen = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &offer.token);
    api.attach(opened.tunnel, &stolen)
        .await
        .refused(Code::TokenHolder);
    let source =
        base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &opened.token).unwrap();
    let wrong = tunnel_proto::message::Offer {
        token: source,
        ..offer.clone()
    };
    assert_eq!(agent.attach(&wrong).await.map(drop), Err(Code::TokenHolder));

    // None of that used anything up.
    assert!(agent.attach(&offer).await.is_ok());
    api.attach_to(&opened).await;
    world.server.shutdown().await;
}

/// THREATS TOK-09: a token that is signed by another key than the server's.
#[tokio::test]
async fn a_token_of_another_signer_is_refused() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, _) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let key = tunnel_proto::cose::SigningKey::from_seed(&Secret::new([1; 32])).unwrap();
    let now = crate::world::now();
    let token = AccessToken {
        id: tunnel_proto::TokenId::from_bytes([1; 16]),
        tunnel: opened.tunnel,
        role: Role::Source,
        holder: world.admin.identity.clone(),
        holder_key: world.admin.key,
        relay: "n1".parse().unwrap(),
        issued_at: now,
        expires_at: now.after(std::time::Duration::from_secs(60)),
    };
    let token = token.sign(&key, world.trust_domain());
    let token = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &token);
    api.attach(opened.tunnel, &token).await.refused(Code::TokenAlg);
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_device_that_is_not_linked_is_offline() {
    let world = World::new().await;
    world.device("pump").await;
    world
        .api(&world.admin)
        .open("pump")
        .await
        .refused(Code::DeviceOffline);
    world.server.shutdown().await;
}

#[tokio::test]
async fn the_devices_own_refusal_is_passed_on() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let refuse = async {
        let offer = agent.offer().await;
        agent
            .answer(
                offer.tunnel,
                Some(Refusal::new(Code::LocalPolicy, "not for `root`")),
            )
            .await;
        offer
    };
    let (answer, offer) = tokio::join!(api.open("pump"), refuse);
    answer.refused(Code::LocalPolicy);
    assert_eq!(answer.body["detail"], "not for `root`");
    assert_eq!(api.end_of(offer.tunnel).await, "E_LOCAL_POLICY");
    // What was refused cannot be attached either.
    assert_eq!(agent.attach(&offer).await.map(drop), Err(Code::TunnelClosed));
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_device_that_does_not_answer_is_silent() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (answer, offer) = tokio::join!(api.open("pump"), agent.offer());
    answer.refused(Code::DeviceSilent);
    assert_eq!(
        api.tunnel(offer.tunnel).await.end_reason.as_deref(),
        Some("E_DEVICE_SILENT")
    );
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_device_that_leaves_while_it_is_asked_is_offline() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let leave = async {
        agent.offer().await;
        agent.connection.close(0u32.into(), b"");
    };
    let (answer, ()) = tokio::join!(api.open("pump"), leave);
    answer.refused(Code::DeviceOffline);
    world.server.shutdown().await;
}

/// THREATS SRV-13, POL-01: who may not see a device cannot tell it from one that is not there.
#[tokio::test]
async fn a_device_that_may_not_be_seen_is_as_one_that_is_not_there() {
    let world = World::new().await;
    let (guest, device) = (world.operator("gus", "guests").await, world.device("pump").await);
    let _agent = Agent::link(&world, &device).await;
    let api = world.api(&guest);
    let (hidden, missing) = (api.open("pump").await, api.open("pond").await);
    hidden.refused(Code::NotFound);
    assert_eq!(hidden.body, missing.body);
    assert_eq!(
        api.get("/v1/devices/pump").await.body,
        api.get("/v1/devices/pond").await.body
    );
    assert_eq!(api.get("/v1/devices").await.good::<Vec<Device>>().len(), 0);
    let seen: Vec<Device> = world.api(&world.admin).get("/v1/devices").await.good();
    assert!(
        seen[0]
            .link
            .as_ref()
            .is_some_and(|link| link.carrier == "udp" && !link.overdue)
    );
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_service_that_policy_denies_is_refused_and_why_is_for_those_who_may_know() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let _agent = Agent::link(&world, &device).await;
    let wish = json!({ "device": "pump", "services": ["ssh", "vault"] });
    let denied = world.api(&tess).post("/v1/tunnels", &wish).await;
    denied.refused(Code::PolicyDeny);
    assert_eq!(denied.body["detail"], "service `vault`");

    let forbid = "permit (principal, action, resource);\n\
                  @id(\"no-vaults\") forbid (principal, action == Action::\"connect\", resource) \
                  when { resource.name == \"vault\" };";
    let admin = world.api(&world.admin);
    admin
        .send(hyper::Method::PUT, "/v1/policy", Some(&json!({ "text": forbid })))
        .await
        .good::<serde_json::Value>();
    let denied = admin.post("/v1/tunnels", &wish).await;
    denied.refused(Code::PolicyDeny);
    assert_eq!(denied.body["detail"], "service `vault`; decided by no-vaults");
    world.server.shutdown().await;
}

/// A request that changes state runs to its end, also when who asked has left.
#[tokio::test]
async fn a_caller_who_leaves_does_not_leave_half_a_tunnel() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let offer = tokio::select! {
        offer = agent.offer() => offer,
        answer = api.open("pump") => panic!("{answer:?} came before the device had answered"),
    };
    agent.answer(offer.tunnel, None).await;
    assert!(agent.attach(&offer).await.is_ok());
    assert_eq!(api.tunnel(offer.tunnel).await.state, "opening");
    world.server.shutdown().await;
}
