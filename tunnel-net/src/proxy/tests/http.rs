use super::*;

/// Reads a request to its blank line.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// A proxy that gives this answer and, if it is a good one, echoes what follows. Its task returns the request.
async fn answering(answer: impl Into<Vec<u8>>) -> (String, AbortOnDropHandle<String>) {
    let answer = answer.into();
    serve(async move |mut stream: TcpStream| {
        let request = read_request(&mut stream).await;
        // The other side may have seen enough before the end.
        let _ = stream.write_all(&answer).await;
        echo(stream).await;
        request
    })
    .await
}

/// Asks a proxy that gives this answer; returns its refusal and the whole error as text.
async fn refusal(login: &str, answer: impl Into<Vec<u8>>) -> (Refusal, String) {
    let (addr, _task) = answering(answer).await;
    let error = proxy(&format!("http://{login}{addr}"))
        .connect(HOST, PORT)
        .await
        .unwrap_err();
    let text = format!("{error}: {}", error.refusal);
    assert!(
        text.contains(&addr) && text.contains("relay.invalid:8443"),
        "{text}"
    );
    (error.refusal, text)
}

#[tokio::test]
async fn a_server_is_asked_for_by_name_and_reached() {
    for answer in [
        "HTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
    ] {
        let (addr, task) = answering(answer).await;
        assert_echo(proxy(&addr).connect(HOST, PORT).await.unwrap()).await;
        let request = task.await.unwrap();
        assert_eq!(
            request,
            "CONNECT relay.invalid:8443 HTTP/1.1\r\nHost: relay.invalid:8443\r\n\r\n"
        );
    }
}

#[tokio::test]
async fn an_answer_may_come_in_pieces() {
    let (addr, _task) = serve(async |mut stream: TcpStream| {
        read_request(&mut stream).await;
        stream.set_nodelay(true).unwrap();
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        echo(stream).await;
    })
    .await;
    assert_echo(proxy(&addr).connect(HOST, PORT).await.unwrap()).await;
}

#[tokio::test]
async fn an_ipv6_server_is_asked_for_in_brackets() {
    let (addr, task) = answering("HTTP/1.1 200 OK\r\n\r\n").await;
    drop(proxy(&addr).connect("2001:db8::1", 443).await.unwrap());
    assert!(
        task.await
            .unwrap()
            .starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")
    );
}

#[tokio::test]
async fn a_login_is_sent_where_it_is_known() {
    let (addr, task) = answering("HTTP/1.1 200 OK\r\n\r\n").await;
    drop(
        proxy(&format!("http://ana:s%40cret@{addr}"))
            .connect(HOST, PORT)
            .await
            .unwrap(),
    );
    // `ana:s@cret`
    assert!(
        task.await
            .unwrap()
            .contains("\r\nProxy-Authorization: Basic YW5hOnNAY3JldA==\r\n")
    );
}

const BASIC: &str = "HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic realm=\"a, b\"\r\n\r\n";

#[tokio::test]
async fn a_missing_login_is_named_with_what_the_proxy_takes() {
    let (refusal, text) = refusal("", BASIC).await;
    assert!(matches!(refusal, Refusal::LoginWanted { offers } if offers.0 == ["Basic"]));
    assert!(
        text.contains("`Basic`") && text.contains("user:password@"),
        "{text}"
    );
}

#[tokio::test]
async fn a_wrong_login_is_named_and_not_shown() {
    let (refusal, text) = refusal("ana:hunter2@", BASIC).await;
    assert!(matches!(refusal, Refusal::LoginRefused { .. }));
    assert!(!text.contains("hunter2") && !text.contains("ana"), "{text}");
}

#[tokio::test]
async fn a_login_that_is_not_spoken_is_named() {
    let answer = "HTTP/1.1 407 Login\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate, Digest a=\"b\", c=d\r\n\r\n";
    let (refusal, text) = refusal("", answer).await;
    assert!(
        matches!(refusal, Refusal::LoginWanted { offers } if offers.0 == ["NTLM", "Negotiate", "Digest"])
    );
    assert!(
        text.contains("by `NTLM` or `Negotiate` or `Digest`; only `Basic` is supported"),
        "{text}"
    );
}

#[tokio::test]
async fn a_refusal_is_given_in_the_proxys_words() {
    let (refused, text) = refusal("", "HTTP/1.1 403 Not \x1b[31mallowed\r\n\r\n").await;
    // A control character is no part of HTTP at all.
    assert!(matches!(refused, Refusal::NotAProxy { .. }), "{text}");
    let (refused, text) = refusal("", "HTTP/1.1 403 Not allowed\r\n\r\n").await;
    assert!(matches!(refused, Refusal::Refused(words) if words == "403 Not allowed"));
    assert!(text.contains("ask its owner"), "{text}");
    let (unreached, _) = refusal("", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
    assert!(matches!(unreached, Refusal::Unreached(words) if words == "502 Bad Gateway"));
}

#[tokio::test]
async fn a_captive_portal_is_named() {
    let redirect = "HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/?next=x\r\n\r\n";
    let (refused, text) = refusal("", redirect).await;
    assert!(matches!(refused, Refusal::CaptivePortal(Some(host)) if host == "login.hotel.example"));
    assert!(text.contains("log in to this network"), "{text}");
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=x\r\nContent-Length: 6\r\n\r\n";
    for page in [
        page.to_owned(),
        format!("{page}<html>"),
        "HTTP/1.1 200 OK\r\n\r\n<html>".into(),
    ] {
        assert!(matches!(refusal("", page).await.0, Refusal::CaptivePortal(None)));
    }
    let (refused, _) = refusal("", "HTTP/1.1 511 Log in\r\n\r\n").await;
    assert!(matches!(refused, Refusal::CaptivePortal(None)));
}

#[tokio::test]
async fn what_is_no_proxy_is_named() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 405 Method Not Allowed\r\n\r\n",
        "\x05\x00",
        "\x15\x03\x01\x00\x02",
    ] {
        let (refused, text) = refusal("", answer).await;
        assert!(
            matches!(refused, Refusal::NotAProxy { expected: "HTTP", .. }),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let (refused, _) = refusal("", format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(1 << 20))).await;
    assert!(matches!(refused, Refusal::NotAProxy { got, .. } if got.contains("no end")));
}

#[tokio::test]
async fn many_fields_are_too_many() {
    let fields: String = (0..200).map(|n| format!("X-{n}: a\r\n")).collect();
    let (refused, _) = refusal("", format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).await;
    assert!(matches!(refused, Refusal::NotAProxy { .. }));
}

#[tokio::test]
async fn a_proxy_that_hangs_up_is_named() {
    let (addr, _task) = serve(async |mut stream: TcpStream| {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 20").await.unwrap();
    })
    .await;
    let error = proxy(&addr).connect(HOST, PORT).await.unwrap_err();
    assert!(
        matches!(error.refusal, Refusal::Closed | Refusal::Broken(_)),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_proxy_is_given_up_in_time() {
    let (addr, _task) = serve(async |stream: TcpStream| {
        let () = std::future::pending().await;
        drop(stream);
    })
    .await;
    let start = tokio::time::Instant::now();
    let error = proxy(&addr).connect(HOST, PORT).await.unwrap_err();
    assert!(matches!(error.refusal, Refusal::Silent), "{error:?}");
    assert!(start.elapsed() <= defaults::CONNECT_DEADLINE * 2);
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = proxy(&addr).connect(HOST, PORT).await.unwrap_err();
    assert!(matches!(&error.refusal, Refusal::Connect(_)), "{error:?}");
    let error = proxy("proxy.invalid:3128").connect(HOST, PORT).await.unwrap_err();
    assert!(
        matches!(&error.refusal, Refusal::Resolve(_) | Refusal::Silent),
        "{error:?}"
    );
}
