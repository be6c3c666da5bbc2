use rustls::sign::CertifiedKey;

use super::*;

#[tokio::test]
async fn a_device_links_to_a_server() {
    let fleet = Fleet::new();
    let (device, server) = (fleet.credentials(DEVICE), fleet.credentials(SERVER));
    let ends = fleet.ends();
    assert_eq!(
        shake(link_client(&ends, &device), link_server(&ends, &server, nobody())).await,
        GOOD
    );
}

/// THREATS CRT-04. That an operator only measures is for the server to see to, at the first message.
#[tokio::test]
async fn devices_link_operators_measure_and_servers_do_neither() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let server = fleet.credentials(SERVER);
    for (who, expected) in [(OPERATOR, GOOD), (SERVER, both(Code::CertUsage))] {
        let who = fleet.credentials(who);
        let result = shake(link_client(&ends, &who), link_server(&ends, &server, nobody())).await;
        assert_eq!(result, expected);
    }
}

/// THREATS CRT-04.
#[tokio::test]
async fn only_servers_are_linked_to() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let device = fleet.credentials(DEVICE);
    for other in [OPERATOR, DEVICE] {
        let other = fleet.credentials(other);
        let result = shake(link_client(&ends, &device), link_server(&ends, &other, nobody())).await;
        assert_eq!(result, both(Code::CertUsage));
    }
}

/// THREATS CRT-09.
#[tokio::test]
async fn a_link_needs_a_certificate() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let server = fleet.credentials(SERVER);
    let mut bare = api_client(&ends, None);
    bare.alpn_protocols = vec![ALPN_LINK.to_vec()];
    assert_eq!(
        shake(bare, link_server(&ends, &server, nobody())).await,
        both(Code::Unauthenticated)
    );
}

/// THREATS CRT-01.
#[tokio::test]
async fn expired_and_early_certificates_are_refused() {
    let fleet = Fleet::new();
    let (device, server) = (fleet.credentials(DEVICE), fleet.credentials(SERVER));
    let late = fleet.ends_at(NOW.after(LIFE * 2));
    let early = fleet.ends_at(NOW.before(LIFE));
    let ends = fleet.ends();

    let result = shake(link_client(&ends, &device), link_server(&late, &server, nobody())).await;
    assert_eq!(result, both(Code::CertExpired));
    let result = shake(link_client(&late, &device), link_server(&ends, &server, nobody())).await;
    assert_eq!(result, both(Code::CertExpired));
    // The alert is the same, so only the end that refuses knows that it was too early.
    let result = shake(
        link_client(&ends, &device),
        link_server(&early, &server, nobody()),
    )
    .await;
    assert_eq!(result, (Err(Code::CertExpired), Err(Code::CertNotYet)));
    let result = shake(
        link_client(&early, &device),
        link_server(&ends, &server, nobody()),
    )
    .await;
    assert_eq!(result, (Err(Code::CertNotYet), Err(Code::CertExpired)));
}

/// THREATS CRT-03.
#[tokio::test]
async fn another_fleet_is_refused_at_both_ends() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let (device, server) = (fleet.credentials(DEVICE), fleet.credentials(SERVER));
    let (other_device, other_server) = (foreign.credentials(DEVICE), foreign.credentials(SERVER));
    let ends = fleet.ends();
    let result = shake(
        link_client(&ends, &other_device),
        link_server(&ends, &server, nobody()),
    )
    .await;
    assert_eq!(result, both(Code::CertUnknownCa));
    let result = shake(
        link_client(&ends, &device),
        link_server(&ends, &other_server, nobody()),
    )
    .await;
    assert_eq!(result, both(Code::CertUnknownCa));
}

/// THREATS CRT-02.
#[tokio::test]
async fn the_revoked_are_refused() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, operator, server) = (
        fleet.credentials(DEVICE),
        fleet.credentials(OPERATOR),
        fleet.credentials(SERVER),
    );
    let revoked = || Arc::new(Revoked(device.key_hash()));
    let result = shake(
        link_client(&ends, &device),
        link_server(&ends, &server, revoked()),
    )
    .await;
    assert_eq!(result, both(Code::Revoked));
    let another = fleet.credentials(DEVICE);
    assert_eq!(
        shake(
            link_client(&ends, &another),
            link_server(&ends, &server, revoked())
        )
        .await,
        GOOD
    );

    let revoked = || Arc::new(Revoked(operator.key_hash()));
    let result = shake(
        api_client(&ends, Some(&operator)),
        api_server(&ends, &server, revoked()),
    )
    .await;
    assert_eq!(result, both(Code::Revoked));
    let result = shake(api_client(&ends, None), api_server(&ends, &server, revoked())).await;
    assert_eq!(result, GOOD, "a newcomer is not who was revoked");
}

#[tokio::test]
async fn a_certificate_is_optional_at_the_api_and_never_bad() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let server = fleet.credentials(SERVER);
    let api = || api_server(&ends, &server, nobody());
    assert_eq!(shake(api_client(&ends, None), api()).await, GOOD);
    for good in [OPERATOR, DEVICE] {
        assert_eq!(
            shake(api_client(&ends, Some(&fleet.credentials(good))), api()).await,
            GOOD
        );
    }
    let as_client = api_client(&ends, Some(&fleet.credentials(SERVER)));
    assert_eq!(shake(as_client, api()).await, both(Code::CertUsage));
    let foreign = api_client(&ends, Some(&Fleet::new().credentials(OPERATOR)));
    assert_eq!(shake(foreign, api()).await, both(Code::CertUnknownCa));
}

#[tokio::test]
async fn a_newcomer_knows_the_server_by_the_fingerprint() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let ends = fleet.ends();
    let server = fleet.credentials(SERVER);
    let newcomer = |fingerprint| enrol_client(fingerprint, Arc::new(At(NOW)));
    let api = || api_server(&ends, &server, nobody());
    assert_eq!(shake(newcomer(fleet.trust.fingerprint()), api()).await, GOOD);
    assert_eq!(
        shake(newcomer(foreign.trust.fingerprint()), api()).await,
        both(Code::CertUnknownCa)
    );
    assert_eq!(shake(newcomer([0; 32]), api()).await, both(Code::CertUnknownCa));

    let posing = api_server(&ends, &fleet.credentials(DEVICE), nobody());
    assert_eq!(
        shake(newcomer(fleet.trust.fingerprint()), posing).await,
        both(Code::CertUsage)
    );
    // A chain with the right root at its end, which did not sign the rest.
    let stranger = foreign.credentials(SERVER);
    let chain = [&stranger.chain()[..2], std::slice::from_ref(fleet.trust.root())].concat();
    let grafted = Credentials::new(chain, KeyPair::from_pem(&stranger.key().to_pem()).unwrap()).unwrap();
    let posing = api_server(&ends, &grafted, nobody());
    assert_eq!(
        shake(newcomer(fleet.trust.fingerprint()), posing).await,
        both(Code::CertUnknownCa)
    );
}

/// Invariant I4: a tunnel has exactly the two ends that the grant names.
#[tokio::test]
async fn a_tunnel_has_exact_ends() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, operator) = (fleet.credentials(DEVICE), fleet.credentials(OPERATOR));
    let from = |credentials: &Credentials, to: &str| tunnel_client(&ends, credentials, id(to));
    let to = |credentials: &Credentials, from: &str, key| tunnel_server(&ends, credentials, id(from), key);
    let key = operator.key_hash();
    assert_eq!(
        shake(from(&operator, DEVICE), to(&device, OPERATOR, key)).await,
        GOOD
    );

    let other_device = fleet.credentials("spiffe://fleet.example/device/pump-18");
    let result = shake(from(&operator, DEVICE), to(&other_device, OPERATOR, key)).await;
    assert_eq!(result, both(Code::CertName), "another device answers");

    let other_operator = fleet.credentials("spiffe://fleet.example/operator/bob");
    let result = shake(from(&other_operator, DEVICE), to(&device, OPERATOR, key)).await;
    assert_eq!(result, both(Code::CertName), "another operator calls");

    let other_key = fleet.credentials(OPERATOR);
    let result = shake(from(&other_key, DEVICE), to(&device, OPERATOR, key)).await;
    assert_eq!(
        result,
        both(Code::CertName),
        "the operator calls with another key than the holder's"
    );

    let namesake = fleet.credentials("spiffe://fleet.example/device/ana");
    let result = shake(
        from(&namesake, DEVICE),
        to(&device, OPERATOR, namesake.key_hash()),
    )
    .await;
    assert_eq!(result, both(Code::CertName), "a device has the operator's name");

    let server = fleet.credentials(SERVER);
    let result = shake(from(&operator, DEVICE), to(&server, OPERATOR, key)).await;
    assert_eq!(result, both(Code::CertName), "the server poses as the device");
}

/// THREATS CRT-05: the victim's certificate in the chain, behind the own one.
#[tokio::test]
async fn a_borrowed_certificate_is_no_identity() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, operator) = (fleet.credentials(DEVICE), fleet.credentials(OPERATOR));
    let own = fleet.credentials("spiffe://fleet.example/operator/mallory");
    let chain = [&own.chain()[..1], &operator.chain()[..1], &own.chain()[1..2]].concat();
    let thief = Credentials::new(chain, KeyPair::from_pem(&own.key().to_pem()).unwrap()).unwrap();
    let server = || tunnel_server(&ends, &device, id(OPERATOR), operator.key_hash());
    let result = shake(tunnel_client(&ends, &thief, id(DEVICE)), server()).await;
    assert_eq!(result, both(Code::CertName));
    assert_eq!(
        shake(tunnel_client(&ends, &operator, id(DEVICE)), server()).await,
        GOOD
    );
}

/// THREATS CRT-09: somebody else's certificate, without its key.
#[tokio::test]
async fn a_certificate_without_its_key_is_refused() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, operator) = (fleet.credentials(DEVICE), fleet.credentials(OPERATOR));
    let own = fleet.credentials("spiffe://fleet.example/operator/mallory");
    let stolen = CertifiedKey::new(operator.chain().to_vec(), Arc::clone(&own.certified_key().key));
    let mut thief = tunnel_client(&ends, &own, id(DEVICE));
    thief.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let server = tunnel_server(&ends, &device, id(OPERATOR), operator.key_hash());
    assert_eq!(shake(thief, server).await, both(Code::CertChain));
    assert!(matches!(
        Credentials::new(operator.chain().to_vec(), KeyPair::generate().unwrap()),
        Err(CredentialsError::Mismatch(_))
    ));
}

/// THREATS CRT-08.
#[tokio::test]
async fn a_long_chain_is_refused() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, server) = (fleet.credentials(DEVICE), fleet.credentials(SERVER));
    let chain = [device.chain()[..2].to_vec(), vec![device.chain()[1].clone(); 20]].concat();
    let long = Credentials::new(chain, KeyPair::from_pem(&device.key().to_pem()).unwrap()).unwrap();
    let result = shake(link_client(&ends, &long), link_server(&ends, &server, nobody())).await;
    assert_eq!(result, both(Code::CertChain));
}

#[tokio::test]
async fn protocols_do_not_mix() {
    let fleet = Fleet::new();
    let ends = fleet.ends();
    let (device, server) = (fleet.credentials(DEVICE), fleet.credentials(SERVER));
    let result = shake(link_client(&ends, &device), api_server(&ends, &server, nobody())).await;
    assert_eq!(result, both(Code::Protocol));
}

#[test]
fn the_root_travels_only_to_newcomers() {
    let fleet = Fleet::new();
    let device = fleet.credentials(DEVICE);
    assert_eq!(device.chain().len(), 3);
    let sent = device.without_root(&fleet.trust);
    assert_eq!(sent.chain(), &device.chain()[..2]);
    assert_eq!(sent.certified_key().cert, &device.chain()[..2]);
    assert_eq!(
        peer(&fleet.trust, sent.chain(), NOW).unwrap().identity,
        id(DEVICE)
    );
}

#[test]
fn credentials_print_no_key() {
    let device = Fleet::new().credentials(DEVICE);
    let text = format!("{device:?}");
    assert!(text.contains("KeyPair(KeyHash("), "{text}");
    let secret = format!("{:?}", &device.clone_key().secret_der()[40..60]);
    assert!(!text.contains(secret.trim_matches(['[', ']'])));
}
