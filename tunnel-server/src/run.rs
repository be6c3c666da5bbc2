//! Starting and stopping a server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel_net::clock::{Clock, SystemClock};
use tunnel_net::{quic, tls};
use tunnel_proto::{Code, UnixTime};

use crate::audit::Event;
use crate::ca::{Keys, KeysError};
use crate::config::{Config, DataDir};
use crate::control::approvals::{Decisions, expiry};
use crate::control::authoriser::Authoriser;
use crate::control::decide::InForce;
use crate::control::evidence::{self, Evidence};
use crate::control::quotas::Quotas;
use crate::control::retention;
use crate::control::steadiness::Steadiness;
use crate::control::suspension::Suspended;
use crate::control::trust::Revoked;
use crate::control::{Control, Ports};
use crate::failure::chain;
use crate::links::Links;
use crate::links::returns::Arrivals;
use crate::notify::Target;
use crate::relay::{Relay, RelayConfig, RelayEvent};
use crate::store::{Store, StoreError};
use crate::tunnels::Tunnels;
use crate::webhook::TargetError;
use crate::{api, links, metrics, notify, tunnels};
use tunnel_policy::Engine;

use self::gate::{Gate, PROBES};
use self::tcp::Front;

pub(crate) mod gate;
pub(crate) mod rate;
mod tcp;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Handshakes of control links that wait to be accepted; the limit proper is that of [`gate::HANDSHAKES`].
const MAX_INCOMING: usize = 1024;
/// Bytes that may come for one such handshake, and for all, before it is accepted.
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFERS: u64 = 8 * 1024 * 1024;
/// How long work that was begun has to end when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often the server looks whether its own certificate is due.
const RENEWAL_EVERY: Duration = Duration::from_secs(3600);

/// Tells why a server does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A key or certificate is not usable.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A service of the fleet's owner cannot be asked or told.
    #[error(transparent)]
    Webhook(#[from] TargetError),
    /// The address is not to be had.
    #[error("could not listen on {address} over {protocol}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Signals cannot be heard.
    #[error("could not listen for signals")]
    Signals(#[source] io::Error),
    /// The live tunnels of before the start could not be taken in.
    #[error("could not take in the tunnels of before the start ({0})")]
    Recovery(Code),
    /// A part that runs as long as the server does has ended.
    #[error("`{0}` has ended, which it must not; restart the server, and report it")]
    Failed(&'static str),
}

/// A running server. Dropping it stops it at once; [`Server::shutdown`] stops it in good order.
#[derive(Debug)]
pub struct Server {
    tcp: SocketAddr,
    udp: SocketAddr,
    metrics: Option<SocketAddr>,
    control: Arc<Control>,
    /// What runs as long as the server does.
    lasting: JoinSet<&'static str>,
}

/// What the server shows and demands in handshakes.
struct Tls {
    api: Arc<rustls::ServerConfig>,
    link: quinn::ServerConfig,
    /// When the server's own certificate is to be renewed.
    due: UnixTime,
}

impl Tls {
    fn load(keys: &Keys, clock: &Arc<dyn Clock>, revoked: &Arc<Revoked>) -> Result<Self, KeysError> {
        let (credentials, due) = keys.own_credentials(clock.now())?;
        let ends = tls::Ends::new(keys.trust.clone(), clock.clone());
        let link = tls::quic_server(tls::link_server(&ends, &credentials, revoked.clone()));
        let mut link = quinn::ServerConfig::with_crypto(link);
        link.transport_config(quic::link_transport())
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFERS);
        let api = Arc::new(tls::api_server(&ends, &credentials, revoked.clone()));
        Ok(Self { api, link, due })
    }
}

impl Server {
    /// Starts a server on its data directory.
    ///
    /// Port 0 is taken for any free one; [`Server::tcp_addr`] and [`Server::udp_addr`] tell which.
    ///
    /// # Errors
    /// Returns what stands in the way.
    pub async fn start(data: &DataDir, config: Config) -> Result<Self, RunError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let asked = config.authoriser.as_ref();
        let authoriser = asked
            .map(|asked| Authoriser::new(asked, data.path()))
            .transpose()?;
        let told = config
            .notify
            .iter()
            .map(|told| Target::new(told, data.path()).map(Arc::new));
        let notify = told.collect::<Result<_, _>>()?;
        let keys = Keys::load(data, &config)?;
        let store = Store::open(&data.store(), &config.trust_domain).await?;
        let revoked = Arc::new(Revoked::default());
        revoked.add(&store.revoked().await?);
        let suspended = Suspended::new(store.suspended().await?);
        let policy = load_policy(&store).await?;
        let tls = Tls::load(&keys, &clock, &revoked)?;

        let listener = listen(config.listen)?;
        let metrics = match config.metrics {
            Some(address) => {
                let opened = metrics::listen(address).await;
                Some(opened.map_err(|source| listen_error(address, "TCP", source))?)
            }
            None => None,
        };
        let metrics_addr = metrics.as_ref().and_then(|listener| listener.local_addr().ok());
        let tcp = listener
            .local_addr()
            .map_err(|source| listen_error(config.listen, "TCP", source))?;
        let (wall, newest) = (clock.now(), store.audit_newest().await?);
        let (relay, endpoint, events) = start_relay(config.listen, tcp, &keys, tls.link)?;
        let udp = relay.local_addr();
        let ports = told_ports(&config, tcp, udp);
        let control = Arc::new(Control {
            identity: keys.identity().clone(),
            node: config.node,
            address: config.address,
            ports,
            trust: keys.trust.clone(),
            steadiness: Mutex::new(Steadiness::after(newest.unwrap_or(wall), wall, Instant::now())),
            clock,
            keys,
            store,
            relay,
            revoked,
            suspended,
            policy: watch::Sender::new(Arc::new(policy)),
            decisions: Decisions::default(),
            tunnels: Tunnels::default(),
            links: Links::default(),
            authoriser,
            notify,
            quotas: Quotas::new(Instant::now()),
            evidence: Evidence::new(config.audit_strict),
            audit_kept: config.audit_keep_days.map(|days| DAY * days),
            started: Instant::now(),
            returns_per_sec: config.returns_per_sec,
            shed: AtomicU64::new(0),
            arrivals: Mutex::new(Arrivals::new(config.returns_per_sec, Instant::now())),
            probes: Gate::new(PROBES),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let (node, version) = (control.node.clone(), env!("CARGO_PKG_VERSION").to_owned());
        let policy_revision = control.in_force().revision;
        control
            .store
            .record(Event::ServerStarted {
                node,
                version,
                policy_revision,
            })
            .await?;
        let recovered = control.recover().await.map_err(RunError::Recovery)?;
        // Before anybody can rest on one. A failure was logged, and is tried again.
        let _ = control.expire_approvals().await;
        tracing::info!(node = %control.node, %tcp, %udp, recovered, "listening");

        let api_tls = Arc::new(ArcSwap::new(tls.api));
        let front = Front {
            router: api::router(control.clone()),
            control: control.clone(),
            tls: api_tls.clone(),
            stop: control.stop.clone(),
        };
        let mut lasting = JoinSet::new();
        let renewal = renew_own(control.clone(), endpoint.clone(), api_tls, tls.due);
        lasting.spawn(named("renewal of the server's certificate", renewal));
        start_watches(&mut lasting, &control, events);
        // Read before anybody can link anew.
        match control.store.linked_devices().await {
            Ok(linked) => control.spawn(links::restart::tell(control.clone(), linked)),
            Err(error) => tracing::warn!(%error, "devices cannot be told that the server was started anew"),
        }
        let links = links::accept::accept(control.clone(), endpoint, control.stop.clone());
        lasting.spawn(named("control links", links));
        lasting.spawn(named("metrics", metrics::serve(control.clone(), metrics)));
        lasting.spawn(named("api", front.accept(listener)));
        Ok(Self {
            tcp,
            udp,
            metrics: metrics_addr,
            control,
            lasting,
        })
    }

    /// Returns where the API and the WebSocket carrier are.
    pub const fn tcp_addr(&self) -> SocketAddr {
        self.tcp
    }

    /// Returns where the relay and the control links are.
    pub const fn udp_addr(&self) -> SocketAddr {
        self.udp
    }

    /// Returns the middle of everything, for tests of what cannot be seen from outside.
    #[cfg(test)]
    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Drops the audit records that are older, as the look once an hour does, and returns how many. The time is handed in: it
    /// has to be one to which the trail reaches.
    ///
    /// # Errors
    /// Returns the code of what could not be written.
    pub async fn drop_audit(&self, kept: Duration, now: UnixTime) -> Result<u64, Code> {
        self.control.drop_audit(kept, now).await
    }

    /// Returns where the figures for monitoring are, if they are anywhere.
    pub const fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Waits for a part to end that must not, and returns its name.
    async fn failed(&mut self) -> &'static str {
        match self.lasting.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(_)) | None => "a task",
        }
    }

    /// Stops the server: no new connections, requests in progress are answered, agents are asked to come back, the relay
    /// ends, and the store is closed. Tunnels stay alive: their ends find them again when the server is back.
    pub async fn shutdown(mut self) {
        let control = self.control.clone();
        control.stop.cancel();
        let ended = async { while self.lasting.join_next().await.is_some() {} };
        let in_order = tokio::time::timeout(DRAIN, ended).await.is_ok();
        let relay = control.relay.clone();
        let halted = tokio::task::spawn_blocking(move || relay.shutdown())
            .await
            .is_ok();
        control.tasks.close();
        let drained = tokio::time::timeout(DRAIN, control.tasks.wait()).await.is_ok();
        control.keep_all_spent().await;
        control
            .note(Event::ServerStopped {
                node: control.node.clone(),
            })
            .await;
        control.store.close().await;
        tracing::info!(in_order, halted, drained, "stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.stop.cancel();
    }
}

/// Runs a server until it is told to stop by SIGTERM or SIGINT, or a part of it fails.
///
/// # Errors
/// Returns why it did not start, or what has failed.
pub async fn run(data: &DataDir, config: Config) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let mut server = Server::start(data, config).await?;
    tell_manager(&[sd_notify::NotifyState::Ready]);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        name = server.failed() => Err(RunError::Failed(name)),
    };
    tell_manager(&[sd_notify::NotifyState::Stopping]);
    server.shutdown().await;
    outcome
}

/// Tells the service manager, if there is one.
fn tell_manager(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Gives a task that lasts a name to be blamed by.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

fn start_watches(
    lasting: &mut JoinSet<&'static str>,
    control: &Arc<Control>,
    events: mpsc::Receiver<RelayEvent>,
) {
    lasting.spawn(named(
        "deadlines of tunnels",
        tunnels::watch::deadlines(control.clone()),
    ));
    lasting.spawn(named(
        "operators of tunnels",
        tunnels::watch::attendance(control.clone()),
    ));
    lasting.spawn(named("alarms of cuts", tunnels::confirm::alarms(control.clone())));
    lasting.spawn(named("records of it all", evidence::watch(control.clone())));
    lasting.spawn(named("age of records", retention::watch(control.clone())));
    lasting.spawn(named("end of approvals", expiry::watch(control.clone())));
    lasting.spawn(named("passing of time", tunnels::watch::time(control.clone())));
    lasting.spawn(named(
        "events of the relay",
        tunnels::watch::relay_events(control.clone(), events),
    ));
    lasting.spawn(named("notifications", notify::run(control.clone())));
    lasting.spawn(named(
        "certificates of links",
        links::watch_certificates(control.clone()),
    ));
}

/// Loads the policy of the store. One that cannot be used is as none: everything is denied (THREATS I3).
async fn load_policy(store: &Store) -> Result<InForce, StoreError> {
    let Some(record) = store.policy().await? else {
        tracing::error!("the store has no policy, so everything is denied");
        return Ok(InForce {
            engine: Engine::deny_all(),
            revision: 0,
            text: String::new(),
        });
    };
    let engine = Engine::new(&record.text).unwrap_or_else(|error| {
        tracing::error!(error = %chain(&error), "the policy of the store cannot be used, so everything is denied");
        Engine::deny_all()
    });
    Ok(InForce {
        engine,
        revision: record.revision,
        text: record.text,
    })
}

fn listen_error(address: SocketAddr, protocol: &'static str, source: io::Error) -> RunError {
    RunError::Listen {
        address,
        protocol,
        source,
    }
}

/// Listens over TCP: on `[::]` for IPv4 too, and for IPv4 alone where the machine has no IPv6.
fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    let listener = try_listen(address).or_else(|error| match address {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() && error.kind() != io::ErrorKind::AddrInUse => {
            try_listen((Ipv4Addr::UNSPECIFIED, v6.port()).into())
        }
        _ => Err(error),
    });
    listener.map_err(|source| listen_error(address, "TCP", source))
}

fn try_listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Returns the ports that peers are told: those of the server's address, which may be mapped to the ones that it listens on.
/// Where it listens on any free port, it can only be these.
const fn told_ports(config: &Config, tcp: SocketAddr, udp: SocketAddr) -> Ports {
    if config.listen.port() == 0 {
        return Ports {
            tcp: tcp.port(),
            udp: udp.port(),
        };
    }
    Ports {
        tcp: config.address.tcp_port,
        udp: config.address.udp_port,
    }
}

/// Starts the relay on the port that TCP has. Where any port will do and this one is taken, it gets another.
fn start_relay(
    wanted: SocketAddr,
    tcp: SocketAddr,
    keys: &Keys,
    link: quinn::ServerConfig,
) -> Result<(Relay, quinn::Endpoint, mpsc::Receiver<RelayEvent>), RunError> {
    let start = |listen| Relay::start(RelayConfig::new(listen, keys.relay_secret.clone()), link.clone());
    let started = start(tcp).or_else(|error| {
        if wanted.port() == 0 {
            start(wanted)
        } else {
            Err(error)
        }
    });
    started.map_err(|source| listen_error(tcp, "UDP", source))
}

/// Renews the server's own certificate in time. Connections go on; new ones are shown the new certificate.
async fn renew_own(
    control: Arc<Control>,
    endpoint: quinn::Endpoint,
    api: Arc<ArcSwap<rustls::ServerConfig>>,
    mut due: UnixTime,
) {
    while !control.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(RENEWAL_EVERY) => {}
            () = control.stopping() => return,
        }
        if control.now() < due {
            continue;
        }
        match Tls::load(&control.keys, &control.clock, &control.revoked) {
            Ok(tls) => {
                endpoint.set_server_config(Some(tls.link));
                api.store(tls.api);
                due = tls.due;
                tracing::info!(due = %due, "the server's certificate was renewed");
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "the server's certificate could not be renewed")
            }
        }
    }
}
