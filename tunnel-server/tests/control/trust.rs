//! Who is let in, and what happens when trust ends.

use hyper::Method;
use serde_json::{Value, json};
use tunnel_proto::api::{Device, OpenedTunnel, PolicyState, Revoked};
use tunnel_proto::message::{FromServer, Ping};
use tunnel_proto::{Code, message::FromAgent};

use crate::agent::Agent;
use crate::world::World;

/// Every route that needs an operator.
const ROUTES: [(&str, &str); 25] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/devices"),
    ("GET", "/v1/devices/pump"),
    ("GET", "/v1/tunnels"),
    ("POST", "/v1/tunnels"),
    ("GET", "/v1/tunnels/00000000000000000000000000000000"),
    ("DELETE", "/v1/tunnels/00000000000000000000000000000000"),
    ("POST", "/v1/tunnels/00000000000000000000000000000000/attach"),
    ("GET", "/v1/tunnels/00000000000000000000000000000000/end"),
    ("POST", "/v1/enrol-codes"),
    ("POST", "/v1/revocations"),
    ("POST", "/v1/tunnels/00000000000000000000000000000000/rotate"),
    ("POST", "/v1/cuts"),
    ("GET", "/v1/suspensions"),
    ("POST", "/v1/suspensions"),
    ("POST", "/v1/suspensions/lift"),
    ("PUT", "/v1/policy"),
    ("GET", "/v1/policy/revisions"),
    ("GET", "/v1/policy/revisions/1"),
    ("POST", "/v1/why"),
    ("GET", "/v1/groups"),
    ("PUT", "/v1/groups/admins/operator/eve"),
    ("GET", "/v1/devices/pump/facts"),
    ("PATCH", "/v1/devices/pump/facts"),
    ("GET", "/v1/audit"),
];

/// THREATS CRT-04, CRT-09.
#[tokio::test]
async fn only_operators_are_served_and_nobody_without_a_certificate() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (device, nobody) = (world.api(&device), world.api_of_nobody());
    for (method, path) in ROUTES {
        let method: Method = method.parse().unwrap();
        let body = (method != Method::GET && method != Method::DELETE).then(|| json!({}));
        device
            .send(method.clone(), path, body.as_ref())
            .await
            .refused(Code::CertUsage);
        nobody
            .send(method, path, body.as_ref())
            .await
            .refused(Code::Unauthenticated);
    }
    nobody.get("/v1/nothing").await.refused(Code::NotFound);
    nobody
        .send(Method::PUT, "/v1/status", None)
        .await
        .refused(Code::BadRequest);
    world.server.shutdown().await;
}

/// THREATS CRT-04: an operator is no agent.
#[tokio::test]
async fn an_operator_gets_no_control_link() {
    let world = World::new().await;
    assert!(Agent::link_with(&world, &world.admin, &[]).await.is_err());
    world.server.shutdown().await;
}

#[tokio::test]
async fn administration_needs_its_rights() {
    let world = World::new().await;
    let tess = world.operator("tess", "technicians").await;
    let api = world.api(&tess);
    let code = json!({ "kind": "device", "ids": ["x"] });
    let revoke = json!({ "identity": "spiffe://fleet.test/operator/root" });
    let policy = json!({ "text": "permit (principal, action, resource);" });
    api.post("/v1/enrol-codes", &code).await.refused(Code::PolicyDeny);
    api.post("/v1/revocations", &revoke)
        .await
        .refused(Code::PolicyDeny);
    for path in ["/v1/suspensions", "/v1/suspensions/lift"] {
        api.post(path, &revoke).await.refused(Code::PolicyDeny);
    }
    api.send(Method::PUT, "/v1/policy", Some(&policy))
        .await
        .refused(Code::PolicyDeny);
    api.get("/v1/policy").await.refused(Code::PolicyDeny);
    api.get("/v1/audit").await.refused(Code::PolicyDeny);
    world.server.shutdown().await;
}

/// THREATS CRT-02, POL-05, I6.
#[tokio::test]
async fn a_revoked_operator_is_cut_and_let_in_no_more() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    let mut agent = Agent::link(&world, &device).await;
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let revoke = json!({ "identity": tess.identity.to_string(), "reason": "laptop lost" });
    let (told, revoked, waited) = tokio::join!(
        agent.ended(offer.tunnel),
        admin.post("/v1/revocations", &revoke),
        admin.end_of(opened.tunnel),
    );
    assert_eq!((told, waited.as_str()), (Code::Revoked, "E_REVOKED"));
    assert_eq!(revoked.good::<Revoked>().tunnels_cut, 1);
    let refused = api
        .try_send(crate::api::request(Method::GET, "/v1/status", None))
        .await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(agent.attach(&offer).await.is_err());
    world.server.shutdown().await;
}

/// THREATS CRT-02.
#[tokio::test]
async fn a_revoked_device_loses_its_link_and_gets_no_other() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (api, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let (opened, _) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let revoke = json!({ "identity": device.identity.to_string() });
    assert_eq!(
        api.post("/v1/revocations", &revoke)
            .await
            .good::<Revoked>()
            .tunnels_cut,
        1
    );
    assert_eq!(api.end_of(opened.tunnel).await, "E_REVOKED");
    agent.connection.closed().await;
    assert!(Agent::link_with(&world, &device, &[]).await.is_err());
    api.open("pump").await.refused(Code::NotFound);
    // A second time is no error, and no second event.
    assert_eq!(
        api.post("/v1/revocations", &revoke)
            .await
            .good::<Revoked>()
            .tunnels_cut,
        0
    );
    assert_eq!(
        api.audit()
            .await
            .iter()
            .filter(|(kind, _)| kind == "identity.revoked")
            .count(),
        1
    );
    world.server.shutdown().await;
}

/// THREATS SRV-14: a revocation of what is no member of this fleet.
#[tokio::test]
async fn what_is_no_member_of_the_fleet_cannot_be_revoked() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    for (identity, code) in [
        ("pump", Code::BadName),
        ("spiffe://other.test/device/pump", Code::BadName),
        ("spiffe://fleet.test/server/n1", Code::BadRequest),
    ] {
        api.post("/v1/revocations", &json!({ "identity": identity }))
            .await
            .refused(code);
    }
    let extra = json!({ "identity": "spiffe://fleet.test/device/x", "role": "admin" });
    api.post("/v1/revocations", &extra)
        .await
        .refused(Code::BadRequest);
    world.server.shutdown().await;
}

/// THREATS POL-04, POL-06.
#[tokio::test]
async fn a_policy_is_replaced_whole_and_cuts_what_it_no_longer_allows() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    let mut agent = Agent::link(&world, &device).await;
    let (of_tess, _) = agent.opened(&api, "pump").await;
    let (of_admin, _) = agent.opened(&admin, "pump").await;
    let (of_tess, of_admin): (OpenedTunnel, OpenedTunnel) = (of_tess.good(), of_admin.good());

    let before: PolicyState = admin.get("/v1/policy").await.good();
    let put = |text: String| {
        let admin = admin.clone();
        async move {
            admin
                .send(Method::PUT, "/v1/policy", Some(&json!({ "text": text })))
                .await
        }
    };
    let bad = put("permit (principal, action, resource)\n\nwhen { resource.colour };".into()).await;
    bad.refused(Code::BadRequest);
    assert!(
        bad.body["detail"].as_str().unwrap().contains("line "),
        "{}",
        bad.body
    );
    let check = json!({ "text": "permit (principal" });
    let checked: PolicyState = admin.post("/v1/policy/check", &check).await.good();
    assert!(!checked.errors.is_empty() && checked.revision == before.revision);
    assert_eq!(api.tunnel(of_tess.tunnel).await.state, "opening");

    let only_admins = "permit (principal in OperatorGroup::\"admins\", action, resource);";
    let (told, replaced) = tokio::join!(agent.ended(of_tess.tunnel), put(only_admins.into()));
    let replaced: PolicyState = replaced.good();
    assert_eq!(told, Code::PolicyChanged);
    assert_eq!(
        (replaced.tunnels_cut, replaced.revision),
        (Some(1), before.revision + 1)
    );
    assert_eq!(
        admin.tunnel(of_tess.tunnel).await.end_reason.as_deref(),
        Some("E_POLICY_CHANGED")
    );
    assert_eq!(admin.tunnel(of_admin.tunnel).await.state, "opening");
    api.open("pump").await.refused(Code::NotFound);
    let shown: PolicyState = admin.get("/v1/policy").await.good();
    assert_eq!(shown.text.as_deref(), Some(only_admins));
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_second_link_of_a_device_takes_the_place_of_the_first() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let first = Agent::link(&world, &device).await;
    let mut second = Agent::link(&world, &device).await;
    first.connection.closed().await;
    let (opened, _) = second.opened(&world.api(&world.admin), "pump").await;
    opened.good::<OpenedTunnel>();
    crate::audit::wait_for(&world, "device.unlinked").await;
    let audit = world.api(&world.admin).audit().await;
    let linked: Vec<&Value> = audit
        .iter()
        .filter(|(kind, _)| kind == "device.linked")
        .map(|(_, body)| body)
        .collect();
    assert_eq!(
        linked.iter().map(|body| &body["replaced"]).collect::<Vec<_>>(),
        [&json!(false), &json!(true)]
    );
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_keepalive_is_answered_and_proves_the_link() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut agent = Agent::link(&world, &device).await;
    let mut proof = 0;
    for seq in 0..2 {
        agent
            .say(&FromAgent::Ping(Ping {
                seq,
                proof,
                next_secs: 25,
                rtt_millis: Some(7),
                cost_bytes: Some(700),
                echo_after_millis: None,
            }))
            .await;
        let FromServer::Pong(pong) = agent.next().await else {
            panic!("no pong")
        };
        assert_eq!(pong.seq, seq);
        // What has not changed is not told again.
        assert_eq!(pong.seen_as.is_some(), seq == 0, "{:?}", pong.seen_as);
        assert!(pong.seen_as.is_none_or(|seen| seen.starts_with("127.0.0.1:")));
        proof = pong.proof;
    }
    let device: Device = world.api(&world.admin).get("/v1/devices/pump").await.good();
    let link = device.link.unwrap();
    assert_eq!(link.rtt_millis, Some(7));
    assert!(link.proven_millis_ago.is_some_and(|ago| ago < 20_000));
    world.server.shutdown().await;
}

/// THREATS AGT-15, turned round: what an agent of the future says does not break the link.
#[tokio::test]
async fn a_message_of_an_unknown_kind_is_passed_over() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut agent = Agent::link(&world, &device).await;
    agent.say_raw(&[0x82, 0x18, 0x63, 0x81, 0xa0]).await;
    agent
        .say(&FromAgent::Ping(Ping {
            seq: 4,
            proof: 0,
            next_secs: 25,
            rtt_millis: None,
            cost_bytes: None,
            echo_after_millis: None,
        }))
        .await;
    assert!(matches!(agent.next().await, FromServer::Pong(pong) if pong.seq == 4));
    agent.say_raw(b"no CBOR at all").await;
    agent.connection.closed().await;
    world.server.shutdown().await;
}

/// THREATS CRT-11, CRT-12.
#[tokio::test]
async fn a_certificate_is_renewed_once_for_a_key() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut agent = Agent::link(&world, &device).await;
    let key = tunnel_certs::KeyPair::generate().unwrap();
    let pem = tunnel_certs::request(&key).unwrap();
    let der = rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
    let der: rustls_pki_types::CertificateSigningRequestDer<'_> = der;
    let mut chains = Vec::new();
    for _ in 0..2 {
        agent.say(&FromAgent::Renew(der.to_vec())).await;
        let FromServer::Renewed(renewed) = agent.next().await else {
            panic!("not renewed")
        };
        chains.push(renewed.chain);
    }
    assert_eq!(chains[0], chains[1]);
    let chain: Vec<_> = chains[0]
        .iter()
        .map(|der| tunnel_certs::CertificateDer::from(der.to_vec()))
        .collect();
    let peer = world.ends.trust.verify(&chain, crate::world::now()).unwrap();
    assert_eq!((peer.identity, peer.key), (device.identity, key.key_hash()));
    agent.say(&FromAgent::Renew(b"no request".to_vec())).await;
    assert!(
        matches!(agent.next().await, FromServer::RenewRefused(refusal) if refusal.code == Code::EnrolCsr)
    );
    let audit = world.api(&world.admin).audit().await;
    assert_eq!(
        audit
            .iter()
            .filter(|(kind, _)| kind == "certificate.renewed")
            .count(),
        1
    );
    world.server.shutdown().await;
}
