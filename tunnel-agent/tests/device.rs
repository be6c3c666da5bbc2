//! The agent between a server, a relay and a service, all on loopback.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod common;

use std::time::{Duration, Instant};

use common::closed_port;
use common::server::{Device, Link, Server, Tunnel, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tunnel_agent::access::Switch;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::{files, stream};
use tunnel_proto::code::Refusal;
use tunnel_proto::cose::SigningKey;
use tunnel_proto::grant::{Grant, Limits};
use tunnel_proto::keys::{KeyHash, Secret};
use tunnel_proto::lock::{Access, Lock, Permit, Statement, Window};
use tunnel_proto::message::{
    Attached, EndTunnel, EndedBy, FromAgent, FromServer, Goodbye, Renewed, Rotate, SessionEnded,
};
use tunnel_proto::{Code, UnixTime};

/// A local service that a test plays itself.
async fn service() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!(
        "[services.ssh]\ntarget = \"tcp:{}\"\n",
        listener.local_addr().unwrap()
    );
    (listener, target)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    soon("a local connection", listener.accept()).await.unwrap().0
}

#[tokio::test]
async fn a_session_carries_bytes_and_half_closes_both_ways() {
    let (listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    assert_eq!(link.hello.report.services, ["ssh".parse().unwrap()]);
    assert!(link.hello.report.access && link.hello.tunnels.is_empty());
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;

    let (refused, mut send, mut recv) = tunnel.session("ssh").await;
    assert_eq!(refused, None);
    let mut local = accept(&listener).await;
    send.write_all(b"question").await.unwrap();
    send.finish().unwrap();
    let mut text = String::new();
    soon("the question", local.read_to_string(&mut text))
        .await
        .unwrap();
    assert_eq!(text, "question");
    local.write_all(b"answer").await.unwrap();
    drop(local);
    assert_eq!(
        soon("the answer", recv.read_to_end(100)).await.unwrap(),
        b"answer"
    );

    let FromAgent::SessionEnded(ended) = link.next().await else {
        panic!("the session is reported")
    };
    assert_eq!((ended.service.as_str(), ended.refused), ("ssh", None));
    assert_eq!((ended.bytes_in, ended.bytes_out), (8, 6));
    let end = ended.end.unwrap();
    assert_eq!((end.by, end.cause), (EndedBy::Both, None));
    assert!(end.started_at <= grant.expires_at, "{end:?}");

    tunnel.connection.close(0u32.into(), b"done");
    assert_eq!(link.tunnel_ended(&grant).await, Code::TunnelClosed);
    device.stop().await;
    soon("the end of the link", link.connection.closed()).await;
}

/// Returns the next end of a session; what else is told on the way is passed over.
async fn session_ended(link: &mut Link) -> SessionEnded {
    loop {
        if let FromAgent::SessionEnded(ended) = link.next().await {
            return ended;
        }
    }
}

/// Uses a session that is refused, which ends at once.
async fn refused_session(tunnel: &Tunnel) {
    assert_eq!(tunnel.session("shell").await.0, Some(Code::ServiceUnknown));
}

#[tokio::test]
async fn the_end_of_a_session_is_told_on_each_link_until_it_is_confirmed() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    refused_session(&tunnel).await;
    let first = session_ended(&mut link).await;
    link.confirms = false;
    refused_session(&tunnel).await;
    let second = session_ended(&mut link).await;
    assert_eq!((first.number, second.number), (Some(0), Some(1)));

    // A link that breaks before the answer, and one on which nothing is answered either.
    link.connection.close(0u32.into(), b"");
    let mut link = server.link().await;
    link.confirms = false;
    assert_eq!(session_ended(&mut link).await, second, "word for word");
    link.connection.close(0u32.into(), b"");
    let mut link = server.link().await;
    assert_eq!(session_ended(&mut link).await, second);
    // One that could not record, and can again, is told again what it has not confirmed, and nothing else.
    link.confirms = false;
    refused_session(&tunnel).await;
    let third = session_ended(&mut link).await;
    link.say(FromServer::Recording(false)).await;
    link.say(FromServer::Recording(true)).await;
    link.confirms = true;
    assert_eq!(session_ended(&mut link).await, third);
    assert_eq!(third.number, Some(2));
    tunnel.connection.close(0u32.into(), b"done");
    loop {
        match link.next().await {
            FromAgent::TunnelEnded(_) => break,
            FromAgent::SessionEnded(ended) => panic!("{ended:?} was confirmed"),
            _ => {}
        }
    }
    device.stop().await;
}

/// A server of before would record twice what it is told twice.
#[tokio::test]
async fn a_server_that_does_not_confirm_is_told_once() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link_as(SystemClock.now(), false).await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    refused_session(&tunnel).await;
    assert_eq!(session_ended(&mut link).await.number, Some(0));
    link.connection.close(0u32.into(), b"");
    let mut link = server.link_as(SystemClock.now(), false).await;
    refused_session(&tunnel).await;
    assert_eq!(session_ended(&mut link).await.number, Some(1), "the next one");
    device.stop().await;
}

/// An agent that stops waits until the server has what it was told.
#[tokio::test]
async fn an_agent_that_stops_waits_for_the_answer() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    link.confirms = false;
    refused_session(&tunnel).await;
    let ended = session_ended(&mut link).await;
    let stopping = device.stop();
    tokio::pin!(stopping);
    let told = async {
        // The tunnel's end is the last that it tells, and it stays on the line all the same.
        assert_eq!(link.tunnel_ended(&grant).await, Code::TunnelClosed);
        let quiet = tokio::time::timeout(Duration::from_millis(300), link.recv.read_chunk(1, true)).await;
        assert!(!matches!(quiet, Ok(Ok(None) | Err(_))), "it has left: {quiet:?}");
        let keys = ended.key().into_iter().collect();
        link.say(FromServer::SessionsKept(keys)).await;
        soon("the end of the link", link.connection.closed()).await;
    };
    tokio::join!(told, stopping);
}

// AGT-01, AGT-04
#[tokio::test]
async fn what_is_not_declared_or_not_granted_is_refused_by_name() {
    let (_listener, services) = service().await;
    let services = format!(
        "{services}[services.web]\ntarget = \"tcp:127.0.0.1:1\"\n[services.closed]\ntarget = \"tcp:127.0.0.1:1\"\nallow_operators = [\"bob\"]\n"
    );
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    for (number, service, code) in [
        (1, "shell", Code::ServiceUnknown),
        (2, "closed", Code::LocalPolicy),
        (3, "65536", Code::ServiceUnknown),
    ] {
        let grant = server.grant(&link, number, &["ssh", service]);
        assert_eq!(server.offer(&mut link, &grant).await, Some(code), "{service}");
    }
    let grant = server.grant(&link, 9, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    for (asked, code) in [
        ("shell", Code::ServiceUnknown),
        ("127.0.0.1:22", Code::ServiceUnknown),
        ("http://169.254.169.254/", Code::ServiceUnknown),
        ("web", Code::TokenScope),
        ("closed", Code::TokenScope),
    ] {
        assert_eq!(tunnel.session(asked).await.0, Some(code), "{asked}");
        let FromAgent::SessionEnded(ended) = link.next().await else {
            panic!("the refusal is reported")
        };
        assert_eq!((ended.service.as_str(), ended.refused), (asked, Some(code)));
    }
    // Kept: its end would be reported before the answer to the offer.
    let (refused, _send, _recv) = tunnel.session("ssh").await;
    assert_eq!(refused, None, "the others did it no harm");
    assert_eq!(server.offer(&mut link, &grant).await, Some(Code::TokenReplay));
}

/// A key of the owner, which no server has.
fn lock_key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Secret::new([seed; 32])).unwrap()
}

/// A lock of which two of three keys are needed.
fn lock() -> Lock {
    let keys = (11..=13).map(|seed| lock_key(seed).verifying_key()).collect();
    Lock::new(2, keys).unwrap()
}

/// A permit for what a grant names, for an hour and a little before, signed by some keys.
fn permit(grant: &Grant, keys: &[u8], change: impl FnOnce(&mut Access)) -> Permit {
    let mut access = Access {
        trust_domain: grant.trust_domain.clone(),
        operator: grant.operator.clone(),
        holder_key: grant.holder_key,
        device: grant.device.clone(),
        services: vec!["plc".parse().unwrap()],
        window: Window {
            from: grant.issued_at,
            until: grant.issued_at.after(Duration::from_secs(3600)),
        },
        nonce: [1; 16],
    };
    change(&mut access);
    let mut permit = Permit::request(Statement::Access(access));
    for &seed in keys {
        assert!(permit.sign(&lock_key(seed)));
    }
    permit
}

// T12, AGT-04: this server has the true grant key, and does as it likes.
#[tokio::test]
async fn a_control_plane_that_was_taken_over_opens_nothing_that_is_locked() {
    let (listener, services) = service().await;
    let target = listener.local_addr().unwrap();
    let config = format!(
        "lock = \"{}\"\n{services}[services.plc]\ntarget = \"tcp:{target}\"\nlocked = true\n",
        lock().to_text()
    );
    let server = Server::start().await;
    let device = Device::start(&server, &config).await;
    let mut link = server.link().await;
    let root = std::fs::read(device.state.root()).unwrap();

    let grant = server.grant(&link, 1, &["plc"]);
    let nothing = |_: &mut Access| {};
    let eve = KeyHash::of_spki(b"eve");
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let bad: [(Option<Permit>, Code); 9] = [
        (None, Code::LockRequired),
        (Some(permit(&grant, &[], nothing)), Code::LockPermit),
        (Some(permit(&grant, &[11], nothing)), Code::LockPermit),
        // The server's own key, and keys of its making.
        (Some(permit(&grant, &[11, 3, 99], nothing)), Code::LockPermit),
        (
            Some(permit(&grant, &[11, 12], |one| {
                one.device = "valve".parse().unwrap()
            })),
            Code::LockScope,
        ),
        (
            Some(permit(&grant, &[11, 12], |one| one.holder_key = eve)),
            Code::LockScope,
        ),
        (
            Some(permit(&grant, &[11, 12], |one| {
                one.operator = "eve".parse().unwrap()
            })),
            Code::LockScope,
        ),
        (
            Some(permit(&grant, &[11, 12], |one| {
                one.services = vec!["ssh".parse().unwrap()]
            })),
            Code::LockScope,
        ),
        (
            Some(permit(&grant, &[11, 12], |one| {
                one.window.from = one.window.from.before(hours(2));
                one.window.until = one.window.until.before(hours(1));
            })),
            Code::LockTime,
        ),
    ];
    for (number, (permit, code)) in bad.iter().enumerate() {
        let grant = server.grant(&link, 100 + number as u8, &["ssh", "plc"]);
        let answer = server.offer_with(&mut link, &grant, permit.as_ref()).await;
        assert_eq!(answer, Some(*code), "{number}");
    }
    // What is not locked is the server's to give, and leads nowhere else.
    let open = server.grant(&link, 2, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &open).await;
    assert_eq!(tunnel.session("plc").await.0, Some(Code::TokenScope));
    assert_eq!(std::fs::read(device.state.root()).unwrap(), root);
}

#[tokio::test]
async fn a_permit_opens_a_locked_service_and_its_end_is_the_tunnels() {
    let (listener, services) = service().await;
    let locked = services.replace("services.ssh", "services.plc");
    let config = format!("lock = \"{}\"\n{locked}locked = true\n", lock().to_text());
    let server = Server::start().await;
    let _device = Device::start(&server, &config).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["plc"]);
    let permit = permit(&grant, &[13, 11], |one| {
        one.window.until = one.window.from.after(Duration::from_secs(10));
    });
    assert_eq!(server.offer_with(&mut link, &grant, Some(&permit)).await, None);
    server.attach(&mut link, &grant).await;
    let tunnel = soon("the tunnel", server.connect(&grant, &server.operator))
        .await
        .unwrap();
    let (refused, _send, _recv) = tunnel.session("plc").await;
    assert_eq!(refused, None);
    accept(&listener).await;
    let (mut started, mut reason) = (None, None);
    while started.is_none() || reason.is_none() {
        match link.next().await {
            FromAgent::SessionEnded(ended) => started = ended.end.map(|end| end.started_at),
            FromAgent::TunnelEnded(ended) => reason = Some(ended.reason),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reason, Some(Code::TunnelExpired), "the grant has an hour");
    assert!(
        started.unwrap() < permit.window().until,
        "it is told when it began"
    );
    assert_eq!(tunnel.closed().await, Code::TunnelExpired);
    let late = server.grant(&link, 2, &["plc"]);
    assert_eq!(
        server.offer_with(&mut link, &late, Some(&permit)).await,
        Some(Code::LockTime)
    );
}

// T12, AGT-10
#[tokio::test]
async fn a_server_that_turned_its_clock_back_does_not_stretch_a_permit() {
    let (listener, services) = service().await;
    let locked = services.replace("services.ssh", "services.plc");
    let config = format!("lock = \"{}\"\n{locked}locked = true\n", lock().to_text());
    let server = Server::start().await;
    let _device = Device::start(&server, &config).await;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let now = SystemClock.now();
    let mut link = server.link_at(now.before(hours(2))).await;
    let grant = Grant {
        issued_at: now.before(hours(2)),
        expires_at: now.after(hours(1)),
        ..server.grant(&link, 1, &["plc"])
    };
    let permit = permit(&grant, &[13, 11], |one| {
        one.window.until = SystemClock.now().after(Duration::from_secs(8));
    });
    assert_eq!(server.offer_with(&mut link, &grant, Some(&permit)).await, None);
    server.attach(&mut link, &grant).await;
    let tunnel = soon("the tunnel", server.connect(&grant, &server.operator))
        .await
        .unwrap();
    let (refused, _send, _recv) = tunnel.session("plc").await;
    assert_eq!(refused, None);
    accept(&listener).await;
    assert_eq!(tunnel.closed().await, Code::TunnelExpired);
    assert_eq!(link.tunnel_ended(&grant).await, Code::TunnelExpired);
    assert!(SystemClock.now() >= permit.window().until, "it has its time");
}

// I12
#[tokio::test]
async fn a_window_that_has_closed_ends_its_tunnels_whatever_wakes_the_agent() {
    let (_listener, services) = service().await;
    let now = SystemClock.now();
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let text = |time: UnixTime| {
        let minutes = time.as_secs() / 60 % (24 * 60);
        format!("{:02}:{:02}", minutes / 60, minutes % 60)
    };
    let (from, to) = (text(now.before(hours(1))), text(now.after(hours(2))));
    let config = format!("maintenance.windows = [\"daily {from}-{to}\"]\n{services}");
    let server = Server::start().await;
    let _device = Device::start(&server, &config).await;
    let mut link = server.link().await;
    let grant = Grant {
        expires_at: now.after(hours(6)),
        ..server.grant(&link, 1, &["ssh"])
    };
    let tunnel = server.tunnel(&mut link, &grant).await;
    // Half an hour goes by while the device sleeps, and the window is still open; then it is not.
    link.connection.close(0u32.into(), b"restart");
    let link = server.link_at(now.after(Duration::from_secs(1800))).await;
    assert_eq!(link.hello.tunnels, [grant.tunnel]);
    let (refused, _send, _recv) = tunnel.session("ssh").await;
    assert_eq!(refused, None);
    link.connection.close(0u32.into(), b"restart");
    let mut link = server.link_at(now.after(hours(3))).await;
    assert_eq!(tunnel.closed().await, Code::OutsideWindow);
    assert_eq!(link.tunnel_ended(&grant).await, Code::OutsideWindow);
}

#[tokio::test]
async fn a_lock_that_is_put_on_ends_what_has_no_permit() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    let (_, _send, _recv) = tunnel.session("ssh").await;
    let locked = format!("lock = \"{}\"\n{services}locked = true\n", lock().to_text());
    device.reconfigure(&locked).await;
    assert_eq!(tunnel.closed().await, Code::LocalPolicy);
    assert_eq!(link.tunnel_ended(&grant).await, Code::LocalPolicy);
}

// TOK-02
#[tokio::test]
async fn a_grant_of_another_relay_is_refused() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = Grant {
        relay: "node-2".parse().unwrap(),
        ..server.grant(&link, 1, &["ssh"])
    };
    assert_eq!(server.offer(&mut link, &grant).await, Some(Code::TokenAudience));
    let grant = server.grant(&link, 2, &["ssh"]);
    assert_eq!(server.offer(&mut link, &grant).await, None);
}

#[tokio::test]
async fn the_owners_switch_cuts_and_keeps_out() {
    let (listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    let (_, _send, _recv) = tunnel.session("ssh").await;
    let mut local = accept(&listener).await;

    Switch::new(device.state.path()).set(false).unwrap();
    assert_eq!(tunnel.closed().await, Code::AccessOff);
    let mut rest = Vec::new();
    let read = soon("the end of the local connection", local.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{read:?}");
    let FromAgent::Report(report) = link.next().await else {
        panic!("the change is reported")
    };
    assert!(!report.access);
    assert_eq!(link.tunnel_ended(&grant).await, Code::AccessOff);
    let again = server.grant(&link, 2, &["ssh"]);
    assert_eq!(server.offer(&mut link, &again).await, Some(Code::AccessOff));

    Switch::new(device.state.path()).set(true).unwrap();
    let FromAgent::Report(report) = link.next().await else {
        panic!("the change is reported")
    };
    assert!(report.access);
    let third = server.grant(&link, 3, &["ssh"]);
    server.tunnel(&mut link, &third).await;
}

#[tokio::test]
async fn the_server_cuts_with_a_reason() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    let end = EndTunnel {
        tunnel: grant.tunnel,
        reason: Refusal::from(Code::PolicyChanged),
    };
    link.say(FromServer::EndTunnel(end.clone())).await;
    assert_eq!(tunnel.closed().await, Code::PolicyChanged);
    assert_eq!(link.tunnel_ended(&grant).await, Code::PolicyChanged);
    link.say(FromServer::EndTunnel(end)).await;
    assert_eq!(
        link.tunnel_ended(&grant).await,
        Code::PolicyChanged,
        "a cut is confirmed each time"
    );

    let grant = server.grant(&link, 2, &["ssh"]);
    let _tunnel = server.tunnel(&mut link, &grant).await;
    server.end_circuit(&grant, Code::ByteLimit).await;
    assert_eq!(link.tunnel_ended(&grant).await, Code::ByteLimit);
}

// TOK-13, I4
#[tokio::test]
async fn only_the_operator_of_the_grant_gets_in() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    assert_eq!(server.offer(&mut link, &grant).await, None);
    server.attach(&mut link, &grant).await;
    for who in ["operator/bob", "operator/ana", "device/valve"] {
        let stranger = server.fleet.credentials(who);
        // TLS 1.3: that the certificate was refused shows after the handshake, on the first read.
        let closed = match soon("a handshake", server.connect(&grant, &stranger)).await {
            Err(error) => error,
            Ok(tunnel) => soon("a refusal", tunnel.connection.closed()).await,
        };
        assert!(!matches!(closed, quinn::ConnectionError::TimedOut), "{who}");
    }
    let tunnel = soon("the tunnel", server.connect(&grant, &server.operator))
        .await
        .unwrap();
    assert_eq!(tunnel.session("ssh").await.0, None);
}

#[tokio::test]
async fn a_tunnel_outlives_its_link() {
    let (listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    let (_, mut send, _recv) = tunnel.session("ssh").await;
    let mut local = accept(&listener).await;
    link.connection.close(0u32.into(), b"restart");

    let mut link = server.link().await;
    assert_eq!(link.hello.tunnels, [grant.tunnel]);
    send.write_all(b"still here").await.unwrap();
    let mut bytes = [0; 10];
    soon("bytes over the lost link", local.read_exact(&mut bytes))
        .await
        .unwrap();
    assert_eq!(&bytes, b"still here");
    assert_eq!(
        server.offer(&mut link, &grant).await,
        Some(Code::TokenReplay),
        "the grant is of another link"
    );
    device.stop().await;
    assert_eq!(tunnel.closed().await, Code::TunnelClosed);
    assert_eq!(link.tunnel_ended(&grant).await, Code::TunnelClosed);
}

/// Two rotations close together: the key that comes last counts, and a refusal ends nothing that has its leg.
#[tokio::test]
async fn the_last_of_two_keys_counts_and_a_refused_one_ends_nothing() {
    let (listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    let (_, mut send, _recv) = tunnel.session("ssh").await;
    let mut local = accept(&listener).await;
    for token in [vec![1], vec![2]] {
        let rotate = Rotate {
            tunnel: grant.tunnel,
            token,
        };
        link.say(FromServer::Rotate(rotate)).await;
    }
    for token in [vec![1], vec![2]] {
        let FromAgent::Attach(attach) = link.next().await else {
            panic!("no token is redeemed")
        };
        assert_eq!(attach.token, token);
    }
    let other = Attached {
        leg_key: Secret::new([9; 32]),
        ..server.attached(&grant)
    };
    link.say(FromServer::Attached(other)).await;
    let refused = EndTunnel {
        tunnel: grant.tunnel,
        reason: Code::TokenExpired.into(),
    };
    link.say(FromServer::AttachRefused(refused)).await;
    link.say(FromServer::Attached(server.attached(&grant))).await;

    send.write_all(b"still here").await.unwrap();
    let mut bytes = [0; 10];
    soon("bytes after the refusal", local.read_exact(&mut bytes))
        .await
        .unwrap();
    assert_eq!(&bytes, b"still here");
    // Only a leg that has the relay's key believes the relay.
    let mut again = tokio::time::interval(Duration::from_millis(50));
    let mut ended = std::pin::pin!(link.tunnel_ended(&grant));
    let reason = loop {
        tokio::select! {
            reason = &mut ended => break reason,
            _ = again.tick() => server.end_circuit(&grant, Code::ByteLimit).await,
        }
    };
    assert_eq!(reason, Code::ByteLimit);
    device.stop().await;
}

// AGT-15
#[tokio::test]
async fn unknown_messages_are_passed_over_and_nonsense_ends_the_link() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    // A kind of a later version: [99, [{0: "x"}]] in CBOR, with its length before it.
    for _ in 0..1000 {
        link.send
            .write_all(&[0, 0, 0, 8, 0x82, 0x18, 99, 0x81, 0xa1, 0x00, 0x61, b'x'])
            .await
            .unwrap();
    }
    let grant = server.grant(&link, 1, &["ssh"]);
    let _tunnel = server.tunnel(&mut link, &grant).await;
    link.send.write_all(&[0xff; 64]).await.unwrap();
    soon("the end of the link", link.connection.closed()).await;
    let link = server.link().await;
    assert_eq!(link.hello.tunnels, [grant.tunnel]);
}

#[tokio::test]
async fn a_narrower_policy_cuts_and_a_bad_file_changes_nothing() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    device.reconfigure("nonsense = 1\n").await;
    device
        .reconfigure(&format!(
            "{services}[services.web]\ntarget = \"tcp:127.0.0.1:1\"\n"
        ))
        .await;
    let FromAgent::Report(report) = link.next().await else {
        panic!("the change is reported")
    };
    assert_eq!(report.services.len(), 2);
    assert_eq!(tunnel.session("ssh").await.0, None);
    device
        .reconfigure(&format!("{services}allow_operators = [\"bob\"]\n"))
        .await;
    assert_eq!(tunnel.closed().await, Code::LocalPolicy);
    assert_eq!(link.tunnel_ended(&grant).await, Code::LocalPolicy);
}

// AGT-13
#[tokio::test]
async fn a_service_that_hangs_or_refuses_leaves_the_others_alone() {
    let (listener, services) = service().await;
    let services = format!(
        "{services}[services.dead]\ntarget = \"tcp:127.0.0.1:{}\"\n",
        closed_port()
    );
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let grant = server.grant(&link, 1, &["ssh", "dead"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    assert_eq!(tunnel.session("dead").await.0, Some(Code::TargetRefused));

    // Six that accept and never read: what is sent to them stops at their windows, and holds up nobody else.
    let (mut filling, mut hanging) = (JoinSet::new(), Vec::new());
    for _ in 0..6 {
        let (_, send, recv) = tunnel.session("ssh").await;
        hanging.push((accept(&listener).await, recv));
        filling.spawn(fill(send));
    }
    let living = async {
        for _ in 0..20 {
            let (refused, mut send, mut recv) = tunnel.session("ssh").await;
            assert_eq!(refused, None);
            let mut local = accept(&listener).await;
            send.write_all(b"hi").await.unwrap();
            send.finish().unwrap();
            let mut text = Vec::new();
            soon("the other session", local.read_to_end(&mut text))
                .await
                .unwrap();
            local.write_all(&text).await.unwrap();
            drop(local);
            assert_eq!(soon("its echo", recv.read_to_end(10)).await.unwrap(), b"hi");
        }
    };
    tokio::select! {
        sent = filling.join_next() => panic!("{sent:?} bytes went into a service that does not read"),
        () = living => {}
    }
}

/// Sends more than all windows and socket buffers on the way hold together.
async fn fill(mut send: quinn::SendStream) -> usize {
    let chunk = [7; 64 * 1024];
    for _ in 0..1024 {
        send.write_all(&chunk).await.unwrap();
    }
    1024 * chunk.len()
}

#[tokio::test]
async fn the_grants_limits_hold() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let limits = Limits {
        sessions: 1,
        bytes: None,
        bytes_per_sec: None,
        idle_secs: 1,
    };
    let grant = Grant {
        limits,
        ..server.grant(&link, 1, &["ssh"])
    };
    let tunnel = server.tunnel(&mut link, &grant).await;
    let (refused, send, recv) = tunnel.session("ssh").await;
    assert_eq!(refused, None);
    assert_eq!(tunnel.session("ssh").await.0, Some(Code::Limit));
    let started = Instant::now();
    drop((send, recv));
    assert_eq!(tunnel.closed().await, Code::TunnelIdle);
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "not before its time"
    );
    assert_eq!(link.tunnel_ended(&grant).await, Code::TunnelIdle);
}

#[tokio::test]
async fn an_old_certificate_is_renewed_over_the_link() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let state = server
        .fleet
        .enrol(&dir.path().join("state"), "pump", &server.addr, 90);
    let key = tunnel_certs::KeyPair::from_pem(&files::read_private_text(&state.key()).unwrap()).unwrap();
    let request = tunnel_certs::request(&key).unwrap();
    let old = server.fleet.old_chain(&request, "device/pump");
    files::write_private(&state.chain(), old.as_bytes()).unwrap();
    let device = Device::start_in(dir, state, &services);

    let mut link = server.link().await;
    let FromAgent::Renew(asked) = link.next().await else {
        panic!("a fresh certificate is asked for")
    };
    assert_eq!(
        tunnel_certs::CertificateRequest::from_der(&asked)
            .unwrap()
            .key_hash(),
        key.key_hash()
    );
    let fresh = server.fleet.chain(&request, "device/pump", 90);
    let chain = tunnel_certs::pem::read_chain(&fresh).unwrap();
    let chain = chain.iter().map(|der| der.to_vec().into()).collect();
    link.say(FromServer::Renewed(Renewed { chain })).await;
    // An offer is handled after what came before it.
    let grant = server.grant(&link, 1, &["ssh"]);
    server.tunnel(&mut link, &grant).await;
    assert_eq!(*files::read_private_text(&device.state.chain()).unwrap(), fresh);
}

#[tokio::test]
async fn the_server_says_when_to_come_back() {
    let (_listener, services) = service().await;
    let server = Server::start().await;
    let _device = Device::start(&server, &services).await;
    let mut link = server.link().await;
    let goodbye = Goodbye {
        reason: Code::Busy.into(),
        after_millis: 300,
    };
    link.say(FromServer::Goodbye(goodbye)).await;
    let told = Instant::now();
    let _ = soon("the end of the link", link.connection.closed()).await;
    let mut link = server.link().await;
    assert!(
        told.elapsed() >= Duration::from_millis(250),
        "came back after {:?}",
        told.elapsed()
    );
    let grant = server.grant(&link, 1, &["ssh"]);
    let tunnel = server.tunnel(&mut link, &grant).await;
    let (mut send, _recv) = tunnel.connection.open_bi().await.unwrap();
    stream::write_message(&mut send, &"not a request").await.unwrap();
    assert_eq!(
        tunnel.session("ssh").await.0,
        None,
        "a stream of nonsense costs only itself"
    );
}
