//! Shows settings as a file that would give them, with where each comes from.

use std::fmt::Write as _;
use std::path::Path;

use tunnel_net::ProxyChoice;

use super::{Config, Origin};
use crate::commands::Allowed;
use crate::policy::Operators;
use crate::target::Target;

/// Writes each setting with its origin, in the form of a configuration file.
pub fn print(config: &Config, file: &Path) -> String {
    let mut out = Printer {
        config,
        file,
        text: String::new(),
    };
    out.line("", "state_dir", &quote(&config.state_dir.to_string_lossy()));
    out.line("", "max_sessions", &config.policy.max_sessions.to_string());
    out.line("", "max_tunnels", &config.policy.max_tunnels.to_string());
    match config.max_server_silence {
        Some(silence) => out.line("", "max_server_silence_secs", &silence.as_secs().to_string()),
        None => out.text.push_str("# max_server_silence_secs: any  # default\n"),
    }
    out.operators("", &config.policy.operators);
    if let Some(lock) = &config.policy.lock {
        out.line("", "lock", &quote(&lock.to_text()));
    }
    match (&config.proxy_file, &config.proxy) {
        (Some(file), _) => out.line("", "proxy_file", &quote(&file.to_string_lossy())),
        (None, ProxyChoice::Fixed(proxy)) => out.line("", "proxy", &quote(&proxy.to_string())),
        (None, ProxyChoice::Direct) => out.line("", "proxy", "\"none\""),
        (None, ProxyChoice::Environment) => {
            out.text
                .push_str("# proxy: as `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say  # default\n");
        }
    }
    let patience = config.policy.consent_timeout.as_secs();
    out.line("", "consent_timeout_secs", &patience.to_string());
    if !config.policy.windows.0.is_empty() {
        out.table("maintenance");
        let windows = list(config.policy.windows.0.iter().map(ToString::to_string));
        out.line("maintenance.", "windows", &windows);
    }
    out.table("access");
    out.line("access.", "enabled", &config.access.to_string());
    if !config.facts.is_empty() {
        out.table("facts");
    }
    for (name, value) in &config.facts {
        out.line("facts.", name.as_str(), &quote(value.as_str()));
    }
    for (name, service) in &config.policy.services {
        let table = format!("services.{name}");
        let prefix = format!("{table}.");
        out.table(&table);
        out.line(&prefix, "target", &quote(&service.target.to_string()));
        out.line(&prefix, "max_sessions", &service.max_sessions.to_string());
        out.operators(&prefix, &service.operators);
        if let Target::Commands(commands) = &service.target {
            let allowed = match &commands.allowed {
                Allowed::Any => "[\"*\"]".to_owned(),
                Allowed::Only(listed) => list(listed.iter().map(|listed| listed.as_str().to_owned())),
            };
            out.line(&prefix, "allow", &allowed);
            out.line(&prefix, "timeout_secs", &commands.timeout.as_secs().to_string());
            out.line(&prefix, "max_output_bytes", &commands.max_output.to_string());
        }
        if service.asks {
            out.line(&prefix, "consent", "\"ask\"");
        }
        if service.locked {
            out.line(&prefix, "locked", "true");
        }
    }
    out.table("ssh");
    match &config.host_key_files {
        Some(files) => {
            let files = list(files.iter().map(|file| file.to_string_lossy().into_owned()));
            out.line("ssh.", "host_key_files", &files);
        }
        None => out
            .text
            .push_str("# host_key_files: all `/etc/ssh/ssh_host_*_key.pub`  # default\n"),
    }
    out.text
}

struct Printer<'a> {
    config: &'a Config,
    file: &'a Path,
    text: String,
}

impl Printer<'_> {
    fn table(&mut self, name: &str) {
        let _ = writeln!(self.text, "\n[{name}]");
    }

    fn line(&mut self, prefix: &str, key: &str, value: &str) {
        let origin = match self.config.origins.get(&format!("{prefix}{key}")) {
            Some(Origin::Line(line)) => format!("{}:{line}", self.file.display()),
            Some(Origin::Flag(flag)) => format!("flag {flag}"),
            Some(Origin::Variable(name)) => format!("variable {name}"),
            None => "default".into(),
        };
        // A dot stands for a table, unless it is quoted.
        let key = if key.contains('.') {
            quote(key)
        } else {
            key.to_owned()
        };
        let _ = writeln!(self.text, "{key} = {value}  # {origin}");
    }

    fn operators(&mut self, prefix: &str, operators: &Operators) {
        match operators {
            Operators::Any => self.text.push_str("# allow_operators: any  # default\n"),
            Operators::Only(names) => {
                self.line(
                    prefix,
                    "allow_operators",
                    &list(names.iter().map(ToString::to_string)),
                );
            }
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|item| quote(&item)).collect();
    format!("[{}]", items.join(", "))
}

/// Writes a text as TOML does, and what is not ASCII by its number.
fn quote(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        ' '..='~' => c.to_string(),
        c => format!("\\U{:08X}", u32::from(c)),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_gives_the_same_settings() {
        let text = "state_dir = \"/srv/agent\"\nconsent_timeout_secs = 9\nmax_server_silence_secs = 30\nproxy = \"http://a:1\"\n[services.ssh]\ntarget = \"tcp:127.0.0.1:22\"\nallow_operators = [\"ana\"]\nconsent = \"ask\"\n[services.diag]\ntarget = \"exec:\"\nallow = [\"/bin/ls -l 'a \\\\ \\t\\u007fé'\", \"/bin/df *\"]\ntimeout_secs = 7\n[maintenance]\nwindows = [\"sat,sun 22:00-02:00\"]\n[facts]\nsite = \"north\"\n\"disk.encrypted\" = true\n";
        let config = Config::parse(text).unwrap();
        let printed = print(&config, Path::new("agent.toml"));
        assert!(
            printed.contains("state_dir = \"/srv/agent\"  # agent.toml:1\n"),
            "{printed}"
        );
        assert!(
            printed.contains("allow_operators = [\"ana\"]  # agent.toml:7\n"),
            "{printed}"
        );
        assert!(printed.contains("enabled = true  # default\n"), "{printed}");
        let mut again = Config::parse(&printed).unwrap();
        again.origins = config.origins.clone();
        assert_eq!(again, config);
    }
}
