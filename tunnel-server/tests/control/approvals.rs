//! Approvals: asked for, given, used for exactly what was asked, taken back; and tunnels without them in an emergency.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tunnel_proto::api::{
    Approval, Device, Lifted, OpenedTunnel, PolicyState, Revoked, Status, Tunnel, WithdrawnApproval,
};
use tunnel_proto::batch::Batch;
use tunnel_proto::grant::Grant;
use tunnel_proto::message::{FromAgent, FromServer, Report};
use tunnel_proto::{ApprovalId, Code};

use crate::agent::Agent;
use crate::api::{Answer, Api, SOON};
use crate::world::{Member, World};

const POLICY: &str = r#"
@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
@id("view") permit (principal in OperatorGroup::"technicians", action == Action::"view", resource);
@id("leads-view") permit (principal in OperatorGroup::"leads", action == Action::"view", resource);
@id("diag") permit (principal, action == Action::"connect", resource) when { resource.name == "diag" };
@id("asks") @requires_approval
permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
when { resource.name == "ssh" && context has reason };
@id("two") @approvals("2")
permit (principal in OperatorGroup::"technicians", action == Action::"connect", resource)
when { resource.name == "web" };
@id("leads-ask-too") @requires_approval
permit (principal in OperatorGroup::"leads", action == Action::"connect", resource);
@id("approve") permit (principal in OperatorGroup::"leads", action == Action::"approve", resource)
when { context.window_secs <= 7200 };
@id("on-call") @max_lifetime("5m")
permit (principal == Operator::"tess", action == Action::"break-glass", resource);
"#;

/// Tess and tom ask, lea and leo decide.
struct Cast {
    world: World,
    members: BTreeMap<&'static str, Member>,
}

impl Cast {
    async fn new() -> Self {
        let world = World::new().await;
        let text = json!({ "text": POLICY });
        let admin = world.api(&world.admin);
        admin
            .send(Method::PUT, "/v1/policy", Some(&text))
            .await
            .good::<PolicyState>();
        let mut members = BTreeMap::new();
        for (name, group) in [
            ("tess", "technicians"),
            ("tom", "technicians"),
            ("lea", "leads"),
            ("leo", "leads"),
            ("eve", "guests"),
        ] {
            members.insert(name, world.operator(name, group).await);
        }
        for name in ["pump", "pond"] {
            members.insert(name, world.device(name).await);
        }
        Self { world, members }
    }

    fn api(&self, name: &str) -> Api {
        self.world.api(&self.members[name])
    }

    fn admin(&self) -> Api {
        self.world.api(&self.world.admin)
    }

    async fn link(&self, name: &str) -> Agent {
        Agent::link(&self.world, &self.members[name]).await
    }

    async fn restart(self) -> Self {
        let Self { world, members } = self;
        let world = world.restart().await;
        Self { world, members }
    }

    async fn decide(&self, who: &str, id: ApprovalId, verb: &str) -> Answer {
        let path = format!("/v1/approvals/{id}/{verb}");
        self.api(who).post(&path, &json!({})).await
    }

    async fn suspend(&self, name: &str) -> u64 {
        let identity = json!({ "identity": self.members[name].identity.to_string() });
        let done: Revoked = self.admin().post("/v1/suspensions", &identity).await.good();
        done.tunnels_cut
    }

    async fn lift(&self, name: &str) {
        let identity = json!({ "identity": self.members[name].identity.to_string() });
        let done: Lifted = self.admin().post("/v1/suspensions/lift", &identity).await.good();
        assert!(done.lifted);
    }

    async fn kinds(&self) -> Vec<String> {
        let records = self.admin().audit().await;
        records.into_iter().map(|(kind, _)| kind).collect()
    }
}

fn wish(devices: &[&str], services: &[&str]) -> Value {
    json!({ "devices": devices, "services": services, "reason": "INC-7" })
}

async fn ask(api: &Api, devices: &[&str], services: &[&str]) -> Approval {
    api.post("/v1/approvals", &wish(devices, services)).await.good()
}

async fn open(api: &Api, device: &str, service: &str) -> Answer {
    let body = json!({ "device": device, "services": [service] });
    api.post("/v1/tunnels", &body).await
}

async fn opened(agent: &mut Agent, api: &Api, device: &str, service: &str) -> OpenedTunnel {
    let (answer, _) = tokio::join!(open(api, device, service), agent.accept());
    answer.good()
}

/// THREATS POL-12: what is asked for opens when somebody else agrees, for who asked and what was asked, until it is taken
/// back.
#[tokio::test]
async fn an_approval_opens_exactly_what_was_asked_until_it_is_taken_back() {
    let cast = Cast::new().await;
    let (tess, tom, lea) = (cast.api("tess"), cast.api("tom"), cast.api("lea"));
    let (mut pump, _pond) = (cast.link("pump").await, cast.link("pond").await);
    let with_reason = json!({ "device": "pump", "services": ["ssh"], "reason": "x" });
    let asks = || tess.post("/v1/tunnels", &with_reason);
    asks().await.refused(Code::ApprovalRequired);
    open(&tess, "pump", "ssh").await.refused(Code::PolicyDeny);

    let asked = ask(&tess, &["pump"], &["ssh"]).await;
    assert_eq!(
        (asked.state.as_str(), asked.needed, asked.approvers.len()),
        ("pending", 1, 0)
    );
    asks().await.refused(Code::ApprovalRequired);
    // Who may not decide, decides nothing, and learns nothing.
    cast.decide("tess", asked.id, "approve")
        .await
        .refused(Code::SelfApproval);
    for who in ["tom", "eve"] {
        cast.decide(who, asked.id, "approve")
            .await
            .refused(Code::NotFound);
        cast.decide(who, asked.id, "withdraw")
            .await
            .refused(Code::NotFound);
        let listed: Vec<Approval> = cast.api(who).get("/v1/approvals").await.good();
        assert!(listed.is_empty(), "{who}: {listed:?}");
    }
    let listed: Vec<Approval> = lea.get("/v1/approvals").await.good();
    assert_eq!((listed.len(), listed[0].may_approve), (1, true));

    let waits = format!("/v1/approvals/{}/decision", asked.id);
    let (decided, given) = tokio::join!(tess.get(&waits), cast.decide("lea", asked.id, "approve"));
    assert_eq!(given.good::<Approval>().state, "approved");
    assert_eq!(decided.good::<Approval>().approvers, ["lea"]);

    // It takes its reason from what was asked, ends with the window, and tells what it rests on.
    let tunnel = opened(&mut pump, &tess, "pump", "ssh").await;
    let shown = tess.tunnel(tunnel.tunnel).await;
    assert_eq!(
        (shown.approval, shown.reason.as_deref()),
        (Some(asked.id), Some("INC-7"))
    );
    let given: Approval = tess.get(&format!("/v1/approvals/{}", asked.id)).await.good();
    assert!(shown.expires_at <= given.expires_at);
    // Nothing else: not another device, service or operator.
    let pond = json!({ "device": "pond", "services": ["ssh"], "reason": "x" });
    tess.post("/v1/tunnels", &pond)
        .await
        .refused(Code::ApprovalRequired);
    open(&tess, "pump", "web").await.refused(Code::ApprovalRequired);
    let both = json!({ "device": "pump", "services": ["ssh", "web"], "reason": "x" });
    tess.post("/v1/tunnels", &both)
        .await
        .refused(Code::ApprovalRequired);
    tom.post("/v1/tunnels", &with_reason)
        .await
        .refused(Code::ApprovalRequired);

    // It outlives a restart, with the tunnel that rests on it; and taking it back cuts that.
    let cast = cast.restart().await;
    let tess = cast.api("tess");
    let mut pump = Agent::link_with(&cast.world, &cast.members["pump"], &[tunnel.tunnel])
        .await
        .unwrap();
    assert_ne!(tess.tunnel(tunnel.tunnel).await.state, "ended");
    let another = opened(&mut pump, &tess, "pump", "ssh").await;
    let free = opened(&mut pump, &tess, "pump", "diag").await;
    let path = format!("/v1/approvals/{}/withdraw", asked.id);
    let reason = json!({ "reason": "it is done" });
    let withdrawn: WithdrawnApproval = cast.api("lea").post(&path, &reason).await.good();
    assert_eq!(
        (withdrawn.tunnels_cut, withdrawn.approval.state.as_str()),
        (2, "withdrawn")
    );
    assert_eq!(withdrawn.approval.end_reason.as_deref(), Some("it is done"));
    for tunnel in [&tunnel, &another] {
        assert_eq!(tess.end_of(tunnel.tunnel).await, "E_APPROVAL_WITHDRAWN");
    }
    assert_ne!(
        tess.tunnel(free.tunnel).await.state,
        "ended",
        "it rests on nothing"
    );
    for verb in ["approve", "deny", "withdraw"] {
        let again = cast.decide("lea", asked.id, verb).await;
        again.refused(Code::ApprovalWithdrawn);
    }
    tess.post("/v1/tunnels", &with_reason)
        .await
        .refused(Code::ApprovalRequired);
    let kinds = cast.kinds().await;
    for kind in ["approval.requested", "approval.given", "approval.withdrawn"] {
        assert_eq!(kinds.iter().filter(|one| *one == kind).count(), 1, "{kind}");
    }
    cast.world.server.shutdown().await;
}

/// THREATS POL-12: the two-person rule.
#[tokio::test]
async fn two_have_to_agree_where_policy_says_so() {
    let cast = Cast::new().await;
    let (tess, mut pump) = (cast.api("tess"), cast.link("pump").await);
    let asked = ask(&tess, &["pump"], &["web"]).await;
    assert_eq!(asked.needed, 2);
    for _ in 0..2 {
        let given: Approval = cast.decide("lea", asked.id, "approve").await.good();
        assert_eq!(
            (given.state.as_str(), given.approvers.len()),
            ("pending", 1),
            "one who agrees twice is one"
        );
        open(&tess, "pump", "web").await.refused(Code::ApprovalRequired);
    }
    cast.decide("leo", asked.id, "approve").await.good::<Approval>();
    let tunnel = opened(&mut pump, &tess, "pump", "web").await;

    // One of the two falls: what rests on both is cut, and opens no more.
    let (told, cut) = tokio::join!(pump.ended(tunnel.tunnel), cast.suspend("leo"));
    assert_eq!((told, cut), (Code::PolicyChanged, 1));
    open(&tess, "pump", "web").await.refused(Code::ApprovalRequired);
    cast.world.server.shutdown().await;
}

/// THREATS TOK-14: whoever was disabled has to agree anew: neither what waits nor what was approved counts the agreement of
/// before again.
#[tokio::test]
async fn tok_14_an_agreement_does_not_come_back_with_its_giver() {
    let cast = Cast::new().await;
    let (tess, mut pump) = (cast.api("tess"), cast.link("pump").await);
    let asked = ask(&tess, &["pump"], &["web"]).await;
    let approve = async |who| {
        let given: Approval = cast.decide(who, asked.id, "approve").await.good();
        (given.state, given.approvers.len())
    };
    assert_eq!(approve("lea").await, ("pending".to_owned(), 1));
    cast.suspend("lea").await;
    cast.lift("lea").await;
    assert_eq!(approve("leo").await, ("pending".to_owned(), 1));
    assert_eq!(approve("lea").await, ("approved".to_owned(), 2));
    let tunnel = opened(&mut pump, &tess, "pump", "web").await;

    let (told, cut) = tokio::join!(pump.ended(tunnel.tunnel), cast.suspend("leo"));
    assert_eq!((told, cut), (Code::PolicyChanged, 1));
    cast.lift("leo").await;
    open(&tess, "pump", "web").await.refused(Code::ApprovalRequired);
    let cast = cast.restart().await;
    let (tess, mut pump) = (cast.api("tess"), cast.link("pump").await);
    open(&tess, "pump", "web").await.refused(Code::ApprovalRequired);
    cast.decide("leo", asked.id, "approve").await.good::<Approval>();
    opened(&mut pump, &tess, "pump", "web").await;
    let struck = cast.kinds().await;
    let struck = struck.iter().filter(|kind| *kind == "approval.struck");
    assert_eq!(struck.count(), 2);
    cast.world.server.shutdown().await;
}

/// A lead may decide about what others ask for, and not about what it asks for itself.
#[tokio::test]
async fn pol_12_leads_approve_each_other_and_never_themselves() {
    let cast = Cast::new().await;
    let (lea, mut pump) = (cast.api("lea"), cast.link("pump").await);
    let asked = ask(&lea, &["pump", "pond"], &["ssh", "web"]).await;
    assert!(!asked.may_approve);
    for verb in ["approve", "deny"] {
        cast.decide("lea", asked.id, verb)
            .await
            .refused(Code::SelfApproval);
    }
    cast.decide("leo", asked.id, "approve").await.good::<Approval>();
    opened(&mut pump, &lea, "pump", "ssh").await;
    let denials: Vec<_> = cast
        .admin()
        .audit()
        .await
        .into_iter()
        .filter(|(kind, _)| kind == "access.denied")
        .collect();
    assert_eq!(denials.len(), 2, "{denials:?}");
    cast.world.server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_approved_is_refused_at_once() {
    let cast = Cast::new().await;
    let tess = cast.api("tess");
    for (device, service, code) in [
        ("pump", "diag", Code::ApprovalNeedless),
        ("pump", "console", Code::PolicyDeny),
        ("nothing", "ssh", Code::NotFound),
        ("-x", "ssh", Code::BadName),
    ] {
        let answer = tess.post("/v1/approvals", &wish(&[device], &[service])).await;
        answer.refused(code);
    }
    let eve = cast
        .api("eve")
        .post("/v1/approvals", &wish(&["pump"], &["ssh"]))
        .await;
    eve.refused(Code::NotFound);
    let many: Vec<String> = (0..65).map(|number| format!("d{number}")).collect();
    for (field, value) in [
        ("devices", json!([])),
        ("devices", json!(many)),
        ("services", json!([])),
        ("reason", json!(" ")),
        ("reason", json!("x".repeat(513))),
        ("window_secs", json!(0)),
        ("window_secs", json!(7 * 24 * 3600 + 1)),
    ] {
        let mut body = wish(&["pump"], &["ssh"]);
        body[field] = value;
        tess.post("/v1/approvals", &body).await.refused(Code::BadRequest);
    }
    // A window that nobody may approve waits for nobody: leads agree to two hours.
    let mut body = wish(&["pump"], &["ssh"]);
    body["window_secs"] = 7201.into();
    let asked: Approval = tess.post("/v1/approvals", &body).await.good();
    cast.decide("lea", asked.id, "approve")
        .await
        .refused(Code::NotFound);

    let asked = ask(&tess, &["pump"], &["ssh"]).await;
    cast.decide("lea", asked.id, "deny").await.good::<Approval>();
    for verb in ["approve", "deny", "withdraw"] {
        cast.decide("leo", asked.id, verb)
            .await
            .refused(Code::ApprovalDenied);
    }
    let tess_withdraws = cast.decide("tess", asked.id, "withdraw").await;
    tess_withdraws.refused(Code::ApprovalDenied);
    let mut left = 64;
    while left > 0
        && tess
            .post("/v1/approvals", &wish(&["pump"], &["ssh"]))
            .await
            .status
            == 200
    {
        left -= 1;
    }
    let full = tess.post("/v1/approvals", &wish(&["pump"], &["ssh"])).await;
    full.refused(Code::Limit);
    cast.world.server.shutdown().await;
}

#[tokio::test]
async fn a_broken_glass_opens_for_a_short_time_and_is_told_of() {
    let cast = Cast::new().await;
    let (tess, tom, mut pump) = (cast.api("tess"), cast.api("tom"), cast.link("pump").await);
    let emergency = |service: &str, reason: Option<&str>| json!({ "device": "pump", "services": [service], "reason": reason, "break_glass": true });
    let fire = emergency("web", Some("the pump burns"));
    tom.post("/v1/tunnels", &fire).await.refused(Code::PolicyDeny);
    tess.post("/v1/tunnels", &emergency("web", None))
        .await
        .refused(Code::BadRequest);
    // What no permit gives is not there in an emergency either.
    tess.post("/v1/tunnels", &emergency("console", Some("the pump burns")))
        .await
        .refused(Code::PolicyDeny);
    let (answer, _) = tokio::join!(tess.post("/v1/tunnels", &fire), pump.accept());
    let tunnel: OpenedTunnel = answer.good();
    let shown = tess.tunnel(tunnel.tunnel).await;
    assert!(shown.break_glass && shown.expires_at - shown.opened_at <= 300);

    let cast = cast.restart().await;
    let admin = cast.admin();
    let status: Status = admin.get("/v1/status").await.good();
    assert_eq!(status.broken_glass, Some(1));
    let status: Status = cast.api("tom").get("/v1/status").await.good();
    assert_eq!(status.broken_glass, None);
    let told: Vec<Value> = admin
        .audit()
        .await
        .into_iter()
        .filter(|(kind, _)| kind == "glass.broken")
        .map(|(_, body)| body)
        .collect();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (&told[0]["operator"], &told[0]["reason"]),
        (&"tess".into(), &"the pump burns".into())
    );
    // The right is taken away, and with it what it opened.
    let text = POLICY.replace("Operator::\"tess\"", "Operator::\"tom\"");
    let applied: PolicyState = admin
        .send(Method::PUT, "/v1/policy", Some(&json!({ "text": text })))
        .await
        .good();
    assert_eq!(applied.tunnels_cut, Some(1));
    cast.world.server.shutdown().await;
}

/// THREATS TOK-14: an opening that races a withdrawal is either cut or not permitted.
#[tokio::test]
async fn what_opens_while_an_approval_is_taken_back_does_not_stay() {
    let cast = Cast::new().await;
    let (tess, lea) = (cast.api("tess"), cast.api("lea"));
    let agent = cast.link("pump").await;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(agent.serve());
    let (mut before, mut refused) = (0, 0);
    // By how much the withdrawal is asked for later: goes to the moment at which neither is first.
    let mut later = 5;
    for _ in 0..60 {
        let asked = ask(&tess, &["pump"], &["ssh"]).await;
        cast.decide("lea", asked.id, "approve").await.good::<Approval>();
        let path = format!("/v1/approvals/{}/withdraw", asked.id);
        let nothing = json!({});
        let wait = |millis: i64| tokio::time::sleep(Duration::from_millis(millis.max(0).unsigned_abs()));
        let opening = async {
            wait(-later).await;
            open(&tess, "pump", "ssh").await
        };
        let (answer, ()) = tokio::join!(opening, async {
            wait(later).await;
            lea.post(&path, &nothing).await.good::<WithdrawnApproval>();
        });
        let live: Vec<tunnel_proto::api::Tunnel> = tess.get("/v1/tunnels").await.good();
        assert!(live.is_empty(), "{live:?}");
        match answer.status {
            200 => {
                before += 1;
                later -= 2;
            }
            _ => {
                refused += 1;
                later += 2;
            }
        }
    }
    assert!(
        before > 0 && refused > 0,
        "{before} opened, {refused} did not: the two never raced"
    );
    cast.world.server.shutdown().await;
}

/// However long the commands are that some ask for, who decides sees what the others ask for.
#[tokio::test]
async fn long_commands_hide_no_other_request() {
    let cast = Cast::new().await;
    let first = ask(&cast.api("tess"), &["pump"], &["ssh"]).await;
    let mut long = wish(&["pump"], &["ssh"]);
    long["commands"] = json!([["/bin/echo", "x".repeat(8 * 1024 - 15)]]);
    for name in ["tess", "tom"] {
        let api = cast.api(name);
        for _ in 0..40 {
            api.post("/v1/approvals", &long).await.good::<Approval>();
        }
    }
    let listed: Vec<Approval> = cast.api("lea").get("/v1/approvals").await.good();
    assert_eq!(listed.len(), 81);
    assert!(listed.iter().any(|one| one.id == first.id));
}

/// An approval for commands is for them alone, and what opens on it says so to the device, in what the server has signed.
#[tokio::test]
async fn an_approval_for_commands_opens_a_tunnel_for_them_alone() {
    let cast = Cast::new().await;
    let (tess, mut pump) = (cast.api("tess"), cast.link("pump").await);
    let ask = async |services: &[&str], commands: Value| {
        let mut body = wish(&["pump"], services);
        body["commands"] = commands;
        tess.post("/v1/approvals", &body).await
    };
    let commands = json!([["/bin/echo", "a"]]);
    for wrong in [
        json!([]),
        json!([[]]),
        json!([["echo"]]),
        json!([["/bin/echo", "\0"]]),
        json!([["/bin/echo", "x".repeat(9000)]]),
        json!(vec![["/bin/echo"]; 65]),
    ] {
        ask(&["ssh"], wrong).await.refused(Code::BadRequest);
    }
    ask(&["ssh", "web"], commands.clone())
        .await
        .refused(Code::BadRequest);
    let asked: Approval = ask(&["ssh"], commands.clone()).await.good();
    let batch = Batch::new(vec![vec!["/bin/echo".into(), "a".into()]])
        .unwrap()
        .hash();
    assert_eq!(
        (asked.batch, json!(asked.commands)),
        (Some(batch), commands.clone())
    );
    cast.decide("lea", asked.id, "approve").await.good::<Approval>();

    let open = async |batch: Option<String>| {
        let body = json!({ "device": "pump", "services": ["ssh"], "reason": "x", "batch": batch });
        tess.post("/v1/tunnels", &body).await
    };
    open(None).await.refused(Code::ApprovalRequired);
    open(Some("0".repeat(64))).await.refused(Code::ApprovalRequired);
    open(Some("0".repeat(63))).await.refused(Code::BadRequest);
    // A device of before would take the grant for one of the whole service.
    open(Some(batch.to_string())).await.refused(Code::BatchDenied);
    let (services, access) = (["diag", "ssh"].map(|name| name.parse().unwrap()).to_vec(), true);
    let report = Report {
        services,
        access,
        runs: vec!["ssh".parse().unwrap()],
        ..Report::default()
    };
    pump.say(&FromAgent::Report(report)).await;
    let admin = cast.admin();
    let deadline = Instant::now() + SOON;
    while admin
        .get("/v1/devices/pump")
        .await
        .good::<Device>()
        .services
        .len()
        < 2
    {
        assert!(Instant::now() < deadline, "the report did not come");
        tokio::task::yield_now().await;
    }
    let (mut offers, opening) = (Vec::new(), open(Some(batch.to_string())));
    tokio::pin!(opening);
    // The report changes what the decision is made from, so it may be made, and offered, twice.
    let answer = loop {
        tokio::select! {
            answer = &mut opening => break answer,
            told = pump.next() => if let FromServer::Offer(offer) = told {
                pump.answer(offer.tunnel, None).await;
                offers.push(offer);
            }
        }
    };
    let tunnel = answer.good::<OpenedTunnel>().tunnel;
    let grant = Grant::verify(&offers.last().unwrap().grant, &pump.welcome.grant_key).unwrap();
    assert_eq!(grant.batch, Some(batch));
    drop(pump);

    // It is all there after a restart, and in the trail.
    let cast = cast.restart().await;
    let admin = cast.admin();
    let shown: Approval = cast
        .api("lea")
        .get(&format!("/v1/approvals/{}", asked.id))
        .await
        .good();
    assert_eq!(
        (shown.batch, json!(shown.commands)),
        (Some(batch), commands.clone())
    );
    let shown: Tunnel = admin.get(&format!("/v1/tunnels/{tunnel}")).await.good();
    assert_eq!((shown.batch, shown.approval), (Some(batch), Some(asked.id)));
    let records = admin.audit().await;
    let (_, requested) = records
        .iter()
        .find(|(kind, _)| kind == "approval.requested")
        .unwrap();
    assert_eq!(
        (&requested["commands"], &requested["batch"]),
        (&commands, &json!(batch))
    );
}
