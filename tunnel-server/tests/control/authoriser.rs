//! The fleet's own authoriser: it is asked once, it can forbid and say facts, and without its answer nothing opens.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tunnel_proto::Code;
use tunnel_proto::api::{Approval, OpenedTunnel, PolicyState, Tunnel, Why};
use tunnel_server::config::{Authoriser, Config};

use crate::agent::Agent;
use crate::api::Answer;
use crate::hook::{Got, Hook, Manner, write_private};
use crate::world::World;

const POLICY: &str = r#"
@id("admins") permit (principal in OperatorGroup::"admins", action, resource)
unless { resource has name && resource.name == "web" };
@id("risky") forbid (principal, action == Action::"connect", resource)
when { context has authoriser && context.authoriser.hasTag("risk")
    && context.authoriser.getTag("risk") has number && context.authoriser.getTag("risk").number > 5 };
"#;

fn asking(hook: &Hook, deadline: Duration) -> impl FnOnce(&mut Config) {
    let target = hook.target();
    move |config| config.authoriser = Some(Authoriser { target, deadline })
}

fn allow(risk: &str) -> Manner {
    Manner::Says(
        200,
        json!({ "decision": "allow", "reason": "shift", "facts": { "risk": risk } }).to_string(),
    )
}

/// A world with an authoriser that has a long time, and an agent.
async fn cast(hook: &Hook) -> (World, Agent) {
    cast_with(asking(hook, Duration::from_secs(10))).await
}

async fn cast_with(change: impl FnOnce(&mut Config)) -> (World, Agent) {
    let world = World::with(change).await;
    let put = world.api(&world.admin);
    let put = put
        .send(Method::PUT, "/v1/policy", Some(&json!({ "text": POLICY })))
        .await;
    put.good::<PolicyState>();
    let device = world.device("pump").await;
    let agent = Agent::link(&world, &device).await;
    (world, agent)
}

async fn opened(world: &World, agent: &mut Agent) -> OpenedTunnel {
    let (answer, _) = agent.opened(&world.api(&world.admin), "pump").await;
    answer.good()
}

async fn open(world: &World) -> Answer {
    world.api(&world.admin).open("pump").await
}

/// Returns the newest record of a kind.
async fn newest(world: &World, kind: &str) -> Value {
    let records = world.api(&world.admin).audit().await;
    let found = records.into_iter().rev().find(|(found, _)| found == kind);
    found.unwrap_or_else(|| panic!("there is no `{kind}`")).1
}

#[tokio::test]
async fn it_is_asked_once_over_one_connection_and_its_facts_count() {
    let hook = Hook::start(allow("3")).await;
    let (world, mut agent) = cast(&hook).await;
    for _ in 0..3 {
        opened(&world, &mut agent).await;
    }
    let got = hook.got();
    assert_eq!((got.len(), hook.connections()), (3, 1));
    let mut ids: Vec<_> = got
        .iter()
        .map(|got| got.header("webhook-id").to_owned())
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each request has an id of its own");
    for got in &got {
        assert!(got.is_signed());
        let time: u64 = got.header("webhook-timestamp").parse().unwrap();
        assert!(time.abs_diff(crate::world::now().as_secs()) < 60);
        let asked = got.json();
        assert_eq!(asked["type"], "tunnel.asked");
        assert_eq!(asked["data"]["device"]["id"], "pump");
        assert_eq!(asked["data"]["terms"]["services"], json!(["ssh"]));
    }
    let record = newest(&world, "tunnel.opened").await;
    assert_eq!(record["question"]["terms"]["authoriser"], json!({ "risk": "3" }));
    assert_eq!(record["authoriser"]["request"], ids[2].as_str());
    assert_eq!(record["authoriser"]["answer"], "allow: shift");

    hook.now(allow("9"));
    open(&world).await.refused(Code::PolicyDeny);
    let record = newest(&world, "tunnel.denied").await;
    assert_eq!(record["policies"], json!(["risky"]));
    assert_eq!(record["authoriser"]["answer"], "allow: shift");
    hook.now(Manner::Says(
        200,
        json!({ "decision": "forbid", "reason": "no ticket" }).to_string(),
    ));
    open(&world).await.refused(Code::AuthoriserDeny);
    let record = newest(&world, "tunnel.denied").await;
    assert_eq!(record["code"], "E_AUTHORISER_DENY");
    assert_eq!(record["authoriser"]["answer"], "forbid: no ticket");
    world.server.shutdown().await;
}

#[tokio::test]
async fn it_is_not_asked_about_what_policy_forbids_and_cannot_permit_it() {
    let hook = Hook::start(allow("0")).await;
    let (world, mut agent) = cast(&hook).await;
    let web = json!({ "device": "pump", "services": ["web"] });
    let api = world.api(&world.admin);
    api.post("/v1/tunnels", &web).await.refused(Code::PolicyDeny);
    let eve = world.operator("eve", "guests").await;
    world.api(&eve).open("pump").await.refused(Code::NotFound);
    assert_eq!(hook.connections(), 0);
    opened(&world, &mut agent).await;
    assert_eq!(hook.got().len(), 1);
    world.server.shutdown().await;
}

/// What only its facts make necessary can be asked for, and the approval opens then.
#[tokio::test]
async fn an_approval_that_its_facts_ask_for_can_be_asked_for() {
    let hook = Hook::start(allow("3")).await;
    let (world, mut agent) = cast(&hook).await;
    let text = r#"
@id("staff") permit (principal, action in [Action::"view", Action::"connect"], resource);
@id("lea") permit (principal == Operator::"lea", action == Action::"approve", resource);
@id("admins") permit (principal in OperatorGroup::"admins", action, resource);
@id("risky") @requires_approval forbid (principal, action == Action::"connect", resource)
when { context has authoriser && context.authoriser.hasTag("risk")
    && context.authoriser.getTag("risk") has number && context.authoriser.getTag("risk").number > 5 };
"#;
    let put = world.api(&world.admin);
    put.send(Method::PUT, "/v1/policy", Some(&json!({ "text": text })))
        .await
        .good::<PolicyState>();
    let tess = world.operator("tess", "technicians").await;
    let lea = world.operator("lea", "leads").await;
    let (tess, lea) = (world.api(&tess), world.api(&lea));
    let wish = json!({ "devices": ["pump"], "services": ["ssh"], "reason": "INC-7" });
    let ask = || tess.post("/v1/approvals", &wish);
    ask().await.refused(Code::ApprovalNeedless);
    hook.now(Manner::HangsUp);
    ask().await.refused(Code::Authoriser);
    hook.now(Manner::Says(200, json!({ "decision": "forbid" }).to_string()));
    ask().await.refused(Code::AuthoriserDeny);

    hook.now(allow("9"));
    tess.open("pump").await.refused(Code::ApprovalRequired);
    let asked: Approval = ask().await.good();
    assert_eq!((asked.state.as_str(), asked.needed), ("pending", 1));
    let got = hook.got().pop().unwrap().json();
    assert_eq!(got["type"], "approval.asked");
    assert_eq!(got["data"]["terms"]["services"], json!(["ssh"]));
    tess.open("pump").await.refused(Code::ApprovalRequired);
    let path = format!("/v1/approvals/{}/approve", asked.id);
    lea.post(&path, &json!({})).await.good::<Approval>();
    let (answer, _) = agent.opened(&tess, "pump").await;
    let tunnel: OpenedTunnel = answer.good();
    assert_eq!(tess.tunnel(tunnel.tunnel).await.approval, Some(asked.id));
    world.server.shutdown().await;
}

/// What the authoriser said lasts as long as the tunnel, also over a restart, so that a new policy is weighed with it.
#[tokio::test]
async fn what_it_said_counts_when_the_policy_changes() {
    let hook = Hook::start(allow("4")).await;
    let (world, mut agent) = cast(&hook).await;
    let tunnel = opened(&world, &mut agent).await.tunnel;
    let world = world.restart().await;
    let put = |text: String| {
        let api = world.api(&world.admin);
        async move {
            let text = json!({ "text": text });
            api.send(Method::PUT, "/v1/policy", Some(&text))
                .await
                .good::<PolicyState>()
        }
    };
    assert_eq!(put(POLICY.replace("> 5", "> 4")).await.tunnels_cut, Some(0));
    assert_eq!(put(POLICY.replace("> 5", "> 3")).await.tunnels_cut, Some(1));
    assert_eq!(world.api(&world.admin).tunnel(tunnel).await.state, "ended");
    assert_eq!(hook.got().len(), 1);
    world.server.shutdown().await;
}

/// THREATS SRV-15: whatever the service does but answer as it should, nothing opens; and the next good answer counts.
#[tokio::test]
async fn srv_15_an_answer_that_is_none_opens_nothing() {
    let elsewhere = Hook::start(allow("0")).await;
    let hook = Hook::start(allow("0")).await;
    let (world, mut agent) = cast(&hook).await;
    let says = |status, text: &str| Manner::Says(status, text.to_owned());
    for (manner, why) in [
        (Manner::Redirects(elsewhere.url("127.0.0.1")), "redirect"),
        (Manner::Pours, "more than 16384 bytes"),
        (Manner::Babbles, "exchange failed"),
        (Manner::HangsUp, "exchange failed"),
        (says(500, r#"{"decision":"allow"}"#), "status is 500"),
        (says(404, ""), "status is 404"),
        (says(200, ""), "documented form"),
        (says(200, "<html>"), "documented form"),
        (
            says(200, r#"{"decision":"allow","facts":{"risk":9}}"#),
            "documented form",
        ),
    ] {
        hook.now(manner.clone());
        open(&world).await.refused(Code::Authoriser);
        let record = newest(&world, "tunnel.denied").await;
        assert_eq!(record["code"], "E_AUTHORISER", "{manner:?}");
        let told = record["authoriser"]["answer"].as_str().unwrap().to_owned();
        assert!(
            told.starts_with("none: ") && told.contains(why),
            "{manner:?}: {told}"
        );
    }
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
    hook.now(allow("0"));
    opened(&world, &mut agent).await;
    world.server.shutdown().await;
}

/// THREATS SRV-15.
#[tokio::test]
async fn srv_15_a_slow_answer_is_a_denial_and_holds_nobody_up() {
    let hook = Hook::start(Manner::Hangs).await;
    let (world, mut agent) = cast_with(asking(&hook, Duration::from_millis(300))).await;
    let started = Instant::now();
    open(&world).await.refused(Code::Authoriser);
    assert!(started.elapsed() >= Duration::from_millis(300));
    // Many at once are all refused, and none is left behind.
    let many = (0..16).map(|_| open(&world));
    for answer in futures_util::future::join_all(many).await {
        answer.refused(Code::Authoriser);
    }
    let told = newest(&world, "tunnel.denied").await;
    assert_eq!(told["authoriser"]["answer"], "none: no answer within 300 ms");
    hook.now(allow("0"));
    opened(&world, &mut agent).await;
    world.server.shutdown().await;
}

/// THREATS SRV-15: an address that is not public is gone to only if it is listed, by whatever name.
#[tokio::test]
async fn srv_15_private_addresses_and_false_certificates_get_no_request() {
    let (hook, other) = (Hook::start(allow("0")).await, Hook::start(allow("0")).await);
    let long = Duration::from_secs(10);
    for host in ["127.0.0.1", "localhost"] {
        let mut target = hook.target();
        target.url = hook.url(host).parse().unwrap();
        target.allow = vec!["10.0.0.0/8".parse().unwrap()];
        let (world, _agent) = cast_with(|config| {
            config.authoriser = Some(Authoriser {
                target,
                deadline: long,
            })
        })
        .await;
        open(&world).await.refused(Code::Authoriser);
        world.server.shutdown().await;
    }
    assert_eq!(
        hook.connections(),
        0,
        "somebody connected to an address that is not listed"
    );

    let mut stranger = hook.target();
    stranger.ca = Some(other.file("ca.pem"));
    let (world, _agent) = cast_with(|config| {
        config.authoriser = Some(Authoriser {
            target: stranger,
            deadline: long,
        });
    })
    .await;
    open(&world).await.refused(Code::Authoriser);
    let told = newest(&world, "tunnel.denied").await;
    let told = told["authoriser"]["answer"].as_str().unwrap();
    assert!(told.contains("TLS"), "{told}");
    assert!(
        hook.got().is_empty(),
        "a request went to a server that proved nothing"
    );
    world.server.shutdown().await;
}

/// A program that ends with this value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the service of `docs/webhooks.md`, as it stands there, with some lines before it; its port. Nothing without `python3`.
fn service_of_the_page(hook: &Hook, before: &str) -> Option<(Running, u16)> {
    const PAGE: &str = include_str!("../../../docs/webhooks.md");
    let program = PAGE.split("```python\n").nth(1).unwrap();
    let program = format!("{before}{}", program.split("```").next().unwrap());
    let found = Command::new("python3")
        .args(["-c", &program])
        .args(["cert.pem", "cert.key", "hook.key"].map(|name| hook.file(name)))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut service) = found.map(Running) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "the checks run all tests, and this one needs `python3`"
        );
        return None;
    };
    let mut port = String::new();
    let said = service.0.stdout.take().unwrap();
    BufReader::new(said).read_line(&mut port).unwrap();
    Some((service, port.trim().parse().unwrap()))
}

#[tokio::test]
async fn the_service_of_the_page_works() {
    let hook = Hook::start(allow("0")).await;
    let Some((_service, port)) = service_of_the_page(&hook, "") else {
        return;
    };
    let mut target = hook.target();
    target.url = format!("https://localhost:{port}/").parse().unwrap();
    let mut stranger = target.clone();
    stranger.key = hook.file("other.key");
    write_private(stranger.key.clone(), &format!("whsec_{}\n", "A".repeat(40)));
    let deadline = Duration::from_secs(10);

    let (world, mut agent) =
        cast_with(|config| config.authoriser = Some(Authoriser { target, deadline })).await;
    open(&world).await.refused(Code::AuthoriserDeny);
    let told = newest(&world, "tunnel.denied").await;
    assert_eq!(told["authoriser"]["answer"], "forbid: no reason was given");
    let api = world.api(&world.admin);
    let wish = json!({ "device": "pump", "services": ["ssh"], "reason": "INC-7" });
    let (answer, _) = tokio::join!(api.post("/v1/tunnels", &wish), agent.accept());
    answer.good::<OpenedTunnel>();
    world.server.shutdown().await;

    // A server with another key is nobody to it.
    let target = stranger;
    let (world, _agent) = cast_with(|config| config.authoriser = Some(Authoriser { target, deadline })).await;
    open(&world).await.refused(Code::Authoriser);
    let told = newest(&world, "tunnel.denied").await;
    let told = told["authoriser"]["answer"].as_str().unwrap().to_owned();
    assert!(told.contains("status is 401"), "{told}");
    world.server.shutdown().await;
}

/// Sends a captured request to a service, as whoever could read it does; the status of the answer.
async fn replay(hook: &Hook, port: u16, got: &Got, change: impl FnOnce(&mut Got)) -> u16 {
    let mut got = got.clone();
    change(&mut got);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(hook.file("ca.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let tls = rustls::ClientConfig::builder_with_provider(tunnel_net::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await;
    let stream = hyper_util::rt::TokioIo::new(stream.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let mut request = hyper::Request::post("/")
        .body(http_body_util::Full::new(got.body))
        .unwrap();
    *request.headers_mut() = got.headers;
    sender.send_request(request).await.unwrap().status().as_u16()
}

/// THREATS SRV-15: what somebody on the way to a service could read is of no use a second time, nor later, nor changed.
#[tokio::test]
async fn srv_15_a_captured_request_is_refused_by_the_service_of_the_page() {
    let hook = Hook::start(allow("0")).await;
    let later = "import time\n_now = time.time\ntime.time = lambda: _now() + 301\n";
    let (Some((_service, port)), Some((_late, port_of_late))) =
        (service_of_the_page(&hook, ""), service_of_the_page(&hook, later))
    else {
        return;
    };
    // The server's own requests, as the service got them.
    let (world, mut agent) = cast(&hook).await;
    for _ in 0..2 {
        opened(&world, &mut agent).await;
    }
    world.server.shutdown().await;
    let got = hook.got();
    let (first, second) = (&got[0], &got[1]);
    let id =
        |id: &'static str| move |got: &mut Got| drop(got.headers.insert("webhook-id", id.parse().unwrap()));
    let fresh = |got: &mut Got| {
        let now = crate::world::now().after(Duration::from_secs(1)).as_secs();
        got.headers.insert("webhook-timestamp", now.into());
    };
    let same = |_: &mut Got| ();
    assert_eq!(replay(&hook, port, first, id("ask_another")).await, 401);
    assert_eq!(replay(&hook, port, first, fresh).await, 401);
    let of_another_device = |got: &mut Got| {
        let body = String::from_utf8_lossy(&got.body).replace("\"pump\"", "\"mill\"");
        assert_ne!(body.as_bytes(), &got.body[..]);
        got.body = body.into();
    };
    assert_eq!(replay(&hook, port, first, of_another_device).await, 401);
    assert_eq!(replay(&hook, port, first, same).await, 200, "it is good once");
    for _ in 0..3 {
        assert_eq!(replay(&hook, port, first, same).await, 409);
    }
    assert_eq!(
        replay(&hook, port, second, same).await,
        200,
        "another one is good"
    );
    // Five minutes later it is too old, also for a service that has never seen it.
    assert_eq!(replay(&hook, port_of_late, first, same).await, 401);
}

/// Who may know why is told what the authoriser says; nobody else's question gets to it, and it opens nothing.
#[tokio::test]
async fn why_tells_what_the_authoriser_says() {
    let hook = Hook::start(allow("3")).await;
    let (world, _agent) = cast(&hook).await;
    let tess = world.operator("tess", "technicians").await;
    let (root, tess) = (world.api(&world.admin), world.api(&tess));
    let text = format!(
        "{POLICY}@id(\"staff\") permit (principal in OperatorGroup::\"technicians\", action in [Action::\"view\", \
         Action::\"connect\"], resource) when {{ !(resource has name) || resource.name == \"ssh\" }};"
    );
    let text = json!({ "text": text });
    root.send(Method::PUT, "/v1/policy", Some(&text))
        .await
        .good::<PolicyState>();
    let ask = |service: &str| json!({ "device": "pump", "service": service });
    let why =
        async |api: &crate::api::Api, service: &str| api.post("/v1/why", &ask(service)).await.good::<Why>();

    let told = why(&tess, "ssh").await;
    assert_eq!(
        (told.outcome.as_str(), told.authoriser.map(|said| said.asked)),
        ("allow", Some(false))
    );
    let told = why(&root, "web").await;
    assert_eq!(
        (told.outcome.as_str(), told.authoriser.map(|said| said.asked)),
        ("deny", Some(false))
    );
    assert_eq!(hook.connections(), 0);

    let told = why(&root, "ssh").await;
    let said = told.authoriser.unwrap();
    assert_eq!(
        (told.outcome.as_str(), said.answer.as_deref()),
        ("allow", Some("allow: shift"))
    );
    assert_eq!(said.facts["risk"], "3");
    let asked = hook.got().pop().unwrap();
    assert!(asked.is_signed() && asked.json()["type"] == "why.asked");
    hook.now(allow("9"));
    let told = why(&root, "ssh").await;
    assert_eq!(
        (told.outcome.as_str(), told.policies),
        ("deny", vec!["risky".to_owned()])
    );
    for (manner, answer) in [
        (
            json!({ "decision": "forbid", "reason": "no ticket" }),
            "forbid: no ticket",
        ),
        (json!({}), "none: the answer is not of the documented form"),
    ] {
        hook.now(Manner::Says(200, manner.to_string()));
        let told = why(&root, "ssh").await;
        assert_eq!(told.outcome, "deny");
        let said = told.authoriser.unwrap().answer.unwrap();
        assert!(said.starts_with(answer), "{said}");
    }
    let tunnels: Vec<Tunnel> = root.get("/v1/tunnels").await.good();
    assert!(tunnels.is_empty(), "{tunnels:?}");
    world.server.shutdown().await;
}

/// Who asks why again and again takes no turn of those who want a tunnel.
#[tokio::test]
async fn explanations_that_wait_hold_up_no_opening() {
    let hook = Hook::start(Manner::Hangs).await;
    let (world, mut agent) = cast(&hook).await;
    let question = json!({ "device": "pump", "service": "ssh" });
    let why = async || world.api(&world.admin).post("/v1/why", &question).await;
    let whys = futures_util::future::join_all((0..8).map(|_| why()));
    let opening = async {
        let asked = || {
            hook.got()
                .iter()
                .filter(|got| got.json()["type"] == "why.asked")
                .count()
        };
        let patience = Instant::now() + Duration::from_secs(8);
        while asked() < 4 {
            assert!(Instant::now() < patience, "{} were asked", asked());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        hook.now(allow("0"));
        opened(&world, &mut agent).await;
        assert_eq!(asked(), 4, "the others wait for those");
    };
    tokio::select! {
        answers = whys => panic!("the authoriser does not answer: {answers:?}"),
        () = opening => {}
    }
    world.server.shutdown().await;
}
