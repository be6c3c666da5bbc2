//! The agent's settings: one TOML file, checked as a whole, with every error of it at once.

mod file;
mod print;
mod reader;

pub use file::read as read_file;
pub use print::print;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tunnel_net::{ProxyChoice, ServerAddr, files};
use tunnel_proto::names::{FactName, FactValue};

use crate::defaults;
use crate::failure::Failure;
use crate::policy::LocalPolicy;
use crate::windows::Windows;

/// Checked settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where keys, certificates and the owner's switch are kept.
    pub state_dir: PathBuf,
    /// Whether the owner lets anybody in, as far as the file says; the switch beside it can only narrow.
    pub access: bool,
    /// What may be used, and by whom.
    pub policy: LocalPolicy,
    /// What the device says of itself, for policies that ask for it.
    pub facts: BTreeMap<FactName, FactValue>,
    /// How long the server may be silent before all tunnels end; for ever if `None`.
    pub max_server_silence: Option<Duration>,
    /// Public key files of the device's SSH server; the usual ones if `None`.
    pub host_key_files: Option<Vec<PathBuf>>,
    /// How the proxy on the way to the server is found.
    pub proxy: ProxyChoice,
    /// A private file that names the proxy instead, for one that wants a login.
    pub proxy_file: Option<PathBuf>,
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

    /// Puts the proxy on the way to the server, if there is one.
    ///
    /// # Errors
    /// Tells that what names the proxy cannot be used.
    pub fn on_the_way(&self, server: ServerAddr) -> Result<ServerAddr, Failure> {
        let from_file;
        let proxy = match &self.proxy_file {
            Some(file) => {
                from_file = read_proxy(file)?;
                &from_file
            }
            None => &self.proxy,
        };
        proxy.on_the_way(server).map_err(|error| {
            let what = format!("could not use the variable `{}`", error.variable);
            Failure::local(PROXY, what, error.source, "set it to a proxy, or unset it")
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
                windows: Windows::default(),
                consent_timeout: defaults::CONSENT_TIMEOUT,
                lock: None,
            },
            facts: BTreeMap::new(),
            max_server_silence: None,
            host_key_files: None,
            proxy: ProxyChoice::default(),
            proxy_file: None,
            origins: BTreeMap::new(),
        }
    }
}

/// The code of a proxy that cannot be used.
const PROXY: &str = "E_PROXY";

fn read_proxy(file: &Path) -> Result<ProxyChoice, Failure> {
    let what = || format!("could not use the proxy in `{}`", file.display());
    let text = files::read_private_text(file).map_err(|error| {
        let (text, next) = (error.to_string(), "correct the file, or remove `proxy_file`");
        match text.split_once("; ") {
            Some((why, next)) => Failure::local(PROXY, what(), why, next),
            None => Failure::local(PROXY, what(), text, next),
        }
    })?;
    text.parse::<ProxyChoice>().map_err(|error| {
        Failure::local(
            PROXY,
            what(),
            error,
            "write one line, as `http://user:password@host:port`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{Allowed, Commands};
    use crate::policy::Operators;
    use crate::target::Target;

    #[test]
    fn a_proxy_is_read_and_its_login_stands_in_a_private_file_only() {
        let through = |config: &Config| {
            let server = config.on_the_way("relay.example:443".parse().unwrap());
            server.map(|server| server.proxy.map(|proxy| proxy.to_string()))
        };
        let config = Config::parse("proxy = \"socks5://proxy.example\"").unwrap();
        assert_eq!(
            through(&config).unwrap().as_deref(),
            Some("socks5://proxy.example:1080")
        );
        let config = Config::parse("proxy = \"none\"").unwrap();
        assert_eq!(through(&config).unwrap(), None);
        for (text, problem) in [
            ("proxy = \"http://ana:hunter2@proxy.example\"", "`proxy_file`"),
            ("proxy = \"https://proxy.example\"", "scheme"),
            ("proxy = 1", "text"),
            ("proxy_file = \"relative\"", "absolute path"),
            ("proxy = \"none\"\nproxy_file = \"/a\"", "not both"),
        ] {
            let errors = Config::parse(text).unwrap_err().to_string();
            assert!(
                errors.contains(problem) && !errors.contains("hunter2"),
                "{text}: {errors}"
            );
        }

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy");
        files::write_private(&file, b"http://ana:hunter2@proxy.example:3128\n").unwrap();
        let config = Config::parse(&format!("proxy_file = \"{}\"", file.display())).unwrap();
        assert_eq!(
            through(&config).unwrap().as_deref(),
            Some("http://***@proxy.example:3128")
        );
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let failure = through(&config).unwrap_err();
        assert!(failure.next.contains("chmod 600"), "{failure}");
        files::write_private(&file, b"http://ana:hunter2@").unwrap();
        let failure = through(&config).unwrap_err();
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }

    const GOOD: &str = r#"
state_dir = "/tmp/agent"
max_sessions = 100
allow_operators = ["ana", "bob@example.com"]

[access]
enabled = false

[facts]
site = "north"
floor = 7
"disk.encrypted" = true

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
        assert_eq!(config.origins["services.web.max_sessions"], Origin::Line(20));
        let facts: Vec<_> = config
            .facts
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(facts, ["disk.encrypted=true", "floor=7", "site=north"]);
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
    fn a_locked_service_has_a_lock() {
        let lock = crate::testing::locked_policy().lock.unwrap();
        let text = |lock: &str, locked: &str| {
            format!("{lock}\n[services.ssh]\ntarget = \"tcp:127.0.0.1:22\"\n{locked}")
        };
        let with = format!("lock = \"{}\"", lock.to_text());
        let config = Config::parse(&text(&with, "locked = true")).unwrap();
        assert_eq!(config.policy.lock.as_ref(), Some(&lock));
        assert!(config.policy.services[&"ssh".parse().unwrap()].locked);
        let printed = print(&config, Path::new("agent.toml"));
        assert_eq!(Config::parse(&printed).unwrap().policy, config.policy);
        let open = Config::parse(&text(&with, "locked = false")).unwrap();
        assert!(!open.policy.services[&"ssh".parse().unwrap()].locked);
        let cut_off = &with[..with.len() - 2];
        for (lock, locked, line, problem) in [
            ("", "locked = true", 4, "no `lock`"),
            (&*format!("{cut_off}\""), "", 1, "damaged"),
            ("lock = \"tnlkey1_x\"", "", 1, "`tnllock1_`"),
            ("lock = true", "", 1, "`tunnel lock init`"),
            (&with, "locked = \"yes\"", 4, "`true` or `false`"),
        ] {
            let errors = Config::parse(&text(lock, locked)).unwrap_err().0;
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert_eq!(errors[0].line, line, "{errors:?}");
            assert!(errors[0].problem.contains(problem), "{errors:?}");
        }
    }

    #[test]
    fn how_long_the_server_may_be_silent_is_read() {
        let config = Config::parse("max_server_silence_secs = 5").unwrap();
        assert_eq!(config.max_server_silence, Some(Duration::from_secs(5)));
        assert_eq!(config.origins["max_server_silence_secs"], Origin::Line(1));
        for wrong in ["0", "4", "65536", "\"30\"", "-1", "false"] {
            let errors = Config::parse(&format!("max_server_silence_secs = {wrong}")).unwrap_err();
            assert!(
                errors.to_string().contains("from 5 to 65535"),
                "{wrong}: {errors}"
            );
        }
    }

    #[test]
    fn what_can_be_no_fact_is_refused() {
        let text = "[facts]\nSite = \"x\"\nsite = 1.5\nfloor = [7]\nroof = \"\\n\"\nwall = \"brick\"";
        let errors = Config::parse(text).unwrap_err().0;
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [2, 3, 4, 5], "{errors:#?}");
        let many: String = (0..33).map(|i| format!("f{i} = {i}\n")).collect();
        assert!(Config::parse(&format!("[facts]\n{many}")).is_err());
    }

    #[test]
    fn windows_and_consent_are_read() {
        let text = "consent_timeout_secs = 30\n[maintenance]\nwindows = [\"mon-fri 06:00-18:00\"]\n\
                    [services.plc]\ntarget = \"tcp:127.0.0.1:502\"\nconsent = \"ask\"\n\
                    [services.ssh]\ntarget = \"tcp:127.0.0.1:22\"\nconsent = \"none\"";
        let policy = Config::parse(text).unwrap().policy;
        assert_eq!(
            (policy.windows.0.len(), policy.consent_timeout.as_secs()),
            (1, 30)
        );
        let asks = |name: &str| policy.services[&name.parse().unwrap()].asks;
        assert!(asks("plc") && !asks("ssh"));
        for (wrong, problem) in [
            ("consent_timeout_secs = 601", "600"),
            ("[maintenance]\nwindows = [\"06:00-18:00\"]", "`mon-fri"),
            ("[maintenance]\nwindows = \"mon 06:00-18:00\"", "a list"),
            ("[maintenance]\nwindow = []", "`maintenance.windows`"),
            (
                "[services.a]\ntarget = \"tcp:127.0.0.1:1\"\nconsent = true",
                "`ask`",
            ),
        ] {
            let errors = Config::parse(wrong).unwrap_err().to_string();
            assert!(errors.contains(problem), "{wrong}: {errors}");
        }
        // A list of no window lets nobody in by mistake only: it is refused.
        assert!(Config::parse("[maintenance]\nwindows = []").is_err());
    }

    #[test]
    fn a_service_that_runs_commands_says_which() {
        let service = |more: &str| {
            let text = format!("[services.diag]\ntarget = \"exec:\"\n{more}");
            let config = Config::parse(&text);
            config.map(|config| config.policy.services[&"diag".parse().unwrap()].clone())
        };
        let commands = |more: &str| match service(more).unwrap().target {
            Target::Commands(commands) => commands,
            other => panic!("{other}"),
        };
        assert_eq!(commands(""), Commands::default(), "nothing may be run");
        assert_eq!(service("").unwrap().max_sessions, defaults::MAX_COMMAND_SESSIONS);
        assert_eq!(service("max_sessions = 20").unwrap().max_sessions, 20);
        assert_eq!(commands("allow = [\"*\"]").allowed, Allowed::Any);
        let bounds =
            commands("allow = [\"/bin/a -x\", \"/bin/b *\"]\ntimeout_secs = 5\nmax_output_bytes = 100000");
        assert_eq!((bounds.timeout.as_secs(), bounds.max_output), (5, 100_000));
        assert!(matches!(bounds.allowed, Allowed::Only(listed) if listed.len() == 2));
        for (wrong, problem) in [
            ("allow = \"/bin/a\"", "a list"),
            ("allow = [\"a\"]", "absolute path"),
            ("allow = [\"/bin/../bin/a\"]", "absolute path"),
            ("allow = [\"*\", \"/bin/a\"]", "as `[\"/usr/bin/df -h\"]`"),
            ("timeout_secs = 0", "from 1"),
            ("max_output_bytes = 999999999", "to 16777216"),
            ("shell = true", "`allow`"),
        ] {
            let errors = service(wrong).unwrap_err().to_string();
            assert!(errors.contains(problem), "{wrong}: {errors}");
        }
        let elsewhere = "[services.a]\nallow = [\"/bin/a\"]\ntarget = \"tcp:127.0.0.1:1\"";
        let errors = Config::parse(elsewhere).unwrap_err().0;
        assert!(errors.len() == 1 && errors[0].line == 2, "{errors:?}");
        assert!(errors[0].problem.contains("`exec:` only"), "{errors:?}");
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
