//! The agent itself: one task that owns all state, and hears of everything else by messages.
//!
//! Under a supervisor it is one of several workers of the device, and its `duty` says what it is for.
//!
//! Shutdown goes in this order: tunnels end and are reported, the reports are sent, the control link ends.

mod duty;
mod linking;
mod offers;
mod onsite;
mod recorder;
mod renewal;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tunnel_certs::Peer;
use tunnel_net::ServerAddr;
use tunnel_net::clock::{Clock as _, FloorClock};
use tunnel_net::link::Try;
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_proto::backoff::Backoff;
use tunnel_proto::blackbox::BlackBox;
use tunnel_proto::carrier::Carrier;
use tunnel_proto::code::Code;
use tunnel_proto::cose::VerifyingKey;
use tunnel_proto::grant::LinkNonce;
use tunnel_proto::handover::Message;
use tunnel_proto::message::{Attached, FromAgent, FromServer, Report, TunnelEnded};
use tunnel_proto::names::{FactName, FactValue};
use tunnel_proto::{Identity, TunnelId, UnixTime};

use crate::acceptance::{Acceptance, ServerTime};
use crate::access::{Switch, Watch};
use crate::channel::Channel;
use crate::config::Config;
use crate::consent::Consent;
use crate::defaults;
use crate::failure::Failure;
use crate::host_keys;
use crate::link::Event;
use crate::operator::Operator;
use crate::outgoing::Outgoing;
use crate::policy::Right;
use crate::replay::ReplayMemory;
use crate::session::Settings;
use crate::sessions::Sessions;
use crate::silence::Silence;
use crate::site::Site;
use crate::state::{Lock, StateDir};
use crate::tunnel::Route;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings.
    pub config: Config,
    /// Where they are read from again, if at all.
    pub config_file: Option<PathBuf>,
    /// Which carriers are used.
    pub carriers: Try,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    state: StateDir,
    _lock: Lock,
    duty: duty::Duty,
    server: ServerAddr,
    own: Peer,
    credentials: Credentials,
    clock: Arc<FloorClock>,
    saved_floor: Option<UnixTime>,
    ends: Ends,
    websocket_tls: Arc<ClientConfig>,
    switch: Watch,
    site: Site,
    settings: watch::Sender<Arc<Settings>>,
    acceptance: Acceptance,
    sessions: Sessions,
    tunnels: BTreeMap<TunnelId, Live>,
    tasks: JoinSet<()>,
    reports: (mpsc::Sender<FromAgent>, mpsc::Receiver<FromAgent>),
    outgoing: Outgoing,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    link_task: JoinSet<()>,
    /// Whether there is a link, or one is on its way.
    dialling: bool,
    linked: Option<Linked>,
    server_ip: Option<IpAddr>,
    server_time: Option<ServerTime>,
    silence: Silence,
    /// How often the server is to be asked because of that, for the link.
    ask_every: watch::Sender<Option<Duration>>,
    backoff: Backoff,
    /// Earliest return to the server, if it asked for one.
    return_at: Option<Instant>,
    renewal: renewal::Renewal,
    black_box: BlackBox,
    /// Since when there is no link, by the clock that nobody sets.
    lost_at: Option<Instant>,
    /// Whether the server said why the link ends.
    said_goodbye: bool,
}

/// A control link that is up.
#[derive(Debug)]
struct Linked {
    outbox: mpsc::Sender<FromAgent>,
    nonce: LinkNonce,
    /// Who the handshake proved to be at the other end.
    server: Identity,
    carrier: Carrier,
    since: Instant,
    /// The server's key for grants; `None` until it has welcomed the agent.
    grant_key: Option<VerifyingKey>,
}

/// A tunnel that was accepted and is not over.
#[derive(Debug)]
struct Live {
    right: Right,
    attach: Option<oneshot::Sender<Attached>>,
    end: Option<oneshot::Sender<Code>>,
    operator: Operator,
    consent: Consent,
    /// The last key that the server handed out for its leg after the first.
    rekey: watch::Sender<Option<Attached>>,
    task: task::Id,
}

impl Agent {
    /// Reads the device's identity and takes its state; nothing is sent yet. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Says what is missing or wrong, and what to do.
    pub fn new(options: Options) -> Result<Self, Failure> {
        Self::with_supervisor(options, None, defaults::TRIAL)
    }

    /// As [`Agent::new`], as a worker that a supervisor tells what to do; a successor is on trial for `trial` at most.
    pub(crate) fn with_supervisor(
        options: Options,
        supervisor: Option<Channel>,
        trial: Duration,
    ) -> Result<Self, Failure> {
        let state = StateDir::new(&options.config.state_dir);
        let clock = Arc::new(state.clock());
        if state.path().exists() {
            state.create()?;
        }
        let enrolled = state.load(&clock)?;
        let server = options.config.on_the_way(enrolled.server)?;
        let server = server.remembered_in(&state.addresses());
        let lock = match supervisor {
            Some(_) => state.lock_shared(),
            None => state.lock(),
        }?;
        let switch = Switch::new(state.path()).watch();
        let site = Site::open(state.path());
        let settings = Settings {
            policy: options.config.policy.clone(),
            access: options.config.access && switch.is_on(),
            recording: true,
        };
        let silence = Silence::new(Instant::now(), options.config.max_server_silence);
        let black_box = BlackBox::new(&state.load_black_box(), clock.now());
        let ends = Ends::new(Arc::clone(&enrolled.trust), Arc::clone(&clock) as Arc<_>);
        Ok(Self {
            websocket_tls: Arc::new(tls::api_client(&ends, None)),
            acceptance: Acceptance::new(
                enrolled.own.identity.clone(),
                ReplayMemory::new(defaults::MAX_REMEMBERED),
            ),
            options,
            state,
            _lock: lock,
            duty: duty::Duty::new(supervisor, trial),
            server,
            own: enrolled.own,
            credentials: enrolled.credentials,
            clock,
            saved_floor: None,
            ends,
            switch,
            site,
            settings: watch::Sender::new(Arc::new(settings)),
            sessions: Sessions::default(),
            tunnels: BTreeMap::new(),
            tasks: JoinSet::new(),
            reports: mpsc::channel(defaults::QUEUE),
            outgoing: Outgoing::new(defaults::WAITING),
            events: mpsc::channel(defaults::QUEUE),
            link_task: JoinSet::new(),
            dialling: false,
            linked: None,
            server_ip: None,
            server_time: None,
            silence,
            ask_every: watch::Sender::new(silence.ask_every()),
            backoff: Backoff::default(),
            return_at: None,
            renewal: renewal::Renewal::default(),
            black_box,
            lost_at: None,
            said_goodbye: false,
        })
    }

    /// Returns who this device is.
    pub const fn own(&self) -> &Peer {
        &self.own
    }

    /// Works until `stop` is cancelled. Each message of `reload` makes it read its settings again.
    pub async fn run(mut self, stop: CancellationToken, mut reload: mpsc::Receiver<()>) {
        if self.duty.may_link() {
            self.dial(Duration::ZERO);
        }
        loop {
            let done = self.drain();
            self.tell_state();
            self.show_on_site();
            if done {
                // What was handed over last is the supervisor's only when it has left this process.
                self.duty.finish().await;
                break;
            }
            let (ready, silence_due) = (self.ready(), self.silence_due());
            let window_closes = self.window_closes();
            // All branches are cancel-safe: tokens, channels, join sets, a timer, and a place in a queue.
            tokio::select! {
                () = stop.cancelled() => break,
                heard = self.duty.hear() => {
                    if !self.handle_heard(heard) {
                        break;
                    }
                }
                () = until(silence_due) => self.handle_silence(),
                Some(()) = reload.recv() => self.reload(),
                () = until(window_closes) => self.end_overdue(),
                on = self.switch.changed() => self.handle_switch(on),
                () = self.site.changed() => self.handle_site(),
                Some(event) = self.events.1.recv() => self.handle_event(event),
                Some(report) = self.reports.1.recv() => self.handle_report(report),
                Some(ended) = self.tasks.join_next_with_id() => self.handle_task_end(ended),
                Some(ended) = self.link_task.join_next() => self.handle_link_task_end(ended),
                Some(room) = room(ready) => self.send(room),
            }
        }
        self.shut_down().await;
    }

    async fn shut_down(&mut self) {
        tracing::info!(tunnels = self.tunnels.len(), "agent stops");
        self.end_tunnels(Code::TunnelClosed, |_| true);
        self.outgoing.tell_all();
        let ended = async {
            while !self.tunnels.is_empty() || self.ready().is_some() || self.is_unconfirmed() {
                let ready = self.ready();
                tokio::select! {
                    Some(report) = self.reports.1.recv() => self.handle_report(report),
                    Some(ended) = self.tasks.join_next_with_id() => self.handle_task_end(ended),
                    // A link that ends by itself takes the reports with it; the next start tells what lives.
                    Some(event) = self.events.1.recv() => match event {
                        Event::Ended(_) => self.linked = None,
                        Event::Message(FromServer::SessionsKept(keys)) => self.outgoing.handle_kept(&keys),
                        _ => {}
                    },
                    Some(room) = room(ready) => self.send(room),
                }
            }
            while self.tasks.join_next().await.is_some() {}
            // Without an outbox the link says what it still has, and ends.
            if self.linked.take().is_some() {
                while self.link_task.join_next().await.is_some() {}
            }
        };
        if tokio::time::timeout(defaults::STOP_DEADLINE, ended)
            .await
            .is_err()
        {
            tracing::warn!("the server may not have heard of all ends");
        }
        self.save_clock();
    }

    /// Returns the way to the server, where there is one and something to tell.
    fn ready(&self) -> Option<mpsc::Sender<FromAgent>> {
        let linked = self.linked.as_ref().filter(|linked| linked.grant_key.is_some())?;
        (!self.outgoing.is_empty()).then(|| linked.outbox.clone())
    }

    /// Says whether the server is about to say that it has the end of a session for good.
    fn is_unconfirmed(&self) -> bool {
        self.linked.is_some() && self.outgoing.is_unconfirmed()
    }

    fn send(&mut self, room: mpsc::OwnedPermit<FromAgent>) {
        if let Some(message) = self.outgoing.pop() {
            room.send(message);
        }
        self.note_dropped();
    }

    /// Notes what was not told for want of room, once all else is.
    fn note_dropped(&mut self) {
        if self.outgoing.is_empty()
            && let Some(dropped) = self.outgoing.take_dropped()
        {
            let (refusals, others) = (dropped.refusals, dropped.others);
            tracing::warn!(
                refusals,
                others,
                "more waited for the server than there is room for"
            );
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Connected {
                carrier,
                server_ip,
                connection,
                opening,
            } => self.handle_connected(carrier, server_ip, &connection, opening),
            Event::Message(message) => self.handle_message(message),
            Event::Moved(carrier) => self.handle_moved(carrier),
            Event::Proven { clock, rtt } => {
                tracing::trace!(?rtt, "link proven");
                // The server answered at some time since it was asked.
                let now = Instant::now();
                let asked = now.checked_sub(rtt.unwrap_or_default()).unwrap_or(now);
                self.silence.handle_heard(asked);
                self.handle_server_time(clock);
            }
            Event::Ended(end) => self.handle_link_end(end),
        }
    }

    fn handle_message(&mut self, message: FromServer) {
        match message {
            FromServer::Welcome(welcome) => self.handle_welcome(welcome),
            FromServer::Offer(offer) => self.handle_offer(&offer),
            FromServer::Attached(attached) => self.handle_attached(attached),
            FromServer::AttachRefused(refused) => self.handle_attach_refused(&refused),
            FromServer::EndTunnel(end) => self.handle_end_tunnel(end.tunnel, end.reason.code),
            FromServer::Rotate(rotate) => self.handle_rotate(rotate),
            FromServer::Recording(recording) => {
                if recording {
                    // It may have had no room for what it could not record.
                    self.outgoing.tell_again();
                }
                self.handle_recording(recording);
            }
            FromServer::SessionsKept(keys) => self.outgoing.handle_kept(&keys),
            FromServer::Renewed(renewed) => self.handle_renewed(&renewed),
            FromServer::RenewRefused(refusal) => self.handle_renew_refused(&refusal),
            FromServer::Goodbye(goodbye) => self.handle_goodbye(&goodbye),
            FromServer::OutagesKept(ids) => self.handle_outages_kept(&ids),
            // The link answers `Pong` itself, and a kind of a newer version is passed over (THREATS AGT-15).
            _ => {}
        }
    }

    /// New sessions wait for a server that can record them.
    fn handle_recording(&self, recording: bool) {
        if !recording {
            tracing::warn!("the server cannot record what happens: no new session begins");
        }
        self.settings.send_modify(|settings| {
            *settings = Arc::new(Settings {
                recording,
                ..Settings::clone(settings)
            });
        });
    }

    /// Takes what a tunnel tells on its way to the server.
    fn handle_report(&mut self, report: FromAgent) {
        if let FromAgent::TunnelEnded(ended) = &report {
            self.tunnels.remove(&ended.tunnel);
        }
        self.outgoing.push(report);
    }

    /// A tunnel that ends without having reported it has failed.
    fn handle_task_end(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let Err(error) = ended else { return };
        let failed = self
            .tunnels
            .iter()
            .find(|(_, live)| live.task == error.id())
            .map(|(id, _)| *id);
        if let Some(tunnel) = failed {
            tracing::error!(tunnel = tunnel.fmt_short(), %error, "a tunnel failed");
            let ended = TunnelEnded {
                tunnel,
                reason: Code::Internal,
                sessions: 0,
            };
            self.handle_report(FromAgent::TunnelEnded(ended));
        }
    }

    /// Returns when the server has been silent for too long, while there is a tunnel to end.
    fn silence_due(&self) -> Option<Instant> {
        let live = self.tunnels.values().any(|live| live.end.is_some());
        self.silence.due().filter(|_| live)
    }

    fn handle_silence(&mut self) {
        tracing::warn!(
            code = %Code::ServerLost,
            tunnels = self.tunnels.len(),
            "the server is silent for too long, so all tunnels end"
        );
        self.end_everywhere(Code::ServerLost);
    }

    fn handle_switch(&mut self, on: bool) {
        tracing::info!(on, "the owner's switch");
        self.apply();
    }

    /// Reads the settings again; a file with errors changes nothing.
    fn reload(&mut self) {
        let Some(file) = &self.options.config_file else {
            return;
        };
        let mut config = match Config::load(file) {
            Ok(config) => config,
            Err(failure) => {
                tracing::error!(
                    why = failure.why,
                    "the configuration has errors; the old one stays in force"
                );
                return;
            }
        };
        if config.state_dir != self.options.config.state_dir {
            tracing::warn!("`state_dir` is read at the start only");
            config.state_dir.clone_from(&self.options.config.state_dir);
        }
        match config.on_the_way(self.server.clone()) {
            Ok(server) => self.server = server,
            Err(failure) => {
                tracing::error!(
                    why = failure.why,
                    "the proxy cannot be used; the old one stays in force"
                );
            }
        }
        self.options.config = config;
        tracing::info!("configuration read again");
        self.apply();
    }

    /// Puts settings and switch in force: for new sessions, for live tunnels, and in what the server is told.
    fn apply(&mut self) {
        let policy = self.options.config.policy.clone();
        let access = self.options.config.access && self.switch.is_on();
        self.silence
            .handle_setting(Instant::now(), self.options.config.max_server_silence);
        self.ask_every.send_replace(self.silence.ask_every());
        // Read before: what is borrowed here would keep its own replacement out for ever.
        let recording = self.settings.borrow().recording;
        self.settings.send_replace(Arc::new(Settings {
            policy: policy.clone(),
            access,
            recording,
        }));
        if access {
            self.end_tunnels(Code::LocalPolicy, |live| policy.admits_all(&live.right).is_err());
        } else {
            self.end_tunnels(Code::AccessOff, |_| true);
        }
        self.end_overdue();
        if self.linked.is_some() {
            self.outgoing.push(FromAgent::Report(self.report()));
        }
    }

    /// Returns what the device says of itself.
    fn report(&self) -> Report {
        let files = host_keys::files(self.options.config.host_key_files.as_deref());
        let (ssh_host_keys, errors) = host_keys::read(&files);
        for error in &errors {
            tracing::debug!(%error, "a host key is left out");
        }
        let settings = self.settings.borrow();
        let runs = settings.policy.services.iter();
        let runs = runs.filter(|(_, service)| service.runs());
        Report {
            runs: runs.map(|(name, _)| name.clone()).collect(),
            services: settings.policy.services.keys().cloned().collect(),
            ssh_host_keys,
            access: settings.access,
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            facts: texts(&self.options.config.facts),
        }
    }

    /// Tells the service manager, if there is one, how things stand; a worker has its supervisor do so.
    fn notify(&mut self, status: &str) {
        self.duty.tell(&Message::Status(status.to_owned()));
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Status(status)]) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }

    fn route(&self) -> Route {
        Route {
            server: self.server.clone(),
            proven: self.server_ip,
            carriers: self.options.carriers,
            websocket_tls: Arc::clone(&self.websocket_tls),
            ends: self.ends.clone(),
            credentials: self.credentials.clone(),
        }
    }
}

/// Returns facts as they travel.
fn texts(facts: &BTreeMap<FactName, FactValue>) -> BTreeMap<String, String> {
    let text = |(name, value): (&FactName, &FactValue)| (name.to_string(), value.to_string());
    facts.iter().map(text).collect()
}

/// Waits until a time; for ever when there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for room in the outbox of the link; forever when there is none.
async fn room(outbox: Option<mpsc::Sender<FromAgent>>) -> Option<mpsc::OwnedPermit<FromAgent>> {
    match outbox {
        Some(outbox) => outbox.reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}
