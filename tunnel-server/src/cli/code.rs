//! `tunnel-server enrol-code`.

use std::error::Error;

use clap::ValueEnum;
use tunnel_certs::Trust;
use tunnel_net::files::read_private_text;
use tunnel_proto::code::Exit;
use tunnel_proto::names::GroupName;
use tunnel_proto::{DeviceId, OperatorName};

use super::{Data, span::Span};
use crate::config::DataDir;
use crate::failure::{Failure, chain};
use crate::init::{CodeOrder, LOCAL, MadeCode, make_code};
use crate::store::{Makes, Store};

/// Most uses of one code: a production lot.
const MAX_USES: i64 = 100_000;

/// Makes a one-time code.
#[derive(Debug, clap::Args)]
pub(super) struct EnrolCode {
    #[command(flatten)]
    data: Data,
    /// A device id that the code may make; may be given several times.
    #[arg(long, value_name = "ID", conflicts_with = "operator")]
    device: Vec<DeviceId>,
    /// An operator that the code may make; may be given several times.
    #[arg(long, value_name = "NAME")]
    operator: Vec<OperatorName>,
    /// The group that newcomers are put into. Without `--device` and `--operator` they choose their ids themselves.
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupName>,
    /// Whom a code without ids makes.
    #[arg(long, value_name = "KIND", conflicts_with_all = ["device", "operator"])]
    kind: Option<Kind>,
    /// How often the code can be used; once for each id if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_USES))]
    uses: Option<u32>,
    /// How long the code lives, as `1h`.
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    ttl: Span,
    /// Let the code replace the key of an id that is enrolled already; the old key is then revoked.
    #[arg(long)]
    replace: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    Device,
    Operator,
}

impl EnrolCode {
    pub(super) async fn run(&self, json: bool) -> Result<Exit, Failure> {
        let makes = self.makes()?;
        let data = self.data.directory()?;
        let config = super::load_config(&data, WHAT)?;
        let order = CodeOrder {
            uses: self
                .uses
                .unwrap_or(u32::try_from(makes.ids().len().max(1)).unwrap_or(1)),
            makes,
            group: self.group.clone(),
            lifetime: self.ttl.0,
            replace: self.replace,
            by: LOCAL.to_owned(),
        };
        let trust = root(&data)?;
        let store = Store::open(&data.store(), &config.trust_domain)
            .await
            .map_err(|error| stored(&error))?;
        let made = make_code(&store, &config.address, &trust, order.clone(), super::now()).await;
        store.close().await;
        let made = made.map_err(|error| stored(&error))?;
        super::print(&if json { to_json(&order, &made) } else { made.text })
    }

    fn makes(&self) -> Result<Makes, Failure> {
        let refuse = |why, next| Err(Failure::usage("E_USAGE", WHAT, why, next));
        match (self.device.is_empty(), self.operator.is_empty(), self.kind) {
            (false, _, _) => Ok(Makes::Devices(self.device.clone())),
            (_, false, _) => Ok(Makes::Operators(self.operator.clone())),
            (_, _, Some(Kind::Operator)) if self.group.is_some() => Ok(Makes::Operators(Vec::new())),
            (_, _, Some(Kind::Device)) if self.group.is_some() => Ok(Makes::Devices(Vec::new())),
            (_, _, None) if self.group.is_some() => refuse(
                "a group can be of devices or of operators",
                "add `--kind device` or `--kind operator`",
            ),
            _ => refuse(
                "it is not said whom the code is for",
                "add `--device ID`, `--operator NAME` or `--group GROUP`",
            ),
        }
    }
}

const WHAT: &str = "could not make an enrolment code";
const TRY_AGAIN: &str = "try again; `tunnel-server check` tells more if it stays";

fn root(data: &DataDir) -> Result<Trust, Failure> {
    let failed = |why| Failure::usage("E_CONFIG", WHAT, why, "restore `root.pem` from a backup");
    let pem = read_private_text(&data.root()).map_err(|error| failed(chain(&error)))?;
    Trust::from_pem(&pem).map_err(|error| failed(format!("`root.pem`: {error}")))
}

fn stored(error: &dyn Error) -> Failure {
    Failure::failed("E_STORE", WHAT, chain(error), TRY_AGAIN)
}

fn to_json(order: &CodeOrder, made: &MadeCode) -> String {
    serde_json::json!({
        "code": made.text,
        "expires_at": made.expires_at,
        "kind": order.makes.kind(),
        "ids": order.makes.ids(),
        "group": order.group,
        "uses": order.uses,
        "replace": order.replace,
    })
    .to_string()
}
