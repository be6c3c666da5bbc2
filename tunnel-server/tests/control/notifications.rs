//! Notifications: in order, at least once, and kept apart when nobody takes them.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tunnel_proto::Code;
use tunnel_proto::api::{Notifications, SettledNotifications};
use tunnel_server::config::{Config, Notify};
use tunnel_server::notify::Topic;

use crate::api::Api;
use crate::audit::wait_for;
use crate::authoriser::Running;
use crate::hook::{Got, Hook, Manner};
use crate::world::{Member, World};

const TAKEN: Manner = Manner::Says(204, String::new());

fn telling(hook: &Hook, topics: &[Topic], tries: u32) -> impl FnOnce(&mut Config) {
    let notify = Notify {
        name: "siem".into(),
        target: hook.target(),
        topics: topics.to_vec(),
        tries,
    };
    move |config| config.notify = vec![notify]
}

/// Causes one record about a decision.
async fn refused(world: &World, eve: &Member) {
    world.api(eve).get("/v1/audit").await.refused(Code::PolicyDeny);
}

async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let waiting = async {
        while !look() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(crate::api::SOON, waiting).await;
    waited.unwrap_or_else(|_| panic!("waited for {what}"));
}

async fn list(world: &World) -> Notifications {
    world.api(&world.admin).get("/v1/notifications").await.good()
}

async fn settle(world: &World, how: &str) -> SettledNotifications {
    let order = json!({ "target": "siem", "how": how });
    world
        .api(&world.admin)
        .post("/v1/notifications", &order)
        .await
        .good()
}

fn numbers(got: &[Got]) -> Vec<u64> {
    got.iter()
        .map(|got| got.json()["data"]["seq"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn each_record_is_told_in_order_over_failures_and_restarts() {
    let hook = Hook::start(TAKEN).await;
    let world = World::with(telling(&hook, &[Topic::Decisions], 1000)).await;
    let eve = world.operator("eve", "guests").await;
    for _ in 0..3 {
        refused(&world, &eve).await;
    }
    until("three notifications", || hook.got().len() == 3).await;
    for got in hook.got() {
        let told = got.json();
        assert!(got.is_signed());
        assert_eq!(
            (&told["type"], &told["data"]["kind"]),
            (&json!("access.denied"), &json!("access.denied"))
        );
        let body: Value = serde_json::from_str(told["data"]["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["operator"], "eve");
        assert!(told["timestamp"].as_str().unwrap().ends_with('Z'), "{told}");
    }

    // One that is not taken holds up those behind it, and none is lost when the server ends in the middle of an attempt.
    hook.now(Manner::Says(503, String::new()));
    for _ in 0..3 {
        refused(&world, &eve).await;
    }
    until("a second attempt", || hook.got().len() >= 5).await;
    hook.now(Manner::Hangs);
    let before = hook.got().len();
    until("an attempt that hangs", || hook.got().len() > before).await;
    let world = world.restart().await;
    hook.now(TAKEN);
    refused(&world, &eve).await;
    let distinct = || {
        let mut numbers = numbers(&hook.got());
        numbers.dedup();
        numbers
    };
    until("all seven", || distinct().len() >= 7).await;
    let told = distinct();
    assert!(told.len() == 7 && told.is_sorted(), "{told:?}");
    // Each attempt has the id of the record, so that its receiver knows it again.
    let mut ids: Vec<_> = hook
        .got()
        .iter()
        .map(|got| got.header("webhook-id").to_owned())
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 7);
    assert!(list(&world).await.dead.is_empty());
    world.server.shutdown().await;
}

/// THREATS SRV-15.
#[tokio::test]
async fn srv_15_what_nobody_takes_is_kept_apart_until_it_is_settled() {
    let elsewhere = Hook::start(TAKEN).await;
    let hook = Hook::start(Manner::HangsUp).await;
    let world = World::with(telling(&hook, &Topic::ALL, 1)).await;
    let eve = world.operator("eve", "guests").await;
    for (at, (manner, why)) in [
        (Manner::HangsUp, "exchange failed"),
        (Manner::Redirects(elsewhere.url("127.0.0.1")), "redirect"),
        (Manner::Pours, "more than 16384 bytes"),
        (Manner::Says(500, String::new()), "status is 500"),
    ]
    .into_iter()
    .enumerate()
    {
        hook.now(manner);
        refused(&world, &eve).await;
        until_given_up(&world, at + 1).await;
        let dead = list(&world).await.dead;
        assert!(dead[at].error.contains(why), "{why}: {}", dead[at].error);
        assert_eq!(
            (dead[at].tries, dead[at].record.kind.as_str()),
            (1, "access.denied")
        );
    }
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
    wait_for(&world, "notification.failed").await;

    // Who has no right settles nothing, and what is not taken again stays.
    let order = json!({ "target": "siem", "how": "retry" });
    world
        .api(&eve)
        .post("/v1/notifications", &order)
        .await
        .refused(Code::PolicyDeny);
    until_given_up(&world, 5).await;
    let nobody = json!({ "target": "nobody", "how": "drop" });
    world
        .api(&world.admin)
        .post("/v1/notifications", &nobody)
        .await
        .refused(Code::NotFound);
    let done = settle(&world, "retry").await;
    assert_eq!(done.settled, 0);
    assert!(done.error.unwrap().contains("status is 500"));

    hook.now(TAKEN);
    let before = hook.got().len();
    let dead: Vec<_> = list(&world)
        .await
        .dead
        .iter()
        .map(|letter| letter.record.seq)
        .collect();
    assert_eq!(settle(&world, "retry").await.settled, 5);
    assert_eq!(numbers(&hook.got()[before..]), dead);
    assert!(list(&world).await.dead.is_empty());
    // Of its own failures the target was not told: that would go round in a circle.
    assert!(hook.got().iter().all(|got| got.json()["type"] == "access.denied"));

    hook.now(Manner::HangsUp);
    refused(&world, &eve).await;
    until_given_up(&world, 1).await;
    assert_eq!(settle(&world, "drop").await.settled, 1);
    assert!(list(&world).await.dead.is_empty());
    let settled = wait_for(&world, "notification.settled").await;
    assert_eq!(settled["target"], "siem");
    world.server.shutdown().await;
}

async fn until_given_up(world: &World, count: usize) {
    let waiting = async {
        while list(world).await.dead.len() < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(crate::api::SOON, waiting).await;
    waited.unwrap_or_else(|_| panic!("waited for {count} notifications to be given up"));
}

/// THREATS SRV-15: an address that is not public is gone to only if it is listed.
#[tokio::test]
async fn srv_15_nothing_is_told_at_private_addresses() {
    let hook = Hook::start(TAKEN).await;
    let world = World::with(|config| {
        telling(&hook, &[Topic::Decisions], 1)(config);
        config.notify[0].target.allow.clear();
    })
    .await;
    let eve = world.operator("eve", "guests").await;
    refused(&world, &eve).await;
    until_given_up(&world, 1).await;
    let dead = list(&world).await.dead;
    assert!(dead[0].error.contains("no public address"), "{}", dead[0].error);
    assert_eq!(hook.connections(), 0);
    world.server.shutdown().await;
}

/// Starts the program on a data directory, and returns where its API is.
async fn start(data: &Path) -> (Running, SocketAddr) {
    let said = data.join("said");
    let program = Command::new(env!("CARGO_BIN_EXE_tunnel-server"))
        .args(["run", "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said).unwrap())
        .spawn();
    let program = Running(program.unwrap());
    let address = || {
        let said = std::fs::read_to_string(&said).unwrap();
        let line = said.lines().find(|line| line.contains("listening"))?;
        let tcp = line.split_once("tcp=")?.1;
        tcp.split_whitespace().next()?.parse().ok()
    };
    until("the program to listen", || address().is_some()).await;
    (program, address().unwrap())
}

/// However often the program is killed, each record is told, and those told twice are known by their id.
#[tokio::test]
async fn nothing_is_lost_when_the_program_is_killed() {
    let hook = Hook::start(TAKEN).await;
    let world = World::new().await;
    let eve = world.operator("eve", "guests").await;
    let World {
        directory,
        server,
        ends,
        admin,
        ..
    } = world;
    server.shutdown().await;
    let data = crate::world::data(&directory);
    let mut config = OpenOptions::new().append(true).open(data.config()).unwrap();
    let (url, key, ca) = (hook.url("127.0.0.1"), hook.file("hook.key"), hook.file("ca.pem"));
    writeln!(
        config,
        "[[notify]]\nname = \"siem\"\nurl = \"{url}\"\nkey = {key:?}\nca = {ca:?}\nallow = [\"127.0.0.1\"]\n\
         topics = [\"decisions\"]"
    )
    .unwrap();
    drop(config);

    let api = |at: SocketAddr, member: &Member| {
        Api::new(at, tunnel_net::tls::api_client(&ends, Some(&member.credentials)))
    };
    for round in 0..4 {
        let (mut program, at) = start(data.path()).await;
        // In turns it is killed while it tells, and while it waits for an answer that does not come.
        hook.now(if round % 2 == 0 { TAKEN } else { Manner::Hangs });
        let before = hook.got().len();
        for _ in 0..5 {
            api(at, &eve).get("/v1/audit").await.refused(Code::PolicyDeny);
        }
        until("something to be told", || hook.got().len() > before).await;
        program.0.kill().unwrap();
        program.0.wait().unwrap();
    }
    hook.now(TAKEN);
    let (_program, at) = start(data.path()).await;
    let trail = api(at, &admin).audit().await;
    let denied = trail.iter().filter(|(kind, _)| kind == "access.denied").count();
    assert_eq!(denied, 20);
    let ids = || -> BTreeSet<String> {
        let got = hook.got();
        got.iter()
            .map(|got| got.header("webhook-id").to_owned())
            .collect()
    };
    until("all to be told", || ids().len() == denied).await;
    let told = numbers(&hook.got());
    assert!(told.is_sorted(), "{told:?}");
}
