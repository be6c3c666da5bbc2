//! Codes, newcomers, renewals (THREATS ENR).

use super::*;

#[tokio::test]
async fn a_newcomer_with_a_code_is_in() {
    let fixture = Fixture::new().await;
    let order = NewEnrolCode {
        group: Some(group("pumps")),
        ..code("s", devices(&["pump-17"]))
    };
    fixture.add_enrol_code(order, NOW).await.unwrap();
    let enrolled = fixture
        .enrol(newcomer("s", None, "k"), NOW, issue("k"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(enrolled.identity, device_identity("pump-17"));
    assert_eq!(enrolled.replaced, []);
    let device = fixture
        .device(&"pump-17".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((device.key, device.groups), (key_of("k"), vec![group("pumps")]));
    assert_eq!(device.cert_expires_at, enrolled.certificate.not_after);
    assert_eq!(fixture.kinds().await, ["enrol.code_made", "device.enrolled"]);
}

/// THREATS ENR-01.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_at_once_with_one_code_one_is_in() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(code("s", devices(&[])), NOW)
        .await
        .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let store = fixture.store.clone();
        tasks.spawn(async move {
            let name = format!("pump-{number}");
            store
                .enrol(newcomer("s", Some(&name), &name), NOW, issue(&name))
                .await
                .unwrap()
        });
    }
    let outcomes = tasks.join_all().await;
    let (admitted, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((admitted.len(), refused.len()), (1, 99));
    for refusal in refused {
        assert_eq!(refusal.unwrap_err(), Refusal::from(Code::EnrolTokenUnknown));
    }
    assert_eq!(fixture.devices().await.unwrap().len(), 1);
}

/// THREATS ENR-02: the same answer for all, so that a guess learns nothing.
#[tokio::test]
async fn unknown_expired_and_used_codes_are_refused_alike() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(code("used", devices(&["a"])), NOW)
        .await
        .unwrap();
    fixture
        .enrol(newcomer("used", None, "a"), NOW, issue("a"))
        .await
        .unwrap()
        .unwrap();
    fixture
        .add_enrol_code(code("expired", devices(&["b"])), NOW)
        .await
        .unwrap();
    let late = NOW.after(HOUR);
    for (secret, now) in [("guessed", NOW), ("used", NOW), ("expired", late)] {
        let refused = fixture
            .enrol(newcomer(secret, None, "b"), now, issue("b"))
            .await
            .unwrap();
        assert_eq!(refused, Err(Code::EnrolTokenUnknown.into()), "{secret}");
    }
    let in_time = NOW.after(HOUR).before(Duration::from_secs(1));
    assert!(
        fixture
            .enrol(newcomer("expired", None, "b"), in_time, issue("b"))
            .await
            .unwrap()
            .is_ok()
    );
}

/// THREATS AUD-05: who guesses does not fill the log.
#[tokio::test]
async fn guesses_are_counted_and_not_recorded_one_by_one() {
    let fixture = Fixture::new().await;
    for number in 0..50 {
        let refused = fixture
            .enrol(newcomer(&number.to_string(), None, "k"), NOW, issue("k"))
            .await
            .unwrap();
        assert!(refused.is_err());
    }
    assert_eq!(
        fixture.events().await,
        [Event::EnrolGuessed {
            count: 1,
            last_source: "192.0.2.1".into()
        }]
    );
}

#[tokio::test]
async fn a_code_with_several_uses_ends_after_the_last() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(
            NewEnrolCode {
                uses: 2,
                ..code("s", devices(&[]))
            },
            NOW,
        )
        .await
        .unwrap();
    for name in ["a", "b"] {
        assert!(
            fixture
                .enrol(newcomer("s", Some(name), name), NOW, issue(name))
                .await
                .unwrap()
                .is_ok(),
            "{name}"
        );
    }
    let third = fixture
        .enrol(newcomer("s", Some("c"), "c"), NOW, issue("c"))
        .await;
    assert_eq!(refusal_code(third), Code::EnrolTokenUnknown);
}

/// THREATS ENR-03.
#[tokio::test]
async fn only_ids_of_the_code_are_given() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(
            NewEnrolCode {
                uses: 9,
                ..code("two", devices(&["a", "b"]))
            },
            NOW,
        )
        .await
        .unwrap();
    let ask = |wanted: Option<&'static str>| fixture.enrol(newcomer("two", wanted, "k"), NOW, issue("k"));
    assert_eq!(refusal_code(ask(Some("c")).await), Code::EnrolCsr);
    assert_eq!(refusal_code(ask(None).await), Code::EnrolCsr);
    assert_eq!(refusal_code(ask(Some("../a")).await), Code::BadName);
    assert_eq!(
        ask(Some("b")).await.unwrap().unwrap().identity,
        device_identity("b")
    );
}

#[tokio::test]
async fn a_code_for_operators_makes_operators() {
    let fixture = Fixture::new().await;
    let makes = Makes::Operators(vec!["ana@example.org".parse().unwrap()]);
    let order = NewEnrolCode {
        group: Some(group("admins")),
        ..code("s", makes)
    };
    fixture.add_enrol_code(order, NOW).await.unwrap();
    let enrolled = fixture
        .enrol(newcomer("s", None, "k"), NOW, issue("k"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(enrolled.identity, operator_identity("ana@example.org"));
    let operator = fixture
        .operator(&"ana@example.org".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(operator.groups, [group("admins")]);
    assert!(fixture.devices().await.unwrap().is_empty());
}

/// THREATS ENR-06.
#[tokio::test]
async fn the_same_key_with_the_same_code_gets_the_same_certificate() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(code("s", devices(&["a"])), NOW)
        .await
        .unwrap();
    let first = fixture
        .enrol(newcomer("s", None, "k"), NOW, issue("k"))
        .await
        .unwrap()
        .unwrap();
    let fixture = fixture.reopen().await;
    let again = fixture
        .enrol(newcomer("s", Some("a"), "k"), NOW, issue("k"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(again.certificate, first.certificate);
    assert_eq!(fixture.kinds().await, ["enrol.code_made", "device.enrolled"]);
    // Neither another key nor another id profits.
    let other_key = fixture.enrol(newcomer("s", None, "x"), NOW, issue("x")).await;
    assert_eq!(refusal_code(other_key), Code::EnrolTokenUnknown);
    let other_id = fixture
        .enrol(newcomer("s", Some("b"), "k"), NOW, issue("k"))
        .await;
    assert_eq!(refusal_code(other_id), Code::EnrolTokenUnknown);
    let ended = first.certificate.not_after;
    let late = fixture.enrol(newcomer("s", None, "k"), ended, issue("k")).await;
    assert_eq!(refusal_code(late), Code::EnrolTokenUnknown);
}

/// THREATS ENR-05.
#[tokio::test]
async fn a_key_of_somebody_else_is_refused_and_noted() {
    let fixture = Fixture::new().await;
    fixture.enrolled_device("a").await;
    fixture
        .add_enrol_code(code("s", devices(&["b"])), NOW)
        .await
        .unwrap();
    let twin = fixture.enrol(newcomer("s", None, "a"), NOW, issue("a")).await;
    assert_eq!(refusal_code(twin), Code::EnrolCsr);
    assert!(fixture.kinds().await.contains(&"key.reused".to_owned()));
    assert!(
        fixture
            .enrol(newcomer("s", None, "b"), NOW, issue("b"))
            .await
            .unwrap()
            .is_ok()
    );
}

/// THREATS ENR-07.
#[tokio::test]
async fn a_taken_id_is_given_again_only_by_a_code_that_replaces() {
    let fixture = Fixture::new().await;
    let old = fixture.enrolled_device("a").await;
    fixture
        .add_enrol_code(code("plain", devices(&["a"])), NOW)
        .await
        .unwrap();
    let refused = fixture
        .enrol(newcomer("plain", None, "new"), NOW, issue("new"))
        .await;
    assert_eq!(refusal_code(refused), Code::EnrolTaken);
    // The code was not used up by the refusal, and the key that has the id may use it.
    let same = fixture
        .enrol(newcomer("plain", None, "a"), NOW, issue("a"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(same.replaced, []);
    fixture
        .add_enrol_code(
            NewEnrolCode {
                replace: true,
                ..code("replace", devices(&["a"]))
            },
            NOW,
        )
        .await
        .unwrap();
    let replaced = fixture
        .enrol(newcomer("replace", None, "new"), NOW, issue("new"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(replaced.replaced, [old]);
    let revoked = fixture.revoked().await.unwrap();
    assert!(revoked.holds(&device_identity("a"), &old));
    assert!(!revoked.holds(&device_identity("a"), &key_of("new")));
    assert_eq!(
        fixture.device(&"a".parse().unwrap()).await.unwrap().unwrap().key,
        key_of("new")
    );
    // The old key is out for good, whatever the code says.
    fixture
        .add_enrol_code(
            NewEnrolCode {
                replace: true,
                ..code("back", devices(&["a"]))
            },
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(
        refusal_code(fixture.enrol(newcomer("back", None, "a"), NOW, issue("a")).await),
        Code::EnrolCsr
    );
    assert_eq!(
        refusal_code(fixture.enrol(newcomer("plain", None, "a"), NOW, issue("a")).await),
        Code::EnrolTokenUnknown
    );
}

/// THREATS ENR-08.
#[tokio::test]
async fn a_revoked_id_is_not_given_again() {
    let fixture = Fixture::new().await;
    fixture.enrolled_device("a").await;
    assert!(
        fixture
            .revoke(&device_identity("a"), None, "test".into(), NOW)
            .await
            .unwrap()
    );
    let order = NewEnrolCode {
        replace: true,
        uses: 9,
        ..code("s", devices(&["a", "b"]))
    };
    fixture.add_enrol_code(order, NOW).await.unwrap();
    for key in ["a", "new"] {
        let refused = fixture
            .enrol(newcomer("s", Some("a"), key), NOW, issue(key))
            .await;
        assert_eq!(refusal_code(refused), Code::Revoked, "{key}");
    }
    // The code that it came with does not bring it back either.
    assert_eq!(
        refusal_code(fixture.enrol(newcomer("a", None, "a"), NOW, issue("a")).await),
        Code::EnrolTokenUnknown
    );
    assert!(
        fixture
            .enrol(newcomer("s", Some("b"), "b"), NOW, issue("b"))
            .await
            .unwrap()
            .is_ok()
    );
}

#[tokio::test]
async fn a_certificate_that_cannot_be_issued_consumes_nothing() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(code("s", devices(&["a"])), NOW)
        .await
        .unwrap();
    let refuse: Issue = Box::new(|_| Err(Code::Internal.into()));
    assert_eq!(
        refusal_code(fixture.enrol(newcomer("s", None, "k"), NOW, refuse).await),
        Code::Internal
    );
    let panic: Issue = Box::new(|_| panic!("a defect"));
    assert_eq!(
        refusal_code(fixture.enrol(newcomer("s", None, "k"), NOW, panic).await),
        Code::Internal
    );
    assert!(fixture.device(&"a".parse().unwrap()).await.unwrap().is_none());
    assert!(
        fixture
            .enrol(newcomer("s", None, "k"), NOW, issue("k"))
            .await
            .unwrap()
            .is_ok()
    );
}

#[tokio::test]
async fn a_renewal_counts_for_who_is_in_and_trusted() {
    let fixture = Fixture::new().await;
    let identity = device_identity("a");
    let unknown = fixture.renewed(&identity, certificate(&identity, "a"), NOW).await;
    assert_eq!(refusal_code(unknown), Code::NotFound);
    fixture.enrolled_device("a").await;
    fixture.enrolled_device("b").await;
    let later = Certificate {
        not_after: NOW.after(HOUR * 100),
        ..certificate(&identity, "a2")
    };
    fixture.renewed(&identity, later, NOW).await.unwrap().unwrap();
    let device = fixture.device(&"a".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(
        (device.key, device.cert_expires_at),
        (key_of("a2"), NOW.after(HOUR * 100))
    );
    let stolen = fixture.renewed(&identity, certificate(&identity, "b"), NOW).await;
    assert_eq!(refusal_code(stolen), Code::EnrolCsr);
    fixture.revoke(&identity, None, "test".into(), NOW).await.unwrap();
    let revoked = fixture
        .renewed(&identity, certificate(&identity, "a3"), NOW)
        .await;
    assert_eq!(refusal_code(revoked), Code::Revoked);
}

/// THREATS I11, AUD-08.
#[tokio::test]
async fn no_secret_of_a_code_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = Store::open(&path, &fleet()).await.unwrap();
    let secret = tunnel_proto::keys::Secret::new([0x5a; 32]);
    let secret_hash = tunnel_proto::enrol::secret_hash(&secret);
    store
        .add_enrol_code(
            NewEnrolCode {
                secret_hash,
                ..code("x", devices(&["a"]))
            },
            NOW,
        )
        .await
        .unwrap();
    let enrolment = Enrolment {
        secret_hash,
        ..newcomer("x", None, "k")
    };
    store.enrol(enrolment, NOW, issue("k")).await.unwrap().unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(32).any(|window| window == secret.expose()));
        assert!(
            !bytes
                .windows(64)
                .any(|window| window == "5a".repeat(32).as_bytes())
        );
    }
}
