//! What a worker is for: whether it keeps the control link, and what it tells the other workers of the device.
//!
//! An agent without a supervisor is active for ever, and none of this concerns it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tunnel_proto::code::Code;
use tunnel_proto::handover::{self, Message, Role, State};
use tunnel_proto::message::{EndTunnel, FromAgent};
use tunnel_proto::{TunnelId, UnixTime};

use super::Agent;
use crate::channel::Channel;
use crate::defaults::{STOP_DEADLINE, WAIT_BEYOND_TRIAL};

/// The role of this process beside others of the same device.
#[derive(Debug)]
pub(super) struct Duty {
    channel: Option<Channel>,
    role: Role,
    /// How long a successor may try to link, and until when this one may.
    wait: Duration,
    waits_until: Instant,
    /// Tunnels of the device that other workers keep alive.
    others: BTreeSet<TunnelId>,
    told: Option<State>,
}

/// What the supervisor says, or its absence.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Message),
    /// No successor has linked in time, and nobody has said what to do.
    Alone,
    /// The supervisor is gone, and the service manager does not keep its end either: this is the end.
    Gone,
}

impl Duty {
    /// Begins alone, or under a supervisor that will say what to do.
    pub(super) fn new(channel: Option<Channel>, trial: Duration) -> Self {
        let wait = trial + WAIT_BEYOND_TRIAL;
        Self {
            role: channel.as_ref().map_or(Role::Active, |_| Role::Waiting),
            channel,
            wait,
            waits_until: Instant::now() + wait,
            others: BTreeSet::new(),
            told: None,
        }
    }

    /// Says whether this process may connect to the server.
    pub(super) fn may_link(&self) -> bool {
        self.role == Role::Active
    }

    pub(super) fn is_draining(&self) -> bool {
        self.role == Role::Draining
    }

    /// Returns the tunnels that other workers keep alive.
    pub(super) const fn others(&self) -> &BTreeSet<TunnelId> {
        &self.others
    }

    /// Passes something on to the supervisor, if there is one.
    pub(super) fn tell(&mut self, message: &Message) {
        if let Some(channel) = &mut self.channel {
            channel.send(message);
        }
    }

    /// Waits until the supervisor has been told all, or takes nothing.
    pub(super) async fn finish(&mut self) {
        if let Some(channel) = &mut self.channel
            && tokio::time::timeout(STOP_DEADLINE, channel.flushed())
                .await
                .is_err()
        {
            tracing::warn!("the supervisor may not have heard of all ends");
        }
    }

    /// Waits for the supervisor; for ever when there is none. Cancel-safe.
    pub(super) async fn hear(&mut self) -> Heard {
        let Some(channel) = &mut self.channel else {
            return std::future::pending().await;
        };
        let waiting = self.role == Role::Waiting;
        tokio::select! {
            message = channel.recv() => message.map_or(Heard::Gone, Heard::Message),
            () = tokio::time::sleep_until(self.waits_until.into()), if waiting => Heard::Alone,
        }
    }
}

impl Agent {
    /// Tells the supervisor how this worker is, when that has changed.
    pub(super) fn tell_state(&mut self) {
        if self.duty.channel.is_none() {
            return;
        }
        let linked = self
            .linked
            .as_ref()
            .is_some_and(|linked| linked.grant_key.is_some());
        let state = State {
            protocol: handover::VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            role: self.duty.role,
            linked,
            tunnels: self.tunnels.keys().copied().collect(),
            recording: linked.then(|| self.settings.borrow().recording),
        };
        if self.duty.told.as_ref() != Some(&state) {
            self.duty.tell(&Message::State(state.clone()));
            self.duty.told = Some(state);
        }
    }

    /// Hands what the server is to hear of ends to the worker that has a link; says whether this worker is done.
    pub(super) fn drain(&mut self) -> bool {
        if !self.duty.is_draining() {
            return false;
        }
        while let Some(message) = self.outgoing.hand_over() {
            if matches!(message, FromAgent::TunnelEnded(_) | FromAgent::SessionEnded(_)) {
                self.duty.tell(&Message::Ended(message));
            }
        }
        self.note_dropped();
        self.tunnels.is_empty() && self.linked.is_none()
    }

    /// Does what the supervisor says. Returns whether to go on.
    pub(super) fn handle_heard(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Gone => {
                tracing::info!("nobody holds this worker any more");
                return false;
            }
            Heard::Alone => {
                tracing::warn!("no successor has linked; this worker goes on");
                self.take_role(Role::Active);
            }
            Heard::Message(message) => self.handle_supervisor(message),
        }
        true
    }

    fn handle_supervisor(&mut self, message: Message) {
        match message {
            Message::Ask => self.duty.told = None,
            Message::Order(order) => {
                self.duty.others = order.others.into_iter().collect();
                self.take_role(order.role);
                let told = order.recording.unwrap_or(self.settings.borrow().recording);
                if told != self.settings.borrow().recording {
                    self.handle_recording(told);
                }
            }
            Message::Reload => self.reload(),
            Message::EndTunnel(end) => self.end_tunnel(end.tunnel, end.reason.code),
            Message::EndAll(code) => self.end_tunnels(code, |_| true),
            Message::Time(time) => {
                self.silence.handle_heard(Instant::now());
                self.handle_server_time(time);
            }
            Message::Rekey(attached) => self.rekey(attached),
            Message::Ended(ended) => self.outgoing.push(ended),
            // What only a worker says, and kinds of a newer version.
            _ => {}
        }
    }

    fn take_role(&mut self, role: Role) {
        if role != self.duty.role {
            tracing::info!(?role, tunnels = self.tunnels.len(), "this worker's role");
        }
        self.duty.role = role;
        match role {
            Role::Active => {
                if !self.dialling {
                    self.dial(Duration::ZERO);
                }
            }
            Role::Waiting => {
                self.duty.waits_until = Instant::now() + self.duty.wait;
                self.stop_dialling();
            }
            Role::Draining => {
                self.stop_dialling();
                self.leave_link();
            }
        }
    }

    /// Ends a tunnel as the server says, in whichever worker it lives; says whether it lives in one.
    pub(super) fn end_anywhere(&mut self, tunnel: TunnelId, reason: Code) -> bool {
        if self.tunnels.contains_key(&tunnel) {
            self.end_tunnel(tunnel, reason);
            return true;
        }
        let elsewhere = self.duty.others.contains(&tunnel);
        if elsewhere {
            let reason = reason.into();
            self.duty.tell(&Message::EndTunnel(EndTunnel { tunnel, reason }));
        }
        elsewhere
    }

    /// Ends all tunnels of the device, in all workers.
    pub(super) fn end_everywhere(&mut self, reason: Code) {
        self.end_tunnels(reason, |_| true);
        if !self.duty.others.is_empty() {
            self.duty.tell(&Message::EndAll(reason));
        }
    }

    /// Lets the other workers know the server's time, which is what their grants end by.
    pub(super) fn pass_time(&mut self, time: UnixTime) {
        if !self.duty.others.is_empty() {
            self.duty.tell(&Message::Time(time));
        }
    }
}
