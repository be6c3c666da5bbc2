//! `tunnel-agent check --net`: the way to the server, measured.

use std::path::PathBuf;
use std::sync::Arc;

use tunnel_net::Proxy;
use tunnel_net::measure::{self, Subject};
use tunnel_net::tls::Ends;

use super::Report;
use crate::config::Config;
use crate::failure::Failure;
use crate::state::{Enrolled, StateDir};

/// Measures the way to the server with the device's identity. An agent that runs keeps its link.
pub async fn check(loaded: Result<(PathBuf, Config), Failure>) -> Report {
    let mut report = Report::default();
    match subject(loaded) {
        Ok(subject) => {
            let facts = measure::measure(&subject).await;
            for finding in measure::findings(&facts) {
                report.measured(&finding);
            }
            report.facts = Some(facts.to_json());
        }
        Err(failure) => report.failed("identity", &failure),
    }
    report
}

fn subject(loaded: Result<(PathBuf, Config), Failure>) -> Result<Subject, Failure> {
    let (file, config) = loaded?;
    let state = StateDir::new(&config.state_dir);
    let clock = Arc::new(state.clock());
    let Enrolled {
        server,
        trust,
        own,
        credentials,
    } = state.load(&clock)?;
    let server = config.on_the_way(server)?.recalled_from(&state.addresses());
    let named_by = match Proxy::variable() {
        Some(variable)
            if config.proxy == tunnel_net::ProxyChoice::Environment && config.proxy_file.is_none() =>
        {
            format!("the variable `{variable}`")
        }
        _ => format!("`{}`", file.display()),
    };
    Ok(Subject {
        server,
        ends: Ends::new(trust, clock),
        credentials,
        own,
        proxy_named_by: named_by,
    })
}
