//! What administers the fleet: codes, revocations, policies.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tunnel_proto::Refusal;
use tunnel_proto::api::{ErrorBody, MadeEnrolCode, MakeEnrolCode, PolicyState, PolicyText, Revoke, Revoked};

use super::caller::Caller;
use super::error::ApiError;
use super::input::Body;
use crate::control::Control;
use crate::policy::Action;

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
    Body(request): Body<PolicyText>,
) -> Result<Json<PolicyState>, ApiError> {
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::ManagePolicy).await?;
        owner.replace_policy(request.text, &caller.by()).await
    };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Checks a policy without any effect.
#[utoipa::path(
    post, path = "/v1/policy/check", operation_id = "check_policy", tag = "policy", request_body = PolicyText,
    responses((status = 200, body = PolicyState), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn check_policy(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<PolicyText>,
) -> Result<Json<PolicyState>, ApiError> {
    control.demand(&caller, Action::ManagePolicy).await?;
    Ok(Json(control.check_policy(&request.text)))
}
