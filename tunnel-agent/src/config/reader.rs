//! From TOML to settings. Goes on after an error, so that all of them are told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tunnel_net::ProxyChoice;
use tunnel_proto::ServiceName;
use tunnel_proto::defaults::MAX_FACTS;
use tunnel_proto::lock::Lock;
use tunnel_proto::names::{FactName, FactValue};

use super::{Config, ConfigError, ConfigErrors, Origin};
use crate::commands::{Allowed, Commands, Listed};
use crate::defaults;
use crate::policy::{Operators, Service};
use crate::target::Target;
use crate::windows::Windows;

type Value<'i> = Spanned<DeValue<'i>>;

/// Most services that a device offers: the bound of what one report can hold with ease.
const MAX_SERVICES: usize = 64;

/// What can be set of a service.
const SERVICE_KEYS: &[&str] = &[
    "allow",
    "allow_operators",
    "consent",
    "locked",
    "max_output_bytes",
    "max_sessions",
    "target",
    "timeout_secs",
];

/// Those of them that are for services that run commands.
const COMMAND_KEYS: &[&str] = &["allow", "max_output_bytes", "timeout_secs"];

/// Reads the text of a configuration file.
pub(super) fn read(text: &str) -> Result<Config, ConfigErrors> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        text,
        errors: Vec::new(),
        origins: BTreeMap::new(),
    };
    for error in syntax {
        let problem = error.message().to_owned();
        reader.error(error.span().unwrap_or(text.len()..text.len()), problem);
    }
    // What is left of a text with broken syntax would only give errors that are not there.
    if !reader.errors.is_empty() {
        return Err(reader.finish());
    }
    let mut config = Config::empty();
    reader.document(document.get_ref(), &mut config);
    if reader.errors.is_empty() {
        config.origins = reader.origins;
        Ok(config)
    } else {
        Err(reader.finish())
    }
}

struct Reader<'t> {
    text: &'t str,
    errors: Vec<ConfigError>,
    origins: BTreeMap<String, Origin>,
}

impl Reader<'_> {
    fn document(&mut self, document: &DeTable<'_>, config: &mut Config) {
        const KEYS: &[&str] = &[
            "access",
            "allow_operators",
            "consent_timeout_secs",
            "facts",
            "lock",
            "maintenance",
            "max_server_silence_secs",
            "max_sessions",
            "max_tunnels",
            "proxy",
            "proxy_file",
            "services",
            "ssh",
            "state_dir",
        ];
        for (key, value) in document {
            let name = key.get_ref().as_ref();
            match name {
                "access" => self.access(value, config),
                "allow_operators" => self.set(name, value, &mut config.policy.operators, Self::operators),
                "consent_timeout_secs" => {
                    self.set(name, value, &mut config.policy.consent_timeout, Self::patience);
                }
                "facts" => self.facts(value, config),
                "maintenance" => self.maintenance(value, config),
                "lock" => self.set(name, value, &mut config.policy.lock, Self::lock),
                "max_server_silence_secs" => {
                    self.set(name, value, &mut config.max_server_silence, Self::silence);
                }
                "max_sessions" => self.set(name, value, &mut config.policy.max_sessions, Self::count),
                "max_tunnels" => self.set(name, value, &mut config.policy.max_tunnels, Self::count),
                "proxy" => self.set(name, value, &mut config.proxy, Self::proxy),
                "proxy_file" => self.proxy_file(name, value, config),
                "services" => self.services(value, config),
                "ssh" => self.ssh(value, config),
                "state_dir" => self.set(name, value, &mut config.state_dir, Self::path),
                _ => self.unknown(key.span(), name, KEYS),
            }
        }
        self.locked_without_lock(document, config);
    }

    /// A service that nobody could open is a mistake.
    fn locked_without_lock(&mut self, document: &DeTable<'_>, config: &Config) {
        let locked = config.policy.services.iter().find(|(_, service)| service.locked);
        if let (Some((name, _)), false) = (locked, document.contains_key("lock")) {
            let line = match self.origins.get(&format!("services.{name}.locked")) {
                Some(Origin::Line(line)) => *line,
                _ => 1,
            };
            let problem =
                format!("`services.{name}` is locked, and there is no `lock` of which keys open it");
            self.errors.push(ConfigError { line, problem });
        }
    }

    fn access(&mut self, value: &Value<'_>, config: &mut Config) {
        for (key, value) in self.table("access", value).into_iter().flatten() {
            match key.get_ref().as_ref() {
                "enabled" => self.set("access.enabled", value, &mut config.access, Self::switch),
                other => self.unknown(key.span(), &format!("access.{other}"), &["access.enabled"]),
            }
        }
    }

    fn maintenance(&mut self, value: &Value<'_>, config: &mut Config) {
        const WINDOWS: &str = "maintenance.windows";
        for (key, value) in self.table("maintenance", value).into_iter().flatten() {
            match key.get_ref().as_ref() {
                "windows" => self.set(WINDOWS, value, &mut config.policy.windows, Self::windows),
                other => self.unknown(key.span(), &format!("maintenance.{other}"), &[WINDOWS]),
            }
        }
    }

    fn windows(&mut self, value: &Value<'_>) -> Result<Windows, String> {
        let windows = texts(value)?.map(|text| {
            let text = text?;
            text.parse()
                .map_err(|error| format!("has `{text}`; each {error}"))
        });
        let windows = windows.collect::<Result<Vec<_>, String>>()?;
        if windows.is_empty() {
            return Err("has no window; without the line operators are let in at any time".into());
        }
        Ok(Windows(windows))
    }

    fn patience(&mut self, value: &Value<'_>) -> Result<Duration, String> {
        let patience = self
            .count(value)
            .map(|secs| Duration::from_secs(secs.into()))
            .ok();
        let most = defaults::CONSENT_TIMEOUT_MAX;
        let patience = patience.filter(|patience| *patience <= most);
        patience.ok_or_else(|| format!("must be a number from 1 to {}", most.as_secs()))
    }

    fn consent(&mut self, value: &Value<'_>) -> Result<bool, String> {
        match value.get_ref().as_str() {
            Some("ask") => Ok(true),
            Some("none") => Ok(false),
            _ => Err("must be `ask` or `none`".into()),
        }
    }

    fn ssh(&mut self, value: &Value<'_>, config: &mut Config) {
        for (key, value) in self.table("ssh", value).into_iter().flatten() {
            match key.get_ref().as_ref() {
                "host_key_files" => {
                    self.set(
                        "ssh.host_key_files",
                        value,
                        &mut config.host_key_files,
                        Self::host_key_files,
                    );
                }
                other => self.unknown(key.span(), &format!("ssh.{other}"), &["ssh.host_key_files"]),
            }
        }
    }

    fn facts(&mut self, value: &Value<'_>, config: &mut Config) {
        let Some(table) = self.table("facts", value) else {
            return;
        };
        if table.len() > MAX_FACTS {
            let problem = format!("there are {} facts, and at most {MAX_FACTS} can be", table.len());
            self.error(value.span(), problem);
        }
        for (key, value) in table {
            let name = FactName::from_str(key.get_ref());
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.to_string(),
                DeValue::Boolean(switch) => switch.to_string(),
                _ => String::new(),
            };
            match (name, FactValue::from_str(&text)) {
                (Ok(name), Ok(text)) => {
                    let line = self.line(key.span().start);
                    self.origins.insert(format!("facts.{name}"), Origin::Line(line));
                    config.facts.insert(name, text);
                }
                (Err(error), _) | (_, Err(error)) => {
                    self.error(key.span(), format!("`facts.{}`: {error}", key.get_ref()));
                }
            }
        }
    }

    fn services(&mut self, value: &Value<'_>, config: &mut Config) {
        let Some(table) = self.table("services", value) else {
            return;
        };
        if table.len() > MAX_SERVICES {
            self.error(
                value.span(),
                format!(
                    "there are {} services, and at most {MAX_SERVICES} can be",
                    table.len()
                ),
            );
        }
        for (key, value) in table {
            match ServiceName::from_str(key.get_ref()) {
                Ok(name) => {
                    if let Some(service) = self.service(&name, key.span(), value) {
                        config.policy.services.insert(name, service);
                    }
                }
                Err(error) => self.error(key.span(), format!("`services.{}`: {error}", key.get_ref())),
            }
        }
    }

    fn service(&mut self, name: &ServiceName, at: Range<usize>, value: &Value<'_>) -> Option<Service> {
        let prefix = format!("services.{name}");
        let (mut target, mut operators, mut max_sessions) = (None, Operators::Any, defaults::MAX_SESSIONS);
        let (mut locked, mut asks) = (false, false);
        let mut commands = Commands::default();
        let table = self.table(&prefix, value)?;
        let before = self.errors.len();
        for (key, value) in table {
            let path = format!("{prefix}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "target" => self.set(&path, value, &mut target, Self::target),
                "allow_operators" => self.set(&path, value, &mut operators, Self::operators),
                "max_sessions" => self.set(&path, value, &mut max_sessions, Self::count),
                "locked" => self.set(&path, value, &mut locked, Self::switch),
                "consent" => self.set(&path, value, &mut asks, Self::consent),
                "allow" => self.set(&path, value, &mut commands.allowed, Self::allowed),
                "timeout_secs" => self.set(&path, value, &mut commands.timeout, Self::timeout),
                "max_output_bytes" => self.set(&path, value, &mut commands.max_output, Self::output),
                _ => self.unknown(key.span(), &path, SERVICE_KEYS),
            }
        }
        match &mut target {
            Some(Target::Commands(place)) => {
                *place = commands;
                if !table.contains_key("max_sessions") {
                    max_sessions = defaults::MAX_COMMAND_SESSIONS;
                }
            }
            Some(_) => self.not_without_commands(&prefix, table),
            None => {}
        }
        if target.is_none() && self.errors.len() == before {
            self.error(
                at,
                format!("`{prefix}` has no `target`, as `target = \"tcp:127.0.0.1:22\"`"),
            );
        }
        Some(Service {
            target: target?,
            operators,
            max_sessions,
            locked,
            asks,
        })
    }

    /// What is for commands only does nothing elsewhere, and so is a mistake there.
    fn not_without_commands(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if COMMAND_KEYS.contains(&name) {
                let problem = format!("`{prefix}.{name}` is for the target `exec:` only");
                self.error(key.span(), problem);
            }
        }
    }

    fn allowed(&mut self, value: &Value<'_>) -> Result<Allowed, String> {
        let lines: Vec<_> = texts(value)?.collect::<Result<_, _>>()?;
        if lines == ["*"] {
            return Ok(Allowed::Any);
        }
        let listed = lines.into_iter().map(|line| {
            line.parse::<Listed>().map_err(|error| {
                format!(
                    "has `{line}`, and {error}; it must hold commands with their words, as `[\"/usr/bin/df -h\"]`, or be `[\"*\"]`"
                )
            })
        });
        listed.collect::<Result<_, _>>().map(Allowed::Only)
    }

    fn timeout(&mut self, value: &Value<'_>) -> Result<Duration, String> {
        self.count(value).map(|secs| Duration::from_secs(secs.into()))
    }

    fn output(&mut self, value: &Value<'_>) -> Result<u64, String> {
        let most = defaults::COMMAND_OUTPUT_MAX;
        self.number(value, most).map(u64::from)
    }

    /// Puts a value into its place and notes where it stands.
    fn set<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        place: &mut T,
        read: impl Fn(&mut Self, &Value<'_>) -> Result<T, String>,
    ) {
        match read(self, value) {
            Ok(read) => {
                *place = read;
                let line = self.line(value.span().start);
                self.origins.insert(key.to_owned(), Origin::Line(line));
            }
            Err(problem) => self.error(value.span(), format!("`{key}` {problem}")),
        }
    }

    fn switch(&mut self, value: &Value<'_>) -> Result<bool, String> {
        value
            .get_ref()
            .as_bool()
            .ok_or_else(|| "must be `true` or `false`".into())
    }

    fn count(&mut self, value: &Value<'_>) -> Result<u32, String> {
        self.number(value, 65_535)
    }

    fn number(&mut self, value: &Value<'_>, most: u32) -> Result<u32, String> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        number
            .filter(|number| (1..=most).contains(number))
            .ok_or_else(|| format!("must be a number from 1 to {most}"))
    }

    fn lock(&mut self, value: &Value<'_>) -> Result<Option<Lock>, String> {
        let text = value
            .get_ref()
            .as_str()
            .ok_or("must be a text, as `tunnel lock init` wrote it")?;
        text.parse()
            .map(Some)
            .map_err(|error| format!("is no lock: {error}"))
    }

    fn silence(&mut self, value: &Value<'_>) -> Result<Option<Duration>, String> {
        let silence = self.count(value).map(|secs| Duration::from_secs(secs.into()));
        let silence = silence
            .ok()
            .filter(|silence| *silence >= defaults::MIN_SERVER_SILENCE);
        silence.map(Some).ok_or_else(|| {
            let least = defaults::MIN_SERVER_SILENCE.as_secs();
            format!("must be a number from {least} to 65535")
        })
    }

    fn path(&mut self, value: &Value<'_>) -> Result<PathBuf, String> {
        let path = value
            .get_ref()
            .as_str()
            .filter(|path| path.starts_with('/') && !path.contains('\0'));
        path.map(PathBuf::from)
            .ok_or_else(|| "must be an absolute path, as `\"/var/lib/tunnel-agent\"`".into())
    }

    fn proxy(&mut self, value: &Value<'_>) -> Result<ProxyChoice, String> {
        const FORM: &str = "must be a text, as `\"http://proxy.example:3128\"` or `\"none\"`";
        let text = value.get_ref().as_str().ok_or(FORM)?;
        let proxy: ProxyChoice = text.parse().map_err(|error| format!("is no proxy: {error}"))?;
        // Everybody may read this file.
        if proxy.has_login() {
            return Err(
                "holds a login; write it into a file of the agent's user and name that by `proxy_file`"
                    .into(),
            );
        }
        Ok(proxy)
    }

    fn proxy_file(&mut self, key: &str, value: &Value<'_>, config: &mut Config) {
        // A table gives its keys in order, so `proxy` has been seen.
        if self.origins.contains_key("proxy") {
            self.error(
                value.span(),
                "name the proxy by `proxy` or by `proxy_file`, not both".into(),
            );
        }
        self.set(key, value, &mut config.proxy_file, |reader, value| {
            reader.path(value).map(Some)
        });
    }

    fn target(&mut self, value: &Value<'_>) -> Result<Option<Target>, String> {
        let text = value
            .get_ref()
            .as_str()
            .ok_or("must be a text, as `\"tcp:127.0.0.1:22\"`")?;
        text.parse()
            .map(Some)
            .map_err(|error| format!("is wrong: {error}"))
    }

    fn operators(&mut self, value: &Value<'_>) -> Result<Operators, String> {
        let names: Result<BTreeSet<_>, String> = texts(value)?
            .map(|text| {
                text?
                    .parse()
                    .map_err(|error| format!("has a name that is none: {error}"))
            })
            .collect();
        names.map(Operators::Only)
    }

    fn host_key_files(&mut self, value: &Value<'_>) -> Result<Option<Vec<PathBuf>>, String> {
        let files: Result<Vec<_>, String> = texts(value)?
            .map(|text| match text {
                Ok(path) if path.starts_with('/') && path.ends_with(".pub") => Ok(path.into()),
                Ok(_) => Err("must hold absolute paths of public keys, which end in `.pub`".into()),
                Err(error) => Err(error),
            })
            .collect();
        files.map(Some)
    }

    fn table<'v, 'i>(&mut self, key: &str, value: &'v Value<'i>) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.error(value.span(), format!("`{key}` must be a table, as `[{key}]`"));
        }
        table
    }

    fn unknown(&mut self, at: Range<usize>, key: &str, accepted: &[&str]) {
        self.error(
            at,
            format!(
                "there is no setting `{key}`; there are `{}`",
                accepted.join("`, `")
            ),
        );
    }

    fn error(&mut self, at: Range<usize>, problem: String) {
        let line = self.line(at.start);
        self.errors.push(ConfigError { line, problem });
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    fn finish(mut self) -> ConfigErrors {
        self.errors.sort_by_key(|error| error.line);
        ConfigErrors(self.errors)
    }
}

fn texts<'v>(value: &'v Value<'_>) -> Result<impl Iterator<Item = Result<&'v str, String>>, String> {
    const WRONG: &str = "must be a list of texts, as `[\"ana\"]`";
    let values = value.get_ref().as_array().ok_or(WRONG)?;
    Ok(values
        .iter()
        .map(|value| value.get_ref().as_str().ok_or_else(|| WRONG.into())))
}
