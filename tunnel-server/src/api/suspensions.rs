//! Devices in quarantine and operators who are disabled.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tunnel_proto::Refusal;
use tunnel_proto::api::{ErrorBody, Lifted, Revoked, Suspend, Suspensions};

use super::caller::Caller;
use super::error::ApiError;
use super::input::Body;
use crate::control::Control;

/// Lists who is suspended.
#[utoipa::path(
    get, path = "/v1/suspensions", operation_id = "list_suspensions", tag = "fleet",
    responses((status = 200, body = Suspensions), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Result<Json<Suspensions>, ApiError> {
    Ok(Json(control.suspensions(&caller).await?))
}

/// Puts a device into quarantine or disables an operator, until that is lifted; what it has is cut at once.
#[utoipa::path(
    post, path = "/v1/suspensions", operation_id = "suspend", tag = "fleet", request_body = Suspend,
    responses((status = 200, body = Revoked), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn suspend(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<Suspend>,
) -> Result<Json<Revoked>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.suspend(&caller, request).await };
    let tunnels_cut = control.to_the_end::<_, Refusal>(work).await?;
    Ok(Json(Revoked { tunnels_cut }))
}

/// Releases a device from quarantine or enables an operator again. What was cut stays cut.
#[utoipa::path(
    post, path = "/v1/suspensions/lift", operation_id = "lift_suspension", tag = "fleet", request_body = Suspend,
    responses((status = 200, body = Lifted), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn lift(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<Suspend>,
) -> Result<Json<Lifted>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.lift(&caller, request).await };
    let lifted = control.to_the_end::<_, Refusal>(work).await?;
    Ok(Json(Lifted { lifted }))
}
