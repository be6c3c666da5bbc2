use super::*;

#[test]
fn addresses_are_read() {
    for (text, shown) in [
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("http://proxy.example", "http://proxy.example:80"),
        (" HTTP://proxy.example:8080/ ", "http://proxy.example:8080"),
        ("socks5://10.0.0.1", "socks5://10.0.0.1:1080"),
        ("socks5h://[2001:db8::1]:9", "socks5://[2001:db8::1]:9"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://ana:pw@proxy.example:1", "http://***@proxy.example:1"),
        ("http://token@proxy.example:1", "http://***@proxy.example:1"),
        ("http://a%3Ab@c:d@proxy.example:1", "malformed"),
        (
            "socks5://ana:p@ss:w@proxy.example:1",
            "socks5://***@proxy.example:1",
        ),
    ] {
        let read = text.parse::<Proxy>().map(|proxy| proxy.to_string());
        if shown == "malformed" {
            assert!(read.is_err(), "{text}");
        } else {
            assert_eq!(read.as_deref(), Ok(shown), "{text}");
        }
    }
}

#[test]
fn what_is_no_address_is_refused() {
    use ProxyTextError::{Login, Malformed, Scheme};
    for (text, error) in [
        ("", Malformed),
        ("http://", Malformed),
        ("http://a b:1", Malformed),
        ("http://a:0", Malformed),
        ("http://a:70000", Malformed),
        ("http://a:1/path", Malformed),
        ("http://a:1?x", Malformed),
        ("http://2001:db8::1:80", Malformed),
        ("http://[x]:1", Malformed),
        ("http://[::1]x", Malformed),
        ("https://a:1", Scheme),
        ("socks4://a:1", Scheme),
        ("ftp://a:1", Scheme),
        ("http://:pw@a:1", Login),
        ("http://a%3ab:pw@a:1", Login),
        ("http://ana:%zz@a:1", Login),
        ("http://ana:%0d%0a@a:1", Login),
        ("http://ana:%ff@a:1", Login),
        ("http://@a:1", Login),
    ] {
        assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
    }
}

#[test]
fn a_login_shows_in_no_text() {
    let proxy: Proxy = "http://anabel:hunter2@proxy.example:1".parse().unwrap();
    let server = "relay.example:443".parse::<crate::ServerAddr>().unwrap();
    let server = server.with_proxy(Some(std::sync::Arc::new(proxy.clone())));
    for text in [
        proxy.to_string(),
        format!("{proxy:?}"),
        format!("{server:?}"),
        server.to_string(),
    ] {
        assert!(!text.contains("hunter2") && !text.contains("anabel"), "{text}");
    }
    for wrong in [
        "http://anabel:hunter2@",
        "https://anabel:hunter2@a:1",
        "http://anabel:hunter2%0a@a:1",
    ] {
        let error = wrong.parse::<Proxy>().unwrap_err();
        assert!(!format!("{error}{error:?}").contains("hunter2"));
    }
}

#[test]
fn foreign_text_is_made_plain() {
    assert_eq!(refusal::plain(" a\u{1b}[2J\u{202e}b\n"), "a?[2J?b");
    assert_eq!(refusal::plain(&"x".repeat(1000)).len(), 80);
}
