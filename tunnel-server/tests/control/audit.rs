//! The record of it all.

use serde_json::{Value, json};
use tunnel_proto::api::{AuditPage, OpenedTunnel};
use tunnel_proto::audit::{Checkpoint, Head, verify};
use tunnel_proto::bind::Role;
use tunnel_proto::cose::VerifyingKey;
use tunnel_proto::ids::unhex;
use tunnel_proto::message::{FromAgent, SessionEnded};
use tunnel_proto::{Code, TunnelId};

use crate::agent::Agent;
use crate::api::SOON;
use crate::leg::Leg;
use crate::world::World;

/// Waits until the chain has a record of a kind.
pub(crate) async fn wait_for(world: &World, kind: &str) -> Value {
    let api = world.api(&world.admin);
    let found = async {
        loop {
            let records = api.audit().await;
            if let Some((_, body)) = records.into_iter().find(|(found, _)| found == kind) {
                return body;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, found)
        .await
        .unwrap_or_else(|_| panic!("waited for `{kind}`"))
}

fn session(tunnel: TunnelId, refused: Option<Code>) -> FromAgent {
    let (service, millis, bytes_in, bytes_out) = ("ssh".to_owned(), 5, 10, 20);
    FromAgent::SessionEnded(SessionEnded {
        tunnel,
        service,
        refused,
        millis,
        bytes_in,
        bytes_out,
        end: None,
        number: None,
        dropped: None,
    })
}

/// THREATS I9, AUD-07.
#[tokio::test]
async fn each_event_of_a_tunnels_life_is_there_once_and_in_order() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, mut agent) = (world.api(&tess), Agent::link(&world, &device).await);
    wait_for(&world, "device.linked").await;
    let denied = json!({ "device": "pump", "services": ["vault"], "reason": "curious" });
    api.post("/v1/tunnels", &denied).await.refused(Code::PolicyDeny);
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let attached = agent.attach(&offer).await.unwrap();
    let source = api.attach_to(&opened).await;
    api.attach(opened.tunnel, &opened.token)
        .await
        .refused(Code::TokenReplay);
    let relay = world.server.udp_addr();
    let mut there = Leg::new(relay, attached.circuit, Role::Destination, attached.leg_key).await;
    let key = tunnel_proto::keys::Secret::new(unhex(&source.leg_key).unwrap());
    let mut here = Leg::new(relay, source.circuit, Role::Source, key).await;
    there.bind().await;
    here.bind().await;
    wait_for(&world, "tunnel.connected").await;
    agent.say(&session(opened.tunnel, None)).await;
    agent
        .say(&session(opened.tunnel, Some(Code::TargetRefused)))
        .await;
    agent.say(&session(TunnelId::from_bytes([9; 16]), None)).await;
    agent.end(opened.tunnel, Code::TunnelIdle).await;
    wait_for(&world, "tunnel.ended").await;

    let audit = world.api(&world.admin).audit().await;
    let kinds: Vec<&str> = audit.iter().map(|(kind, _)| kind.as_str()).collect();
    let from = kinds.iter().position(|kind| *kind == "device.linked").unwrap();
    let mut life = kinds[from..].to_vec();
    // The two sessions share a commit; their order is not told.
    life[7..9].sort_unstable();
    assert_eq!(
        life,
        [
            "device.linked",
            "tunnel.denied",
            "tunnel.opened",
            "tunnel.attached",
            "tunnel.attached",
            "token.refused",
            "tunnel.connected",
            "session.ended",
            "session.refused",
            "tunnel.ended",
        ],
    );
    let body = |kind: &str| -> &Value { &audit.iter().find(|(found, _)| found == kind).unwrap().1 };
    assert_eq!(body("tunnel.denied")["reason"], "curious");
    assert_eq!(body("tunnel.opened")["operator"], "tess");
    assert_eq!(body("tunnel.opened")["policies"], json!(["technicians-ssh"]));
    assert_eq!(body("tunnel.ended")["by"], "device/pump");
    assert_eq!(body("tunnel.ended")["reason"], "E_TUNNEL_IDLE");
    assert_eq!(body("token.refused")["reason"], "E_TOKEN_REPLAY");
    world.server.shutdown().await;
}

/// THREATS AUD-02, I11.
#[tokio::test]
async fn the_chain_has_a_signed_head_and_no_secret() {
    let world = World::new().await;
    world.device("pump").await;
    let page: AuditPage = world.api(&world.admin).get("/v1/audit").await.good();
    let head = verify(Head::START, &page.records).unwrap();
    let key = VerifyingKey::from_bytes(unhex(&page.checkpoint_key).unwrap());
    let checkpoint = base64::Engine::decode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        page.checkpoint.unwrap(),
    );
    let checkpoint = Checkpoint::verify(&checkpoint.unwrap(), &key).unwrap();
    assert_eq!((checkpoint.seq, checkpoint.hash), (head.seq, head.hash));
    checkpoint.fits(&page.records).unwrap();
    let text = serde_json::to_string(&page.records).unwrap();
    for secret in ["tnl1_", "PRIVATE", "BEGIN"] {
        assert!(!text.contains(secret), "{secret}");
    }
    world.server.shutdown().await;
}

#[tokio::test]
async fn the_chain_comes_in_pages() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    let first: AuditPage = api.get("/v1/audit?limit=1").await.good();
    assert_eq!(
        first.records.iter().map(|record| record.seq).collect::<Vec<_>>(),
        [1]
    );
    let next: AuditPage = api.get("/v1/audit?after=1&limit=1").await.good();
    assert_eq!(
        next.records.iter().map(|record| record.seq).collect::<Vec<_>>(),
        [2]
    );
    api.get("/v1/audit?from=1").await.refused(Code::BadRequest);
    world.server.shutdown().await;
}
