//! The data directory and the one configuration file in it.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};
use tunnel_net::addr::ServerAddr;
use tunnel_net::files::{FileError, read_private_text};
use tunnel_proto::{NodeName, TrustDomain};

pub use self::hooks::{Authoriser, Notify};

mod hooks;

/// A server's data directory: one place for all that it must not lose. Only its owner may look into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataDir(PathBuf);

macro_rules! files {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        impl DataDir {
            $($(#[$doc])* pub fn $name(&self) -> PathBuf { self.0.join($file) })*
        }
    };
}

files! {
    /// Returns the configuration file. It is written last, so that a directory without it is no server's.
    config = "server.toml";
    /// Returns the root certificate.
    root = "root.pem";
    /// Returns the root's key. The server never reads it: it may be kept elsewhere, offline.
    root_key = "root-key.pem";
    /// Returns the issuing certificate.
    issuing = "issuing.pem";
    /// Returns the issuing key.
    issuing_key = "issuing-key.pem";
    /// Returns the server's own chain.
    server = "server.pem";
    /// Returns the key of the server's own certificate.
    server_key = "server-key.pem";
    /// Returns the seed of the key that signs grants and tokens.
    grant_key = "grant-key";
    /// Returns the seed of the key that signs checkpoints of the audit chain.
    audit_key = "audit-key";
    /// Returns the secret that leg keys are derived from.
    relay_secret = "relay-secret";
    /// Returns the store.
    store = "store.db";
}

impl DataDir {
    /// Takes a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A server's settings, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The name of this server.
    pub node: NodeName,
    /// The fleet. It stands in every certificate and is never changed.
    pub trust_domain: TrustDomain,
    /// Where devices and operators reach the server; it goes into enrolment codes.
    pub address: ServerAddr,
    /// Where the server listens, over TCP and UDP; all addresses, with the port of `address`, if absent.
    pub listen: SocketAddr,
    /// Where figures for monitoring are to be read, by anybody on this machine; nowhere if absent.
    pub metrics: Option<SocketAddr>,
    /// How many agents come back in a second after a restart: a core proves a few hundred of them.
    pub returns_per_sec: u32,
    /// For how many days audit records are kept; for ever if absent.
    pub audit_keep_days: Option<u32>,
    /// Whether live tunnels end when records could not be written for a minute. Nothing new opens then in any case.
    pub audit_strict: bool,
    /// Who is asked before a tunnel opens; nobody if absent.
    pub authoriser: Option<Authoriser>,
    /// Who is told what was recorded.
    pub notify: Vec<Notify>,
}

/// How many agents come back in a second, unless the configuration says otherwise.
pub const RETURNS_PER_SEC: u32 = 200;

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The text is not right.
    #[error("{}", joined(.0))]
    Text(Vec<Wrong>),
}

/// One thing that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The line, counted from 1; none for what is missing.
    pub line: Option<usize>,
    /// What it is, and what is accepted.
    pub message: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

fn joined(wrongs: &[Wrong]) -> String {
    wrongs
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl Config {
    /// Reads the configuration of a data directory.
    ///
    /// # Errors
    /// Returns everything that is wrong, each with its line.
    pub fn load(data: &DataDir) -> Result<Self, ConfigError> {
        let text = read_private_text(&data.config())?;
        Self::parse(&text).map_err(ConfigError::Text)
    }

    /// Reads a configuration text.
    ///
    /// # Errors
    /// Returns everything that is wrong, each with its line.
    pub fn parse(text: &str) -> Result<Self, Vec<Wrong>> {
        let mut reader = Reader::new(text)?;
        let node = reader.required("node");
        let trust_domain = reader.required("trust_domain");
        let address: Option<ServerAddr> = reader.required("address");
        let listen: Option<SocketAddr> = reader.optional("listen");
        let metrics: Option<SocketAddr> = reader.optional("metrics");
        if metrics.is_some_and(|address| !address.ip().is_loopback()) {
            reader.wrong("`metrics` has to be an address of this machine alone, as \"127.0.0.1:9464\"");
        }
        let returns_per_sec = reader.number("returns_per_sec", 1..=100_000);
        let audit_keep_days = reader.number("audit_keep_days", 1..=36_500);
        let audit_strict = reader.flag("audit_strict");
        let authoriser = reader.authoriser();
        let notify = reader.notify();
        let wrongs = reader.finish(
            "`node`, `trust_domain`, `address`, `listen`, `metrics`, `returns_per_sec`, `audit_keep_days`, `audit_strict`, \
             `[authoriser]` and `[[notify]]` are known",
        );
        match (node, trust_domain, address) {
            (Some(node), Some(trust_domain), Some(address)) if wrongs.is_empty() => {
                let listen = listen.unwrap_or_else(|| all_addresses(address.tcp_port));
                Ok(Self {
                    node,
                    trust_domain,
                    address,
                    listen,
                    metrics,
                    returns_per_sec: returns_per_sec.unwrap_or(RETURNS_PER_SEC),
                    audit_keep_days,
                    audit_strict: audit_strict.unwrap_or(false),
                    authoriser,
                    notify,
                })
            }
            _ => Err(wrongs),
        }
    }

    /// Writes the configuration as a file with comments, as a new server has it.
    pub fn to_toml(&self) -> String {
        let metrics = match self.metrics {
            Some(address) => format!("metrics = \"{address}\""),
            None => "# metrics = \"127.0.0.1:9464\"".to_owned(),
        };
        let keep = match self.audit_keep_days {
            Some(days) => format!("audit_keep_days = {days}"),
            None => "# audit_keep_days = 400".to_owned(),
        };
        format!(
            "# Settings of this server. Changes take effect at its next start.\n\
             \n\
             # Its name, in its certificate and in every grant.\n\
             node = \"{}\"\n\
             \n\
             # The fleet. It stands in every certificate: never change it.\n\
             trust_domain = \"{}\"\n\
             \n\
             # Where devices and operators reach it, over TCP and UDP.\n\
             address = \"{}\"\n\
             \n\
             # Where it listens, over TCP and UDP. `[::]` takes IPv4 too.\n\
             listen = \"{}\"\n\
             \n\
             # Where figures for monitoring are to be read, by anybody on this machine.\n\
             {}\n\
             \n\
             # How many agents come back in a second after a restart.\n\
             returns_per_sec = {}\n\
             \n\
             # For how many days audit records are kept; for ever if this is absent.\n\
             {}\n\
             \n\
             # Whether live tunnels end when records could not be written for a minute. Nothing new opens then anyway.\n\
             audit_strict = {}\n",
            self.node,
            self.trust_domain,
            self.address,
            self.listen,
            metrics,
            self.returns_per_sec,
            keep,
            self.audit_strict
        )
    }
}

/// Returns the address that stands for all of this machine's, of both families.
pub fn all_addresses(port: u16) -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))
}

/// Takes the keys out of a text one by one, and collects what is wrong.
struct Reader<'t> {
    text: &'t str,
    /// Where the section begins; none for the whole text.
    line: Option<usize>,
    table: DeTable<'t>,
    wrongs: Vec<Wrong>,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Result<Self, Vec<Wrong>> {
        match DeTable::parse(text) {
            Ok(table) => Ok(Self {
                text,
                line: None,
                table: table.into_inner(),
                wrongs: Vec::new(),
            }),
            Err(error) => {
                let line = error.span().map(|span| line_of(text, span.start));
                Err(vec![Wrong {
                    line,
                    message: error.message().to_owned(),
                }])
            }
        }
    }

    fn required<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        if self.table.get(key).is_none() {
            self.wrongs.push(Wrong {
                line: self.line,
                message: format!("`{key}` is missing"),
            });
        }
        self.optional(key)
    }

    fn optional<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let value = self.table.remove(key)?;
        let line = Some(line_of(self.text, value.span().start));
        let read = match value.get_ref() {
            DeValue::String(text) => text.parse().map_err(|error: T::Err| format!("`{key}`: {error}")),
            _ => Err(format!("`{key}` is text, in quotes")),
        };
        read.map_err(|message| self.wrongs.push(Wrong { line, message }))
            .ok()
    }

    fn number(&mut self, key: &str, accepted: RangeInclusive<u32>) -> Option<u32> {
        let value = self.table.remove(key)?;
        let line = Some(line_of(self.text, value.span().start));
        let number = match value.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| accepted.contains(number));
        if number.is_none() {
            let (least, most) = (accepted.start(), accepted.end());
            let message = format!("`{key}` is a number from {least} to {most}");
            self.wrongs.push(Wrong { line, message });
        }
        number
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.table.remove(key)?;
        let line = Some(line_of(self.text, value.span().start));
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            let message = format!("`{key}` is `true` or `false`");
            self.wrongs.push(Wrong { line, message });
        }
        flag
    }

    fn wrong(&mut self, message: &str) {
        let message = message.to_owned();
        self.wrongs.push(Wrong { line: None, message });
    }

    fn wrong_at(&mut self, line: usize, message: String) {
        let line = Some(line);
        self.wrongs.push(Wrong { line, message });
    }

    /// What is left is not known. It is refused: a misspelt key would else be passed over in silence.
    fn finish(mut self, known: &str) -> Vec<Wrong> {
        for (key, _) in &self.table {
            let line = Some(line_of(self.text, key.span().start));
            self.wrongs.push(Wrong {
                line,
                message: format!("`{}` is not known; {known}", key.get_ref()),
            });
        }
        self.wrongs.sort_by_key(|wrong| wrong.line);
        self.wrongs
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            node: "n1".parse().unwrap(),
            trust_domain: "fleet.example".parse().unwrap(),
            address: "relay.example:8443".parse().unwrap(),
            listen: "[::]:8443".parse().unwrap(),
            metrics: None,
            returns_per_sec: RETURNS_PER_SEC,
            audit_keep_days: None,
            audit_strict: false,
            authoriser: None,
            notify: Vec::new(),
        }
    }

    #[test]
    fn what_becomes_of_records_is_read() {
        let with = |more: &str| {
            let text = config().to_toml().replace("audit_strict = false\n", "");
            Config::parse(&format!("{text}{more}\n"))
        };
        let strict = with("audit_strict = true\naudit_keep_days = 400").unwrap();
        assert_eq!((strict.audit_keep_days, strict.audit_strict), (Some(400), true));
        assert_eq!(Config::parse(&strict.to_toml()), Ok(strict));
        for bad in [
            "audit_strict = 1",
            "audit_strict = \"true\"",
            "audit_keep_days = 0",
            "audit_keep_days = \"9\"",
        ] {
            assert_eq!(with(bad).unwrap_err().len(), 1, "{bad}");
        }
    }

    /// THREATS SRV-19.
    #[test]
    fn figures_are_for_this_machine_alone() {
        let with = |more: &str| Config::parse(&format!("{}{more}\n", config().to_toml()));
        let local = with("metrics = \"127.0.0.1:9464\"").unwrap();
        assert_eq!(local.metrics, Some("127.0.0.1:9464".parse().unwrap()));
        assert_eq!(Config::parse(&local.to_toml()), Ok(local));
        for bad in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"] {
            let wrongs = with(&format!("metrics = \"{bad}\"")).unwrap_err();
            assert!(wrongs[0].message.contains("this machine alone"), "{wrongs:?}");
        }
    }

    #[test]
    fn a_rate_is_a_number_that_makes_sense() {
        let text = config().to_toml();
        let with = |rate: &str| {
            Config::parse(&text.replace("returns_per_sec = 200", &format!("returns_per_sec = {rate}")))
        };
        assert_eq!(with("50").unwrap().returns_per_sec, 50);
        for bad in ["0", "-1", "\"50\"", "4000000000"] {
            let wrongs = with(bad).unwrap_err();
            assert!(
                wrongs[0].message.starts_with("`returns_per_sec` is a number"),
                "{wrongs:?}"
            );
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(Config::parse(&config().to_toml()), Ok(config()));
    }

    #[test]
    fn without_listen_all_addresses_are_meant() {
        let text = "node = \"n1\"\ntrust_domain = \"fleet.example\"\naddress = \"relay.example:8443\"\n";
        assert_eq!(Config::parse(text), Ok(config()));
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_with_its_line() {
        let text = "node = \"N 1\"\naddress = 8443\nlissen = \"[::]:1\"\n";
        let told: Vec<String> = Config::parse(text)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0], "`trust_domain` is missing");
        assert!(told[1].starts_with("line 1: `node`: a node name is"), "{told:?}");
        assert_eq!(told[2], "line 2: `address` is text, in quotes");
        assert!(told[3].starts_with("line 3: `lissen` is not known"), "{told:?}");
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_with_its_line() {
        let wrongs = Config::parse("node = \"n1\"\n= 7\n").unwrap_err();
        assert_eq!(wrongs[0].line, Some(2));
    }
}
