//! The chain as the store writes it, and as somebody with the file changes it (THREATS AUD).

use sqlx::ConnectOptions as _;
use tunnel_proto::audit::{Fault, Head, verify};

use super::*;

async fn note(store: &Store, number: u64) {
    let linked = Event::EnrolGuessed {
        count: number,
        last_source: "192.0.2.1".into(),
    };
    store.record(linked).await.unwrap();
}

#[tokio::test]
async fn the_chain_is_whole_over_pages_and_restarts() {
    let mut fixture = Fixture::new().await;
    for number in 0..10 {
        note(&fixture, number).await;
        if number == 4 {
            fixture = fixture.reopen().await;
        }
    }
    let mut head = Head::START;
    for page in 0..4 {
        let records = fixture.audit(head.seq, 3).await.unwrap();
        assert_eq!(records.len(), if page == 3 { 1 } else { 3 });
        head = verify(head, &records).unwrap();
    }
    assert_eq!(head, fixture.audit_head().await.unwrap());
    assert!(fixture.audit(head.seq, 3).await.unwrap().is_empty());
}

/// THREATS AUD-06: two processes write, as the server and its `enrol-code` command do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_on_one_file_make_one_chain() {
    let fixture = Fixture::new().await;
    let other = Store::open(&fixture.directory.path().join("store.db"), &fleet())
        .await
        .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let store = if number % 2 == 0 {
            fixture.store.clone()
        } else {
            other.clone()
        };
        tasks.spawn(async move { note(&store, number).await });
    }
    tasks.join_all().await;
    let records = fixture.audit(0, 1000).await.unwrap();
    assert_eq!(verify(Head::START, &records).unwrap().seq, 200);
    other.close().await;
}

/// Somebody with the file has to go past the triggers, and is found out all the same.
#[tokio::test]
async fn a_changed_record_is_refused_by_the_file_and_found_by_the_chain() {
    let fixture = Fixture::new().await;
    for number in 0..5 {
        note(&fixture, number).await;
    }
    let mut thief = schema::options(&fixture.directory.path().join("store.db"))
        .connect()
        .await
        .unwrap();
    for statement in [
        "UPDATE audit SET body = '{}' WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 3",
    ] {
        let refused = sqlx::query(statement).execute(&mut thief).await.unwrap_err();
        assert!(refused.to_string().contains("audit records are not"), "{refused}");
    }
    sqlx::query("DROP TRIGGER audit_is_not_changed")
        .execute(&mut thief)
        .await
        .unwrap();
    sqlx::query("UPDATE audit SET body = '{}' WHERE seq = 3")
        .execute(&mut thief)
        .await
        .unwrap();
    let broken = verify(Head::START, &fixture.audit(0, 100).await.unwrap()).unwrap_err();
    assert_eq!((broken.seq, broken.fault), (3, Fault::Content));
}

/// Group commit: many that wait share a few transactions, and each is answered for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once_are_all_written() {
    let fixture = Fixture::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let store = fixture.store.clone();
        tasks.spawn(async move { note(&store, number).await });
    }
    tasks.join_all().await;
    assert_eq!(fixture.audit_head().await.unwrap().seq, 1000);
    assert_eq!(fixture.events().await.len(), 1000);
}

#[tokio::test]
async fn every_policy_is_kept_and_the_last_is_in_force() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.policy().await.unwrap(), None);
    for (text, revision) in [("// one", 1), ("// two", 2)] {
        assert_eq!(
            fixture
                .set_policy(text.into(), None, "operator/root".into(), NOW)
                .await
                .unwrap(),
            Ok(revision)
        );
    }
    let in_force = fixture.reopen().await.policy().await.unwrap();
    assert_eq!(
        in_force,
        Some(PolicyRecord {
            revision: 2,
            text: "// two".into(),
            by: "operator/root".into(),
            at: NOW,
        })
    );
}
