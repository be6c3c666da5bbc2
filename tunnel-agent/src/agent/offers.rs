//! What the server says about tunnels.

use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;
use tunnel_net::clock::Clock as _;
use tunnel_proto::TunnelId;
use tunnel_proto::code::Code;
use tunnel_proto::handover::Message;
use tunnel_proto::message::{
    Attach, Attached, EndTunnel, FromAgent, Offer, OfferAnswer, Rotate, TunnelEnded,
};

use super::{Agent, Live};
use crate::acceptance::{ServerTime, Situation};
use crate::consent::Consent;
use crate::moment::Moment;
use crate::operator::Operator;
use crate::policy::Right;
use crate::tunnel::{Shared, Tunnel};

impl Agent {
    /// Decides about an offer, answers it, and goes on to attach what was accepted.
    pub(super) fn handle_offer(&mut self, offer: &Offer) {
        let tunnel = offer.tunnel;
        let time = self.server_time.ok_or(Code::Protocol);
        let refused = match time.and_then(|time| Ok((self.judge(offer, time)?, time))) {
            Ok(((right, left), time)) => {
                self.start(right, left, time);
                None
            }
            Err(code) => {
                tracing::info!(tunnel = tunnel.fmt_short(), %code, "offer refused");
                Some(code.into())
            }
        };
        let accepted = refused.is_none();
        self.outgoing
            .push(FromAgent::OfferAnswer(OfferAnswer { tunnel, refused }));
        if accepted {
            self.outgoing.push(FromAgent::Attach(Attach {
                tunnel,
                token: offer.token.clone(),
            }));
        }
    }

    /// Decides, and says for how long.
    fn judge(&mut self, offer: &Offer, time: ServerTime) -> Result<(Right, Duration), Code> {
        let (tunnels, ghost) = self.count();
        let linked = self.linked.as_ref().ok_or(Code::Protocol)?;
        let grant_key = linked.grant_key.as_ref().ok_or(Code::Protocol)?;
        let now = Moment {
            server: time.now(Instant::now()),
            own: self.clock.now(),
        };
        let settings = self.settings.borrow();
        let situation = Situation {
            grant_key,
            nonce: &linked.nonce,
            server: &linked.server,
            now,
            policy: &settings.policy,
            access: settings.access,
            tunnels,
            ghost: ghost.as_ref(),
        };
        let right = self.acceptance.judge(offer, &situation)?;
        let left = right.left(now);
        Ok((right, left))
    }

    /// Returns how many tunnels count, and the operator of the one that gives way where there is no room: the one that has
    /// been silent longest.
    fn count(&self) -> (usize, Option<Operator>) {
        let now = Instant::now();
        let counted = self.tunnels.values().filter(|live| !live.operator.is_gone());
        let count = counted.clone().count() + self.duty.others().len();
        let silent = |live: &Live| Some((live.operator.silence(now)?, live.operator.clone()));
        let ghost = counted
            .filter_map(silent)
            .max_by_key(|(silence, _)| *silence)
            .map(|(_, operator)| operator);
        (count, ghost)
    }

    fn start(&mut self, right: Right, left: Duration, time: ServerTime) {
        let grant = &right.grant;
        let id = grant.tunnel;
        tracing::info!(
            tunnel = id.fmt_short(),
            operator = %grant.operator,
            services = ?grant.services,
            left_secs = left.as_secs(),
            permit = right.permit.is_some(),
            "tunnel accepted"
        );
        let operator = Operator::default();
        let consent = self.ask_for_consent(&right);
        let (attach, attached) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (rekey, keys) = watch::channel(None);
        let shared = Shared {
            settings: self.settings.subscribe(),
            sessions: self.sessions.clone(),
            reports: self.reports.0.clone(),
            time,
        };
        let tunnel = Tunnel::new(
            right.clone(),
            left,
            self.route(),
            shared,
            operator.clone(),
            consent.clone(),
        );
        let span = tracing::info_span!("tunnel", tunnel = id.fmt_short());
        let task = self
            .tasks
            .spawn(tunnel.run(attached, keys, ended).instrument(span))
            .id();
        self.tunnels.insert(
            id,
            Live {
                right,
                attach: Some(attach),
                end: Some(end),
                operator,
                consent,
                rekey,
                task,
            },
        );
    }

    /// Asks those on site about a tunnel, where the owner wants that.
    fn ask_for_consent(&self, right: &Right) -> Consent {
        let policy = &self.settings.borrow().policy;
        match policy.asks(&right.grant) {
            true => Consent::ask(Instant::now(), policy.consent_timeout),
            false => Consent::needless(),
        }
    }

    /// Hands the leg to the tunnel that waits for it, or the leg's next key to the one that has it.
    pub(super) fn handle_attached(&mut self, attached: Attached) {
        let Some(live) = self.tunnels.get_mut(&attached.tunnel) else {
            if self.duty.others().contains(&attached.tunnel) {
                self.duty.tell(&Message::Rekey(attached));
            }
            return;
        };
        if let Some(waiting) = live.attach.take() {
            let _ = waiting.send(attached);
        } else {
            live.rekey.send_replace(Some(attached));
        }
    }

    /// A tunnel that waits for its leg ends; one that has it goes on, and the server asks it again to attach anew.
    pub(super) fn handle_attach_refused(&mut self, refused: &EndTunnel) {
        let (tunnel, code) = (refused.tunnel, refused.reason.code);
        match self.tunnels.get_mut(&tunnel) {
            Some(live) if live.attach.is_none() => {
                tracing::warn!(tunnel = tunnel.fmt_short(), %code, "a leg's next key was refused");
            }
            None if self.duty.others().contains(&tunnel) => {
                tracing::warn!(tunnel = tunnel.fmt_short(), %code, "a leg's next key was refused");
            }
            _ => self.handle_end_tunnel(tunnel, code),
        }
    }

    /// Gives a tunnel of this worker the next key of its leg.
    pub(super) fn rekey(&mut self, attached: Attached) {
        if let Some(live) = self.tunnels.get_mut(&attached.tunnel) {
            live.rekey.send_replace(Some(attached));
        }
    }

    /// The server rotates the key of a leg: redeems the token that comes with it.
    pub(super) fn handle_rotate(&mut self, rotate: Rotate) {
        let Rotate { tunnel, token } = rotate;
        if self.tunnels.contains_key(&tunnel) || self.duty.others().contains(&tunnel) {
            self.outgoing.push(FromAgent::Attach(Attach { tunnel, token }));
        }
    }

    /// Ends a tunnel as the server says; one that is over already is confirmed once more.
    pub(super) fn handle_end_tunnel(&mut self, tunnel: TunnelId, reason: Code) {
        if !self.end_anywhere(tunnel, reason) {
            let ended = TunnelEnded {
                tunnel,
                reason,
                sessions: 0,
            };
            self.outgoing.push(FromAgent::TunnelEnded(ended));
        }
    }

    /// Tells a tunnel to end; its task reports when it has.
    pub(super) fn end_tunnel(&mut self, tunnel: TunnelId, reason: Code) {
        if let Some(end) = self.tunnels.get_mut(&tunnel).and_then(|live| live.end.take()) {
            let _ = end.send(reason);
        }
    }

    /// Tells all tunnels to end that fit.
    pub(super) fn end_tunnels(&mut self, reason: Code, fits: impl Fn(&Live) -> bool) {
        for live in self.tunnels.values_mut().filter(|live| fits(live)) {
            if let Some(end) = live.end.take() {
                let _ = end.send(reason);
            }
        }
    }
}
