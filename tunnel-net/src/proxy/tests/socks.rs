use super::*;

/// A proxy that follows a script: what it must be sent, and what it answers. Afterwards it echoes.
async fn scripted(script: &'static [(&'static [u8], &'static [u8])]) -> (String, AbortOnDropHandle<()>) {
    serve(async move |mut stream: TcpStream| {
        for (expected, answer) in script {
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, expected);
            stream.write_all(answer).await.unwrap();
        }
        echo(stream).await;
    })
    .await
}

const ASK: &[u8] = b"\x05\x01\x00\x03\x0drelay.invalid\x20\xfb";
const DONE: &[u8] = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50";

#[tokio::test]
async fn a_server_is_asked_for_by_name_and_reached() {
    for scheme in ["socks5", "socks5h", "SOCKS5"] {
        let (addr, _task) = scripted(&[(b"\x05\x01\x00", b"\x05\x00"), (ASK, DONE)]).await;
        assert_echo(
            proxy(&format!("{scheme}://{addr}"))
                .connect(HOST, PORT)
                .await
                .unwrap(),
        )
        .await;
    }
}

#[tokio::test]
async fn addresses_go_as_they_are_and_every_bound_address_is_read() {
    let (addr, _task) = scripted(&[
        (b"\x05\x01\x00", b"\x05\x00"),
        (
            b"\x05\x01\x00\x01\xc6\x33\x64\x01\x01\xbb",
            b"\x05\x00\x00\x03\x03abc\x00\x01",
        ),
    ])
    .await;
    assert_echo(
        proxy(&format!("socks5://{addr}"))
            .connect("198.51.100.1", 443)
            .await
            .unwrap(),
    )
    .await;
    let (addr, _task) = scripted(&[
        (b"\x05\x01\x00", b"\x05\x00"),
        (
            b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb",
            b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x00\x01",
        ),
    ])
    .await;
    assert_echo(
        proxy(&format!("socks5://{addr}"))
            .connect("2001:db8::1", 443)
            .await
            .unwrap(),
    )
    .await;
}

const WITH_LOGIN: &[u8] = b"\x05\x02\x00\x02";
const LOGIN: &[u8] = b"\x01\x03ana\x06s@cret";

#[tokio::test]
async fn a_login_is_sent_only_where_the_proxy_wants_it() {
    let (addr, _task) = scripted(&[(WITH_LOGIN, b"\x05\x02"), (LOGIN, b"\x01\x00"), (ASK, DONE)]).await;
    assert_echo(
        proxy(&format!("socks5://ana:s%40cret@{addr}"))
            .connect(HOST, PORT)
            .await
            .unwrap(),
    )
    .await;
    let (addr, _task) = scripted(&[(WITH_LOGIN, b"\x05\x00"), (ASK, DONE)]).await;
    assert_echo(
        proxy(&format!("socks5://ana:s%40cret@{addr}"))
            .connect(HOST, PORT)
            .await
            .unwrap(),
    )
    .await;
}

async fn refusal(login: &str, script: &'static [(&'static [u8], &'static [u8])]) -> Refusal {
    let (addr, _task) = scripted(script).await;
    let error = proxy(&format!("socks5://{login}{addr}"))
        .connect(HOST, PORT)
        .await
        .unwrap_err();
    let text = format!("{error}: {}", error.refusal);
    assert!(text.contains(&addr) && !text.contains("s@cret"), "{text}");
    error.refusal
}

#[tokio::test]
async fn logins_that_are_missing_or_wrong_are_named() {
    let wanted = refusal("", &[(b"\x05\x01\x00", b"\x05\xff")]).await;
    assert!(matches!(wanted, Refusal::LoginWanted { .. }), "{wanted:?}");
    let refused = refusal(
        "ana:s%40cret@",
        &[(WITH_LOGIN, b"\x05\x02"), (LOGIN, b"\x01\x01")],
    )
    .await;
    assert!(matches!(refused, Refusal::LoginRefused { .. }), "{refused:?}");
    let refused = refusal("ana:s%40cret@", &[(WITH_LOGIN, b"\x05\xff")]).await;
    assert!(matches!(refused, Refusal::LoginRefused { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_login_is_never_sent_unasked() {
    // The proxy picks a login that was not offered.
    let refused = refusal("", &[(b"\x05\x01\x00", b"\x05\x02")]).await;
    assert!(matches!(refused, Refusal::NotAProxy { .. }), "{refused:?}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    macro_rules! reply {
        ($reply:literal) => {
            refusal("", &[(b"\x05\x01\x00", b"\x05\x00"), (ASK, $reply)])
        };
    }
    let refused = reply!(b"\x05\x02\x00\x01\0\0\0\0\0\0").await;
    assert!(matches!(refused, Refusal::Refused(why) if why == "not allowed by ruleset"));
    let unreached = reply!(b"\x05\x05\x00\x01\0\0\0\0\0\0").await;
    assert!(matches!(unreached, Refusal::Unreached(why) if why == "connection refused"));
    let unreached = reply!(b"\x05\x04\x00\x01\0\0\0\0\0\0").await;
    assert!(matches!(unreached, Refusal::Unreached(why) if why == "host unreachable"));
    let refused = reply!(b"\x05\x70\x00\x01\0\0\0\0\0\0").await;
    assert!(matches!(refused, Refusal::Refused(why) if why == "reply 112"));
}

#[tokio::test]
async fn what_is_no_proxy_is_named() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x04\x00"] {
        let (addr, _task) = serve(async move |mut stream: TcpStream| {
            stream.write_all(answer).await.unwrap();
            echo(stream).await;
        })
        .await;
        let error = proxy(&format!("socks5://{addr}"))
            .connect(HOST, PORT)
            .await
            .unwrap_err();
        assert!(
            matches!(
                &error.refusal,
                Refusal::NotAProxy {
                    expected: "SOCKS5",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let (addr, _task) = serve(async |stream: TcpStream| drop(stream)).await;
    let error = proxy(&format!("socks5://{addr}"))
        .connect(HOST, PORT)
        .await
        .unwrap_err();
    assert!(
        matches!(&error.refusal, Refusal::Closed | Refusal::Broken(_)),
        "{error:?}"
    );
}
