//! The control link as the agent sees it: when to connect, how to introduce itself, and what an end means.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::rand::SecureRandom as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinError;
use tunnel_net::clock::{Clock as _, SystemClock};
use tunnel_net::{quic, tls};
use tunnel_proto::UnixTime;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::code::Code;
use tunnel_proto::grant::LinkNonce;
use tunnel_proto::message::{Goodbye, Hello, Welcome};
use tunnel_proto::outage::Cause;

use super::{Agent, Linked};
use crate::acceptance::ServerTime;
use crate::defaults;
use crate::link::{self, Dial, End, Opening};
use crate::state::worth_saving;

/// How long a link must have lasted for the next one to be tried at once: a server that hangs up on us is not hurried.
const LASTED: Duration = Duration::from_secs(30);

impl Agent {
    /// Starts to connect after a pause.
    pub(super) fn dial(&mut self, pause: Duration) {
        let mut tls =
            quinn::ClientConfig::new(tls::quic_client(tls::link_client(&self.ends, &self.credentials)));
        tls.transport_config(quic::link_transport());
        let dial = Dial {
            server: self.server.clone(),
            tls,
            websocket_tls: Arc::clone(&self.websocket_tls),
            carriers: self.options.carriers,
            pause,
            ask_every: self.ask_every.subscribe(),
        };
        self.dialling = true;
        self.link_task.spawn(link::run(dial, self.events.0.clone()));
    }

    /// Gives up a link that is on its way; one that is there stays.
    pub(super) fn stop_dialling(&mut self) {
        if self.linked.is_none() && self.dialling {
            self.dialling = false;
            self.link_task.abort_all();
        }
    }

    pub(super) fn handle_connected(
        &mut self,
        carrier: Carrier,
        server_ip: Option<IpAddr>,
        connection: &quinn::Connection,
        opening: oneshot::Sender<Opening>,
    ) {
        if !self.dialling {
            return;
        }
        let server = match tls::connection_peer(connection, &self.ends.trust, self.clock.now()) {
            Ok(peer) => peer.identity,
            Err(error) => {
                tracing::error!(%error, "the server proved nothing; no link without");
                return;
            }
        };
        let mut nonce = LinkNonce::default();
        if ring::rand::SystemRandom::new().fill(&mut nonce).is_err() {
            tracing::error!("the system has no random bytes; no link without");
            return;
        }
        self.server_ip = server_ip;
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            nonce,
            clock: SystemClock.now(),
            report: self.report(),
            tunnels: self.tunnels.keys().chain(self.duty.others()).copied().collect(),
        };
        let (outbox, receiver) = mpsc::channel(defaults::QUEUE);
        let opened = opening.send(Opening {
            hello,
            outbox: receiver,
        });
        let since = Instant::now();
        self.linked = opened.is_ok().then_some(Linked {
            outbox,
            nonce,
            server,
            carrier,
            since,
            grant_key: None,
        });
    }

    pub(super) fn handle_welcome(&mut self, welcome: Welcome) {
        let Some(linked) = &mut self.linked else { return };
        if linked.grant_key.replace(welcome.grant_key).is_some() {
            tracing::debug!("a second welcome changes nothing else");
            return;
        }
        tracing::info!(node = %welcome.node, carrier = %linked.carrier, "linked");
        let status = format!("linked to {} over {}", welcome.node, linked.carrier);
        self.notify(&status);
        for tunnel in &welcome.ended {
            self.end_anywhere(*tunnel, Code::TunnelClosed);
        }
        self.outgoing.link_up(welcome.keeps_sessions);
        self.silence.handle_heard(Instant::now());
        self.handle_server_time(welcome.clock);
        // A server that cannot says so next.
        self.handle_recording(true);
        self.note_linked();
    }

    /// The link goes on over another carrier.
    pub(super) fn handle_moved(&mut self, carrier: Carrier) {
        let Some(linked) = &mut self.linked else { return };
        linked.carrier = carrier;
        self.notify(&format!("linked over {carrier}"));
    }

    pub(super) fn handle_server_time(&mut self, clock: UnixTime) {
        self.server_time = Some(ServerTime::new(clock, Instant::now()));
        self.clock.prove(clock);
        self.pass_time(clock);
        // The monotonic clock stands still while a device sleeps; the server's does not, nor the device's own.
        self.end_overdue();
        if worth_saving(self.saved_floor, self.clock.floor()) {
            self.save_clock();
        }
        self.renew_if_due(clock);
    }

    pub(super) fn save_clock(&mut self) {
        let floor = self.clock.floor();
        match self.state.save_clock(floor) {
            Ok(()) => self.saved_floor = Some(floor),
            Err(error) => tracing::warn!(%error, "the proven time could not be kept"),
        }
    }

    /// The server ends the link in good order, and says when to come back.
    pub(super) fn handle_goodbye(&mut self, goodbye: &Goodbye) {
        let (code, after_millis) = (goodbye.reason.code, goodbye.after_millis);
        tracing::info!(%code, after_millis, "the server ends the link");
        self.return_at =
            Some(Instant::now() + Duration::from_millis(after_millis).min(defaults::GOODBYE_MAX));
        self.note_goodbye(goodbye.reason.detail.as_deref().unwrap_or(code.why()));
        if code == Code::Revoked {
            self.end_everywhere(code);
        }
        // Without an outbox the link says what it still has, and ends.
        self.leave_link();
    }

    pub(super) fn handle_link_end(&mut self, end: End) {
        let was_linked = self
            .linked
            .as_ref()
            .is_some_and(|linked| linked.grant_key.is_some());
        self.note_end(&end, was_linked);
        self.leave_link();
        self.dialling = false;
        if !self.duty.may_link() {
            tracing::info!(why = end.why, "the link is left to another worker");
            return;
        }
        let asked = self
            .return_at
            .take()
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        let pause = asked + self.backoff.failed(fastrand::u64(..));
        let failures = self.backoff.failures();
        tracing::warn!(code = %end.code, why = end.why, ?pause, failures, "no link to the server");
        self.notify(&format!("not linked: {}", end.code.why()));
        self.dial(pause);
    }

    /// Forgets the link and what makes sense on it only.
    pub(super) fn leave_link(&mut self) {
        let Some(linked) = self.linked.take() else { return };
        self.outgoing.link_lost();
        self.renewal.link_lost();
        // Without the link their tokens cannot be redeemed any more.
        for live in self.tunnels.values_mut() {
            live.attach = None;
        }
        if linked.grant_key.is_some() && linked.since.elapsed() >= LASTED {
            self.backoff.succeeded();
        }
    }

    /// A link task that ends without having said so has failed; the next one is started all the same.
    pub(super) fn handle_link_task_end(&mut self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && !error.is_cancelled()
        {
            tracing::error!(%error, "the link failed");
            self.handle_link_end(End {
                why: error.to_string(),
                code: Code::Internal,
                causes: vec![(Cause::Other, error.to_string())],
            });
        }
    }
}
