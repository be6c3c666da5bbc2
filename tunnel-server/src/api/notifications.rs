//! Notifications: how far each target is, and those that were given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use tunnel_policy::Action;
use tunnel_proto::api::{
    ErrorBody, Notifications, NotifyTarget, SettleNotifications, SettledNotifications, Settlement,
};
use tunnel_proto::{Code, Refusal};

use super::caller::Caller;
use super::error::ApiError;
use super::input::Body;
use crate::control::Control;

/// Most notifications that were given up in one answer, and that one request is about.
const MAX: u32 = 100;
/// After this time no further one is sent in one request: its caller waits.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

/// Shows how far each target is, and the notifications that were given up, oldest first.
#[utoipa::path(
    get, path = "/v1/notifications", operation_id = "list_notifications", tag = "audit",
    responses((status = 200, body = Notifications), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
) -> Result<Json<Notifications>, ApiError> {
    control.demand(&caller, Action::ReadAudit).await?;
    let failed = |error| control.store_failed(&error);
    let head = control.store.audit_head().await.map_err(failed)?.seq;
    let mut targets = Vec::new();
    for target in &control.notify {
        let told = control.store.notified(&target.name).await.map_err(failed)?;
        targets.push(NotifyTarget {
            name: target.name.clone(),
            told,
            head,
        });
    }
    let dead = control.store.dead_letters(None, MAX).await.map_err(failed)?;
    Ok(Json(Notifications { targets, dead }))
}

/// Sends notifications that were given up once more, or drops them.
#[utoipa::path(
    post, path = "/v1/notifications", operation_id = "settle_notifications", tag = "audit",
    request_body = SettleNotifications,
    responses((status = 200, body = SettledNotifications), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn settle(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body(request): Body<SettleNotifications>,
) -> Result<Json<SettledNotifications>, ApiError> {
    let owner = control.clone();
    let work = async move {
        owner.demand(&caller, Action::ManageNotifications).await?;
        owner.settle_notifications(&request, &caller.by()).await
    };
    Ok(Json(control.to_the_end::<_, Refusal>(work).await?))
}

impl Control {
    async fn settle_notifications(
        &self,
        request: &SettleNotifications,
        by: &str,
    ) -> Result<SettledNotifications, Refusal> {
        let failed = |error| self.store_failed(&error);
        let name = Some(request.target.as_str());
        let mut dead = self.store.dead_letters(name, MAX).await.map_err(failed)?;
        if let Some(seq) = request.seq {
            dead.retain(|letter| letter.record.seq == seq);
        }
        let target = self.notify.iter().find(|target| target.name == request.target);
        if dead.is_empty() && (target.is_none() || request.seq.is_some()) {
            return Err(Code::NotFound.into());
        }
        let (started, mut done) = (Instant::now(), SettledNotifications::default());
        for letter in dead {
            let sent = request.how == Settlement::Retry;
            if sent {
                // One that is configured no more can only be dropped.
                let target = target.ok_or(Code::NotFound)?;
                if started.elapsed() > LONG_ENOUGH {
                    break;
                }
                if let Err(error) = target.send(&letter.record, self.now()).await {
                    done.error = Some(error.to_string());
                    break;
                }
            }
            let buried = self
                .store
                .bury(&request.target, letter.record.seq, sent, by)
                .await;
            done.settled += u64::from(buried.map_err(failed)?);
        }
        Ok(done)
    }
}
