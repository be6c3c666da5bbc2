//! Tunnels and tokens.

use std::collections::BTreeMap;

use tunnel_proto::api::{Opening, Traffic};
use tunnel_proto::bind::Role;
use tunnel_proto::defaults::MAX_FACTS;
use tunnel_proto::message::Report;
use tunnel_proto::names::{FactName, FactValue};

use super::*;
use crate::audit::SessionOf;

#[tokio::test]
async fn a_tunnel_opens_connects_and_ends_once() {
    let fixture = Fixture::with_policy().await;
    let id = tunnel(1).id;
    let basis = Basis {
        grant: Some([7; 32]),
        ..Basis::default()
    };
    fixture.open_tunnel(tunnel(1), basis, NOW).await.unwrap().unwrap();
    let record = fixture.tunnel(id).await.unwrap().unwrap();
    assert_eq!(
        (&record.decided, record.state, record.opened_at),
        (&tunnel(1), TunnelState::Opening, NOW)
    );
    assert!(fixture.tunnel_open(id, Vec::new()).await.unwrap());
    assert!(!fixture.tunnel_open(id, Vec::new()).await.unwrap());
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
    let record = fixture.tunnel(id).await.unwrap().unwrap();
    let opening = Opening::from(&record);
    assert_eq!(opening.grant, Some("07".repeat(32)));
    assert_eq!(
        (opening.policy_revision, opening.reason.as_deref()),
        (1, Some("INC-7"))
    );
    let ended = record.ended.unwrap();
    assert_eq!(
        (ended.reason, ended.by.as_str(), ended.at),
        (Code::TunnelClosed, "operator/ana", NOW.after(HOUR / 2))
    );
    assert_eq!(ended.traffic, Some(traffic.clone()));
    assert!(!fixture.tunnel_open(id, Vec::new()).await.unwrap());
    let events = fixture.events().await;
    let last = Event::TunnelEnded {
        tunnel: id,
        operator: "ana".parse().unwrap(),
        device: "pump-17".parse().unwrap(),
        reason: Code::TunnelClosed,
        by: "operator/ana".into(),
        lived_secs: 1800,
        traffic: Some(traffic),
        opening: Some(Box::new(opening)),
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

/// THREATS POL-04: what a decision was made from has changed before it was written.
#[tokio::test]
async fn pol_04_a_decision_from_older_facts_opens_nothing() {
    let fixture = Fixture::with_policy().await;
    fixture.enrolled_device("pump-17").await;
    let pump: tunnel_proto::DeviceId = "pump-17".parse().unwrap();
    let member = Member::Device(pump.clone());
    let basis = |device_changes| Basis {
        device_changes,
        ..Basis::default()
    };
    let group: GroupName = "pumps".parse().unwrap();
    assert!(
        fixture
            .add_to_group(member.clone(), group.clone(), "test".into())
            .await
            .unwrap()
    );
    let stale = fixture.open_tunnel(tunnel(1), basis(0), NOW).await.unwrap();
    assert_eq!(stale, Err(NotOpened::FactsStale));
    assert_eq!(fixture.tunnel(tunnel(1).id).await.unwrap(), None);
    let changes = fixture.device(&pump).await.unwrap().unwrap().changes;
    assert_eq!(
        fixture.open_tunnel(tunnel(1), basis(changes), NOW).await.unwrap(),
        Ok(())
    );

    // Facts count too, those that are set and those that are claimed; what is the same as before does not.
    let facts = |value: &str| [("site".parse().unwrap(), value.parse().unwrap())].into();
    let set = |value| fixture.set_facts(&pump, facts(value), Vec::new(), "test".into(), NOW);
    assert_eq!(set("north").await.unwrap(), FactsSet::Done(true));
    assert_eq!(set("north").await.unwrap(), FactsSet::Done(false));
    let report = Report::default();
    for (value, differs) in [("north", true), ("north", false), ("south", true)] {
        let seen = fixture
            .device_seen(&pump, &report, facts(value), "0.1.0", NOW)
            .await;
        assert_eq!(seen.unwrap(), differs, "{value}");
    }
    assert_eq!(fixture.device(&pump).await.unwrap().unwrap().changes, changes + 3);
}

/// THREATS POL-08: neither kind of fact ever becomes the other.
#[tokio::test]
async fn pol_08_facts_are_kept_apart_and_bounded() {
    let fixture = Fixture::with_policy().await;
    fixture.enrolled_device("pump-17").await;
    let pump: tunnel_proto::DeviceId = "pump-17".parse().unwrap();
    let facts = |names: std::ops::Range<usize>| -> BTreeMap<FactName, FactValue> {
        names
            .map(|i| (format!("f{i}").parse().unwrap(), "x".parse().unwrap()))
            .collect()
    };
    let set = |names, unset| fixture.set_facts(&pump, facts(names), unset, "test".into(), NOW);
    assert_eq!(set(0..MAX_FACTS, Vec::new()).await.unwrap(), FactsSet::Done(true));
    assert_eq!(
        set(MAX_FACTS..MAX_FACTS + 1, Vec::new()).await.unwrap(),
        FactsSet::TooMany
    );
    let first: Vec<FactName> = vec!["f0".parse().unwrap()];
    assert_eq!(
        set(MAX_FACTS..MAX_FACTS + 1, first).await.unwrap(),
        FactsSet::Done(true)
    );
    fixture
        .device_seen(&pump, &Report::default(), facts(90..91), "0.1.0", NOW)
        .await
        .unwrap();
    let device = fixture.device(&pump).await.unwrap().unwrap();
    assert_eq!(device.asserted_facts.len(), MAX_FACTS);
    assert!(
        device
            .asserted_facts
            .keys()
            .all(|name| !device.reported_facts.contains_key(name))
    );
    let unknown = "pump-99".parse().unwrap();
    let nobody = fixture
        .set_facts(&unknown, facts(0..1), Vec::new(), "test".into(), NOW)
        .await;
    assert_eq!(nobody.unwrap(), FactsSet::Unknown);
    assert_eq!(
        fixture
            .kinds()
            .await
            .iter()
            .filter(|kind| *kind == "facts.changed")
            .count(),
        2
    );
}

/// THREATS POL-12: two edit at once, and one of them wins.
#[tokio::test]
async fn pol_12_a_policy_follows_the_one_that_was_edited() {
    let fixture = Fixture::with_policy().await;
    let put = |text: &str| fixture.set_policy(text.to_owned(), Some(1), "test".into(), NOW);
    let (one, other) = tokio::join!(put("// a"), put("// b"));
    let both = [one.unwrap(), other.unwrap()];
    assert!(both.contains(&Ok(2)) && both.contains(&Err(2)), "{both:?}");
    assert_eq!(fixture.policies(9).await.unwrap().len(), 2);
    assert_eq!(fixture.policy_of(1).await.unwrap().unwrap().text, "// one");
    assert_eq!(fixture.policy_of(3).await.unwrap(), None);
}

/// THREATS POL-03.
#[tokio::test]
async fn a_decision_of_an_older_policy_opens_nothing() {
    let fixture = Fixture::with_policy().await;
    assert_eq!(
        fixture
            .set_policy("// two".into(), None, "test".into(), NOW)
            .await
            .unwrap(),
        Ok(2)
    );
    assert_eq!(
        fixture
            .open_tunnel(tunnel(1), Basis::default(), NOW)
            .await
            .unwrap(),
        Err(NotOpened::PolicyStale { current: 2 })
    );
    assert_eq!(fixture.tunnel(tunnel(1).id).await.unwrap(), None);
    let anew = NewTunnel {
        policy_revision: 2,
        ..tunnel(1)
    };
    assert_eq!(
        fixture.open_tunnel(anew, Basis::default(), NOW).await.unwrap(),
        Ok(())
    );
}

/// THREATS I6.
#[tokio::test]
async fn nothing_opens_for_the_revoked() {
    for revoked in ["ana", "pump-17"] {
        let fixture = Fixture::with_policy().await;
        fixture.enrolled_device("pump-17").await;
        fixture.enrolled_operator("ana").await;
        fixture
            .open_tunnel(tunnel(1), Basis::default(), NOW)
            .await
            .unwrap()
            .unwrap();
        let identity = if revoked == "ana" {
            operator_identity(revoked)
        } else {
            device_identity(revoked)
        };
        fixture.revoke(&identity, None, "t".into(), NOW).await.unwrap();
        assert_eq!(
            fixture
                .open_tunnel(tunnel(2), Basis::default(), NOW)
                .await
                .unwrap(),
            Err(NotOpened::Revoked),
            "{revoked}"
        );
    }
}

/// THREATS TOK-01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_that_redeem_at_once_one_is_first() {
    let fixture = Fixture::with_policy().await;
    fixture
        .open_tunnel(tunnel(1), Basis::default(), NOW)
        .await
        .unwrap()
        .unwrap();
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
    fixture
        .open_tunnel(tunnel(1), Basis::default(), NOW)
        .await
        .unwrap()
        .unwrap();
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
        fixture
            .open_tunnel(tunnel(number), Basis::default(), at)
            .await
            .unwrap()
            .unwrap();
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

#[tokio::test]
async fn what_tunnels_have_spent_is_kept_as_long_as_they_live() {
    let fixture = Fixture::with_policy().await;
    for number in 1..=3 {
        let opened = fixture.open_tunnel(tunnel(number), Basis::default(), NOW).await;
        opened.unwrap().unwrap();
    }
    let id = |number| tunnel(number).id;
    // Two that overtake each other leave the larger one.
    fixture.tunnel_spends(id(1), 300).await.unwrap();
    fixture.tunnel_spends(id(1), 200).await.unwrap();
    fixture.tunnel_spends(id(2), u64::MAX).await.unwrap();
    let fixture = fixture.reopen().await;
    let spent = async |fixture: &Fixture| -> Vec<Option<u64>> {
        let mut live = fixture.live_tunnels().await.unwrap();
        live.sort_by_key(|record| record.decided.id);
        live.iter().map(|record| record.spent_bytes).collect()
    };
    assert_eq!(spent(&fixture).await, [Some(300), Some(i64::MAX as u64), None]);
    fixture
        .end_tunnel(id(2), Code::TunnelIdle, "x", None, NOW)
        .await
        .unwrap();
    // What is known exactly replaces what was kept in advance.
    let exact = vec![(id(1), 250), (id(2), 1), (id(3), 0)];
    fixture.tunnels_have_spent(exact).await.unwrap();
    assert_eq!(spent(&fixture).await, [Some(250), Some(0)]);
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
        question: None,
        authoriser: None,
    };
    fixture.deny(denied).await.unwrap();
    let session = SessionRecord {
        tunnel: tunnel(1).id,
        service: "ssh".into(),
        refused: None,
        millis: 5,
        bytes_in: 6,
        bytes_out: 7,
        of: SessionOf::default(),
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
    fixture
        .open_tunnel(tunnel(1), Basis::default(), NOW)
        .await
        .unwrap()
        .unwrap();
    let twin = NewTunnel {
        circuit: tunnel(1).circuit,
        ..tunnel(2)
    };
    let (failed, done) = tokio::join!(
        fixture.open_tunnel(twin, Basis::default(), NOW),
        fixture.open_tunnel(tunnel(3), Basis::default(), NOW)
    );
    assert!(matches!(failed, Err(StoreError::Write(_))), "{failed:?}");
    assert_eq!(done.unwrap(), Ok(()));
    assert_eq!(fixture.live_tunnels().await.unwrap().len(), 2);
    assert_eq!(
        fixture.kinds().await,
        ["policy.changed", "tunnel.opened", "tunnel.opened"]
    );
}
