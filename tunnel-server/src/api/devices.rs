//! Devices, as far as the caller may see them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use tunnel_proto::api::{Device, ErrorBody};
use tunnel_proto::{Code, DeviceId, Identity};
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::Params;
use crate::control::Control;
use crate::store::DeviceRecord;

/// Most devices in one answer.
const MAX: usize = 10_000;

/// Which part of the list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Only devices whose id comes after this one.
    #[serde(default)]
    after: Option<String>,
    /// How many at most; 10,000 if absent.
    #[serde(default)]
    limit: Option<usize>,
}

/// Lists the devices that the caller may see, by their ids.
#[utoipa::path(
    get, path = "/v1/devices", operation_id = "list_devices", tag = "devices", params(Page),
    responses((status = 200, body = [Device]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<Vec<Device>>, ApiError> {
    let asker = control.asker(&caller).await?;
    let mut devices = control
        .store
        .devices()
        .await
        .map_err(|error| control.store_failed(&error))?;
    if let Some(after) = &page.after {
        devices.retain(|device| device.id.as_str() > after.as_str());
    }
    let (in_force, limit) = (control.in_force(), page.limit.unwrap_or(MAX).min(MAX));
    // Ten thousand decisions take a while; nobody else is to wait for them.
    let visible = tokio::task::spawn_blocking(move || -> Vec<_> {
        devices
            .into_iter()
            .filter(|device| in_force.may_view(&asker, device))
            .take(limit)
            .collect()
    });
    let visible = visible.await.map_err(|_| Code::Internal)?;
    Ok(Json(
        visible
            .into_iter()
            .map(|device| shown(&control, device))
            .collect(),
    ))
}

/// Shows one device.
#[utoipa::path(
    get, path = "/v1/devices/{id}", operation_id = "describe_device", tag = "devices", params(("id" = String, Path, description = "the device id")),
    responses((status = 200, body = Device), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn describe(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Device>, ApiError> {
    let id: DeviceId = id.parse().map_err(|_| Code::BadName)?;
    let asker = control.asker(&caller).await?;
    let device = control
        .store
        .device(&id)
        .await
        .map_err(|error| control.store_failed(&error))?;
    match device.filter(|device| control.in_force().may_view(&asker, device)) {
        Some(device) => Ok(Json(shown(&control, device))),
        None => Err(Code::NotFound.into()),
    }
}

/// Joins what is stored of a device with what its control link knows.
fn shown(control: &Control, device: DeviceRecord) -> Device {
    let link = control.links.get(&device.id);
    let identity = Identity::device(&control.identity.trust_domain, &device.id);
    let reported = link.as_ref().map(|link| link.report());
    let (services, ssh_host_keys, access) = match reported {
        Some(report) => (report.services, report.ssh_host_keys, report.access),
        None => (device.services, device.ssh_host_keys, device.access),
    };
    Device {
        id: device.id.to_string(),
        groups: device.groups.iter().map(ToString::to_string).collect(),
        link: link.as_ref().map(|link| link.link_state(control)),
        services: services.iter().map(ToString::to_string).collect(),
        access,
        version: link.as_ref().map(|link| link.version.clone()).or(device.version),
        ssh_host_keys,
        last_seen: match link {
            Some(_) => Some(control.now().as_secs()),
            None => device.last_seen.map(|time| time.as_secs()),
        },
        cert_expires_at: Some(device.cert_expires_at.as_secs()),
        unconfirmed_cuts: control.tunnels.unconfirmed().alarms_of(&device.id) as u64,
        quarantined: control.suspended.code(&identity).is_some(),
    }
}
