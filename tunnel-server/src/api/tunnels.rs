//! Tunnels: asked for, attached, shown, closed, and waited for.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use tunnel_proto::api::{
    AttachTunnel, AttachedTunnel, CutReport, CutTunnels, ErrorBody, OpenTunnel, OpenedTunnel, RotateTunnel,
    RotatedTunnel, Tunnel, TunnelEnd,
};
use tunnel_proto::ids::hex;
use tunnel_proto::{Code, Refusal, TunnelId};
use utoipa::IntoParams;

use super::caller::Caller;
use super::error::ApiError;
use super::input::{Body, Params};
use crate::control::Control;
use crate::store::{TunnelRecord, approvers};
use crate::tunnels::table::Phase;
use tunnel_policy::Action;

/// Most tunnels in one answer (THREATS part 5).
const MAX: u32 = 500;
/// Most tunnels that are looked through for those of one operator.
const MAX_SEARCHED: u32 = 20_000;
/// How long a request for a tunnel's end waits before it is answered with what is: less than proxies and NATs forget.
const POLL: Duration = Duration::from_secs(240);

/// Which tunnels are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Whether those that have ended are wanted too.
    #[serde(default)]
    all: bool,
    /// How many at most; 500 if absent.
    #[serde(default)]
    limit: Option<u32>,
}

/// Asks for a tunnel. The answer comes when the device has accepted it.
#[utoipa::path(
    post, path = "/v1/tunnels", operation_id = "open_tunnel", tag = "tunnels", request_body = OpenTunnel,
    responses((status = 200, body = OpenedTunnel), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)),
)]
pub(crate) async fn open(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<OpenTunnel>,
) -> Result<Json<OpenedTunnel>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.open_tunnel(&caller, request).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Redeems the source token: works once, for its holder.
#[utoipa::path(
    post, path = "/v1/tunnels/{id}/attach", operation_id = "attach_tunnel", tag = "tunnels", request_body = AttachTunnel,
    params(("id" = String, Path, description = "the tunnel")),
    responses((status = 200, body = AttachedTunnel), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn attach(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<AttachTunnel>,
) -> Result<Json<AttachedTunnel>, ApiError> {
    let (owner, id) = (control.clone(), tunnel_id(&id)?);
    let work = async move { owner.attach(&caller, id, &request).await };
    Ok(Json(control.to_the_end::<_, Code>(work).await?))
}

/// Lists tunnels, newest first: the caller's own, or all of them for who may see those.
#[utoipa::path(
    get, path = "/v1/tunnels", operation_id = "list_tunnels", tag = "tunnels", params(Page),
    responses((status = 200, body = [Tunnel]), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<Vec<Tunnel>>, ApiError> {
    let limit = page.limit.unwrap_or(MAX).min(MAX);
    let sees_all = control.may(&caller, Action::ViewAllTunnels).await?;
    let searched = if sees_all { limit } else { MAX_SEARCHED };
    let tunnels = control
        .store
        .tunnels(!page.all, searched)
        .await
        .map_err(|error| control.store_failed(&error))?;
    let visible = tunnels
        .into_iter()
        .filter(|tunnel| sees_all || tunnel.decided.operator == caller.name);
    Ok(Json(
        visible
            .take(limit as usize)
            .map(|tunnel| shown(&control, tunnel))
            .collect(),
    ))
}

/// Shows one tunnel.
#[utoipa::path(
    get, path = "/v1/tunnels/{id}", operation_id = "describe_tunnel", tag = "tunnels", params(("id" = String, Path, description = "the tunnel")),
    responses((status = 200, body = Tunnel), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn describe(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Tunnel>, ApiError> {
    let tunnel = visible(&control, &caller, tunnel_id(&id)?, Action::ViewAllTunnels).await?;
    Ok(Json(shown(&control, tunnel)))
}

/// Closes a tunnel. Closing one that has ended changes nothing.
#[utoipa::path(
    delete, path = "/v1/tunnels/{id}", operation_id = "close_tunnel", tag = "tunnels", params(("id" = String, Path, description = "the tunnel")),
    responses((status = 200, body = Tunnel), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn close(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Tunnel>, ApiError> {
    let id = tunnel_id(&id)?;
    let tunnel = visible(&control, &caller, id, Action::CloseAnyTunnel).await?;
    let (owner, by) = (control.clone(), caller.by());
    control
        .to_the_end(async move { owner.end_tunnel(id, Code::TunnelClosed, &by).await })
        .await?;
    let tunnel = stored(&control, id).await?.unwrap_or(tunnel);
    Ok(Json(shown(&control, tunnel)))
}

/// Cuts tunnels: one, or all of a device, an operator or a group. Unlike closing, it is for who may cut, and says in the
/// record that trust ended.
#[utoipa::path(
    post, path = "/v1/cuts", operation_id = "cut_tunnels", tag = "tunnels", request_body = CutTunnels,
    responses((status = 200, body = CutReport), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn cut(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<CutTunnels>,
) -> Result<Json<CutReport>, ApiError> {
    let owner = control.clone();
    let work = async move { owner.cut_by_hand(&caller, request).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Gives the legs of a live tunnel fresh keys: the old ones bind nothing from here on. Sessions go on.
#[utoipa::path(
    post, path = "/v1/tunnels/{id}/rotate", operation_id = "rotate_tunnel", tag = "tunnels", request_body = RotateTunnel,
    params(("id" = String, Path, description = "the tunnel")),
    responses((status = 200, body = RotatedTunnel), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn rotate(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<RotateTunnel>,
) -> Result<Json<RotatedTunnel>, ApiError> {
    let (owner, id) = (control.clone(), tunnel_id(&id)?);
    let work = async move { owner.rotate(&caller, id, request).await };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

/// Waits until a tunnel has ended, and shows it; after four minutes it is shown as it is, and earlier when the operator's
/// leg has to bind with a new key.
#[utoipa::path(
    get, path = "/v1/tunnels/{id}/end", operation_id = "await_tunnel_end", tag = "tunnels", params(("id" = String, Path, description = "the tunnel")),
    responses((status = 200, body = TunnelEnd), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn end(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TunnelEnd>, ApiError> {
    let id = tunnel_id(&id)?;
    let tunnel = visible(&control, &caller, id, Action::ViewAllTunnels).await?;
    let (mut ended, mut rotate) = (None, None);
    if let Some(live) = control.tunnels.get(id) {
        // Whoever else looks on says nothing about the operator's end.
        let is_own = tunnel.decided.operator == caller.name;
        let waiting = is_own.then(|| control.tunnels.waits(id));
        let (mut phase, mut rotation) = (live.watch(), live.legs.watch());
        tokio::select! {
            phase = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))) => {
                if let Ok(Phase::Ended(why)) = phase.as_deref() {
                    ended = Some(*why);
                }
            }
            _ = rotation.wait_for(|_| {
                rotate = control.source_rotation(&caller, &live);
                rotate.is_some()
            }) => {}
            () = tokio::time::sleep(POLL) => {}
            () = control.stopping() => {}
        }
        if let Some(waiting) = waiting {
            waiting.answered();
        }
    }
    // Told at once; the record may still be on its way to the disk.
    let mut tunnel = shown(&control, stored(&control, id).await?.unwrap_or(tunnel));
    if let Some(why) = ended {
        tunnel.state = Phase::Ended(why).as_str().to_owned();
        tunnel.end_reason.get_or_insert_with(|| why.as_str().to_owned());
        tunnel.ended_at.get_or_insert_with(|| control.now().as_secs());
        rotate = None;
    }
    Ok(Json(TunnelEnd { tunnel, rotate }))
}

/// An id that cannot be one is as one that is not there.
fn tunnel_id(text: &str) -> Result<TunnelId, Code> {
    text.parse().map_err(|_| Code::NotFound)
}

async fn stored(control: &Control, id: TunnelId) -> Result<Option<TunnelRecord>, Code> {
    control
        .store
        .tunnel(id)
        .await
        .map_err(|error| control.store_failed(&error))
}

/// Returns a tunnel that is the caller's own, or that the caller may treat so all the same. Any other is not there.
async fn visible(
    control: &Control,
    caller: &Caller,
    id: TunnelId,
    others: Action<'_>,
) -> Result<TunnelRecord, Code> {
    let tunnel = stored(control, id).await?.ok_or(Code::NotFound)?;
    if tunnel.decided.operator == caller.name || control.may(caller, others).await? {
        Ok(tunnel)
    } else {
        Err(Code::NotFound)
    }
}

/// Joins what is stored of a tunnel with what the relay knows.
fn shown(control: &Control, tunnel: TunnelRecord) -> Tunnel {
    let TunnelRecord {
        decided,
        state,
        opened_at,
        ended,
        grant,
        ..
    } = tunnel;
    let counted = control.relay.traffic(decided.circuit);
    Tunnel {
        id: decided.id,
        operator: decided.operator.to_string(),
        device: decided.device.to_string(),
        services: decided.services.iter().map(ToString::to_string).collect(),
        reason: decided.reason,
        state: state.as_str().to_owned(),
        opened_at: opened_at.as_secs(),
        expires_at: decided.expires_at.as_secs(),
        ended_at: ended.as_ref().map(|ended| ended.at.as_secs()),
        end_reason: ended.as_ref().map(|ended| ended.reason.as_str().to_owned()),
        policy_revision: decided.policy_revision,
        policies: decided.policies,
        limits: decided.limits,
        break_glass: decided.break_glass,
        batch: decided.batch,
        grant: grant.map(|grant| hex(&grant)),
        approvers: approvers(decided.approval.as_ref()),
        approval: decided.approval.and_then(|approval| approval.id),
        ended_by: ended.as_ref().map(|ended| ended.by.clone()),
        source: decided.source,
        traffic: counted.or_else(|| ended.and_then(|ended| ended.traffic)),
    }
}
