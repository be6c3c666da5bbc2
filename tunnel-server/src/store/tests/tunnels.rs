//! Tunnels and tokens.

use tunnel_proto::api::Traffic;
use tunnel_proto::bind::Role;

use super::*;

#[tokio::test]
async fn a_tunnel_opens_connects_and_ends_once() {
    let fixture = Fixture::with_policy().await;
    let id = tunnel(1).id;
    fixture.open_tunnel(tunnel(1), NOW).await.unwrap().unwrap();
    let record = fixture.tunnel(id).await.unwrap().unwrap();
    assert_eq!(
        (&record.decided, record.state, record.opened_at),
        (&tunnel(1), TunnelState::Opening, NOW)
    );
    assert!(fixture.tunnel_open(id).await.unwrap());
    assert!(!fixture.tunnel_open(id).await.unwrap());
    assert_eq!(
        fixture.tunnel(id).await.unwrap().unwrap().state,
        TunnelState::Open
    );
    let traffic = Traffic {
        bytes_in: 7,
        source_carrier: Some("udp".into()),
        ..Traffic::default()
    };
    let end = |reason| {
        fixture.end_tunnel(
            id,
            reason,
            "operator/ana",
            Some(traffic.clone()),
            NOW.after(HOUR / 2),
        )
    };
    assert!(end(Code::TunnelClosed).await.unwrap());
    assert!(!end(Code::TunnelExpired).await.unwrap());
    let ended = fixture.tunnel(id).await.unwrap().unwrap().ended.unwrap();
    assert_eq!(
        (ended.reason, ended.by.as_str(), ended.at),
        (Code::TunnelClosed, "operator/ana", NOW.after(HOUR / 2))
    );
    assert_eq!(ended.traffic, Some(traffic.clone()));
    assert!(!fixture.tunnel_open(id).await.unwrap());
    let events = fixture.events().await;
    let last = Event::TunnelEnded {
        tunnel: id,
        operator: "ana".parse().unwrap(),
        device: "pump-17".parse().unwrap(),
        reason: Code::TunnelClosed,
        by: "operator/ana".into(),
        lived_secs: 1800,
        traffic: Some(traffic),
    };
    assert_eq!(events.last(), Some(&last));
    assert_eq!(
        fixture.kinds().await,
        [
            "policy.changed",
            "tunnel.opened",
            "tunnel.connected",
            "tunnel.ended"
        ]
    );
}

#[tokio::test]
async fn a_tunnel_that_is_not_there_does_not_end() {
    let fixture = Fixture::with_policy().await;
    assert!(
        !fixture
            .end_tunnel(tunnel(1).id, Code::TunnelClosed, "x", None, NOW)
            .await
            .unwrap()
    );
    assert_eq!(fixture.tunnel(tunnel(1).id).await.unwrap(), None);
}

/// THREATS POL-03.
#[tokio::test]
async fn a_decision_of_an_older_policy_opens_nothing() {
    let fixture = Fixture::with_policy().await;
    assert_eq!(
        fixture
            .set_policy("// two".into(), "test".into(), NOW)
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        fixture.open_tunnel(tunnel(1), NOW).await.unwrap(),
        Err(NotOpened::PolicyStale { current: 2 })
    );
    assert_eq!(fixture.tunnel(tunnel(1).id).await.unwrap(), None);
    let anew = NewTunnel {
        policy_revision: 2,
        ..tunnel(1)
    };
    assert_eq!(fixture.open_tunnel(anew, NOW).await.unwrap(), Ok(()));
}

/// THREATS I6.
#[tokio::test]
async fn nothing_opens_for_the_revoked() {
    for revoked in ["ana", "pump-17"] {
        let fixture = Fixture::with_policy().await;
        fixture.enrolled_device("pump-17").await;
        fixture.enrolled_operator("ana").await;
        fixture.open_tunnel(tunnel(1), NOW).await.unwrap().unwrap();
        let identity = if revoked == "ana" {
            operator_identity(revoked)
        } else {
            device_identity(revoked)
        };
        fixture.revoke(&identity, None, "t".into(), NOW).await.unwrap();
        assert_eq!(
            fixture.open_tunnel(tunnel(2), NOW).await.unwrap(),
            Err(NotOpened::Revoked),
            "{revoked}"
        );
    }
}

/// THREATS TOK-01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_that_redeem_at_once_one_is_first() {
    let fixture = Fixture::with_policy().await;
    fixture.open_tunnel(tunnel(1), NOW).await.unwrap().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = fixture.store.clone();
        tasks.spawn(async move {
            store
                .redeem(token(1), tunnel(1).id, Role::Source, NOW)
                .await
                .unwrap()
        });
    }
    let outcomes = tasks.join_all().await;
    let count = |outcome| outcomes.iter().filter(|&&found| found == outcome).count();
    assert_eq!((count(Redeemed::First), count(Redeemed::Again)), (1, 99));
    let fixture = fixture.reopen().await;
    assert_eq!(
        fixture
            .redeem(token(1), tunnel(1).id, Role::Source, NOW)
            .await
            .unwrap(),
        Redeemed::Again
    );
    assert_eq!(
        fixture
            .redeem(token(2), tunnel(1).id, Role::Destination, NOW)
            .await
            .unwrap(),
        Redeemed::First
    );
    let attached = fixture
        .kinds()
        .await
        .iter()
        .filter(|kind| *kind == "tunnel.attached")
        .count();
    assert_eq!(attached, 2);
}

#[tokio::test]
async fn a_token_of_a_tunnel_that_is_over_is_worth_nothing() {
    let fixture = Fixture::with_policy().await;
    let id = tunnel(1).id;
    assert_eq!(
        fixture.redeem(token(1), id, Role::Source, NOW).await.unwrap(),
        Redeemed::Gone
    );
    fixture.open_tunnel(tunnel(1), NOW).await.unwrap().unwrap();
    assert_eq!(
        fixture
            .redeem(token(1), id, Role::Source, NOW.after(HOUR))
            .await
            .unwrap(),
        Redeemed::Gone
    );
    assert_eq!(
        fixture.redeem(token(1), id, Role::Source, NOW).await.unwrap(),
        Redeemed::First
    );
    fixture
        .end_tunnel(id, Code::TunnelClosed, "x", None, NOW)
        .await
        .unwrap();
    assert_eq!(
        fixture
            .redeem(token(2), id, Role::Destination, NOW)
            .await
            .unwrap(),
        Redeemed::Gone
    );
    assert_eq!(Redeemed::First.admitted(), Ok(()));
    assert_eq!(Redeemed::Again.admitted(), Err(Code::TokenReplay));
    assert_eq!(Redeemed::Gone.admitted(), Err(Code::TunnelClosed));
}

#[tokio::test]
async fn lists_are_newest_first_and_bounded() {
    let fixture = Fixture::with_policy().await;
    for number in 1..=5 {
        let at = NOW.after(Duration::from_secs(u64::from(number)));
        fixture.open_tunnel(tunnel(number), at).await.unwrap().unwrap();
    }
    fixture
        .end_tunnel(tunnel(4).id, Code::TunnelIdle, "x", None, NOW)
        .await
        .unwrap();
    let ids = |records: Vec<TunnelRecord>| -> Vec<u8> {
        records
            .iter()
            .map(|record| record.decided.id.as_bytes()[0])
            .collect()
    };
    assert_eq!(ids(fixture.tunnels(false, 3).await.unwrap()), [5, 4, 3]);
    assert_eq!(ids(fixture.tunnels(true, 3).await.unwrap()), [5, 3, 2]);
    assert_eq!(
        ids(fixture.reopen().await.live_tunnels().await.unwrap()),
        [5, 3, 2, 1]
    );
}

/// THREATS I9: a denial is recorded like a permission.
#[tokio::test]
async fn denials_and_sessions_are_recorded() {
    let fixture = Fixture::new().await;
    let denied = Denied {
        operator: "eve".parse().unwrap(),
        device: "pump-17\n\u{1b}[2J".into(),
        services: vec!["x".repeat(70_000)],
        reason: None,
        code: Code::PolicyDeny,
        policy_revision: 1,
        policies: Vec::new(),
        source: "192.0.2.1".into(),
    };
    fixture.deny(denied).await.unwrap();
    let session = SessionRecord {
        tunnel: tunnel(1).id,
        service: "ssh".into(),
        refused: None,
        millis: 5,
        bytes_in: 6,
        bytes_out: 7,
    };
    fixture.session(session.clone()).await.unwrap();
    fixture
        .session(SessionRecord {
            refused: Some(Code::TargetRefused),
            ..session
        })
        .await
        .unwrap();
    assert_eq!(
        fixture.kinds().await,
        ["tunnel.denied", "session.ended", "session.refused"]
    );
    let record = fixture.audit(0, 1).await.unwrap().remove(0);
    assert!(
        record.body.len() < 2000 && !record.body.contains('\n'),
        "{}",
        record.body
    );
}

/// Two tunnels of one circuit would let one leg into the other's.
#[tokio::test]
async fn a_circuit_is_of_one_tunnel_and_a_failed_operation_harms_no_other() {
    let fixture = Fixture::with_policy().await;
    fixture.open_tunnel(tunnel(1), NOW).await.unwrap().unwrap();
    let twin = NewTunnel {
        circuit: tunnel(1).circuit,
        ..tunnel(2)
    };
    let (failed, done) = tokio::join!(
        fixture.open_tunnel(twin, NOW),
        fixture.open_tunnel(tunnel(3), NOW)
    );
    assert!(matches!(failed, Err(StoreError::Write(_))), "{failed:?}");
    assert_eq!(done.unwrap(), Ok(()));
    assert_eq!(fixture.live_tunnels().await.unwrap().len(), 2);
    assert_eq!(
        fixture.kinds().await,
        ["policy.changed", "tunnel.opened", "tunnel.opened"]
    );
}
