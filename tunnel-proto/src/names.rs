//! Names of devices, operators, services and servers, and the identity that a certificate proves.
//!
//! A name is parsed once, where it enters a program, and cannot be wrong afterwards. Names never hold anything that a
//! shell, a terminal, a file system or `ssh` could take for something else.

use std::fmt;
use std::str::FromStr;

/// Tells why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {kind} is {rule}")]
pub struct NameError {
    kind: &'static str,
    rule: &'static str,
}

/// Says whether `text` is a label of RFC 1123 in lower case, of at most `max` characters.
fn is_label(text: &str, max: usize) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let bytes = text.as_bytes();
    (1..=max).contains(&bytes.len())
        && bytes.iter().all(|&c| inner(c))
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// Says whether `text` is labels joined by dots.
fn is_domain(text: &str, max: usize) -> bool {
    text.len() <= max && text.split('.').all(|label| is_label(label, 63))
}

/// Says whether `text` can be a user's name at an identity provider: an address, or a word.
fn is_user(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|&c| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.' | b'@' | b'+')
        })
        && !text.contains("..")
}

/// Says whether `text` can name a fact.
fn is_fact(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    (1..=48).contains(&bytes.len()) && bytes[0].is_ascii_lowercase() && bytes.iter().all(|&c| inner(c))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(NameError { kind: $kind, rule: $rule }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                d.str()?.parse().map_err(|_| minicbor::decode::Error::message(concat!("not a ", $kind)))
            }
        }

        #[cfg(feature = "api")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        #[cfg(feature = "api")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// Names a device in its fleet.
    DeviceId, "device id", "1 to 63 characters of `a` to `z`, `0` to `9` and `-`, with no `-` at either end",
    |text| is_label(text, 63)
}
name! {
    /// Names an operator: a person or a script.
    OperatorName, "operator name",
    "1 to 64 characters of `a` to `z`, `0` to `9` and `- _ . @ +`, with a letter or digit first",
    is_user
}
name! {
    /// Names a service that an agent offers.
    ServiceName, "service name", "1 to 32 characters of `a` to `z`, `0` to `9` and `-`, with no `-` at either end",
    |text| is_label(text, 32)
}
name! {
    /// Names a server, which is a relay and a node of the control plane.
    NodeName, "node name", "1 to 63 characters of `a` to `z`, `0` to `9` and `-`, with no `-` at either end",
    |text| is_label(text, 63)
}
name! {
    /// Names a group of devices or of operators.
    GroupName, "group name", "1 to 63 characters of `a` to `z`, `0` to `9` and `-`, with no `-` at either end",
    |text| is_label(text, 63)
}
name! {
    /// Names a fleet: the part of every identity that all its members share (SPIFFE-ID section 2.1).
    TrustDomain, "trust domain", "labels of `a` to `z`, `0` to `9` and `-` joined by `.`, 200 characters at most",
    |text| is_domain(text, 200)
}

name! {
    /// Names a fact about a device, as `site` or `disk.encrypted`.
    FactName, "fact name", "1 to 48 characters of `a` to `z`, `0` to `9` and `- _ .`, with a letter first",
    is_fact
}
name! {
    /// The value of a fact: one line of plain text, so that two values that look alike are alike.
    FactValue, "fact value", "1 to 128 printable ASCII characters, with no space at either end",
    |text| {
        (1..=128).contains(&text.len()) && text.bytes().all(|c| (b' '..=b'~').contains(&c)) && text.trim() == text
    }
}

/// Who a certificate speaks for, as its only URI name says it.
///
/// # Security
/// Every decision is about an `Identity`; it is taken from the leaf that the handshake proved, and from nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// The member of it.
    pub subject: Subject,
}

/// A member of a fleet, by its kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Subject {
    /// An agent on a device.
    Device(DeviceId),
    /// A person or a script.
    Operator(OperatorName),
    /// A node of the control plane.
    Server(NodeName),
}

impl Identity {
    /// Makes the identity of a device.
    pub fn device(trust_domain: &TrustDomain, id: &DeviceId) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            subject: Subject::Device(id.clone()),
        }
    }

    /// Makes the identity of an operator.
    pub fn operator(trust_domain: &TrustDomain, name: &OperatorName) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            subject: Subject::Operator(name.clone()),
        }
    }

    /// Makes the identity of a server.
    pub fn server(trust_domain: &TrustDomain, name: &NodeName) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            subject: Subject::Server(name.clone()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.trust_domain)?;
        match &self.subject {
            Subject::Device(id) => write!(f, "device/{id}"),
            Subject::Operator(name) => write!(f, "operator/{name}"),
            Subject::Server(name) => write!(f, "server/{name}"),
        }
    }
}

/// Reads a SPIFFE id. There is exactly one spelling of each identity; everything else is refused.
impl FromStr for Identity {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const WRONG: NameError = NameError {
            kind: "identity",
            rule: "`spiffe://<trust domain>/<device, operator or server>/<name>`",
        };
        let rest = text.strip_prefix("spiffe://").ok_or(WRONG)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(WRONG)?;
        let (kind, name) = path.split_once('/').ok_or(WRONG)?;
        let subject = match kind {
            "device" => Subject::Device(name.parse()?),
            "operator" => Subject::Operator(name.parse()?),
            "server" => Subject::Server(name.parse()?),
            _ => return Err(WRONG),
        };
        Ok(Self {
            trust_domain: trust_domain.parse()?,
            subject,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_names_pass() {
        for text in ["a", "pump-17", "0", &"x".repeat(63)] {
            assert!(text.parse::<DeviceId>().is_ok(), "{text}");
        }
        for text in ["ana", "ana@example.org", "ci-bot_2", "a.b+c"] {
            assert!(text.parse::<OperatorName>().is_ok(), "{text}");
        }
        for text in ["site", "disk.encrypted", "patch_level", "a-1"] {
            assert!(text.parse::<FactName>().is_ok(), "{text}");
        }
        for text in ["north", "Pump House 4", "2026-01-05", "*"] {
            assert!(text.parse::<FactValue>().is_ok(), "{text}");
        }
    }

    /// THREATS CLI-02, CRT-06, POL-09.
    #[test]
    fn names_that_could_mean_something_else_are_refused() {
        let long = "x".repeat(4096);
        for text in [
            "",
            "-oProxyCommand=id",
            "a;id",
            "$(id)",
            "a b",
            "a\nb",
            "%h",
            "..",
            ".",
            "a/b",
            "a\\b",
            "Pump",
            "pump.",
            "-",
            "a-",
            "*",
            "?",
            "a\0",
            "pümp",
            "\u{202e}a",
            "a@b",
            &long,
        ] {
            assert!(text.parse::<DeviceId>().is_err(), "{text:?}");
            assert!(text.parse::<ServiceName>().is_err(), "{text:?}");
        }
        for text in [
            "", "-a", ".a", "1", "a b", "A", "a/b", "a\0", "a*", "\u{430}", &long,
        ] {
            assert!(text.parse::<FactName>().is_err(), "{text:?}");
        }
        for text in ["", " a", "a ", "a\nb", "a\0", "a\u{202e}", "n\u{f6}rd", &long] {
            assert!(text.parse::<FactValue>().is_err(), "{text:?}");
        }
        for text in [
            "", "-a", "@a", "a b", "a..b", "A", "a/b", "a;b", "a$b", "a%b", &long,
        ] {
            assert!(text.parse::<OperatorName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_identity_has_one_spelling() {
        for text in [
            "spiffe://fleet.example/device/pump-17",
            "spiffe://f/operator/ana@x",
            "spiffe://f/server/n1",
        ] {
            assert_eq!(
                text.parse::<Identity>().map(|id| id.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "spiffe://f/device/",
            "spiffe://f/device/a/b",
            "SPIFFE://f/device/a",
            "spiffe:///device/a",
            "spiffe://f/admin/a",
            "spiffe://f/device/A",
            "https://f/device/a",
            "spiffe://f/device/a?x",
            "spiffe://f.",
            "spiffe://f./device/a",
            "spiffe://*/device/a",
            "spiffe://f:1/device/a",
            "spiffe://u@f/device/a",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in ".{0,80}") {
            if let Ok(id) = text.parse::<Identity>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
