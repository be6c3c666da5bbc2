//! Times without a link, as far as the caller may see the devices.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tunnel_proto::api::{ErrorBody, Outage};
use tunnel_proto::{Code, DeviceId};
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::Params;
use crate::control::Control;

/// Most outages in one answer.
const MAX: u32 = 10_000;

/// Which outages are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wanted {
    /// Only those of this device; of every device that the caller may see if absent.
    #[serde(default)]
    device: Option<String>,
    /// Only those that ended in the last so many seconds; all that are kept if absent.
    #[serde(default)]
    last_secs: Option<u64>,
}

/// Lists times in which devices had no link, the newest first, as the devices tell them.
#[utoipa::path(
    get, path = "/v1/outages", operation_id = "list_outages", tag = "devices", params(Wanted),
    responses((status = 200, body = [Outage]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Vec<Outage>>, ApiError> {
    let device = wanted.device.map(|id| id.parse::<DeviceId>());
    let device = device.transpose().map_err(|_| Code::BadName)?;
    let visible = visible(&control, &caller, device.as_ref()).await?;
    let last = wanted.last_secs.map(Duration::from_secs);
    let after = last.map(|last| control.now().before(last)).unwrap_or_default();
    let outages = control
        .store
        .outages(&visible, after, MAX)
        .await
        .map_err(|error| control.store_failed(&error))?;
    Ok(Json(outages))
}

/// Returns the devices that the caller may see, of one or of all. One that may not be seen is as one that is not there.
async fn visible(
    control: &Arc<Control>,
    caller: &Caller,
    device: Option<&DeviceId>,
) -> Result<HashSet<String>, Code> {
    let asker = control.asker(caller).await?;
    let devices = match device {
        Some(id) => control
            .store
            .device(id)
            .await
            .map(|found| found.into_iter().collect()),
        None => control.store.devices().await,
    };
    let devices: Vec<_> = devices.map_err(|error| control.store_failed(&error))?;
    let in_force = control.in_force();
    // Ten thousand decisions take a while; nobody else is to wait for them.
    let visible = tokio::task::spawn_blocking(move || -> HashSet<_> {
        let seen = devices.into_iter().filter(|it| in_force.may_view(&asker, it));
        seen.map(|device| device.id.to_string()).collect()
    });
    let visible = visible.await.map_err(|_| Code::Internal)?;
    if device.is_some() && visible.is_empty() {
        return Err(Code::NotFound);
    }
    Ok(visible)
}
