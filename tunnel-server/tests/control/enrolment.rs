//! Coming into the fleet.

use serde_json::json;
use tunnel_certs::{KeyPair, request};
use tunnel_proto::Code;
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::keys::Secret;

use crate::agent::Agent;
use crate::world::{World, ask_to_enrol, enrol, enrol_with};

#[tokio::test]
async fn a_code_makes_what_it_says_as_often_as_it_says() {
    let world = World::new().await;
    let server = world.server.tcp_addr();
    let code = world
        .code(json!({ "kind": "device", "group": "pumps", "uses": 2 }))
        .await;
    let first = enrol(server, &code, Some("pump-1")).await.unwrap();
    assert_eq!(first.identity.to_string(), "spiffe://fleet.test/device/pump-1");
    enrol(server, &code, Some("pump-2")).await.unwrap();
    assert_eq!(
        enrol(server, &code, Some("pump-3")).await.err().as_deref(),
        Some("E_ENROL_TOKEN_UNKNOWN")
    );
    let device: tunnel_proto::api::Device = world.api(&world.admin).get("/v1/devices/pump-1").await.good();
    assert_eq!(device.groups, ["pumps"]);
    world.server.shutdown().await;
}

/// THREATS ENR-06.
#[tokio::test]
async fn the_same_key_gets_the_same_certificate_again() {
    let world = World::new().await;
    let code = world.code(json!({ "kind": "device", "ids": ["pump"] })).await;
    let csr = request(&KeyPair::generate().unwrap()).unwrap();
    let first = ask_to_enrol(world.server.tcp_addr(), &code, None, &csr).await;
    let again = ask_to_enrol(world.server.tcp_addr(), &code, None, &csr).await;
    assert_eq!((first.status, &first.body), (200, &again.body));
    world.server.shutdown().await;
}

/// THREATS ENR-01.
#[tokio::test]
async fn a_code_that_is_used_many_times_at_once_makes_one() {
    let world = World::new().await;
    let code = world.code(json!({ "kind": "device", "ids": ["pump"] })).await;
    let attempts = (0..10).map(|_| enrol(world.server.tcp_addr(), &code, None));
    let outcomes = futures_util::future::join_all(attempts).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    world.server.shutdown().await;
}

/// THREATS ENR-02, ENR-03, ENR-04.
#[tokio::test]
async fn what_a_code_does_not_give_is_refused() {
    let world = World::new().await;
    let server = world.server.tcp_addr();
    let code = world.code(json!({ "kind": "device", "ids": ["pump"] })).await;
    let good = EnrolCode::from_text(&code).unwrap();
    let unknown = EnrolCode {
        secret: Secret::new([7; 32]),
        ..good
    }
    .to_text();
    assert_eq!(
        enrol(server, &unknown, Some("pump")).await.err().as_deref(),
        Some("E_ENROL_TOKEN_UNKNOWN")
    );
    assert_eq!(
        enrol(server, &code, Some("pond")).await.err().as_deref(),
        Some("E_ENROL_CSR")
    );
    assert_eq!(
        enrol(server, &code, Some("-oProxyCommand=x"))
            .await
            .err()
            .as_deref(),
        Some("E_BAD_NAME")
    );
    for csr in [
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        ask_to_enrol(server, &code, None, csr)
            .await
            .refused(Code::EnrolCsr);
    }
    // None of that used the code up.
    enrol(server, &code, None).await.unwrap();
    world.server.shutdown().await;
}

/// THREATS ENR-07.
#[tokio::test]
async fn an_id_is_replaced_only_by_a_code_that_says_so_and_the_old_key_is_cut() {
    let world = World::new().await;
    let server = world.server.tcp_addr();
    let old = world.device("pump").await;
    let agent = Agent::link(&world, &old).await;
    let plain = world.code(json!({ "kind": "device", "ids": ["pump"] })).await;
    assert_eq!(
        enrol(server, &plain, None).await.err().as_deref(),
        Some("E_ENROL_TAKEN")
    );
    let replacing = world
        .code(json!({ "kind": "device", "ids": ["pump"], "replace": true }))
        .await;
    let new = enrol(server, &replacing, None).await.unwrap();
    agent.connection.closed().await;
    assert!(Agent::link_with(&world, &old, &[]).await.is_err());
    Agent::link(&world, &new).await;
    world.server.shutdown().await;
}

/// THREATS ENR-08.
#[tokio::test]
async fn what_was_revoked_does_not_come_back_with_a_fresh_code() {
    let world = World::new().await;
    let server = world.server.tcp_addr();
    let key = KeyPair::generate().unwrap();
    let code = world.code(json!({ "kind": "device", "ids": ["pump"] })).await;
    let pump = enrol_with(server, &code, None, &key).await.unwrap();
    let fresh = world
        .code(json!({ "kind": "device", "group": "pumps", "uses": 9, "replace": true }))
        .await;
    let revoke = json!({ "identity": pump.identity.to_string() });
    world
        .api(&world.admin)
        .post("/v1/revocations", &revoke)
        .await
        .good::<serde_json::Value>();
    assert!(enrol(server, &fresh, Some("pump")).await.is_err());
    assert!(enrol_with(server, &fresh, Some("pond"), &key).await.is_err());
    enrol(server, &fresh, Some("pond")).await.unwrap();
    world.server.shutdown().await;
}

#[tokio::test]
async fn an_order_for_a_code_is_checked() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    for (order, code) in [
        (json!({ "kind": "server", "ids": ["n2"] }), Code::BadRequest),
        (json!({ "kind": "device" }), Code::BadRequest),
        (json!({ "kind": "device", "ids": ["a b"] }), Code::BadName),
        (
            json!({ "kind": "device", "ids": ["a"], "group": "*" }),
            Code::BadName,
        ),
        (
            json!({ "kind": "device", "ids": ["a"], "uses": 0 }),
            Code::BadRequest,
        ),
        (
            json!({ "kind": "device", "ids": ["a"], "ttl_secs": 0 }),
            Code::BadRequest,
        ),
        (
            json!({ "kind": "device", "ids": ["a"], "tenant": "x" }),
            Code::BadRequest,
        ),
    ] {
        api.post("/v1/enrol-codes", &order).await.refused(code);
    }
    world.server.shutdown().await;
}

/// THREATS SRV-21.
#[tokio::test]
async fn who_guesses_codes_is_slowed_down() {
    let world = World::new().await;
    let server = world.server.tcp_addr();
    let code = world.code(json!({ "kind": "device", "ids": ["pump"] })).await;
    let wrong = EnrolCode {
        secret: Secret::new([7; 32]),
        ..EnrolCode::from_text(&code).unwrap()
    }
    .to_text();
    let csr = request(&KeyPair::generate().unwrap()).unwrap();
    let guesses = (0..60).map(|_| ask_to_enrol(server, &wrong, None, &csr));
    let answers = futures_util::future::join_all(guesses).await;
    let limited = answers.iter().filter(|answer| answer.code() == "E_LIMIT").count();
    assert!((10..=30).contains(&limited), "{limited}");
    let audit = world.api(&world.admin).audit().await;
    assert!(audit.iter().filter(|(kind, _)| kind == "enrol.guessed").count() <= 2);
    world.server.shutdown().await;
}
