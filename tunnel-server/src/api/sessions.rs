//! Sessions that were: all that the trail says of each.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tunnel_policy::Action;
use tunnel_proto::api::{AuditRecord, ErrorBody, Session};
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::{Params, name};
use crate::audit::filter::Filter;
use crate::audit::{Event, SessionOf};
use crate::control::Control;

/// Most sessions in one answer (THREATS part 5).
const MAX: u32 = 500;

/// Which sessions are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Only those of an operator.
    operator: Option<String>,
    /// Only those on a device.
    device: Option<String>,
    /// Only those of a tunnel.
    tunnel: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    since: Option<u64>,
    /// How many at most; 500 if absent.
    limit: Option<u32>,
}

/// Lists sessions that have ended or were refused, newest first: the caller's own, or all of them for who may read the audit
/// trail.
#[utoipa::path(
    get, path = "/v1/sessions", operation_id = "list_sessions", tag = "audit", params(Page),
    responses((status = 200, body = [Session]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<Vec<Session>>, ApiError> {
    let mut filter = Filter {
        operator: name("operator", page.operator.as_ref())?,
        device: name("device", page.device.as_ref())?,
        tunnel: name("tunnel", page.tunnel.as_ref())?,
        since: page.since,
        ..Filter::default()
    };
    if !control.may(&caller, Action::ReadAudit).await? {
        // Those of others are as ones that never were.
        if filter.operator.is_some_and(|operator| operator != caller.name) {
            return Ok(Json(Vec::new()));
        }
        filter.operator = Some(caller.name.clone());
    }
    let records = control
        .store
        .sessions(&filter, page.limit.unwrap_or(MAX).min(MAX))
        .await
        .map_err(|error| control.store_failed(&error))?;
    Ok(Json(records.iter().filter_map(shown).collect()))
}

fn shown(record: &AuditRecord) -> Option<Session> {
    let session = |tunnel, service, refused, of: SessionOf| Session {
        seq: record.seq,
        tunnel,
        operator: of.operator.map(|operator| operator.to_string()),
        device: of.device.map(|device| device.to_string()),
        service,
        refused,
        started_at: of.started_at.map(|time| time.as_secs()),
        ended_at: record.time_millis / 1000,
        millis: 0,
        bytes_in: 0,
        bytes_out: 0,
        ended_by: of.ended_by,
        cause: of.cause.map(|cause| cause.as_str().to_owned()),
        paths: of.paths,
        opening: of.opening.map(|opening| *opening),
        dropped: of.dropped,
    };
    match Event::read(&record.kind, &record.body)? {
        Event::SessionEnded {
            tunnel,
            service,
            millis,
            bytes_in,
            bytes_out,
            of,
        } => Some(Session {
            millis,
            bytes_in,
            bytes_out,
            ..session(tunnel, service, None, of)
        }),
        Event::SessionRefused {
            tunnel,
            service,
            reason,
            of,
        } => Some(session(tunnel, service, Some(reason.as_str().to_owned()), of)),
        _ => None,
    }
}
