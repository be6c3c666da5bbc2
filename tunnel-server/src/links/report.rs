//! Cuts what a device says of itself down to what may be stored and shown (THREATS SRV-23, CLI-01).

use std::collections::BTreeMap;

use tunnel_proto::defaults::MAX_FACTS;
use tunnel_proto::message::Report;
use tunnel_proto::names::{FactName, FactValue};

/// Most services that are kept.
const MAX_SERVICES: usize = 64;
/// Most host keys that are kept: a server has one for each of a handful of algorithms.
const MAX_HOST_KEYS: usize = 16;
/// Longest host key that is kept, in characters: RSA with 16,384 bits needs about 2,800.
const MAX_HOST_KEY: usize = 4096;
/// Longest name of a platform or version, in characters.
const MAX_WORD: usize = 64;

/// Returns the report without what is too long, too much, or no text that a file or terminal may safely get.
pub(crate) fn cleaned(mut report: Report) -> Report {
    report.services.truncate(MAX_SERVICES);
    report.services.sort();
    report.services.dedup();
    report.runs.truncate(MAX_SERVICES);
    report.ssh_host_keys.retain(|key| is_host_key(key));
    report.ssh_host_keys.truncate(MAX_HOST_KEYS);
    report.platform = word(&report.platform);
    report
}

/// Returns the facts whose names and values can be ones; of too many the first.
pub(crate) fn facts(report: &Report) -> BTreeMap<FactName, FactValue> {
    let facts = report.facts.iter();
    let good = facts.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
    good.take(MAX_FACTS).collect()
}

/// Returns the text if it is one short word of plain characters, and nothing otherwise.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-/".contains(c);
    if text.len() <= MAX_WORD && text.chars().all(plain) {
        text.to_owned()
    } else {
        String::new()
    }
}

/// Says whether a text is `<type> <base64>` and nothing more. Such a line goes into a `known_hosts` file.
fn is_host_key(text: &str) -> bool {
    let Some((kind, key)) = text.split_once(' ') else {
        return false;
    };
    let kind_char = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'@' | b'.');
    let key_char = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=');
    text.len() <= MAX_HOST_KEY
        && kind.bytes().next().is_some_and(|c| c.is_ascii_lowercase())
        && kind.bytes().all(kind_char)
        && !key.is_empty()
        && key.bytes().all(key_char)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFoo+/bar";

    #[test]
    fn a_plain_report_stays_as_it_is() {
        let report = Report {
            services: vec!["diag".parse().unwrap(), "ssh".parse().unwrap()],
            ssh_host_keys: vec![KEY.into()],
            access: true,
            platform: "linux/x86_64".into(),
            facts: [("disk.encrypted".to_owned(), "true".to_owned())].into(),
            runs: vec!["diag".parse().unwrap()],
        };
        assert_eq!(facts(&report).len(), 1);
        assert_eq!(cleaned(report.clone()), report);
    }

    #[test]
    fn what_could_mean_something_else_is_dropped() {
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            " AAAA",
            "ssh-ed25519 AAAA comment",
            "ssh-ed25519 AA\nhost ssh-rsa BB",
            "@cert-authority * ssh-ed25519",
            "-ssh AAAA",
            "ssh-ed25519 AA\u{1b}[2J",
            "ssh\t-ed25519 AAAA",
            &format!("ssh-rsa {}", "A".repeat(5000)),
        ] {
            let report = Report {
                ssh_host_keys: vec![bad.into(), KEY.into()],
                ..Report::default()
            };
            assert_eq!(cleaned(report).ssh_host_keys, [KEY], "{bad:?}");
        }
        for (name, value) in [
            ("A", "x"),
            ("a b", "x"),
            ("a", ""),
            ("a", "x\n"),
            ("a", "\u{202e}x"),
        ] {
            let bad = Report {
                facts: [(name.to_owned(), value.to_owned())].into(),
                ..Report::default()
            };
            assert!(facts(&bad).is_empty(), "{name:?} {value:?}");
        }
        assert_eq!(word("linux/x86_64"), "linux/x86_64");
        assert_eq!(word("li\u{1b}nux"), "");
        assert_eq!(word(&"x".repeat(65)), "");
    }

    #[test]
    fn lists_are_bounded() {
        let services = (0..500).map(|i| format!("s{i}").parse().unwrap()).collect();
        let report = cleaned(Report {
            runs: vec!["diag".parse().unwrap(); 500],
            services,
            ssh_host_keys: vec![KEY.into(); 100],
            ..Report::default()
        });
        let many = (0..500).map(|i| (format!("f{i}"), "x".to_owned())).collect();
        let facts = facts(&Report {
            facts: many,
            ..Report::default()
        });
        assert_eq!(facts.len(), MAX_FACTS);
        assert_eq!(
            (report.services.len(), report.runs.len()),
            (MAX_SERVICES, MAX_SERVICES)
        );
        assert_eq!(report.ssh_host_keys.len(), MAX_HOST_KEYS);
    }
}
