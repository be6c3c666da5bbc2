//! The sections about services of the fleet's owner: who is asked before a tunnel opens, and who is told what was recorded.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use super::{Reader, line_of};
use crate::notify::Topic;
use crate::webhook::{Net, Target};

/// How long the authoriser may take, unless the configuration says otherwise: somebody waits for the tunnel.
const AUTHORISER_DEADLINE: u32 = 2_000;
/// What can be asked for, in milliseconds.
const DEADLINES: RangeInclusive<u32> = 100..=10_000;
/// How often a notification is tried, unless the configuration says otherwise: for some two hours.
const TRIES: u32 = 30;
/// Most services that are told.
const MAX_TOLD: usize = 16;
/// Longest name of one of them, in bytes.
const MAX_NAME: usize = 48;
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

/// A service that is told what was recorded: a section `[[notify]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// What it is called here. How far it has got is kept under this name.
    pub name: String,
    /// Where it is.
    pub target: Target,
    /// What it wants to be told.
    pub topics: Vec<Topic>,
    /// How often a notification is tried before it is given up.
    pub tries: u32,
}

impl<'t> Reader<'t> {
    /// Takes the sections about those who are told.
    pub(super) fn notify(&mut self) -> Vec<Notify> {
        let Some(value) = self.table.remove("notify") else {
            return Vec::new();
        };
        let line = line_of(self.text, value.span().start);
        let DeValue::Array(sections) = value.into_inner() else {
            self.wrong_at(
                line,
                "`notify` is a list of sections, each `[[notify]]`".to_owned(),
            );
            return Vec::new();
        };
        if sections.len() > MAX_TOLD {
            self.wrong_at(line, format!("at most {MAX_TOLD} `[[notify]]` are taken"));
        }
        let mut all: Vec<Notify> = Vec::new();
        for section in sections {
            let line = line_of(self.text, section.span().start);
            let DeValue::Table(table) = section.into_inner() else {
                self.wrong_at(
                    line,
                    "`notify` is a list of sections, each `[[notify]]`".to_owned(),
                );
                continue;
            };
            let mut section = Reader {
                text: self.text,
                line: Some(line),
                table,
                wrongs: Vec::new(),
            };
            let read = section.one_notify();
            self.wrongs.extend(section.finish(
                "`name`, `url`, `key`, `ca`, `allow`, `topics` and `tries` are known in `[[notify]]`",
            ));
            let Some(read) = read else { continue };
            if all.iter().any(|other| other.name == read.name) {
                self.wrong_at(line, format!("two `[[notify]]` have the name `{}`", read.name));
            }
            all.push(read);
        }
        all
    }

    fn one_notify(&mut self) -> Option<Notify> {
        let name = self.required::<String>("name");
        let plain = |name: &String| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good)
        };
        if name.as_ref().is_some_and(|name| !plain(name)) {
            self.wrongs.push(super::Wrong {
                line: self.line,
                message: format!("`name` is 1 to {MAX_NAME} letters, digits and `- _ .`"),
            });
        }
        let target = self.target();
        let wanted = "a list of `decisions`, `approvals`, `cuts` and `alarms`";
        let topics = self.list("topics", Topic::ALL.len(), wanted);
        let tries = self.number("tries", 1..=1000).unwrap_or(TRIES);
        Some(Notify {
            name: name?,
            target: target?,
            topics: topics.unwrap_or_else(|| Topic::ALL.to_vec()),
            tries,
        })
    }

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
        let wanted = "a list of addresses or ranges, as [\"10.1.2.3\", \"10.1.0.0/16\"]";
        self.list(key, MAX_NETS, wanted).unwrap_or_default()
    }

    /// Takes a list of at most so many words; none if it is not there.
    fn list<T: FromStr>(&mut self, key: &str, most: usize, wanted: &str) -> Option<Vec<T>> {
        let value = self.table.remove(key)?;
        let line = line_of(self.text, value.span().start);
        let read = match value.get_ref() {
            DeValue::Array(list) if list.len() <= most => list
                .iter()
                .map(|word| word.get_ref().as_str().and_then(|text| text.parse::<T>().ok()))
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        if read.is_none() {
            self.wrong_at(line, format!("`{key}` is {wanted}, at most {most}"));
        }
        read
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

    fn told(section: &str) -> Result<Vec<Notify>, Vec<String>> {
        let base = "node = \"n1\"\ntrust_domain = \"fleet.example\"\naddress = \"relay.example:8443\"\n";
        let parsed = Config::parse(&format!("{base}{section}"));
        let wrongs = |wrongs: Vec<super::super::Wrong>| wrongs.iter().map(ToString::to_string).collect();
        parsed.map(|config| config.notify).map_err(wrongs)
    }

    #[test]
    fn those_who_are_told_have_names_of_their_own() {
        let one = |name: &str, more: &str| {
            format!("[[notify]]\nname = \"{name}\"\nurl = \"https://hooks.example/\"\nkey = \"k\"\n{more}")
        };
        let all =
            told(&(one("siem", "") + &one("pager", "topics = [\"alarms\", \"cuts\"]\ntries = 3\n"))).unwrap();
        assert_eq!((all[0].topics.len(), all[0].tries), (4, TRIES));
        assert_eq!(
            (&all[1].topics[..], all[1].tries),
            (&[Topic::Alarms, Topic::Cuts][..], 3)
        );
        for (bad, why) in [
            (one("siem", "") + &one("siem", ""), "two `[[notify]]`"),
            (one("a b", ""), "`name` is 1 to 48"),
            (one("a", "topics = [\"all\"]\n"), "`topics` is a list"),
            (one("a", "tries = 0\n"), "`tries` is a number"),
            (one("a", "follow = true\n"), "`follow` is not known"),
            ("notify = 1\n".to_owned(), "each `[[notify]]`"),
            ("[[notify]]\n".to_owned(), "`name` is missing"),
        ] {
            let wrongs = told(&bad).unwrap_err();
            assert!(
                wrongs.iter().any(|wrong| wrong.contains(why)),
                "{bad}: {wrongs:?}"
            );
        }
    }
}
