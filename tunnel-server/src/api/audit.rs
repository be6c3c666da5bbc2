//! The audit chain, page by page.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tunnel_proto::api::{AuditPage, ErrorBody};
use tunnel_proto::ids::hex;
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::Params;
use crate::control::Control;
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
    let limit = page.limit.unwrap_or(MAX).min(MAX);
    let records = control
        .store
        .audit(page.after, limit)
        .await
        .map_err(|error| control.store_failed(&error))?;
    let head = control
        .store
        .audit_head()
        .await
        .map_err(|error| control.store_failed(&error))?;
    let checkpoint = control.checkpoint(head);
    let checkpoint_key = hex(control.keys.audit_key.verifying_key().as_bytes());
    Ok(Json(AuditPage {
        records,
        checkpoint: Some(checkpoint),
        checkpoint_key,
    }))
}
