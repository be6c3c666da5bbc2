use super::super::environment::choose;

/// What is chosen for a host where the environment has these variables.
fn chosen(host: &str, variables: &[(&str, &str)]) -> Option<String> {
    let variable = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    choose(host, variable).unwrap().map(|proxy| proxy.to_string())
}

const PROXY: (&str, &str) = ("HTTPS_PROXY", "proxy.example:3128");
const SHOWN: &str = "http://proxy.example:3128";

#[test]
fn the_variables_count_in_their_order() {
    let all = [
        ("all_proxy", "socks5://d"),
        ("ALL_PROXY", "socks5://c"),
        ("https_proxy", "http://b"),
        ("HTTPS_PROXY", "http://a"),
    ];
    let expected = ["socks5://d:1080", "socks5://c:1080", "http://b:80", "http://a:80"];
    for (count, expected) in (1..).zip(expected) {
        assert_eq!(chosen("relay.example", &all[..count]).as_deref(), Some(expected));
    }
    assert_eq!(chosen("relay.example", &[]), None);
    assert_eq!(
        chosen("relay.example", &[("HTTPS_PROXY", " "), ("ALL_PROXY", "c")]).as_deref(),
        Some("http://c:80")
    );
    // A proxy for plain HTTP is not asked to carry TLS.
    assert_eq!(
        chosen("relay.example", &[("http_proxy", "a"), ("HTTP_PROXY", "a")]),
        None
    );
}

#[test]
fn exceptions_go_without() {
    for (host, list) in [
        ("relay.example", "*"),
        ("relay.example", "relay.example"),
        ("relay.example", "a, example ,b"),
        ("relay.example", ".example"),
        ("relay.example", "*.example"),
        ("Relay.Example", "relay.EXAMPLE:443"),
        ("relay.example.", "example"),
        ("198.51.100.1", "198.51.100.1"),
        ("198.51.100.1", "10.0.0.0/8,198.51.100.0/24"),
        ("2001:db8::1", "2001:db8::/32"),
        ("2001:db8::1", "[2001:db8::1]"),
    ] {
        assert_eq!(chosen(host, &[PROXY, ("no_proxy", list)]), None, "{host} {list}");
        assert_eq!(
            chosen(host, &[PROXY, ("NO_PROXY", list), ("no_proxy", "other")]),
            None,
            "{host} {list}"
        );
    }
}

#[test]
fn what_is_no_exception_takes_the_proxy() {
    for (host, list) in [
        ("relay.example", ""),
        ("relay.example", "lay.example"),
        ("relay.example", "relay.example.org"),
        ("relay.example", "a.relay.example"),
        ("relay.example", ","),
        ("relay.example", "."),
        ("198.51.100.1", "198.51.100.2"),
        ("198.51.100.1", "198.51.101.0/24"),
        ("198.51.100.1", "198.51.100.0/x"),
        ("198.51.100.1", "2001:db8::/32"),
        ("198.51.100.1", "1"),
        ("2001:db8::1", "2001:db9::/32"),
    ] {
        let got = chosen(host, &[PROXY, ("no_proxy", list)]);
        assert_eq!(got.as_deref(), Some(SHOWN), "{host} {list}");
    }
}

#[test]
fn this_machine_is_never_reached_through_a_proxy() {
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1"] {
        assert_eq!(chosen(host, &[PROXY]), None, "{host}");
    }
    assert!(chosen("localhost.example", &[PROXY]).is_some());
}

#[test]
fn a_wrong_value_is_named_by_its_variable_and_not_passed_over() {
    let wrong = |name: &str| (name == "https_proxy").then(|| "https://ana:hunter2@a:1".to_owned());
    let error = choose("relay.example", wrong).unwrap_err();
    assert_eq!(error.variable, "https_proxy");
    assert!(!format!("{error:?}").contains("hunter2"));
    assert_eq!(choose("localhost", wrong), Ok(None));
}
