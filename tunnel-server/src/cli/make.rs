//! `tunnel-server init`.

use std::net::SocketAddr;

use tunnel_net::addr::ServerAddr;
use tunnel_proto::code::Exit;
use tunnel_proto::ids::hex;
use tunnel_proto::{NodeName, OperatorName, TrustDomain};

use super::Data;
use crate::config::{Config, DataDir, RETURNS_PER_SEC, all_addresses};
use crate::failure::{Failure, chain};
use crate::init::{InitError, Made, init, trust_domain_of};

/// Makes a new server.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    #[command(flatten)]
    data: Data,
    /// Where devices and operators will reach the server, over TCP and UDP.
    #[arg(long, value_name = "HOST:PORT")]
    address: ServerAddr,
    /// Where the server listens; all addresses of this machine with the port of `--address` if absent.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Name of this server.
    #[arg(long, value_name = "NAME", default_value = "n1")]
    node: NodeName,
    /// Name of the fleet, for good; the host of `--address` if absent and a name.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Name of the first operator, whom the invite is for.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    admin: OperatorName,
}

impl Init {
    pub(super) async fn run(&self, json: bool) -> Result<Exit, Failure> {
        let data = self.data.directory()?;
        let config = self.config()?;
        let made = init(&data, &config, &self.admin, super::now())
            .await
            .map_err(|error| failure(&data, &error))?;
        super::print(&if json {
            self.to_json(&data, &config, &made)
        } else {
            self.to_text(&data, &config, &made)
        })
    }

    fn config(&self) -> Result<Config, Failure> {
        let trust_domain = self
            .trust_domain
            .clone()
            .or_else(|| trust_domain_of(&self.address))
            .ok_or_else(|| {
                Failure::usage(
                    "E_USAGE",
                    "could not name the fleet",
                    "the host is no domain name",
                    "add `--trust-domain NAME`",
                )
            })?;
        let listen = self
            .listen
            .unwrap_or_else(|| all_addresses(self.address.tcp_port));
        Ok(Config {
            node: self.node.clone(),
            trust_domain,
            address: self.address.clone(),
            listen,
            metrics: None,
            returns_per_sec: RETURNS_PER_SEC,
            audit_keep_days: None,
            audit_strict: false,
            authoriser: None,
            notify: Vec::new(),
        })
    }

    fn to_text(&self, data: &DataDir, config: &Config, made: &Made) -> String {
        let directory = data.path().display();
        format!(
            "The server `{}` of the fleet `{}` is made in `{directory}`.\n\
             \n\
             Start it:         tunnel-server run --data {directory}\n\
             Log in (24 h):    tunnel login {}\n\
             Enrol a device:   tunnel-server enrol-code --data {directory} --device ID\n\
             \n\
             Root fingerprint: {}\n\
             The server does not need `{}`: keep it offline.",
            config.node,
            config.trust_domain,
            made.invite,
            hex(&made.root_fingerprint),
            data.root_key().display(),
        )
    }

    fn to_json(&self, data: &DataDir, config: &Config, made: &Made) -> String {
        serde_json::json!({
            "data": data.path(),
            "node": config.node,
            "trust_domain": config.trust_domain,
            "address": config.address.to_string(),
            "listen": config.listen,
            "root_fingerprint": hex(&made.root_fingerprint),
            "invite": made.invite,
            "invite_for": self.admin,
            "invite_expires_at": made.invite_expires_at,
        })
        .to_string()
    }
}

fn failure(data: &DataDir, error: &InitError) -> Failure {
    let directory = data.path().display();
    let next = match error {
        InitError::Exists(_) => "use it, or name another directory with `--data`".to_owned(),
        InitError::NotEmpty { .. } => format!("empty `{directory}`, or name another directory with `--data`"),
        _ => format!("mend that, empty `{directory}`, and try again"),
    };
    Failure::usage(
        "E_INIT",
        format!("could not make a server in `{directory}`"),
        chain(error),
        next,
    )
}
