//! `tunnel doctor`: the way to the server, measured, and what the server knows of a device's.

use serde::Serialize;
use serde_json::Value;
use tunnel_net::Proxy;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::measure::{self, Finding, Level, Subject};
use tunnel_proto::api::Device;
use tunnel_proto::{Code, DeviceId};

use super::Context;
use super::devices::presence;
use crate::api::Api;
use crate::args;
use crate::escape::escape;
use crate::failure::Failure;
use crate::home::Login;
use crate::ssh;

#[derive(Serialize)]
struct Page {
    ok: bool,
    findings: Vec<Row>,
    facts: Value,
    device: Option<Device>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    level: &'static str,
    what: String,
    why: Option<&'static str>,
    next: Option<&'static str>,
    code: Option<&'static str>,
}

/// Measures and shows the way to the server; with a device, what the server knows of its link too.
///
/// # Errors
/// Tells that access would not work, with the code of the cause, after the page was shown.
pub async fn doctor(context: &Context, args: args::Doctor) -> Result<(), Failure> {
    let device = args.device.as_deref().map(ssh::device).transpose()?;
    let login = context.home.login()?;
    let named_by = match (context.home.proxy(), Proxy::variable()) {
        (None, Some(variable)) => format!("the variable `{variable}`"),
        _ => "the profile of this login".to_owned(),
    };
    let subject = Subject {
        server: login.server.clone(),
        ends: login.ends(),
        credentials: login.credentials.clone(),
        own: login.peer.clone(),
        proxy_named_by: named_by,
    };
    let facts = measure::measure(&subject).await;
    let mut findings = measure::findings(&facts);
    let mut shown = None;
    // Where nothing gets through, there is no sense in asking.
    if let Some(device) = device.filter(|_| findings.iter().all(|finding| finding.level != Level::Failed)) {
        let (finding, record) = of_device(&login, &device).await;
        findings.push(finding);
        shown = record;
    }
    let code = findings.iter().find_map(|finding| finding.code);
    let page = Page {
        ok: code.is_none(),
        findings: findings.into_iter().map(Row::from).collect(),
        facts: facts.to_json(),
        device: shown,
    };
    context.output.result(&page, || text(&page))?;
    match code {
        None => Ok(()),
        Some(code) => Err(Failure::new(code, "access would not work from here")),
    }
}

/// Says what the server knows of a device's link.
async fn of_device(login: &Login, id: &DeviceId) -> (Finding, Option<Device>) {
    let mut finding = Finding {
        name: "device",
        level: Level::Ok,
        what: String::new(),
        why: None,
        next: None,
        code: None,
    };
    let device = match Api::new(login).device(id).await {
        Ok(device) => device,
        Err(error) => {
            let code = error.code();
            finding.what = format!("the server does not show `{id}`: {}", code.why());
            (finding.level, finding.code, finding.next) = (Level::Failed, Some(code), Some(code.next_step()));
            return (finding, None);
        }
    };
    finding.what = format!("`{id}`: {}", presence(&device, SystemClock.now()));
    match &device.link {
        None => {
            let code = Code::DeviceOffline;
            (finding.level, finding.code) = (Level::Failed, Some(code));
            finding.why = Some("a device that is not linked cannot be reached");
            finding.next = Some("on the device, `tunnel-agent check --net` says what stands in its way");
        }
        Some(link) => {
            finding.what.push_str(&format!(
                ", over {}; it proves itself within {} s, which the NAT on its way has borne so far",
                link.carrier, link.proof_within_secs
            ));
            if link.carrier != "udp" || link.overdue {
                finding.level = Level::Warning;
                finding.why = Some(
                    "a WebSocket is slower on a bad line; a proof that is overdue means that the link may be dead",
                );
                finding.next = Some("on the device, `tunnel-agent check --net` says more");
            }
        }
    }
    (finding, Some(device))
}

impl From<Finding> for Row {
    fn from(finding: Finding) -> Self {
        Self {
            name: finding.name,
            level: match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Failed => "failed",
            },
            what: finding.what,
            why: finding.why,
            next: finding.next,
            code: finding.code.map(Code::as_str),
        }
    }
}

fn text(page: &Page) -> String {
    let mut text = String::new();
    for row in &page.findings {
        text.push_str(&format!("{:7} {}: {}\n", row.level, row.name, escape(&row.what)));
        for (label, words) in [("why", row.why), ("next", row.next)] {
            if let Some(words) = words {
                text.push_str(&format!("        {label}: {words}\n"));
            }
        }
    }
    text
}
