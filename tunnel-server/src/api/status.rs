//! How the server is, and who it takes the caller for.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use tunnel_policy::Action;
use tunnel_proto::api::{ErrorBody, Status};

use super::caller::Caller;
use super::error::ApiError;
use crate::control::Control;

/// How long a broken glass is told of.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Tells how the server is.
#[utoipa::path(
    get, path = "/v1/status", operation_id = "status", tag = "server",
    responses((status = 200, body = Status), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn status(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Result<Json<Status>, ApiError> {
    let sees_all = control.may(&caller, Action::ViewAllTunnels).await?;
    let alarms = || control.tunnels.unconfirmed().alarms() as u64;
    let broken_glass = if sees_all {
        let counted = control.store.broken_glass(control.now().before(DAY)).await;
        Some(counted.map_err(|error| control.store_failed(&error))?)
    } else {
        None
    };
    Ok(Json(Status {
        node: control.node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: caller.peer.identity.to_string(),
        clock: control.now().as_secs(),
        uptime_secs: control.started.elapsed().as_secs(),
        policy_revision: control.in_force().revision,
        unconfirmed_cuts: sees_all.then(alarms),
        broken_glass,
    }))
}
