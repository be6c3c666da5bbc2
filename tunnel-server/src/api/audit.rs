//! The audit chain, page by page.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tunnel_proto::Refusal;
use tunnel_proto::api::{AuditPage, ErrorBody};
use tunnel_proto::ids::hex;
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::{Params, name};
use crate::audit::filter::Filter;
use crate::control::{Control, to_base64};
use tunnel_policy::Action;

/// Most records in one answer (THREATS part 5).
const MAX: u32 = 500;

/// Which part of the chain is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Only records with a higher number.
    #[serde(default)]
    after: u64,
    /// How many at most; 500 if absent.
    #[serde(default)]
    limit: Option<u32>,
    /// Only of this kind, as `tunnel.opened`, or all whose kind begins with a word, as `tunnel`.
    kind: Option<String>,
    /// Only what an operator did or what befell it.
    operator: Option<String>,
    /// Only what is about a device.
    device: Option<String>,
    /// Only what is about a tunnel.
    tunnel: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    since: Option<u64>,
    /// Before this time, in milliseconds since 1970.
    until: Option<u64>,
}

impl Page {
    fn filter(&self) -> Result<Filter, Refusal> {
        Ok(Filter {
            kind: self.kind.clone(),
            operator: name("operator", self.operator.as_ref())?,
            device: name("device", self.device.as_ref())?,
            tunnel: name("tunnel", self.tunnel.as_ref())?,
            since: self.since,
            until: self.until,
        })
    }
}

/// Returns records of the audit chain in order, with a signed checkpoint of its head.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "read_audit", tag = "audit", params(Page),
    responses((status = 200, body = AuditPage), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn page(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<AuditPage>, ApiError> {
    control.demand(&caller, Action::ReadAudit).await?;
    let (filter, limit) = (page.filter()?, page.limit.unwrap_or(MAX).min(MAX));
    let (records, through) = control
        .store
        .audit_fitting(&filter, page.after, limit)
        .await
        .map_err(|error| control.store_failed(&error))?;
    let head = control
        .store
        .audit_head()
        .await
        .map_err(|error| control.store_failed(&error))?;
    // Asked for last: what is dropped meanwhile is on the page and in the statement, and nothing is in neither.
    let dropped = control
        .store
        .audit_dropped()
        .await
        .map_err(|error| control.store_failed(&error))?;
    Ok(Json(AuditPage {
        records,
        through,
        checkpoint: Some(control.checkpoint(head)),
        checkpoint_key: hex(control.keys.audit_key.verifying_key().as_bytes()),
        dropped: dropped.as_deref().map(to_base64),
    }))
}
