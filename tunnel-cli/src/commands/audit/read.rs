//! Reading the trail page by page.

use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_proto::Code;
use tunnel_proto::api::{AuditPage, AuditRecord};
use tunnel_proto::audit::{Checkpoint, Dropped};
use tunnel_proto::cose::VerifyingKey;
use tunnel_proto::ids::unhex;

use crate::api::Api;
use crate::args::AuditFilter;
use crate::commands::tunnels;
use crate::failure::Failure;

/// Records in one request (THREATS part 5).
pub(crate) const PAGE: u32 = 500;

/// What all of this fails to do.
pub(super) const WHAT: &str = "could not read the audit trail";

/// Reads a page of the whole trail that goes forward.
pub(crate) async fn page(api: &mut Api, after: u64, limit: u32) -> Result<AuditPage, Failure> {
    page_of(api, "", after, limit).await
}

async fn page_of(api: &mut Api, filter: &str, after: u64, limit: u32) -> Result<AuditPage, Failure> {
    let page = api
        .audit(filter, after, limit)
        .await
        .map_err(|error| error.into_failure(WHAT))?;
    // A page that does not go forward would be asked for without end.
    let goes_forward = page.records.iter().all(|record| record.seq > after);
    if !goes_forward || page.records.last().is_some_and(|last| last.seq > through(&page)) {
        return Err(Failure::new(Code::Protocol, WHAT).detail("the pages do not go forward"));
    }
    Ok(page)
}

/// Returns the last record that a page is about.
fn through(page: &AuditPage) -> u64 {
    match page.through {
        // A server that knows no filters does not say.
        0 => page.records.last().map_or(0, |last| last.seq),
        through => through,
    }
}

/// Goes along the records that fit.
#[derive(Debug)]
pub(super) struct Reader {
    filter: String,
    after: u64,
}

impl Reader {
    /// Begins after a record.
    pub(super) async fn new(api: &mut Api, filter: &AuditFilter, after: u64) -> Result<Self, Failure> {
        let mut words = String::new();
        let mut add = |name: &str, value: String| words.push_str(&format!("&{name}={value}"));
        // None of them has a letter that means something in a query.
        if let Some(operator) = &filter.operator {
            add("operator", operator.as_str().replace('+', "%2B"));
        }
        if let Some(device) = &filter.device {
            add("device", device.to_string());
        }
        if let Some(kind) = &filter.kind {
            add("kind", kind.clone());
        }
        let now = SystemClock.now();
        for (name, span) in [("since", filter.since), ("until", filter.until)] {
            if let Some(span) = span {
                add(
                    name,
                    now.before(span.0).as_secs().saturating_mul(1000).to_string(),
                );
            }
        }
        if let Some(tunnel) = &filter.tunnel {
            add("tunnel", tunnels::find(api, tunnel).await?.to_string());
        }
        Ok(Self { filter: words, after })
    }

    /// Says whether all records fit.
    pub(super) fn is_whole(&self) -> bool {
        self.filter.is_empty()
    }

    /// Goes to a place.
    pub(super) fn go_to(&mut self, after: u64) {
        self.after = after;
    }

    /// Reads on; `None` at the end, from where it may be called again later.
    pub(super) async fn next(&mut self, api: &mut Api) -> Result<Option<Vec<AuditRecord>>, Failure> {
        let page = page_of(api, &self.filter, self.after, PAGE).await?;
        let through = through(&page);
        let goes_forward = through > self.after;
        self.after = self.after.max(through);
        Ok(goes_forward.then_some(page.records))
    }
}

/// Reads the checkpoint that comes with every page, and checks its signature.
pub(super) fn checkpoint(page: &AuditPage) -> Result<Option<Checkpoint>, Failure> {
    let Some(text) = &page.checkpoint else {
        return Ok(None);
    };
    let (message, key) = signed(text, &page.checkpoint_key)?;
    Checkpoint::verify(&message, &key)
        .map(Some)
        .map_err(|code| Failure::new(code, WHAT).why("the checkpoint is not signed by its key"))
}

/// Reads the statement of what was dropped, and checks its signature.
pub(super) fn dropped(page: &AuditPage) -> Result<Option<Dropped>, Failure> {
    let Some(text) = &page.dropped else {
        return Ok(None);
    };
    let (message, key) = signed(text, &page.checkpoint_key)?;
    Dropped::verify(&message, &key).map(Some).map_err(|code| {
        Failure::new(code, WHAT).why("the statement of what was dropped is not signed by the server's key")
    })
}

/// Reads a signed message and the key that is to have signed it.
pub(super) fn signed(text: &str, key: &str) -> Result<(Vec<u8>, VerifyingKey), Failure> {
    let key = unhex(key).map(VerifyingKey::from_bytes);
    let key = key.ok_or_else(|| Failure::new(Code::Protocol, WHAT).detail("the checkpoint's key is none"))?;
    let message = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text)
        .map_err(|_| Failure::new(Code::TokenMalformed, WHAT).detail("the checkpoint cannot be read"))?;
    Ok((message, key))
}
