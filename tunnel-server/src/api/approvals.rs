//! Approvals: asked for, shown, decided, taken back.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use tunnel_proto::api::{Approval, AskApproval, DecideApproval, ErrorBody, WithdrawnApproval};
use tunnel_proto::{ApprovalId, Code, Refusal};
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::{Body, Params};
use crate::control::Control;

/// Which approvals are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Whether those that have ended are wanted too.
    #[serde(default)]
    all: bool,
}

/// Asks others to agree to tunnels that policy permits only then.
#[utoipa::path(
    post, path = "/v1/approvals", operation_id = "ask_approval", tag = "approvals", request_body = AskApproval,
    responses((status = 200, body = Approval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn ask(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<AskApproval>,
) -> Result<Json<Approval>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.ask_approval(&caller, request).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Lists approvals, newest first: the caller's own, and those that it may decide about.
#[utoipa::path(
    get, path = "/v1/approvals", operation_id = "list_approvals", tag = "approvals", params(Page),
    responses((status = 200, body = [Approval]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<Vec<Approval>>, ApiError> {
    Ok(Json(control.approvals(&caller, page.all).await?))
}

/// Shows one approval.
#[utoipa::path(
    get, path = "/v1/approvals/{id}", operation_id = "describe_approval", tag = "approvals", params(("id" = String, Path, description = "the approval")),
    responses((status = 200, body = Approval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn describe(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Approval>, ApiError> {
    Ok(Json(control.approval(&caller, approval_id(&id)?).await?))
}

/// Waits until somebody has decided about an approval, and shows it; after four minutes it is shown as it is.
#[utoipa::path(
    get, path = "/v1/approvals/{id}/decision", operation_id = "await_decision", tag = "approvals", params(("id" = String, Path, description = "the approval")),
    responses((status = 200, body = Approval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn decision(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Approval>, ApiError> {
    Ok(Json(control.await_decision(&caller, approval_id(&id)?).await?))
}

/// Agrees to what somebody else asks for. To agree twice changes nothing.
#[utoipa::path(
    post, path = "/v1/approvals/{id}/approve", operation_id = "approve", tag = "approvals", params(("id" = String, Path, description = "the approval")),
    responses((status = 200, body = Approval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn approve(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Approval>, ApiError> {
    let (owner, id) = (control.clone(), approval_id(&id)?);
    let work = async move { owner.approve(&caller, id).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Says no to what somebody else asks for.
#[utoipa::path(
    post, path = "/v1/approvals/{id}/deny", operation_id = "deny", tag = "approvals", request_body = DecideApproval,
    params(("id" = String, Path, description = "the approval")),
    responses((status = 200, body = Approval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn deny(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<DecideApproval>,
) -> Result<Json<Approval>, ApiError> {
    let (owner, id) = (control.clone(), approval_id(&id)?);
    let work = async move { owner.deny_approval(&caller, id, request.reason).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Takes an approval back, for who asked for it and for who may approve it; live tunnels that rest on it are cut.
#[utoipa::path(
    post, path = "/v1/approvals/{id}/withdraw", operation_id = "withdraw", tag = "approvals", request_body = DecideApproval,
    params(("id" = String, Path, description = "the approval")),
    responses((status = 200, body = WithdrawnApproval), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn withdraw(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<DecideApproval>,
) -> Result<Json<WithdrawnApproval>, ApiError> {
    let (owner, id) = (control.clone(), approval_id(&id)?);
    let work = async move { owner.withdraw_approval(&caller, id, request.reason).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// An id that cannot be one is as one that is not there.
fn approval_id(text: &str) -> Result<ApprovalId, Code> {
    text.parse().map_err(|_| Code::NotFound)
}
