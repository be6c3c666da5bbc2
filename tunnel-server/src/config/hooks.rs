//! The sections about services of the fleet's owner: who is asked before a tunnel opens.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::{Reader, line_of};
use crate::webhook::{Net, Target};

/// How long the authoriser may take, unless the configuration says otherwise: somebody waits for the tunnel.
const AUTHORISER_DEADLINE: u32 = 2_000;
/// What can be asked for, in milliseconds.
const DEADLINES: RangeInclusive<u32> = 100..=10_000;
/// Most ranges of addresses in a list.
const MAX_NETS: usize = 32;

/// The service that is asked before a tunnel opens which policy permits: the section `[authoriser]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authoriser {
    /// Where it is.
    pub target: Target,
    /// How long it may take.
    pub deadline: Duration,
}

impl<'t> Reader<'t> {
    /// Takes the section about the authoriser.
    pub(super) fn authoriser(&mut self) -> Option<Authoriser> {
        let mut section = self.section("authoriser")?;
        let target = section.target();
        let deadline = section.number("deadline_millis", DEADLINES);
        self.wrongs.extend(
            section.finish("`url`, `key`, `ca`, `allow` and `deadline_millis` are known in `[authoriser]`"),
        );
        Some(Authoriser {
            target: target?,
            deadline: Duration::from_millis(deadline.unwrap_or(AUTHORISER_DEADLINE).into()),
        })
    }

    /// Takes what all services have.
    fn target(&mut self) -> Option<Target> {
        let (url, key) = (self.required("url"), self.required::<PathBuf>("key"));
        let (ca, allow) = (self.optional::<PathBuf>("ca"), self.nets("allow"));
        Some(Target {
            url: url?,
            key: key?,
            ca,
            allow,
        })
    }

    fn section(&mut self, key: &str) -> Option<Reader<'t>> {
        let value = self.table.remove(key)?;
        let line = line_of(self.text, value.span().start);
        match value.into_inner() {
            DeValue::Table(table) => Some(Reader {
                text: self.text,
                line: Some(line),
                table,
                wrongs: Vec::new(),
            }),
            _ => {
                self.wrong_at(line, format!("`{key}` is a section, as `[{key}]`"));
                None
            }
        }
    }

    fn nets(&mut self, key: &str) -> Vec<Net> {
        let Some(value) = self.table.remove(key) else {
            return Vec::new();
        };
        let line = line_of(self.text, value.span().start);
        let read = match value.get_ref() {
            DeValue::Array(list) if list.len() <= MAX_NETS => list
                .iter()
                .map(|net| net.get_ref().as_str().and_then(|text| text.parse::<Net>().ok()))
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        read.unwrap_or_else(|| {
            let most = format!("at most {MAX_NETS} addresses or ranges, as [\"10.1.2.3\", \"10.1.0.0/16\"]");
            self.wrong_at(line, format!("`{key}` is a list of {most}"));
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(section: &str) -> Result<Option<Authoriser>, Vec<String>> {
        let base = "node = \"n1\"\ntrust_domain = \"fleet.example\"\naddress = \"relay.example:8443\"\n";
        let parsed = Config::parse(&format!("{base}{section}"));
        let wrongs = |wrongs: Vec<super::super::Wrong>| wrongs.iter().map(ToString::to_string).collect();
        parsed.map(|config| config.authoriser).map_err(wrongs)
    }

    #[test]
    fn an_authoriser_has_an_address_and_a_key() {
        assert_eq!(parse(""), Ok(None));
        let short = "[authoriser]\nurl = \"https://hooks.example/ask\"\nkey = \"hook.key\"\n";
        let read = parse(short).unwrap().unwrap();
        assert_eq!((read.target.ca, read.deadline), (None, Duration::from_secs(2)));
        let long = format!("{short}ca = \"/etc/ca.pem\"\nallow = [\"127.0.0.1\"]\ndeadline_millis = 500\n");
        let read = parse(&long).unwrap().unwrap();
        assert_eq!(read.target.allow, ["127.0.0.1".parse().unwrap()]);
        assert_eq!(read.deadline, Duration::from_millis(500));
    }

    /// THREATS SRV-15.
    #[test]
    fn srv_15_a_wrong_section_is_refused_with_its_lines() {
        let told = parse("[authoriser]\nurl = \"http://hooks.example/\"\nallow = [\"all\"]\nfollow = true\n");
        let told = told.unwrap_err();
        assert_eq!(told[0], "line 4: `key` is missing");
        assert!(told[1].starts_with("line 5: `url`: is no address as"), "{told:?}");
        assert!(told[2].starts_with("line 6: `allow` is a list"), "{told:?}");
        assert!(told[3].starts_with("line 7: `follow` is not known"), "{told:?}");
        let told = parse("authoriser = \"https://hooks.example/\"\n").unwrap_err();
        assert_eq!(told, ["line 4: `authoriser` is a section, as `[authoriser]`"]);
    }
}
