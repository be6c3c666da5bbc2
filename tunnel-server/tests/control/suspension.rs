//! Quarantine of devices and the disabling of operators, also in a race with what is just opening.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tunnel_certs::{KeyPair, request};
use tunnel_proto::api::{Device, Lifted, OpenedTunnel, Revoked, Suspensions, Tunnel};
use tunnel_proto::message::{FromAgent, FromServer};
use tunnel_proto::{Code, Identity};

use crate::agent::Agent;
use crate::api::Api;
use crate::world::{Member, World, enrol};

async fn suspend(api: &Api, identity: &Identity) -> u64 {
    let request = json!({ "identity": identity.to_string(), "reason": "to be looked at" });
    let done: Revoked = api.post("/v1/suspensions", &request).await.good();
    done.tunnels_cut
}

async fn lift(api: &Api, identity: &Identity) -> bool {
    let request = json!({ "identity": identity.to_string() });
    let done: Lifted = api.post("/v1/suspensions/lift", &request).await.good();
    done.lifted
}

/// THREATS T8, ENR-08.
#[tokio::test]
async fn a_device_in_quarantine_gets_nothing_until_it_is_released() {
    let world = World::new().await;
    let (pump, pond) = (world.device("pump").await, world.device("pond").await);
    let api = world.api(&world.admin);
    let (mut agent, mut other) = (Agent::link(&world, &pump).await, Agent::link(&world, &pond).await);
    let (opened, offer) = agent.opened(&api, "pump").await;
    let (of_other, _) = other.opened(&api, "pond").await;
    let (opened, of_other): (OpenedTunnel, OpenedTunnel) = (opened.good(), of_other.good());

    let (told, cut) = tokio::join!(agent.ended(opened.tunnel), suspend(&api, &pump.identity));
    assert_eq!((told, cut), (Code::Quarantined, 1));
    assert!(agent.attach(&offer).await.is_err());
    assert_eq!(api.end_of(opened.tunnel).await, "E_QUARANTINED");
    assert_eq!(api.tunnel(of_other.tunnel).await.state, "opening");
    api.open("pump").await.refused(Code::Quarantined);
    let shown: Device = api.get("/v1/devices/pump").await.good();
    assert!(shown.quarantined && shown.link.is_some());

    // Neither a fresh certificate nor a new enrolment under the same id.
    let pem = request(&KeyPair::generate().unwrap()).unwrap();
    let der: rustls_pki_types::CertificateSigningRequestDer<'_> =
        rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
    agent.say(&FromAgent::Renew(der.to_vec())).await;
    assert!(
        matches!(agent.next().await, FromServer::RenewRefused(refusal) if refusal.code == Code::Quarantined)
    );
    let code = json!({ "kind": "device", "ids": ["pump"], "replace": true });
    let code = world.code(code).await;
    let again = enrol(world.server.tcp_addr(), &code, None).await;
    assert_eq!(again.err().as_deref(), Some("E_QUARANTINED"));

    // It outlives a restart, and ends when it is lifted: then everything works, but for what was cut.
    let world = world.restart().await;
    let api = world.api(&world.admin);
    let mut agent = Agent::link(&world, &pump).await;
    api.open("pump").await.refused(Code::Quarantined);
    let listed: Suspensions = api.get("/v1/suspensions").await.good();
    assert_eq!(listed.members.len(), 1);
    assert_eq!(listed.members[0].reason.as_deref(), Some("to be looked at"));
    assert!(lift(&api, &pump.identity).await && !lift(&api, &pump.identity).await);
    let (fresh, _) = agent.opened(&api, "pump").await;
    fresh.good::<OpenedTunnel>();
    assert_eq!(api.tunnel(opened.tunnel).await.state, "ended");
    enrol(world.server.tcp_addr(), &code, None).await.unwrap();
    let kinds: Vec<_> = api.audit().await.into_iter().map(|(kind, _)| kind).collect();
    for kind in ["device.quarantined", "device.released"] {
        assert_eq!(kinds.iter().filter(|one| *one == kind).count(), 1, "{kind}");
    }
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_disabled_operator_is_cut_and_answered_nothing_until_it_is_enabled() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    let mut agent = Agent::link(&world, &device).await;
    let (opened, _) = agent.opened(&api, "pump").await;
    let (of_admin, _) = agent.opened(&admin, "pump").await;
    let (opened, of_admin): (OpenedTunnel, OpenedTunnel) = (opened.good(), of_admin.good());
    let (told, waited, cut) = tokio::join!(
        agent.ended(opened.tunnel),
        api.end_of(opened.tunnel),
        suspend(&admin, &tess.identity)
    );
    assert_eq!(
        (told, waited.as_str(), cut),
        (Code::OperatorDisabled, "E_OPERATOR_DISABLED", 1)
    );
    assert_eq!(admin.tunnel(of_admin.tunnel).await.state, "opening");
    api.get("/v1/status").await.refused(Code::OperatorDisabled);
    api.attach(opened.tunnel, &opened.token)
        .await
        .refused(Code::OperatorDisabled);
    let code = world
        .code(json!({ "kind": "operator", "ids": ["tess"], "replace": true }))
        .await;
    let again = enrol(world.server.tcp_addr(), &code, None).await;
    assert_eq!(again.err().as_deref(), Some("E_OPERATOR_DISABLED"));
    assert!(lift(&admin, &tess.identity).await);
    let (fresh, _) = agent.opened(&api, "pump").await;
    fresh.good::<OpenedTunnel>();
    world.server.shutdown().await;
}

#[tokio::test]
async fn who_is_nobody_or_oneself_is_not_suspended() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    for (identity, code) in [
        ("pump", Code::BadName),
        ("spiffe://other.test/device/pump", Code::BadName),
        ("spiffe://fleet.test/server/n1", Code::BadRequest),
        ("spiffe://fleet.test/device/nobody", Code::NotFound),
        ("spiffe://fleet.test/operator/root", Code::BadRequest),
    ] {
        api.post("/v1/suspensions", &json!({ "identity": identity }))
            .await
            .refused(code);
    }
    let long = json!({ "identity": "spiffe://fleet.test/device/x", "reason": "x".repeat(513) });
    api.post("/v1/suspensions", &long).await.refused(Code::BadRequest);
    world.server.shutdown().await;
}

/// THREATS POL-05: 100 tunnels that run and 100 that are just opening.
#[tokio::test]
async fn a_quarantine_cuts_what_runs_and_lets_nothing_open_that_is_under_way() {
    const MANY: usize = 100;
    let world = World::new().await;
    let device = world.device("pump").await;
    let api = world.api(&world.admin);
    let mut tasks = JoinSet::new();
    tasks.spawn(Agent::link(&world, &device).await.serve());
    let mut running = Vec::new();
    for _ in 0..MANY {
        running.push(api.open("pump").await.good::<OpenedTunnel>().tunnel);
    }
    let mut opening = JoinSet::new();
    for _ in 0..MANY {
        let api = api.clone();
        opening.spawn(async move { insist(&api).await });
    }
    // In the middle of them.
    let first = opening.join_next().await.unwrap().unwrap();
    let cut = suspend(&api, &device.identity).await;
    assert!(cut >= MANY as u64, "{cut}");
    let mut answers = opening.join_all().await;
    answers.push(first);
    let live: Vec<Tunnel> = api.get("/v1/tunnels").await.good();
    assert!(live.is_empty(), "{live:?}");
    for id in running {
        assert_eq!(api.tunnel(id).await.end_reason.as_deref(), Some("E_QUARANTINED"));
    }
    for answer in answers {
        if answer.status == 200 {
            let opened: OpenedTunnel = answer.good();
            let attached = api.attach(opened.tunnel, &opened.token).await;
            assert_ne!(attached.status, 200);
        } else {
            answer.refused(Code::Quarantined);
        }
    }
    world.server.shutdown().await;
}

/// Asks for a tunnel, again and again where the server takes no more connections of one address at once.
async fn insist(api: &Api) -> crate::api::Answer {
    let ask = json!({ "device": "pump", "services": ["ssh"] });
    loop {
        let request = crate::api::request(Method::POST, "/v1/tunnels", Some(&ask));
        match api.try_send(request).await {
            Ok(answer) => return answer,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// What came of one race.
#[derive(PartialEq)]
enum Race {
    OpenedBefore,
    Refused,
}

/// THREATS TOK-14: 1,000 races of a revocation against an opening. Nothing is open after the acknowledgement.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_revocations_race_an_opening_and_none_opens_afterwards() {
    const RACES: usize = 1000;
    const AT_ONCE: usize = 20;
    let world = World::new().await;
    let device = world.device("pump").await;
    let mut tasks = JoinSet::new();
    tasks.spawn(Agent::link(&world, &device).await.serve());
    let code = json!({ "kind": "operator", "ids": [], "group": "technicians", "uses": RACES });
    let code = world.code(code).await;
    let (mut before, mut refused) = (0, 0);
    for first in (0..RACES).step_by(AT_ONCE) {
        let mut races = JoinSet::new();
        for number in first..first + AT_ONCE {
            let name = format!("racer-{number}");
            let racer = enrol(world.server.tcp_addr(), &code, Some(&name)).await.unwrap();
            races.spawn(race(world.api(&racer), world.api(&world.admin), racer));
        }
        for race in races.join_all().await {
            match race {
                Race::OpenedBefore => before += 1,
                Race::Refused => refused += 1,
            }
        }
    }
    assert!(
        before > 0 && refused > 0,
        "{before} opened first, {refused} were refused: the two never raced"
    );
    world.server.shutdown().await;
}

async fn race(racer: Api, admin: Api, member: Member) -> Race {
    let revoke = json!({ "identity": member.identity.to_string() });
    let ask = json!({ "device": "pump", "services": ["ssh"] });
    let ask = crate::api::request(Method::POST, "/v1/tunnels", Some(&ask));
    let late = Duration::from_micros(fastrand::u64(..20_000));
    let (opened, ()) = tokio::join!(racer.try_send(ask), async {
        tokio::time::sleep(late).await;
        admin.post("/v1/revocations", &revoke).await.good::<Revoked>();
        // The acknowledgement is there: from here on nothing of this operator may be alive.
        assert!(!has_a_tunnel(&admin, &member.identity).await);
    });
    assert!(!has_a_tunnel(&admin, &member.identity).await);
    match opened {
        Ok(answer) if answer.status == 200 => {
            let opened: OpenedTunnel = answer.good();
            assert_eq!(admin.tunnel(opened.tunnel).await.state, "ended");
            Race::OpenedBefore
        }
        _ => Race::Refused,
    }
}

async fn has_a_tunnel(admin: &Api, operator: &Identity) -> bool {
    let live: Vec<Tunnel> = admin.get("/v1/tunnels").await.good();
    let operator = operator.to_string();
    live.iter()
        .any(|tunnel| operator.ends_with(&format!("/{}", tunnel.operator)))
}
