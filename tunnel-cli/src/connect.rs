//! `tunnel connect`: a service of a device on standard input and output, as a ProxyCommand uses it.

use tunnel_proto::api::OpenedTunnel;
use tunnel_proto::code::Exit;
use tunnel_proto::{Code, DeviceId, ServiceName};

use crate::failure::Failure;
use crate::home::Home;
use crate::output::Output as Talk;
use crate::signals;
use crate::ssh::host_keys;
use crate::stdio::{Input, Output};
use crate::tunnel::session::{self, SessionError};
use crate::tunnel::{Ask, Tunnel, Wish};

/// The service that is an SSH server unless a command says otherwise.
pub const SSH: &str = "ssh";

/// What to connect to.
#[derive(Debug)]
pub struct Connect {
    /// The device.
    pub device: DeviceId,
    /// The service.
    pub service: ServiceName,
    /// Whether the service is an SSH server, whose host keys must be known.
    pub host_keys: bool,
    /// What the tunnel is asked for with.
    pub ask: Ask,
}

/// Carries bytes between standard input and output and the service until both directions have ended.
///
/// # Errors
/// Tells who refused, cut or broke off.
pub async fn run(home: &Home, talk: Talk, connect: Connect) -> Result<(), Failure> {
    let mut signals = signals::Signals::new()?;
    let Connect {
        device,
        service,
        host_keys,
        ask,
    } = connect;
    let needs_keys = host_keys || service.as_str() == SSH;
    let wish = Wish {
        device,
        services: vec![service.clone()],
        ask,
    };
    let keys = |opened: &OpenedTunnel| write_keys(home, &wish.device, opened, needs_keys);
    let tunnel = tokio::select! {
        tunnel = async { Tunnel::open(&home.login()?, &wish, talk, keys).await } => tunnel?,
        () = signals.any() => return Err(Failure::interrupted()),
    };
    let result = tokio::select! {
        result = carry(&tunnel, &service, talk) => result,
        failure = tunnel.ended() => Err(failure),
        never = tunnel.tell_silence(talk) => match never {},
        () = signals.any() => Err(Failure::interrupted()),
    };
    tunnel.close().await;
    result
}

/// Writes the host keys before the first byte reaches `ssh` (THREATS CLI-04).
fn write_keys(home: &Home, device: &DeviceId, opened: &OpenedTunnel, needed: bool) -> Result<(), Failure> {
    if needed {
        host_keys::write(home, device, &opened.ssh_host_keys)
    } else {
        Ok(())
    }
}

async fn carry(tunnel: &Tunnel, service: &ServiceName, talk: Talk) -> Result<(), Failure> {
    let local = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::nobody_reads();
        }
        Failure::new(Code::Unavailable, "could not use standard input and output")
            .why("the system refuses")
            .next("check where they lead")
            .detail(error.to_string())
            .exit(Exit::Failed as u8)
    };
    let slow = || talk.note(&session::slow_text(service));
    let (input, output) = (Input::new().map_err(local)?, Output::new().map_err(local)?);
    match session::run(tunnel.connection(), service, input, output, slow).await {
        Ok(()) => Ok(()),
        Err(SessionError::Tunnel) => Err(tunnel.ended().await),
        Err(SessionError::Local(error)) => Err(local(error)),
        Err(error) => Err(session_failure(error, service)),
    }
}

/// Makes the failure of a session that the device refused or broke off.
pub fn session_failure(error: SessionError, service: &ServiceName) -> Failure {
    let what = format!("could not use the service `{service}`");
    match error {
        SessionError::Refused(refusal) => Failure::refused(&refusal, what),
        SessionError::Broken => Failure::new(Code::TargetUnreachable, what)
            .why("the service broke the connection off")
            .next("check the service on the device"),
        SessionError::Tunnel => Failure::new(Code::TunnelLost, what),
        SessionError::Local(error) => Failure::new(Code::Unavailable, what)
            .why("the local connection broke off")
            .next("try again")
            .detail(error.to_string())
            .exit(Exit::Failed as u8),
    }
}
