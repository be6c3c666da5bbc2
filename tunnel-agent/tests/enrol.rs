//! Enrolment against a server that a test plays: what is kept, and what is refused.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use common::{Fleet, Output, run};
use tunnel_net::tls::{self, NoRevocations};
use tunnel_proto::api::{EnrolAnswer, EnrolRequest, ErrorBody};
use tunnel_proto::code::Code;
use tunnel_proto::enrol::EnrolCode;
use tunnel_proto::ids::hex;
use tunnel_proto::keys::Secret;

const SECRET: [u8; 32] = [6; 32];

/// Serves one request over TLS; returns it, if the client got as far as to send one.
fn serve(
    fleet: Fleet,
    answer: impl FnOnce(&Fleet, &EnrolRequest) -> (u16, String) + Send + 'static,
) -> (u16, JoinHandle<Option<EnrolRequest>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let credentials = fleet.credentials("server/node-1");
        let config = tls::api_server(&fleet.ends(), &credentials, Arc::new(NoRevocations));
        let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, listener.accept().unwrap().0);
        let request = read_request(&mut stream)?;
        let (status, body) = answer(&fleet, &request);
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream.flush().unwrap();
        Some(request)
    });
    (port, server)
}

fn read_request(stream: &mut impl std::io::Read) -> Option<EnrolRequest> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            assert!(head.starts_with("POST /v1/enrol HTTP/1.1\r\n"), "{head}");
            if let Ok(request) = serde_json::from_str(body) {
                return Some(request);
            }
        }
    }
}

fn grant(fleet: &Fleet, request: &EnrolRequest, path: &str) -> (u16, String) {
    let answer = EnrolAnswer {
        identity: fleet.identity(path).to_string(),
        chain: fleet.chain(&request.csr, path, 90),
        root: fleet.trust.to_pem(),
        expires_at: 0,
        udp_port: 4433,
    };
    (200, serde_json::to_string(&answer).unwrap())
}

fn enrol(port: u16, fingerprint: [u8; 32], state: &Path) -> Output {
    let server = format!("127.0.0.1:{port}");
    let code = EnrolCode {
        server,
        root_fingerprint: fingerprint,
        secret: Secret::new(SECRET),
    }
    .to_text();
    run(&[
        "enrol",
        &code,
        "--id",
        "pump",
        "--state",
        state.to_str().unwrap(),
        "--json",
    ])
}

#[test]
fn a_code_becomes_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let fleet = Fleet::new();
    let fingerprint = fleet.trust.fingerprint();
    let (port, server) = serve(fleet, |fleet, request| grant(fleet, request, "device/pump"));
    let output = enrol(port, fingerprint, &state);
    assert_eq!(output.code, 0, "{output:?}");
    let request = server.join().unwrap().unwrap();
    assert_eq!(
        (request.secret, request.id.as_deref()),
        (hex(&SECRET), Some("pump"))
    );
    let json: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!(json["identity"], "spiffe://fleet.example/device/pump");
    for file in ["key.pem", "chain.pem", "root.pem", "agent-state.toml"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = state.join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert!(!state.join("key-pending.pem").exists());
    assert!(
        std::fs::read_to_string(state.join("agent-state.toml"))
            .unwrap()
            .contains("udp_port = 4433\n")
    );
    let again = enrol(port, fingerprint, &state);
    assert_eq!(
        again.code, 2,
        "an identity is not given up by accident: {again:?}"
    );
}

#[test]
fn a_refusal_is_told_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::new();
    let fingerprint = fleet.trust.fingerprint();
    let (port, server) = serve(fleet, |_, _| {
        let code = Code::EnrolTaken;
        let body = ErrorBody {
            code,
            why: code.why().into(),
            next: code.next_step().into(),
            detail: Some("\x1b[2Jpump".into()),
        };
        (409, serde_json::to_string(&body).unwrap())
    });
    let output = enrol(port, fingerprint, &dir.path().join("state"));
    server.join().unwrap();
    assert_eq!(output.code, 3, "{output:?}");
    let json: serde_json::Value = serde_json::from_str(&output.err).unwrap();
    assert_eq!(json["error"]["code"], "E_ENROL_TAKEN");
    assert!(
        !output.err.contains('\x1b') && !output.err.contains("\\u001b"),
        "{output:?}"
    );
}

// CLI-13, AGT-17
#[test]
fn a_server_of_another_root_learns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (port, server) = serve(Fleet::new(), |fleet, request| {
        grant(fleet, request, "device/pump")
    });
    let output = enrol(port, Fleet::new().trust.fingerprint(), &state);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(server.join().unwrap().is_none(), "no request was sent");
    assert!(!state.join("chain.pem").exists());
}

#[test]
fn an_answer_for_somebody_else_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let fleet = Fleet::new();
    let fingerprint = fleet.trust.fingerprint();
    let (port, server) = serve(fleet, |fleet, request| grant(fleet, request, "device/valve"));
    let output = enrol(port, fingerprint, &state);
    server.join().unwrap();
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.err.contains("not asked for"), "{output:?}");
    assert!(!state.join("chain.pem").exists());
}
