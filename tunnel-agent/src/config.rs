//! The agent's settings: one TOML file, checked as a whole, with every error of it at once.

mod file;
mod print;
mod reader;

pub use file::read as read_file;
pub use print::print;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::defaults;
use crate::failure::Failure;
use crate::policy::LocalPolicy;

/// Checked settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where keys, certificates and the owner's switch are kept.
    pub state_dir: PathBuf,
    /// Whether the owner lets anybody in, as far as the file says; the switch beside it can only narrow.
    pub access: bool,
    /// What may be used, and by whom.
    pub policy: LocalPolicy,
    /// Public key files of the device's SSH server; the usual ones if `None`.
    pub host_key_files: Option<Vec<PathBuf>>,
    /// Where each value that is no default comes from, by its key.
    pub origins: BTreeMap<String, Origin>,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A line of the configuration file.
    Line(usize),
    /// A flag of the command line.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(&'static str),
}

/// One error of a configuration file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ConfigError {
    /// Counts from 1.
    pub line: usize,
    /// What is wrong there, and what would be right.
    pub problem: String,
}

/// All errors of a configuration file, in the order of its lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n       " })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads settings from the text of a file.
    ///
    /// # Errors
    /// Returns every error that the text has.
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        reader::read(text)
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Says which file, why, and what to do.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text = read_file(path)?;
        Self::parse(&text).map_err(|errors| {
            let what = format!("could not use the configuration `{}`", path.display());
            Failure::local(
                "E_CONFIG",
                what,
                errors,
                "correct these lines; `tunnel-agent run --check-config` reads them again",
            )
        })
    }

    /// Returns the settings of an empty file: no service at all.
    pub fn empty() -> Self {
        Self {
            state_dir: defaults::STATE_DIR.into(),
            access: true,
            policy: LocalPolicy {
                services: BTreeMap::new(),
                operators: crate::policy::Operators::Any,
                max_sessions: defaults::MAX_SESSIONS,
                max_tunnels: defaults::MAX_TUNNELS,
            },
            host_key_files: None,
            origins: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Operators;

    const GOOD: &str = r#"
state_dir = "/tmp/agent"
max_sessions = 100
allow_operators = ["ana", "bob@example.com"]

[access]
enabled = false

[services.ssh]
target = "tcp:127.0.0.1:22"

[services.web]
target = "unix:/run/web.sock"
allow_operators = ["ana"]
max_sessions = 5

[ssh]
host_key_files = ["/etc/ssh/ssh_host_ed25519_key.pub"]
"#;

    #[test]
    fn a_whole_file_is_read() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.state_dir, Path::new("/tmp/agent"));
        assert!(!config.access);
        assert_eq!(config.policy.max_sessions, 100);
        assert_eq!(config.policy.max_tunnels, defaults::MAX_TUNNELS);
        assert!(matches!(&config.policy.operators, Operators::Only(names) if names.len() == 2));
        assert_eq!(config.policy.services.len(), 2);
        let web = &config.policy.services[&"web".parse().unwrap()];
        assert_eq!(
            (web.max_sessions, web.target.to_string().as_str()),
            (5, "unix:/run/web.sock")
        );
        assert_eq!(config.host_key_files.unwrap().len(), 1);
        assert_eq!(config.origins["services.web.max_sessions"], Origin::Line(15));
        assert!(!config.origins.contains_key("services.ssh.max_sessions"));
    }

    #[test]
    fn an_empty_file_offers_nothing() {
        assert_eq!(Config::parse("").unwrap(), Config::empty());
    }

    #[test]
    fn all_errors_come_at_once_with_their_lines() {
        let text = r#"state_dir = "relative"
max_sesions = 3
max_sessions = 0
allow_operators = "ana"

[access]
enabled = "yes"

[services.SSH]
target = "tcp:127.0.0.1:22"

[services.web]
target = "http://127.0.0.1"
allow_operators = ["Ana Maria"]
shell = true

[services.none]

[ssh]
host_key_files = [7]
"#;
        let errors = Config::parse(text).unwrap_err().0;
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 7, 9, 13, 14, 15, 17, 20], "{errors:#?}");
        assert!(errors[1].problem.contains("`max_sesions`"), "{}", errors[1]);
        assert!(
            errors[1].problem.contains("`max_sessions`"),
            "the accepted keys are named: {}",
            errors[1]
        );
        assert!(
            errors[8].problem.contains("`services.web.shell`"),
            "{}",
            errors[8]
        );
    }

    #[test]
    fn errors_of_the_syntax_have_lines_too() {
        let errors = Config::parse("[access]\nenabled = \n[services.ssh\n")
            .unwrap_err()
            .0;
        assert_eq!(errors[0].line, 2, "{errors:?}");
        assert!(errors.iter().any(|error| error.line == 3), "{errors:?}");
        let errors = Config::parse("max_tunnels = 1\nmax_tunnels = 2\n").unwrap_err().0;
        assert_eq!(errors[0].line, 2, "{errors:?}");
    }
}
