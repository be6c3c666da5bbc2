//! Groups and facts: what decisions are made from, apart from policies.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use tunnel_policy::Action;
use tunnel_proto::api::{ChangeFacts, Changed, DeviceFacts, ErrorBody, GroupMember};
use tunnel_proto::names::GroupName;
use tunnel_proto::{Code, DeviceId, Refusal};

use super::caller::Caller;
use super::error::ApiError;
use super::input::Body;
use crate::control::Control;
use crate::store::Member;

/// Most memberships in one answer.
const MAX: u32 = 50_000;

/// Lists all groups with their members. Groups by report are not among them: those are a matter of policy.
#[utoipa::path(
    get, path = "/v1/groups", operation_id = "list_groups", tag = "fleet",
    responses((status = 200, body = [GroupMember]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Result<Json<Vec<GroupMember>>, ApiError> {
    control.demand(&caller, Action::ManageGroups).await?;
    let members = control.store.memberships(MAX).await;
    let members = members.map_err(|error| control.store_failed(&error))?;
    let shown = members.into_iter().map(|(group, member)| GroupMember {
        group: group.to_string(),
        member,
    });
    Ok(Json(shown.collect()))
}

/// Puts a device or operator into a group. Tunnels that are no longer allowed by that are cut.
#[utoipa::path(
    put, path = "/v1/groups/{group}/{kind}/{name}", operation_id = "add_to_group", tag = "fleet",
    params(("group" = String, Path, description = "the group"), ("kind" = String, Path, description = "`device` or `operator`"),
        ("name" = String, Path, description = "the member")),
    responses((status = 200, body = Changed), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn add(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(path): Path<(String, String, String)>,
) -> Result<Json<Changed>, ApiError> {
    change(control, caller, path, true).await
}

/// Takes a device or operator out of a group. Tunnels that are no longer allowed by that are cut.
#[utoipa::path(
    delete, path = "/v1/groups/{group}/{kind}/{name}", operation_id = "remove_from_group", tag = "fleet",
    params(("group" = String, Path, description = "the group"), ("kind" = String, Path, description = "`device` or `operator`"),
        ("name" = String, Path, description = "the member")),
    responses((status = 200, body = Changed), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn remove(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(path): Path<(String, String, String)>,
) -> Result<Json<Changed>, ApiError> {
    change(control, caller, path, false).await
}

async fn change(
    control: Arc<Control>,
    caller: Caller,
    (group, kind, name): (String, String, String),
    add: bool,
) -> Result<Json<Changed>, ApiError> {
    let group: GroupName = group.parse().map_err(|_| Code::BadName)?;
    let member = match kind.as_str() {
        "device" => Member::Device(name.parse().map_err(|_| Code::BadName)?),
        "operator" => Member::Operator(name.parse().map_err(|_| Code::BadName)?),
        _ => return Err(Code::BadName.into()),
    };
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::ManageGroups).await?;
        owner.change_group(&caller, group, member, add).await
    };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Shows the facts about a device: those that somebody has set, and those that it claims.
#[utoipa::path(
    get, path = "/v1/devices/{id}/facts", operation_id = "show_facts", tag = "devices", params(("id" = String, Path, description = "the device id")),
    responses((status = 200, body = DeviceFacts), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn facts(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeviceFacts>, ApiError> {
    let id: DeviceId = id.parse().map_err(|_| Code::BadName)?;
    control.demand(&caller, Action::ManageFacts).await?;
    let device = control.store.device(&id).await;
    let device = device.map_err(|error| control.store_failed(&error))?;
    let device = device.ok_or(Code::NotFound)?;
    Ok(Json(control.facts_of(&device)))
}

/// Sets and removes facts about a device. Tunnels that are no longer allowed by that are cut.
#[utoipa::path(
    patch, path = "/v1/devices/{id}/facts", operation_id = "change_facts", tag = "devices", request_body = ChangeFacts,
    params(("id" = String, Path, description = "the device id")),
    responses((status = 200, body = Changed), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn change_facts(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<ChangeFacts>,
) -> Result<Json<Changed>, ApiError> {
    let id: DeviceId = id.parse().map_err(|_| Code::BadName)?;
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::ManageFacts).await?;
        owner.change_facts(&caller, &id, request).await
    };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}
