//! `tunnel-server check`.

use serde::Serialize;
use tunnel_proto::audit::{Head, verify};
use tunnel_proto::code::Exit;

use crate::ca::Keys;
use crate::config::{Config, DataDir};
use crate::failure::{Failure, chain};
use crate::store::{Store, StoreError};
use tunnel_policy::Engine;

/// Records that are read at once.
const PAGE: u32 = 500;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

/// Looks at everything that the server needs, and says what it found. The exit code tells whether all is well.
pub(super) async fn run(data: DataDir, json: bool) -> Result<Exit, Failure> {
    let findings = look(&data).await;
    let ok = findings.iter().all(|finding| finding.ok);
    let text = if json {
        serde_json::json!({ "ok": ok, "checks": findings }).to_string()
    } else {
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    super::print(&text)?;
    Ok(if ok { Exit::Done } else { Exit::Usage })
}

fn line(finding: &Finding) -> String {
    let mark = if finding.ok { "ok  " } else { "FAIL" };
    format!("{mark}  {:<13}  {}", finding.check, finding.detail)
}

async fn look(data: &DataDir) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |check, outcome: Result<String, String>| {
        let ok = outcome.is_ok();
        findings.push(Finding {
            check,
            ok,
            detail: outcome.unwrap_or_else(|why| why),
        });
        ok
    };
    let config = match Config::load(data) {
        Ok(config) => config,
        Err(error) => {
            note("configuration", Err(chain(&error)));
            return findings;
        }
    };
    note(
        "configuration",
        Ok(format!(
            "`{}` at {}, listening on {}",
            config.node, config.address, config.listen
        )),
    );
    note("keys", keys(data, &config));
    // Opening makes what is not there, and a check changes nothing.
    if !data.store().exists() {
        note(
            "store",
            Err(format!(
                "`{}` is not there; restore it from a backup",
                data.store().display()
            )),
        );
        return findings;
    }
    let store = match Store::open(&data.store(), &config.trust_domain).await {
        Ok(store) => store,
        Err(error) => {
            note("store", Err(chain(&error)));
            return findings;
        }
    };
    note("store", counts(&store).await.map_err(|error| chain(&error)));
    note("policy", policy(&store).await);
    note("audit chain", audit(&store).await);
    store.close().await;
    findings
}

fn keys(data: &DataDir, config: &Config) -> Result<String, String> {
    let keys = Keys::load(data, config).map_err(|error| chain(&error))?;
    match keys
        .own_certificate_due(super::now())
        .map_err(|error| chain(&error))?
    {
        Some(due) => Ok(format!(
            "usable; the server's own certificate is renewed at {due} (seconds since 1970)"
        )),
        None => Ok("usable; the server's own certificate is issued anew at the next start".to_owned()),
    }
}

async fn counts(store: &Store) -> Result<String, StoreError> {
    let (devices, tunnels) = (store.devices().await?.len(), store.live_tunnels().await?.len());
    Ok(format!("{devices} devices, {tunnels} live tunnels"))
}

async fn policy(store: &Store) -> Result<String, String> {
    let policy = store
        .policy()
        .await
        .map_err(|error| chain(&error))?
        .ok_or("there is none: everything is denied")?;
    let engine = Engine::new(&policy.text).map_err(|errors| errors.to_string())?;
    Ok(format!("revision {}, {} policies", policy.revision, engine.len()))
}

async fn audit(store: &Store) -> Result<String, String> {
    let mut head = Head::START;
    loop {
        let records = store.audit(head.seq, PAGE).await.map_err(|error| chain(&error))?;
        if records.is_empty() {
            return Ok(format!("{} records, none changed", head.seq));
        }
        head = verify(head, &records).map_err(|broken| broken.to_string())?;
    }
}
