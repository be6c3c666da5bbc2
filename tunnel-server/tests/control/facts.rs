//! Groups, facts and limits: what decisions are made from, and what changes with it.

use std::time::Instant;

use hyper::Method;
use serde_json::{Value, json};
use tunnel_proto::api::{Changed, DeviceFacts, GroupMember, OpenedTunnel, PolicyRevision, PolicyState};
use tunnel_proto::grant::Grant;
use tunnel_proto::message::{FromAgent, Report};
use tunnel_proto::{Code, TunnelId};

use crate::agent::Agent;
use crate::api::{Answer, Api, SOON};
use crate::world::World;

/// What lets everybody in, and can be followed by what narrows it.
const OPEN: &str = r#"
@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
@id("view") permit (principal, action == Action::"view", resource);
"#;

async fn apply(admin: &Api, rules: &str) -> PolicyState {
    let text = format!("{OPEN}\n{rules}");
    let body = json!({ "text": text });
    admin.send(Method::PUT, "/v1/policy", Some(&body)).await.good()
}

async fn set(admin: &Api, device: &str, facts: Value) -> Answer {
    let path = format!("/v1/devices/{device}/facts");
    admin
        .send(Method::PATCH, &path, Some(&json!({ "set": facts })))
        .await
}

async fn unset(admin: &Api, device: &str, fact: &str) -> Answer {
    let path = format!("/v1/devices/{device}/facts");
    admin
        .send(Method::PATCH, &path, Some(&json!({ "unset": [fact] })))
        .await
}

async fn state(api: &Api, tunnel: TunnelId) -> String {
    api.tunnel(tunnel).await.state
}

/// THREATS POL-04: who leaves a group loses what it had by it, at once, and nobody else does.
#[tokio::test]
async fn pol_04_leaving_a_group_cuts_what_it_gave() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    apply(
        &admin,
        r#"@id("pumps") permit (principal in OperatorGroup::"technicians", action == Action::"connect",
           resource in DeviceGroup::"pumps");"#,
    )
    .await;
    let mut agent = Agent::link(&world, &device).await;
    api.open("pump").await.refused(Code::PolicyDeny);
    let put = |path: &'static str| admin.send(Method::PUT, path, None);
    let delete = |path: &'static str| admin.send(Method::DELETE, path, None);
    let pump = "/v1/groups/pumps/device/pump";
    let tess = "/v1/groups/technicians/operator/tess";
    assert!(put(pump).await.good::<Changed>().changed);
    assert!(!put(pump).await.good::<Changed>().changed);
    for (leave, back) in [(pump, pump), (tess, tess)] {
        let (of_tess, _) = agent.opened(&api, "pump").await;
        let (of_admin, _) = agent.opened(&admin, "pump").await;
        let (of_tess, of_admin): (OpenedTunnel, OpenedTunnel) = (of_tess.good(), of_admin.good());
        let (left, told) = tokio::join!(delete(leave), agent.ended(of_tess.tunnel));
        assert_eq!(left.good::<Changed>().tunnels_cut, 1, "{leave}");
        assert_eq!(told, Code::PolicyChanged);
        assert_eq!(state(&admin, of_admin.tunnel).await, "opening");
        api.open("pump").await.refused(Code::PolicyDeny);
        assert!(put(back).await.good::<Changed>().changed);
    }
    let groups: Vec<GroupMember> = admin.get("/v1/groups").await.good();
    let pumps: Vec<_> = groups.iter().filter(|of| of.group == "pumps").collect();
    assert_eq!((pumps.len(), pumps[0].member.as_str()), (1, "device/pump"));
    world.server.shutdown().await;
}

/// THREATS POL-12: nobody changes its own rights.
#[tokio::test]
async fn pol_12_nobody_changes_its_own_groups() {
    let world = World::new().await;
    let ben = world.operator("ben", "admins").await;
    world.device("pump").await;
    let (root, ben) = (world.api(&world.admin), world.api(&ben));
    let own = "/v1/groups/night/operator/root";
    for method in [Method::PUT, Method::DELETE] {
        root.send(method, own, None).await.refused(Code::PolicyDeny);
    }
    assert!(ben.send(Method::PUT, own, None).await.good::<Changed>().changed);
    // Two who edit one policy: the second has not seen the first's.
    let before: PolicyState = root.get("/v1/policy").await.good();
    let text = before.text.unwrap();
    let change = json!({ "text": format!("{text}// mine\n"), "if_revision": before.revision });
    let put = |api: Api| {
        let change = change.clone();
        async move { api.send(Method::PUT, "/v1/policy", Some(&change)).await }
    };
    let (one, other) = tokio::join!(put(root.clone()), put(ben));
    let (won, lost) = if one.status == 200 {
        (one, other)
    } else {
        (other, one)
    };
    lost.refused(Code::PolicyStale);
    assert_eq!(won.good::<PolicyState>().revision, before.revision + 1);
    let all: Vec<PolicyRevision> = root.get("/v1/policy/revisions").await.good();
    let numbers: Vec<u64> = all.iter().map(|revision| revision.revision).collect();
    assert_eq!(numbers, [before.revision + 1, before.revision]);
    let old: PolicyRevision = root.get("/v1/policy/revisions/1").await.good();
    assert_eq!(old.text, Some(text));
    root.get("/v1/policy/revisions/9").await.refused(Code::NotFound);
    root.get("/v1/policy/revisions/x").await.refused(Code::NotFound);
    // What is nobody gets into no group.
    for (path, code) in [
        ("/v1/groups/night/operator/nobody", Code::NotFound),
        ("/v1/groups/night/device/nobody", Code::NotFound),
        ("/v1/groups/night/server/n1", Code::BadName),
        ("/v1/groups/N*/device/pump", Code::BadName),
    ] {
        root.send(Method::PUT, path, None).await.refused(code);
    }
    world.server.shutdown().await;
}

/// THREATS POL-05: an alarm cuts what the first policy keeps to diagnosis, and lets nobody else in.
#[tokio::test]
async fn pol_05_an_alarm_narrows_a_device_to_diagnosis() {
    let world = World::new().await;
    let device = world.device("pump").await;
    let (admin, mut agent) = (world.api(&world.admin), Agent::link(&world, &device).await);
    let mut opened = Vec::new();
    for _ in 0..3 {
        let (answer, _) = agent.opened(&admin, "pump").await;
        opened.push(answer.good::<OpenedTunnel>().tunnel);
    }
    let set = set(&admin, "pump", json!({ "alarm.clone": "seen" })).await;
    assert_eq!(set.good::<Changed>().tunnels_cut, 3);
    for tunnel in opened {
        assert_eq!(admin.end_of(tunnel).await, "E_POLICY_CHANGED");
    }
    admin.open("pump").await.refused(Code::PolicyDeny);
    assert!(
        unset(&admin, "pump", "alarm.clone")
            .await
            .good::<Changed>()
            .changed
    );
    for _ in 0..3 {
        agent.next().await;
    }
    agent.opened(&admin, "pump").await.0.good::<OpenedTunnel>();
    world.server.shutdown().await;
}

/// THREATS POL-08: what a device claims opens nothing that asks for what its owner says.
#[tokio::test]
async fn pol_08_claims_of_a_device_are_no_facts_of_its_owner() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    apply(
        &admin,
        r#"@id("north") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
           when { resource.device.asserted.hasTag("site") && resource.device.asserted.getTag("site").value == "north" };
           @id("claims") permit (principal, action == Action::"belong", resource == ReportedGroup::"south")
           when { principal.reported.hasTag("site") && principal.reported.getTag("site").value == "south" };
           @id("not-south") forbid (principal, action == Action::"connect", resource in ReportedGroup::"south");"#,
    )
    .await;
    let mut agent = Agent::link(&world, &device).await;
    let claim = |site: &str| {
        let facts = [("site", site), ("Bad Name", "x"), ("long", &"x".repeat(999))];
        let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (services, access) = (vec!["ssh".parse().unwrap()], true);
        FromAgent::Report(Report {
            services,
            access,
            facts: facts.into(),
            ..Report::default()
        })
    };
    let claimed = async |site: &str| {
        let deadline = Instant::now() + 3 * SOON;
        while Instant::now() < deadline {
            let facts: DeviceFacts = admin.get("/v1/devices/pump/facts").await.good();
            if facts.reported.get("site").is_some_and(|value| value == site) {
                return facts;
            }
            tokio::task::yield_now().await;
        }
        panic!("the claim did not come")
    };
    agent.say(&claim("north")).await;
    let facts = claimed("north").await;
    assert!(
        facts.asserted.is_empty() && facts.reported.len() == 1,
        "{facts:?}"
    );
    api.open("pump").await.refused(Code::PolicyDeny);

    set(&admin, "pump", json!({ "site": "north" }))
        .await
        .good::<Changed>();
    let (opened, _) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    // A claim can take away, at once, and gives nothing.
    agent.say(&claim("south")).await;
    assert_eq!(agent.ended(opened.tunnel).await, Code::PolicyChanged);
    assert_eq!(claimed("south").await.reported_groups, ["south"]);
    for bad in [
        json!({ "Site": "x" }),
        json!({ "site": "" }),
        json!({ "site": "\n" }),
    ] {
        set(&admin, "pump", bad).await.refused(Code::BadName);
    }
    set(&admin, "none", json!({ "site": "x" }))
        .await
        .refused(Code::NotFound);
    api.get("/v1/devices/pump/facts").await.refused(Code::PolicyDeny);
    set(&api, "pump", json!({ "site": "x" }))
        .await
        .refused(Code::PolicyDeny);
    let audit = admin.audit().await;
    let body = &audit.iter().rfind(|(kind, _)| kind == "tunnel.opened").unwrap().1;
    assert_eq!(body["question"]["device"]["asserted"]["site"]["value"], "north");
    assert_eq!(body["question"]["device"]["reported"]["facts"]["site"], "north");
    assert!(audit.iter().any(|(kind, _)| kind == "facts.changed"));
    world.server.shutdown().await;
}

#[tokio::test]
async fn limits_of_policy_stand_in_the_grant_and_a_narrower_one_cuts() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    let rule = |limits: &str| {
        format!(
            "@id(\"tech\") {limits} permit (principal in OperatorGroup::\"technicians\", action == Action::\"connect\", resource);"
        )
    };
    let wide =
        r#"@max_lifetime("10m") @max_sessions("2") @max_bytes("1GiB") @max_rate("1MiB/s") @max_tunnels("1")"#;
    apply(&admin, &rule(wide)).await;
    let mut agent = Agent::link(&world, &device).await;
    let (opened, offer) = agent.opened(&api, "pump").await;
    let opened: OpenedTunnel = opened.good();
    let grant = Grant::verify(&offer.grant, &agent.welcome.grant_key).unwrap();
    assert_eq!(grant.expires_at.since(grant.issued_at).as_secs(), 600);
    let limits = grant.limits;
    assert_eq!(
        (limits.sessions, limits.bytes, limits.bytes_per_sec),
        (2, Some(1 << 30), Some(1 << 20))
    );
    assert_eq!(opened.limits.lifetime_secs, Some(600));
    api.open("pump").await.refused(Code::Limit);

    // A wider policy leaves it alone, also after a restart; a narrower one ends it.
    assert_eq!(apply(&admin, &rule("")).await.tunnels_cut, Some(0));
    let world = world.restart().await;
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    assert_eq!(api.tunnel(opened.tunnel).await.limits, opened.limits);
    let narrow = rule(r#"@max_bytes("1MiB")"#);
    assert_eq!(apply(&admin, &narrow).await.tunnels_cut, Some(1));
    assert_eq!(state(&api, opened.tunnel).await, "ended");
    world.server.shutdown().await;
}

#[tokio::test]
async fn what_needs_an_approval_says_so() {
    let world = World::new().await;
    let (tess, device) = (
        world.operator("tess", "technicians").await,
        world.device("pump").await,
    );
    let (api, admin) = (world.api(&tess), world.api(&world.admin));
    apply(
        &admin,
        r#"@id("asks") @requires_approval permit (principal in OperatorGroup::"technicians",
           action == Action::"connect", resource);"#,
    )
    .await;
    let mut agent = Agent::link(&world, &device).await;
    api.open("pump").await.refused(Code::ApprovalRequired);
    agent.opened(&admin, "pump").await.0.good::<OpenedTunnel>();
    let bad = r#"@max_bytes("1 GB") permit (principal, action == Action::"connect", resource);"#;
    let put = admin
        .send(Method::PUT, "/v1/policy", Some(&json!({ "text": bad })))
        .await;
    put.refused(Code::BadRequest);
    assert!(
        put.body["detail"].as_str().unwrap().contains("line 1: "),
        "{}",
        put.body
    );
    world.server.shutdown().await;
}

/// An explanation costs many decisions, so one that asks for ever is refused, and others are not.
#[tokio::test]
async fn who_asks_why_for_ever_is_stopped_alone() {
    let world = World::new().await;
    let tess = world.operator("tess", "technicians").await;
    world.device("pump").await;
    let (tess, admin) = (world.api(&tess), world.api(&world.admin));
    let body = json!({ "device": "pump", "service": "ssh" });
    let mut stopped = None;
    for _ in 0..1000 {
        let answer = admin.post("/v1/why", &body).await;
        if answer.status != 200 {
            stopped = Some(answer);
            break;
        }
    }
    let stopped = stopped.expect("there is an end");
    stopped.refused(Code::Limit);
    assert_ne!(tess.post("/v1/why", &body).await.status, stopped.status);
    world.server.shutdown().await;
}

/// THREATS POL-01: rules are told to auditors only, and nobody learns whether a device is there that it may not see.
#[tokio::test]
async fn pol_01_an_explanation_tells_no_more_than_one_may_know() {
    let world = World::new().await;
    let (tess, eve) = (
        world.operator("tess", "technicians").await,
        world.operator("eve", "guests").await,
    );
    world.device("pump").await;
    let (tess, eve, admin) = (world.api(&tess), world.api(&eve), world.api(&world.admin));
    let text = r#"@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
        @id("view") permit (principal in OperatorGroup::"technicians", action == Action::"view", resource);
        @id("ssh") @max_sessions("2") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
        when { resource.name == "ssh" && context has reason };
        @id("run") permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
        when { resource.name == "run" && context.batch };
        @id("secret-rule") forbid (principal == Operator::"tess", action == Action::"connect", resource)
        when { resource.name == "web" };"#;
    let put = json!({ "text": text });
    admin
        .send(Method::PUT, "/v1/policy", Some(&put))
        .await
        .good::<PolicyState>();
    let ask = |device: &str, service: &str| json!({ "device": device, "service": service });
    let why = async |api: &Api, body: Value| api.post("/v1/why", &body).await;

    // What she may not see is as what is not there, to the last byte.
    let (hidden, missing) = (
        why(&eve, ask("pump", "ssh")).await,
        why(&eve, ask("none", "ssh")).await,
    );
    hidden.refused(Code::NotFound);
    assert_eq!((hidden.status, hidden.body), (missing.status, missing.body));

    let denied: Value = why(&tess, ask("pump", "ssh")).await.good();
    assert_eq!(
        (&denied["outcome"], &denied["missing"]),
        (&json!("deny"), &json!(["a reason"]))
    );
    let forbidden: Value = why(&tess, ask("pump", "web")).await.good();
    assert_eq!(
        (&forbidden["outcome"], &forbidden["policies"]),
        (&json!("deny"), &json!([]))
    );
    for answer in [&denied, &forbidden] {
        assert!(
            answer.get("rules").is_none() && answer.get("facts").is_none(),
            "{answer}"
        );
        assert!(!answer.to_string().contains("secret-rule"), "{answer}");
    }
    let mut with_reason = ask("pump", "ssh");
    with_reason["reason"] = "INC-7".into();
    let allowed: Value = why(&tess, with_reason.clone()).await.good();
    assert_eq!(
        (&allowed["outcome"], &allowed["policies"]),
        (&json!("allow"), &json!(["ssh"]))
    );
    assert_eq!(allowed["limits"]["sessions"], 2);

    // What is permitted for a batch of commands alone.
    let mut run = ask("pump", "run");
    let whole: Value = why(&tess, run.clone()).await.good();
    assert_eq!(
        (&whole["outcome"], &whole["missing"]),
        (&json!("deny"), &json!(["a batch of commands"]))
    );
    run["batch"] = true.into();
    let batch: Value = why(&tess, run).await.good();
    assert_eq!(
        (&batch["outcome"], &batch["policies"]),
        (&json!("allow"), &json!(["run"]))
    );

    // Of others only who may read policies asks, and learns the rules.
    let of = |name: &str, body: &Value| {
        let mut body = body.clone();
        body["operator"] = name.into();
        body
    };
    for name in ["eve", "nobody"] {
        let refused = why(&tess, of(name, &ask("pump", "ssh"))).await;
        refused.refused(Code::PolicyDeny);
        assert!(!refused.body.to_string().contains(name), "{}", refused.body);
    }
    let told: Value = why(&admin, of("tess", &ask("pump", "web"))).await.good();
    assert_eq!(told["rules"][0]["name"], "secret-rule");
    let near: Value = why(&admin, of("tess", &ask("pump", "ssh"))).await.good();
    assert_eq!(
        (&near["near"][0]["name"], &near["facts"]["context.reason"]),
        (&json!("ssh"), &json!("absent"))
    );
    let unseen: Value = why(&admin, of("eve", &ask("pump", "ssh"))).await.good();
    assert_eq!(unseen["outcome"], "deny");
    why(&admin, of("nobody", &ask("pump", "ssh")))
        .await
        .refused(Code::NotFound);
    // To ask opens nothing.
    assert!(
        admin
            .audit()
            .await
            .iter()
            .all(|(kind, _)| kind != "tunnel.opened")
    );
    world.server.shutdown().await;
}
