//! Devices, operators, groups, revocations.

use std::collections::BTreeMap;

use tunnel_proto::message::Report;

use super::*;

#[tokio::test]
async fn what_a_device_reports_is_kept_and_replaced() {
    let fixture = Fixture::new().await;
    let id = "pump-17".parse().unwrap();
    fixture.enrolled_device("pump-17").await;
    let before = fixture.device(&id).await.unwrap().unwrap();
    assert_eq!(
        (before.last_seen, before.access, before.services.len()),
        (None, false, 0)
    );
    let mut report = Report {
        services: vec!["ssh".parse().unwrap()],
        ssh_host_keys: vec!["ssh-ed25519 AAAA".into()],
        access: true,
        platform: "linux/x86_64".into(),
        ..Report::default()
    };
    fixture
        .device_seen(&id, &report, BTreeMap::new(), "0.1.0", NOW)
        .await
        .unwrap();
    let seen = fixture.device(&id).await.unwrap().unwrap();
    assert_eq!(
        (seen.last_seen, seen.access, &seen.services),
        (Some(NOW), true, &report.services)
    );
    assert_eq!(
        (seen.version.as_deref(), seen.platform.as_deref()),
        (Some("0.1.0"), Some("linux/x86_64"))
    );
    assert_eq!(seen.ssh_host_keys, report.ssh_host_keys);
    report.access = false;
    report.ssh_host_keys.clear();
    fixture
        .device_seen(&id, &report, BTreeMap::new(), "0.1.0", NOW.after(HOUR))
        .await
        .unwrap();
    let seen = fixture.device(&id).await.unwrap().unwrap();
    assert_eq!(
        (seen.last_seen, seen.access, seen.ssh_host_keys.len()),
        (Some(NOW.after(HOUR)), false, 0)
    );
}

#[tokio::test]
async fn a_device_that_was_never_enrolled_is_not_made_by_a_report() {
    let fixture = Fixture::new().await;
    let id = "ghost".parse().unwrap();
    fixture
        .device_seen(&id, &Report::default(), BTreeMap::new(), "0.1.0", NOW)
        .await
        .unwrap();
    assert_eq!(fixture.device(&id).await.unwrap(), None);
}

#[tokio::test]
async fn groups_are_joined_left_and_recorded_once() {
    let fixture = Fixture::new().await;
    fixture.enrolled_device("pump-17").await;
    let id = "pump-17".parse().unwrap();
    let member = || Member::Device("pump-17".parse().unwrap());
    for (name, new) in [("wet", true), ("pumps", true), ("pumps", false)] {
        assert_eq!(
            fixture
                .add_to_group(member(), group(name), "operator/root".into())
                .await
                .unwrap(),
            new
        );
    }
    assert_eq!(
        fixture.device(&id).await.unwrap().unwrap().groups,
        [group("pumps"), group("wet")]
    );
    assert!(
        fixture
            .remove_from_group(member(), group("wet"), "operator/root".into())
            .await
            .unwrap()
    );
    assert!(
        !fixture
            .remove_from_group(member(), group("wet"), "operator/root".into())
            .await
            .unwrap()
    );
    assert_eq!(fixture.devices().await.unwrap()[0].groups, [group("pumps")]);
    let changes = fixture
        .kinds()
        .await
        .iter()
        .filter(|kind| *kind == "group.changed")
        .count();
    assert_eq!(changes, 3);
}

#[tokio::test]
async fn a_name_that_nobody_has_enrolled_is_put_into_no_group() {
    let fixture = Fixture::new().await;
    let later = || Member::Operator("later".parse().unwrap());
    assert!(
        !fixture
            .add_to_group(later(), group("admins"), "t".into())
            .await
            .unwrap()
    );
    fixture.enrolled_operator("later").await;
    assert!(
        fixture
            .operator(&"later".parse().unwrap())
            .await
            .unwrap()
            .unwrap()
            .groups
            .is_empty()
    );
    assert!(
        fixture
            .add_to_group(later(), group("admins"), "t".into())
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn an_operator_and_a_device_of_one_name_are_two() {
    let fixture = Fixture::new().await;
    fixture
        .add_enrol_code(code("d", devices(&["same"])), NOW)
        .await
        .unwrap();
    fixture
        .enrol(newcomer("d", None, "d"), NOW, issue("d"))
        .await
        .unwrap()
        .unwrap();
    fixture
        .add_enrol_code(code("o", Makes::Operators(vec!["same".parse().unwrap()])), NOW)
        .await
        .unwrap();
    fixture
        .enrol(newcomer("o", None, "o"), NOW, issue("o"))
        .await
        .unwrap()
        .unwrap();
    fixture
        .add_to_group(
            Member::Operator("same".parse().unwrap()),
            group("admins"),
            "t".into(),
        )
        .await
        .unwrap();
    assert!(
        fixture
            .device(&"same".parse().unwrap())
            .await
            .unwrap()
            .unwrap()
            .groups
            .is_empty()
    );
    fixture
        .revoke(&device_identity("same"), None, "t".into(), NOW)
        .await
        .unwrap();
    assert!(fixture.device(&"same".parse().unwrap()).await.unwrap().is_none());
    assert!(
        fixture
            .operator(&"same".parse().unwrap())
            .await
            .unwrap()
            .is_some()
    );
}

/// THREATS I6.
#[tokio::test]
async fn what_is_revoked_stays_revoked_with_all_its_keys() {
    let fixture = Fixture::new().await;
    let identity = device_identity("a");
    let old = fixture.enrolled_device("a").await;
    fixture.enrolled_device("b").await;
    fixture
        .renewed(&identity, certificate(&identity, "a2"), NOW)
        .await
        .unwrap()
        .unwrap();
    assert!(
        fixture
            .revoke(&identity, Some("stolen".into()), "operator/root".into(), NOW)
            .await
            .unwrap()
    );
    assert!(
        !fixture
            .revoke(&identity, None, "operator/root".into(), NOW)
            .await
            .unwrap()
    );
    let fixture = fixture.reopen().await;
    let revoked = fixture.revoked().await.unwrap();
    assert!(revoked.identities.contains(&identity));
    assert!(revoked.keys.contains(&old) && revoked.keys.contains(&key_of("a2")));
    assert!(!revoked.holds(&device_identity("b"), &key_of("b")));
    assert_eq!(fixture.device(&"a".parse().unwrap()).await.unwrap(), None);
    let both = ["a", "b"].map(|id| id.parse().unwrap()).into();
    let among = fixture.devices_among(&both).await.unwrap();
    assert_eq!(
        among,
        [fixture.device(&"b".parse().unwrap()).await.unwrap().unwrap()]
    );
    let left: Vec<String> = fixture
        .devices()
        .await
        .unwrap()
        .iter()
        .map(|device| device.id.to_string())
        .collect();
    assert_eq!(left, ["b"]);
    let count = fixture
        .kinds()
        .await
        .iter()
        .filter(|kind| *kind == "identity.revoked")
        .count();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn an_operator_is_known_until_revoked() {
    let fixture = Fixture::new().await;
    let name = "ana".parse().unwrap();
    assert_eq!(fixture.operator(&name).await.unwrap(), None);
    let key = fixture.enrolled_operator("ana").await;
    let record = fixture.operator(&name).await.unwrap().unwrap();
    let names = std::iter::once(name.clone()).collect();
    let among = async |fixture: &Fixture| fixture.operators_among(&names).await.unwrap();
    assert_eq!(among(&fixture).await, std::slice::from_ref(&record));
    assert_eq!((record.key, record.groups.len()), (key, 0));
    fixture
        .revoke(&operator_identity("ana"), None, "t".into(), NOW)
        .await
        .unwrap();
    assert_eq!(fixture.operator(&name).await.unwrap(), None);
    assert_eq!(among(&fixture).await, []);
}

/// What one may not see takes no place in what one sees.
#[tokio::test]
async fn outages_of_other_devices_do_not_count() {
    let fixture = Fixture::new().await;
    for (id, hours) in [("pump", 1), ("secret", 2)] {
        fixture.enrolled_device(id).await;
        let outages = (1..=3).map(|number| tunnel_proto::outage::Outage {
            id: number,
            from: NOW,
            until: NOW.after(HOUR * hours),
            attempts: 1,
            starts: 0,
            causes: Vec::new(),
        });
        let device = id.parse().unwrap();
        let kept = fixture.keep_outages(&device, outages.collect(), NOW);
        kept.await.unwrap();
    }
    let of = async |ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let told = fixture.outages(&ids, NOW, 2).await.unwrap();
        told.into_iter().map(|outage| outage.device).collect::<Vec<_>>()
    };
    assert_eq!(of(&["pump"]).await, ["pump", "pump"]);
    assert_eq!(of(&["pump", "secret"]).await, ["secret", "secret"]);
    assert!(of(&[]).await.is_empty());
}

/// A link that ends late takes nothing away from the one that has followed it.
#[tokio::test]
async fn where_a_link_is_is_forgotten_by_that_link_alone() {
    let fixture = Fixture::new().await;
    fixture.enrolled_device("pump-17").await;
    let pump = "pump-17".parse().unwrap();
    let [old, new] = ["192.0.2.1:7", "192.0.2.1:8"].map(|at| at.parse().unwrap());
    assert_eq!(fixture.linked_devices().await.unwrap(), []);
    fixture.device_linked(&pump, old).await.unwrap();
    fixture.device_linked(&pump, new).await.unwrap();
    fixture.device_left(&pump, old).await.unwrap();
    assert_eq!(fixture.linked_devices().await.unwrap(), [(pump.clone(), new)]);
    fixture.device_left(&pump, new).await.unwrap();
    assert_eq!(fixture.linked_devices().await.unwrap(), []);
}
