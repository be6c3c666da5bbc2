//! How the operator's end learns that its tunnel has ended, and why.
//!
//! Three ways lead here, and the first that knows a reason counts: the relay's word on the leg, the server's word on a
//! request that waits for the end, and the device's word where it closes the end-to-end connection. When the tunnel's time
//! is over and nobody has said so, this end knows by itself.

use std::time::{Duration, Instant};

use quinn::ConnectionError;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::leg::{Leg, LegState, Rekey};
use tunnel_net::tls;
use tunnel_proto::api::AttachTunnel;
use tunnel_proto::backoff::Backoff;
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::{Code, Refusal, TunnelId};

use crate::api::{Api, News};
use crate::failure::Failure;

/// How long a lost connection waits for somebody to tell the reason.
const GRACE: Duration = Duration::from_millis(1500);

/// Watches for the end of a tunnel.
#[derive(Debug)]
pub(super) struct End {
    told: watch::Receiver<Option<Refusal>>,
    _task: AbortOnDropHandle<()>,
}

impl End {
    /// Starts to watch. The caller of the API waits on its connection, so it is given away.
    pub(super) fn watch(api: Api, id: TunnelId, leg: &Leg, expires: Instant) -> Self {
        let (leg, rekey) = (leg.state(), leg.rekey());
        let (tell, told) = watch::channel(None);
        let task = AbortOnDropHandle::new(tokio::task::spawn(async move {
            let refusal = tokio::select! {
                refusal = by_relay(leg.clone()) => refusal,
                refusal = by_server(api, id, leg, rekey) => refusal,
                () = tokio::time::sleep_until(expires.into()) => Code::TunnelExpired.into(),
            };
            tell.send_replace(Some(refusal));
            // Lives on, so that those who look later still find it.
            tell.closed().await;
        }));
        Self { told, _task: task }
    }

    /// Says whether the end has been told.
    pub(super) fn is_known(&self) -> bool {
        self.told.borrow().is_some()
    }

    /// Returns the code of the end, if it has been told.
    pub(super) fn code(&self) -> Option<Code> {
        self.told.borrow().as_ref().map(|refusal| refusal.code)
    }

    /// Waits until somebody tells the end.
    pub(super) async fn told(&self) -> Refusal {
        let mut told = self.told.clone();
        loop {
            if let Some(refusal) = told.borrow_and_update().clone() {
                return refusal;
            }
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the tunnel has ended, and returns why.
    pub(super) async fn reason(&self, connection: &quinn::Connection) -> Failure {
        let what = "the tunnel has ended";
        tokio::select! {
            refusal = self.told() => Failure::refused(&refusal, what),
            error = connection.closed() => match code_of(&error) {
                Some(code) => Failure::new(code, what),
                None => match tokio::time::timeout(GRACE, self.told()).await {
                    Ok(refusal) => Failure::refused(&refusal, what),
                    Err(_) => Failure::new(Code::TunnelLost, what).detail(error.to_string()),
                },
            },
        }
    }
}

/// Returns the code with which a connection ended: the device's word, or a refused certificate.
pub(super) fn code_of(error: &ConnectionError) -> Option<Code> {
    match error {
        ConnectionError::ApplicationClosed(close) => match close.error_code.into_inner() {
            0 => Some(Code::TunnelClosed),
            number => Some(Code::from_number(number)),
        },
        other => tls::connection_refusal(other),
    }
}

/// Waits until the relay says that the circuit has ended.
async fn by_relay(mut leg: watch::Receiver<LegState>) -> Refusal {
    let ended = leg
        .wait_for(|state| state.ended.is_some())
        .await
        .ok()
        .and_then(|state| state.ended);
    match ended {
        Some(code) => code.into(),
        None => std::future::pending().await,
    }
}

/// Waits until the relay is heard again after it has been silent.
async fn heard_again(leg: &mut watch::Receiver<LegState>) {
    let before = leg.borrow_and_update().heard_again;
    if leg.wait_for(|state| state.heard_again != before).await.is_err() {
        std::future::pending().await
    }
}

/// Redeems a token for the next key of the operator's leg.
async fn next_key(api: &mut Api, id: TunnelId, token: String) -> Option<LegKey> {
    let attached = api.attach(id, &AttachTunnel { token }).await.ok()?;
    let key = unhex(&attached.leg_key)?;
    Some(LegKey::new(Secret::new(key)))
}

/// Asks the server to answer when the tunnel has ended. A live tunnel does not depend on the server, so what goes wrong
/// here is tried again, ever slower.
async fn by_server(mut api: Api, id: TunnelId, mut leg: watch::Receiver<LegState>, rekey: Rekey) -> Refusal {
    let mut backoff = Backoff::default();
    loop {
        let answer = tokio::select! {
            answer = api.wait_end(id) => answer,
            // The connection has been through the same outage, and may be dead without knowing.
            () = heard_again(&mut leg) => {
                api = api.again();
                continue;
            }
        };
        match answer {
            Ok(News::Ended(refusal)) => return refusal,
            Ok(News::Nothing) => backoff.succeeded(),
            // Until the relay has heard the new key the server gives another token each time, so nothing is lost here.
            Ok(News::Rotate(token)) => match next_key(&mut api, id, token).await {
                Some(key) => rekey.rekey(key),
                None => tracing::debug!("the leg's next key was not to be had"),
            },
            // The server that answers so will not answer better later.
            Err(error)
                if matches!(
                    error.code(),
                    Code::NotFound | Code::Unauthenticated | Code::Protocol
                ) =>
            {
                return std::future::pending().await;
            }
            Err(error) => tracing::debug!(code = %error.code(), "no word on the end of the tunnel"),
        }
        tokio::time::sleep(backoff.failed(fastrand::u64(..))).await;
    }
}
