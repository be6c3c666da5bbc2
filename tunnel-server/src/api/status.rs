//! How the server is, and who it takes the caller for.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tunnel_proto::api::{ErrorBody, Status};

use super::caller::Caller;
use crate::control::Control;

/// Tells how the server is.
#[utoipa::path(
    get, path = "/v1/status", operation_id = "status", tag = "server",
    responses((status = 200, body = Status), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn status(State(control): State<Arc<Control>>, caller: Caller) -> Json<Status> {
    Json(Status {
        node: control.node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: caller.peer.identity.to_string(),
        clock: control.now().as_secs(),
        uptime_secs: control.started.elapsed().as_secs(),
        policy_revision: control.in_force().revision,
    })
}
