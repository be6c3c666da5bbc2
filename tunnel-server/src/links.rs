//! The control links: which agent is truly there, and how to ask it something.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, VarInt};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use tunnel_certs::Peer;
use tunnel_proto::api::LinkState;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::defaults::OFFER_DEADLINE;
use tunnel_proto::grant::LinkNonce;
use tunnel_proto::message::{FromServer, Offer, OfferAnswer, Report, SessionKey};
use tunnel_proto::{Code, DeviceId, Refusal, TunnelId};

use self::presence::Presence;
use self::receipts::Receipts;
use crate::control::Control;

pub(crate) mod accept;
mod presence;
mod probe;
mod receipts;
mod renew;
mod report;
pub(crate) mod restart;
pub(crate) mod returns;
mod serve;
mod work;

/// Messages that wait for one agent. An agent that does not take them is cut off; what it missed it learns when it is
/// back, from [`tunnel_proto::message::Welcome::ended`].
const OUTBOX: usize = 256;
/// How often the certificates of links are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(60);
/// Offers to one agent that wait for an answer.
const MAX_OFFERS: usize = 128;

/// The control link of one agent.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) device: DeviceId,
    pub(crate) peer: Peer,
    pub(crate) nonce: LinkNonce,
    pub(crate) version: String,
    connection: Connection,
    outbox: mpsc::Sender<FromServer>,
    /// Whether the report with which the link began is in the store.
    kept: watch::Sender<bool>,
    /// Which ends of sessions it need not tell again.
    receipts: Receipts,
    /// The agent is heard from another address.
    moved: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    presence: Presence,
    report: Report,
    /// The address that the agent was told to have.
    told: Option<SocketAddr>,
    /// The second answer to the last ping, which waits for its time.
    echo: Option<AbortOnDropHandle<()>>,
    offers: HashMap<TunnelId, Asked>,
}

/// An offer that waits for its answer.
#[derive(Debug)]
struct Asked {
    at: Instant,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message. A link whose agent takes nothing is closed.
    pub(crate) fn send(&self, message: FromServer) {
        if self.outbox.try_send(message).is_err() {
            self.close(Code::Busy);
        }
    }

    /// Tells the device that it need not tell of a session again. What gets lost of this it is told when it does.
    pub(crate) fn confirm(&self, key: SessionKey) {
        self.receipts.add(key);
    }

    /// Offers a tunnel and waits for the answer.
    ///
    /// # Errors
    /// Returns the device's refusal, or that it did not answer.
    pub(crate) async fn offer(&self, offer: Offer) -> Result<(), Refusal> {
        let tunnel = offer.tunnel;
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state();
            if state.offers.len() >= MAX_OFFERS {
                return Err(Code::Busy.into());
            }
            state.offers.insert(
                tunnel,
                Asked {
                    at: Instant::now(),
                    answer,
                },
            );
        }
        let _forget = Forget { link: self, tunnel };
        self.send(FromServer::Offer(offer));
        match tokio::time::timeout(OFFER_DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Code::DeviceOffline.into()),
            Err(_) => Err(Code::DeviceSilent.into()),
        }
    }

    /// Takes the answer to an offer in. One that nobody waits for is passed over.
    fn handle_answer(&self, answer: OfferAnswer) {
        let now = Instant::now();
        let mut state = self.state();
        let Some(asked) = state.offers.remove(&answer.tunnel) else {
            return;
        };
        state
            .presence
            .handle_answer(now, now.saturating_duration_since(asked.at));
        let _ = asked
            .answer
            .send(answer.refused.map_or(Ok(()), |refusal| Err(bounded(refusal))));
    }

    /// Waits until what the device said at the beginning of the link is in the store, or will not be: a decision from
    /// what it said before would be out of date at once.
    pub(crate) async fn report_kept(&self) {
        let mut kept = self.kept.subscribe();
        // The sender lives as long as this link does.
        let _ = kept.wait_for(|kept| *kept).await;
    }

    /// Returns what the device says of itself.
    pub(crate) fn report(&self) -> Report {
        self.state().report.clone()
    }

    /// Returns the state of the link, as the API shows it.
    pub(crate) fn link_state(&self, control: &Control) -> LinkState {
        self.state().presence.state(Instant::now(), self.carrier(control))
    }

    /// Returns how the link travels; it may have changed since it came up.
    pub(crate) fn carrier(&self, control: &Control) -> Carrier {
        control.relay.peer_of(self.connection.remote_address()).0
    }

    /// Closes the link at once.
    pub(crate) fn close(&self, why: Code) {
        self.connection
            .close(VarInt::from_u32(why as u32), why.as_str().as_bytes());
    }

    /// Lets everybody who waits for an answer know that none will come.
    fn abandon_offers(&self) {
        self.state().offers.clear();
    }
}

/// Takes an offer off the list of those that wait, whichever way the waiting ends.
struct Forget<'a> {
    link: &'a Link,
    tunnel: TunnelId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.link.state().offers.remove(&self.tunnel);
    }
}

/// Cuts a device's words to what may be passed on.
fn bounded(refusal: Refusal) -> Refusal {
    Refusal {
        code: refusal.code,
        detail: refusal.detail.as_deref().map(crate::audit::bounded),
    }
}

/// Closes links whose certificate runs out while they are up; the agent comes back with a fresh one, if it has one.
pub(crate) async fn watch_certificates(control: Arc<Control>) {
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATES_EVERY) => {}
            () = control.stopping() => return,
        }
        let now = control.now();
        for link in control.links.all() {
            if now >= link.peer.not_after {
                link.close(Code::CertExpired);
            }
        }
    }
}

/// The links that are up, one for each device.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_device: Mutex<HashMap<DeviceId, Arc<Link>>>,
}

impl Links {
    fn by_device(&self) -> MutexGuard<'_, HashMap<DeviceId, Arc<Link>>> {
        self.by_device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the link of a device.
    pub(crate) fn get(&self, device: &DeviceId) -> Option<Arc<Link>> {
        self.by_device().get(device).cloned()
    }

    /// Returns all links.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.by_device().values().cloned().collect()
    }

    /// Takes a link in and returns the older one of the same device, which it replaces.
    fn insert(&self, link: &Arc<Link>) -> Option<Arc<Link>> {
        self.by_device().insert(link.device.clone(), link.clone())
    }

    /// Says whether a link is the device's, and no newer one has taken its place.
    fn is_current(&self, link: &Arc<Link>) -> bool {
        self.by_device()
            .get(&link.device)
            .is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Takes a link out; says whether it was still the device's.
    fn remove(&self, link: &Arc<Link>) -> bool {
        let mut links = self.by_device();
        let is_current = links
            .get(&link.device)
            .is_some_and(|current| Arc::ptr_eq(current, link));
        if is_current {
            links.remove(&link.device);
        }
        is_current
    }
}
