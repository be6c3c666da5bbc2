//! Cutting by hand, and what devices confirm.

use serde_json::{Value, json};
use tunnel_proto::api::{CutReport, Device, OpenedTunnel, Status};
use tunnel_proto::bind::{Kind, Role};
use tunnel_proto::message::FromServer;
use tunnel_proto::{Code, TunnelId};

use crate::agent::Agent;
use crate::api::Api;
use crate::leg::Leg;
use crate::world::World;

async fn cut(api: &Api, what: Value) -> CutReport {
    api.post("/v1/cuts", &what).await.good()
}

#[tokio::test]
async fn a_cut_tunnel_is_stopped_told_confirmed_and_recorded() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    let mut agent = Agent::link(&world, &device).await;
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let attached = agent.attach(&offer).await.unwrap();
    let relay = world.server.udp_addr();
    let mut leg = Leg::new(relay, attached.circuit, Role::Destination, attached.leg_key).await;
    leg.bind().await;

    let what = json!({ "tunnel": opened.tunnel.to_string(), "reason": "found a stranger" });
    // Who opened it may close it, and has no right to cut.
    api.post("/v1/cuts", &what).await.refused(Code::PolicyDeny);
    let (told, waited, report) = tokio::join!(
        agent.ended(opened.tunnel),
        api.end_of(opened.tunnel),
        cut(&admin, what.clone())
    );
    assert_eq!((told, waited.as_str()), (Code::Cut, "E_CUT"));
    assert_eq!(report.cuts.len(), 1);
    assert_eq!(
        (report.cuts[0].device.as_str(), report.cuts[0].operator.as_str()),
        ("pump", "tess")
    );
    let confirmed = report.cuts[0].confirmed_micros.unwrap();
    assert!(confirmed >= report.cuts[0].stopped_micros);
    let ended = leg.control().await;
    assert_eq!(
        (ended.kind, Code::from_number(ended.value)),
        (Kind::Ended, Code::Cut)
    );
    admin.post("/v1/cuts", &what).await.refused(Code::NotFound);

    let audit = crate::audit::wait_for(&world, "cut.confirmed").await;
    assert_eq!(audit["late"], false);
    let audit = admin.audit().await;
    let of = |kind: &str| audit.iter().find(|(one, _)| one == kind).unwrap().1.clone();
    assert_eq!(of("cut.ordered")["reason"], "found a stranger");
    assert_eq!(of("tunnel.ended")["reason"], "E_CUT");
    assert_eq!(of("tunnel.ended")["by"], "operator/root");
    world.server.shutdown().await;
}

#[tokio::test]
async fn a_cut_meets_its_target_and_nobody_else() {
    let world = World::new().await;
    let tess = world.operator("tess", "technicians").await;
    let (pump, pond) = (world.device("pump").await, world.device("pond").await);
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    let mut agents = tokio::task::JoinSet::new();
    agents.spawn(Agent::link(&world, &pump).await.serve());
    agents.spawn(Agent::link(&world, &pond).await.serve());
    for (what, left) in [
        (json!({ "device": "pump" }), [false, true, false, true]),
        (json!({ "operator": "tess" }), [false, false, true, true]),
        (json!({ "operator_group": "admins" }), [true, true, false, false]),
        (json!({ "operator_group": "nobody" }), [true; 4]),
        (json!({ "device_group": "nobody" }), [true; 4]),
    ] {
        let mut tunnels: Vec<TunnelId> = Vec::new();
        for (who, device) in [(&api, "pump"), (&api, "pond"), (&admin, "pump"), (&admin, "pond")] {
            tunnels.push(who.open(device).await.good::<OpenedTunnel>().tunnel);
        }
        let report = cut(&admin, what.clone()).await;
        let met = left.iter().filter(|left| !**left).count();
        assert_eq!(report.cuts.len(), met, "{what}");
        assert!(report.cuts.iter().all(|cut| cut.confirmed_micros.is_some()));
        for (tunnel, left) in tunnels.into_iter().zip(left) {
            assert_eq!(admin.tunnel(tunnel).await.state != "ended", left, "{what}");
            admin.close(tunnel).await.good::<Value>();
        }
    }
    for (what, code) in [
        (json!({}), Code::BadRequest),
        (json!({ "device": "pump", "operator": "tess" }), Code::BadRequest),
        (json!({ "device": "a b" }), Code::BadName),
    ] {
        admin.post("/v1/cuts", &what).await.refused(code);
    }
    world.server.shutdown().await;
}

/// A cut that is not confirmed is an alarm, also after a restart, and over when the device is back and confirms.
#[tokio::test]
async fn an_unconfirmed_cut_is_an_alarm_until_the_device_confirms_late() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let admin = world.api(&world.admin);
    let mut agent = Agent::link(&world, &device).await;
    let (opened, _) = agent.opened(&admin, "pump").await;
    let opened: OpenedTunnel = opened.good();
    // It hears of the cut and says nothing.
    let (told, report) = tokio::join!(
        agent.next(),
        cut(&admin, json!({ "tunnel": opened.tunnel.to_string() }))
    );
    assert!(matches!(told, FromServer::EndTunnel(_)));
    assert_eq!(report.cuts[0].confirmed_micros, None);
    let alarm = crate::audit::wait_for(&world, "cut.unconfirmed").await;
    assert_eq!(alarm["reason"], "E_CUT");

    let world = world.restart().await;
    let admin = world.api(&world.admin);
    let alarms = || async {
        let status: Status = admin.get("/v1/status").await.good();
        let device: Device = admin.get("/v1/devices/pump").await.good();
        (status.unconfirmed_cuts, device.unconfirmed_cuts)
    };
    assert_eq!(alarms().await, (Some(1), 1));

    // Asked again with the reason, it confirms; a second confirmation changes nothing.
    let mut agent = Agent::link_with(&world, &device, &[opened.tunnel]).await.unwrap();
    assert!(agent.welcome.ended.is_empty());
    assert_eq!(agent.ended(opened.tunnel).await, Code::Cut);
    agent.end(opened.tunnel, Code::Cut).await;
    let confirmed = crate::audit::wait_for(&world, "cut.confirmed").await;
    assert_eq!(confirmed["late"], true);
    assert_eq!(alarms().await, (Some(0), 0));
    let kinds = admin.audit().await;
    for kind in ["cut.unconfirmed", "cut.confirmed"] {
        assert_eq!(kinds.iter().filter(|(one, _)| one == kind).count(), 1, "{kind}");
    }
    world.server.shutdown().await;
}

/// A device that has lost the tunnel altogether confirms by its list of what is alive.
#[tokio::test]
async fn a_device_that_was_started_anew_confirms_by_what_it_does_not_have() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let admin = world.api(&world.admin);
    let mut agent = Agent::link(&world, &device).await;
    let (opened, _) = agent.opened(&admin, "pump").await;
    opened.good::<OpenedTunnel>();
    agent.connection.close(0u32.into(), b"");
    crate::audit::wait_for(&world, "device.unlinked").await;
    let report = cut(&admin, json!({ "device": "pump" })).await;
    assert_eq!(
        report.cuts[0].confirmed_micros, None,
        "nobody is there to confirm"
    );
    let _agent = Agent::link(&world, &device).await;
    crate::audit::wait_for(&world, "cut.confirmed").await;
    world.server.shutdown().await;
}
