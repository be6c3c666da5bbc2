//! One tunnel at the device: its leg, its one end-to-end connection, and the sessions in it.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tunnel_net::leg::{Heard, Leg, LegConfig, LegState, Rekey};
use tunnel_net::link::Try;
use tunnel_net::tls::{self, Credentials, Ends};
use tunnel_net::wake::Wake;
use tunnel_net::{ServerAddr, quic};
use tunnel_proto::bind::Role;
use tunnel_proto::code::Code;
use tunnel_proto::defaults::BIND_DEADLINE;
use tunnel_proto::keys::LegKey;
use tunnel_proto::message::{Attached, FromAgent, TunnelEnded};

use crate::acceptance::ServerTime;
use crate::consent::Consent;
use crate::defaults::{CLOSE_DEADLINE, HANDSHAKE_DEADLINE};
use crate::lifetime::Lifetime;
use crate::operator::Operator;
use crate::policy::Right;
use crate::session::{self, Context, Settings};
use crate::sessions::Sessions;

/// Streams beyond the sessions of a grant, so that one too many is told so and does not hang.
const SPARE_STREAMS: u32 = 8;

/// How the device reaches the relay, and proves itself to operators.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) server: ServerAddr,
    pub(crate) proven: Option<IpAddr>,
    pub(crate) carriers: Try,
    pub(crate) websocket_tls: Arc<ClientConfig>,
    pub(crate) ends: Ends,
    pub(crate) credentials: Credentials,
}

/// What all tunnels of an agent share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) sessions: Sessions,
    pub(crate) reports: mpsc::Sender<FromAgent>,
    pub(crate) time: ServerTime,
}

/// A tunnel that was accepted.
#[derive(Debug)]
pub(crate) struct Tunnel {
    context: Arc<Context>,
    left: Duration,
    route: Route,
    /// What is there so far, to be closed whatever ends the tunnel.
    leg: Option<Leg>,
    connection: Option<Connection>,
    running: JoinSet<()>,
}

impl Tunnel {
    /// Makes a tunnel that lives for `left`.
    pub(crate) fn new(
        right: Right,
        left: Duration,
        route: Route,
        shared: Shared,
        operator: Operator,
        consent: Consent,
    ) -> Self {
        let Shared {
            settings,
            sessions,
            reports,
            time,
        } = shared;
        let life = Mutex::new(Lifetime::new(Instant::now(), left, right.grant.limits));
        let cut = CancellationToken::new();
        let context = Arc::new(Context {
            right,
            settings,
            sessions,
            life,
            reports,
            operator,
            consent,
            time,
            clock: Arc::clone(&route.ends.clock),
            cut,
            ended: OnceLock::new(),
            numbered: AtomicU64::new(0),
        });
        Self {
            context,
            left,
            route,
            leg: None,
            connection: None,
            running: JoinSet::new(),
        }
    }

    /// Serves the tunnel until it ends by itself or is told to, and reports its end.
    pub(crate) async fn run(
        mut self,
        attached: oneshot::Receiver<Attached>,
        keys: watch::Receiver<Option<Attached>>,
        end: oneshot::Receiver<Code>,
    ) {
        let context = Arc::clone(&self.context);
        let reason = tokio::select! {
            biased;
            told = end => told.unwrap_or(Code::TunnelClosed),
            refused = context.consent.refused() => refused,
            reason = self.serve(attached, keys) => reason,
        };
        self.close(reason).await;
    }

    /// Returns why the tunnel is over.
    async fn serve(
        &mut self,
        attached: oneshot::Receiver<Attached>,
        keys: watch::Receiver<Option<Attached>>,
    ) -> Code {
        let Ok(Ok(attached)) = tokio::time::timeout(BIND_DEADLINE, attached).await else {
            return Code::TunnelLost;
        };
        let leg = match Leg::open(self.leg_config(attached)) {
            Ok(leg) => leg,
            Err(error) => {
                tracing::warn!(%error, "no leg could be opened");
                return Code::Internal;
            }
        };
        let endpoint = leg.accept_endpoint(self.quic_config(leg.wake()));
        let state = leg.state();
        self.context
            .operator
            .listen(silent_since(leg.heard(), state.clone()));
        let rotation = AbortOnDropHandle::new(tokio::task::spawn(rotate(keys, leg.rekey())));
        self.leg = Some(leg);
        let connection = tokio::select! {
            connection = accept(&endpoint) => connection,
            code = circuit_ended(state.clone()) => return code,
            () = tokio::time::sleep(BIND_DEADLINE) => None,
        };
        // The tunnel is for one connection; nobody else gets as far as a handshake.
        endpoint.set_server_config(None);
        let Some(connection) = connection else {
            return Code::TunnelLost;
        };
        self.connection = Some(connection.clone());
        if !self.is_operator(&connection) {
            return Code::CertName;
        }
        tracing::debug!("operator connected");
        let reason = self.serve_sessions(&connection, state).await;
        drop(rotation);
        reason
    }

    async fn serve_sessions(&mut self, connection: &Connection, state: watch::Receiver<LegState>) -> Code {
        loop {
            let timeout = self.context.life().next_timeout();
            // All branches are cancel-safe: a stream that is not accepted yet stays with the connection.
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        self.running.spawn(session::run(Arc::clone(&self.context), send, recv));
                    }
                    Err(error) => return lost(&error),
                },
                Some(ended) = self.running.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a session failed");
                    }
                }
                () = tokio::time::sleep_until(timeout.into()) => {
                    if let Some(code) = self.context.life().handle_timeout(Instant::now()) {
                        return code;
                    }
                }
                code = circuit_ended(state.clone()) => return code,
                () = self.context.operator.gave_way() => return Code::TunnelLost,
            }
        }
    }

    /// Ends everything: first the connection, so that not one byte more gets in, then the local sockets, then the leg.
    async fn close(mut self, reason: Code) {
        // Before the streams break: what breaks because of this says so.
        let _ = self.context.ended.set(reason);
        if let Some(connection) = &self.connection {
            connection.close(VarInt::from_u32(reason as u32), reason.as_str().as_bytes());
        }
        self.context.cut.cancel();
        let running = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_DEADLINE, running).await.is_err() {
            self.running.abort_all();
        }
        let (tunnel, sessions) = (self.context.right.grant.tunnel, self.context.life().total());
        tracing::info!(tunnel = tunnel.fmt_short(), %reason, sessions, "tunnel ended");
        let ended = TunnelEnded {
            tunnel,
            reason,
            sessions,
        };
        // It fails only when the agent stops without waiting.
        let _ = self.context.reports.send(FromAgent::TunnelEnded(ended)).await;
        if let (Some(leg), Some(_)) = (&self.leg, &self.connection) {
            let _ = tokio::time::timeout(CLOSE_DEADLINE, leg.endpoint().wait_idle()).await;
        }
    }

    fn leg_config(&self, attached: Attached) -> LegConfig {
        let mut server = self.route.server.clone().with_udp_port(attached.udp_port);
        server.tcp_port = attached.websocket_port;
        LegConfig {
            server,
            proven: self.route.proven,
            circuit: attached.circuit,
            role: Role::Destination,
            key: LegKey::new(attached.leg_key),
            websocket_tls: Arc::clone(&self.route.websocket_tls),
            carriers: self.route.carriers,
        }
    }

    fn quic_config(&self, wake: &Wake) -> quinn::ServerConfig {
        let grant = &self.context.right.grant;
        let tls = tls::tunnel_server(
            &self.route.ends,
            &self.route.credentials,
            grant.operator_identity(),
            grant.holder_key,
        );
        let mut config = quinn::ServerConfig::with_crypto(tls::quic_server(tls));
        config.transport_config(quic::agent_transport(
            grant.limits.sessions.saturating_add(SPARE_STREAMS),
            self.left,
            wake,
        ));
        // The leg has one virtual peer for ever; what moves is below it.
        config.migration(false);
        config
    }

    /// Asks the handshake's outcome once more, so that no mistake in TLS settings lets somebody else in (invariant I4).
    fn is_operator(&self, connection: &Connection) -> bool {
        let ends = &self.route.ends;
        let grant = &self.context.right.grant;
        tls::connection_peer(connection, &ends.trust, ends.clock.now())
            .is_ok_and(|peer| peer.identity == grant.operator_identity() && peer.key == grant.holder_key)
    }
}

/// Waits for the operator. A handshake that fails is somebody else's, and costs the operator nothing but its time.
async fn accept(endpoint: &Endpoint) -> Option<Connection> {
    loop {
        let connecting = match endpoint.accept().await?.accept() {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%error, "not a handshake");
                continue;
            }
        };
        match tokio::time::timeout(HANDSHAKE_DEADLINE, connecting).await {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) => tracing::debug!(%error, "handshake refused"),
            Err(_) => tracing::debug!("handshake not finished in time"),
        }
    }
}

/// Tells since when the operator has been silent, while the relay would let it be heard.
fn silent_since(heard: Heard, state: watch::Receiver<LegState>) -> impl Fn() -> Option<Instant> {
    move || {
        let state = *state.borrow();
        let last = heard.last()?;
        // After an outage of the device's own, the operator has the time to be heard again.
        (!state.silent).then(|| state.heard_again.map_or(last, |again| last.max(again)))
    }
}

/// Hands the leg each next key that the server gives out for it.
async fn rotate(mut keys: watch::Receiver<Option<Attached>>, leg: Rekey) {
    while keys.changed().await.is_ok() {
        let attached = keys.borrow_and_update().clone();
        if let Some(attached) = attached {
            tracing::debug!("the leg has its next key");
            leg.rekey(LegKey::new(attached.leg_key));
        }
    }
}

/// Waits until the relay says that the circuit has ended, or the leg is gone.
async fn circuit_ended(mut state: watch::Receiver<LegState>) -> Code {
    match state.wait_for(|state| state.ended.is_some()).await {
        Ok(state) => state.ended.unwrap_or(Code::TunnelLost),
        Err(_) => Code::TunnelLost,
    }
}

/// Returns what the end of a connection means.
fn lost(error: &ConnectionError) -> Code {
    match error {
        ConnectionError::ApplicationClosed(_) => Code::TunnelClosed,
        ConnectionError::TransportError(_) | ConnectionError::VersionMismatch => Code::Protocol,
        _ => Code::TunnelLost,
    }
}
