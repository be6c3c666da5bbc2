//! `tunnel forward`: services of a device on local ports, many connections at once, through one tunnel.

mod spec;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tunnel_proto::{Code, DeviceId, ServiceName, defaults};

pub use spec::{Spec, SpecError};

use crate::connect::session_failure;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Output, write_stdout};
use crate::signals::Signals;
use crate::tunnel::session::{self, SessionError};
use crate::tunnel::{Ask, Tunnel, Wish};

/// How long to wait before the next connection is taken when the system refuses one, for want of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What to forward.
#[derive(Debug)]
pub struct Forward {
    /// The device.
    pub device: DeviceId,
    /// The services and their local addresses.
    pub specs: Vec<Spec>,
    /// Whether addresses that other machines can reach are allowed.
    pub expose: bool,
    /// What the tunnel is asked for with.
    pub ask: Ask,
}

/// What the command prints for each service once it can be used.
#[derive(Serialize)]
struct Ready<'a> {
    tunnel: String,
    device: &'a DeviceId,
    service: &'a ServiceName,
    listen: SocketAddr,
    expires_at: u64,
}

/// Listens and forwards until the tunnel ends or the user ends it.
///
/// # Errors
/// Tells which port is taken, who refused the tunnel, or why it ended.
pub async fn run(home: &Home, output: Output, forward: Forward) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let login = home.login()?;
    let mut listeners = Vec::new();
    for spec in &forward.specs {
        listeners.push((listen(spec, forward.expose).await?, spec.service.clone()));
    }
    let mut services: Vec<ServiceName> = Vec::new();
    for spec in &forward.specs {
        if !services.contains(&spec.service) {
            services.push(spec.service.clone());
        }
    }
    let wish = Wish {
        device: forward.device,
        services,
        ask: forward.ask,
    };
    let tunnel = tokio::select! {
        tunnel = Tunnel::open(&login, &wish, output, |_| Ok(())) => Arc::new(tunnel?),
        () = signals.any() => return Err(Failure::interrupted()),
    };
    let mut accepting = JoinSet::new();
    // One budget for all ports: the device takes so many sessions in one tunnel.
    let room = Arc::new(Semaphore::new(defaults::SESSIONS_PER_TUNNEL as usize));
    for (listener, service) in listeners {
        announce(output, &tunnel, &wish.device, &service, &listener)?;
        accepting.spawn(accept(listener, service, tunnel.clone(), room.clone(), output));
    }
    let failure = tokio::select! {
        failure = tunnel.ended() => failure,
        never = tunnel.tell_silence(output) => match never {},
        () = signals.any() => Failure::interrupted(),
        Some(_) = accepting.join_next() => Failure::new(Code::Internal, "a local port is no longer served"),
    };
    accepting.shutdown().await;
    if let Some(tunnel) = Arc::into_inner(tunnel) {
        tunnel.close().await;
    }
    Err(failure)
}

async fn listen(spec: &Spec, expose: bool) -> Result<TcpListener, Failure> {
    let what = format!("could not listen on `{}`", spec.listen);
    if !spec.listen.ip().is_loopback() && !expose {
        return Err(Failure::new(Code::BadRequest, what)
            .why("other machines could use the device through it")
            .next("leave the address out, or add `--expose` if that is what you want"));
    }
    TcpListener::bind(spec.listen).await.map_err(|error| {
        Failure::new(Code::BadRequest, what)
            .why("the address cannot be used")
            .next("choose another port, or leave it out to get a free one")
            .detail(error.to_string())
            .exit(tunnel_proto::code::Exit::Failed as u8)
    })
}

fn announce(
    output: Output,
    tunnel: &Tunnel,
    device: &DeviceId,
    service: &ServiceName,
    listener: &TcpListener,
) -> Result<(), Failure> {
    let listen = listener.local_addr().map_err(|error| {
        Failure::new(Code::Internal, "could not find the local port").detail(error.to_string())
    })?;
    if output.json {
        let tunnel_id = tunnel.id().to_string();
        output.json_line(&Ready {
            tunnel: tunnel_id,
            device,
            service,
            listen,
            expires_at: tunnel.expires_at(),
        })
    } else {
        write_stdout(&format!("{listen} leads to {service} on {device}\n"))
    }
}

/// Takes connections, each for itself: what happens to one is no matter to the others.
async fn accept(
    listener: TcpListener,
    service: ServiceName,
    tunnel: Arc<Tunnel>,
    room: Arc<Semaphore>,
    output: Output,
) {
    let mut sessions = JoinSet::new();
    loop {
        // Above the limit, the connection waits in the listener's queue.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(_) = sessions.join_next() => {}
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let (service, tunnel) = (service.clone(), tunnel.clone());
                sessions.spawn(async move {
                    serve(stream, &service, &tunnel, output).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A local connection, which is reset when it is dropped before its time: the program at the port must see a failure,
/// not an orderly end.
struct Local {
    stream: TcpStream,
    ended_well: bool,
}

impl Drop for Local {
    fn drop(&mut self) {
        if !self.ended_well {
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn serve(stream: TcpStream, service: &ServiceName, tunnel: &Tunnel, output: Output) {
    // Without it, small packets wait for acknowledgements of those before.
    let _ = stream.set_nodelay(true);
    let mut local = Local {
        stream,
        ended_well: false,
    };
    let (reader, writer) = local.stream.split();
    let slow = || output.note(&session::slow_text(service));
    let Err(error) = session::run(tunnel.connection(), service, reader, writer, slow).await else {
        local.ended_well = true;
        return;
    };
    match error {
        SessionError::Refused(_) => output.failure(&session_failure(error, service)),
        SessionError::Local(error) => tracing::debug!(%error, "the local connection broke off"),
        SessionError::Broken => tracing::debug!(%service, "the service broke the connection off"),
        // The end of the tunnel is told once, for all.
        SessionError::Tunnel => {}
    }
}
