//! What administers the fleet: codes, revocations, policies.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use tunnel_policy::{Action, MAX_POLICY_BYTES};
use tunnel_proto::api::{
    ErrorBody, MadeEnrolCode, MakeEnrolCode, PolicyRevision, PolicyState, PolicyText, Revoke, Revoked,
};
use tunnel_proto::{Code, Refusal};

use super::caller::Caller;
use super::error::ApiError;
use super::input::Body;
use crate::control::Control;
use crate::store::PolicyRecord;

/// Most revisions in one answer.
const MAX_REVISIONS: u32 = 200;

/// Largest body that brings a policy, in bytes: JSON writes some characters of a text as two.
const MAX_POLICY_BODY: usize = 2 * MAX_POLICY_BYTES;
/// Makes a one-time code.
#[utoipa::path(
    post, path = "/v1/enrol-codes", operation_id = "make_enrol_code", tag = "enrolment", request_body = MakeEnrolCode,
    responses((status = 200, body = MadeEnrolCode), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn make_enrol_code(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<MakeEnrolCode>,
) -> Result<Json<MadeEnrolCode>, ApiError> {
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::ManageEnrolment).await?;
        owner.make_enrol_code(&caller, request).await
    };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Takes an identity's trust away, at once and for good.
#[utoipa::path(
    post, path = "/v1/revocations", operation_id = "revoke", tag = "fleet", request_body = Revoke,
    responses((status = 200, body = Revoked), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn revoke(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<Revoke>,
) -> Result<Json<Revoked>, ApiError> {
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::Revoke).await?;
        owner
            .revoke(&request.identity, request.reason, &caller.by())
            .await
    };
    let tunnels_cut = control.to_the_end::<_, Refusal>(work).await?;
    Ok(Json(Revoked { tunnels_cut }))
}

/// Shows the policy in force.
#[utoipa::path(
    get, path = "/v1/policy", operation_id = "show_policy", tag = "policy",
    responses((status = 200, body = PolicyState), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn policy(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Result<Json<PolicyState>, ApiError> {
    control.demand(&caller, Action::ManagePolicy).await?;
    Ok(Json(control.policy_state()))
}

/// Checks a policy and puts it into force whole, or not at all. Tunnels that it no longer allows are cut.
#[utoipa::path(
    put, path = "/v1/policy", operation_id = "replace_policy", tag = "policy", request_body = PolicyText,
    responses((status = 200, body = PolicyState), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn replace_policy(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<PolicyText, MAX_POLICY_BODY>,
) -> Result<Json<PolicyState>, ApiError> {
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::ManagePolicy).await?;
        owner
            .replace_policy(request.text, request.if_revision, &caller.by())
            .await
    };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Lists the policies that are or were in force, newest first, without their texts.
#[utoipa::path(
    get, path = "/v1/policy/revisions", operation_id = "list_policy_revisions", tag = "policy",
    responses((status = 200, body = [PolicyRevision]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn policy_revisions(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Result<Json<Vec<PolicyRevision>>, ApiError> {
    control.demand(&caller, Action::ManagePolicy).await?;
    let records = control.store.policies(MAX_REVISIONS).await;
    let records = records.map_err(|error| control.store_failed(&error))?;
    let shown = records.into_iter().map(|record| PolicyRevision {
        text: None,
        ..revision(record)
    });
    Ok(Json(shown.collect()))
}

/// Shows a policy that is or was in force.
#[utoipa::path(
    get, path = "/v1/policy/revisions/{revision}", operation_id = "show_policy_revision", tag = "policy",
    params(("revision" = u64, Path, description = "the revision")),
    responses((status = 200, body = PolicyRevision), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn policy_revision(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(number): Path<String>,
) -> Result<Json<PolicyRevision>, ApiError> {
    control.demand(&caller, Action::ManagePolicy).await?;
    let number = number.parse().map_err(|_| Code::NotFound)?;
    let record = control.store.policy_of(number).await;
    let record = record.map_err(|error| control.store_failed(&error))?;
    Ok(Json(revision(record.ok_or(Code::NotFound)?)))
}

fn revision(record: PolicyRecord) -> PolicyRevision {
    PolicyRevision {
        revision: record.revision,
        at: record.at.as_secs(),
        by: record.by,
        bytes: record.text.len() as u64,
        text: Some(record.text),
    }
}

/// Checks a policy without any effect.
#[utoipa::path(
    post, path = "/v1/policy/check", operation_id = "check_policy", tag = "policy", request_body = PolicyText,
    responses((status = 200, body = PolicyState), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn check_policy(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<PolicyText, MAX_POLICY_BODY>,
) -> Result<Json<PolicyState>, ApiError> {
    control.demand(&caller, Action::ManagePolicy).await?;
    Ok(Json(control.check_policy(&request.text)))
}
