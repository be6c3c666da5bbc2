//! The fixed budgets of callers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel_proto::Code;
use tunnel_proto::defaults::{CARRIER_PROTOCOL, SERVER_NAME};

use crate::api::{SOON, request};
use crate::world::World;

/// THREATS ENR-10, part 5.
#[tokio::test]
async fn bodies_are_bounded() {
    let world = World::new().await;
    let (api, nobody) = (world.api(&world.admin), world.api_of_nobody());
    let long = json!({ "device": "pump", "services": ["ssh"], "reason": "x".repeat(70_000) });
    api.post("/v1/tunnels", &long).await.refused(Code::TooLarge);
    let long = json!({ "secret": "0".repeat(64), "csr": "x".repeat(5_000) });
    nobody.post("/v1/enrol", &long).await.refused(Code::TooLarge);
    // Who may not ask is told so before anything is read.
    nobody
        .post("/v1/tunnels", &long)
        .await
        .refused(Code::Unauthenticated);
    world.server.shutdown().await;
}

/// THREATS SRV-14, TOK-16.
#[tokio::test]
async fn bodies_of_another_form_are_refused() {
    let world = World::new().await;
    let api = world.api(&world.admin);
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for body in [
        "",
        "null",
        "[]",
        "{",
        "{\"device\":1,\"services\":[]}",
        "\u{feff}{}",
        &deep,
        "{\"device\":\"a\",\"device\":\"b\",\"services\":[\"ssh\"]}",
        "{\"device\":\"a\",\"services\":[\"ssh\"],\"role\":1}",
    ] {
        let sent = Request::post("/v1/tunnels")
            .header("host", SERVER_NAME)
            .header("content-type", "application/json");
        let sent = sent.body(Full::from(body.to_owned())).unwrap();
        api.try_send(sent).await.unwrap().refused(Code::BadRequest);
    }
    let body = Full::from(json!({ "device": "pump", "services": ["ssh"] }).to_string());
    let sent = Request::post("/v1/tunnels")
        .header("host", SERVER_NAME)
        .header("content-type", "text/plain");
    api.try_send(sent.body(body).unwrap())
        .await
        .unwrap()
        .refused(Code::BadRequest);
    world.server.shutdown().await;
}

/// THREATS ENR-10.
#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::new().await;
    let mut stream = world.api_of_nobody().connect().await.unwrap();
    let head = "POST /v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    // The connection may break off without a last word; what counts is the answer before.
    let _ = tokio::time::timeout(SOON, read).await.expect("an answer in time");
    assert!(answer.contains("E_DEADLINE"), "{answer}");
    world.server.shutdown().await;
}

/// THREATS DAT-20.
#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let world = World::new().await;
    let mut sent: Request<Full<Bytes>> = request(Method::GET, "/v1/status", None);
    sent.headers_mut()
        .insert("x-long", "x".repeat(20_000).parse().unwrap());
    let answer = world.api(&world.admin).try_send(sent).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 431));
    world.server.shutdown().await;
}

/// THREATS DAT-20, CRT-09: who stalls is closed in time and keeps nobody out.
#[tokio::test]
async fn a_stalled_handshake_is_closed_and_others_are_served() {
    let world = World::new().await;
    let mut stalled = TcpStream::connect(world.server.tcp_addr()).await.unwrap();
    stalled.write_all(b"\x16\x03\x01").await.unwrap();
    assert_eq!(world.api(&world.admin).get("/v1/status").await.status, 200);
    let closed = tokio::time::timeout(SOON, stalled.read(&mut [0; 16]))
        .await
        .expect("closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)));
    world.server.shutdown().await;
}

/// THREATS DAT-20: 64 handshakes of one source at once, and no more.
#[tokio::test]
async fn a_source_has_a_bounded_number_of_handshakes() {
    let world = World::new().await;
    let mut stalled = Vec::new();
    for _ in 0..65 {
        stalled.push(TcpStream::connect(world.server.tcp_addr()).await.unwrap());
    }
    let mut last = stalled.pop().unwrap();
    let closed = tokio::time::timeout(SOON, last.read(&mut [0; 16]))
        .await
        .expect("closed at once");
    assert!(matches!(closed, Ok(0) | Err(_)));
    drop(stalled);
    world.server.shutdown().await;
}

/// THREATS DAT-23.
#[tokio::test]
async fn the_carrier_is_for_our_own_programs() {
    let world = World::new().await;
    let nobody = world.api_of_nobody();
    let upgrade = || {
        Request::get("/v1/carrier")
            .header("host", SERVER_NAME)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", CARRIER_PROTOCOL)
    };
    let page = upgrade()
        .header("origin", "https://evil.example")
        .body(Full::default())
        .unwrap();
    nobody.try_send(page).await.unwrap().refused(Code::BadRequest);
    let plain = Request::get("/v1/carrier")
        .header("host", SERVER_NAME)
        .body(Full::default())
        .unwrap();
    nobody.try_send(plain).await.unwrap().refused(Code::BadRequest);
    let good = nobody.try_send(upgrade().body(Full::default()).unwrap()).await;
    assert_eq!(good.unwrap().status, 101);
    world.server.shutdown().await;
}

#[tokio::test]
async fn the_document_is_there_for_everybody() {
    let world = World::new().await;
    let document: serde_json::Value = world.api_of_nobody().get("/v1/openapi.json").await.good();
    assert!(document["paths"]["/v1/tunnels"]["post"].is_object());
    let mut ids: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap())
        .map(|(_, operation)| operation["operationId"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count, "two operations have one id");
    world.server.shutdown().await;
}
