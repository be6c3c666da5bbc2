//! The one request that needs no certificate, because it is how one comes by it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use tunnel_proto::Refusal;
use tunnel_proto::api::{EnrolAnswer, EnrolRequest, ErrorBody};

use super::caller::Conn;
use super::error::ApiError;
use super::input::{Body, MAX_ENROL_BODY};
use crate::control::Control;

/// Turns a one-time code and a certificate request into a certificate. The same request again gets the same answer.
#[utoipa::path(
    post, path = "/v1/enrol", operation_id = "enrol", tag = "enrolment", request_body = EnrolRequest, security(()),
    responses((status = 200, body = EnrolAnswer), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn enrol(
    State(control): State<Arc<Control>>,
    Extension(conn): Extension<Conn>,
    Body(request): Body<EnrolRequest, MAX_ENROL_BODY>,
) -> Result<Json<EnrolAnswer>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.enrol(request, conn.source.ip()).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}
