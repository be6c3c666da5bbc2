//! Why a service may be used, or not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tunnel_proto::Refusal;
use tunnel_proto::api::{AskWhy, ErrorBody, Why};

use super::caller::Caller;
use super::error::ApiError;
use super::input::Body;
use crate::control::Control;

/// Explains a decision without making one. A device that the operator may not see is as one that is not there.
#[utoipa::path(
    post, path = "/v1/why", operation_id = "why", tag = "policy", request_body = AskWhy,
    responses((status = 200, body = Why), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn why(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<AskWhy>,
) -> Result<Json<Why>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.why(&caller, request).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}
