//! A tunnel from the operator's end: asked for, attached, connected end to end, watched, and closed.

pub mod commands;
mod end;
pub mod session;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tunnel_net::leg::{Leg, LegConfig};
use tunnel_net::link::Try;
use tunnel_net::{quic, tls};
use tunnel_proto::api::{AttachTunnel, AttachedTunnel, OpenTunnel, OpenedTunnel};
use tunnel_proto::batch::BatchHash;
use tunnel_proto::bind::Role;
use tunnel_proto::defaults::{CLOCK_TOLERANCE, TUNNEL_LIFETIME_MAX};
use tunnel_proto::ids::unhex;
use tunnel_proto::keys::{LegKey, Secret};
use tunnel_proto::{Code, DeviceId, Identity, ServiceName, TunnelId};

use crate::api::Api;
use crate::failure::Failure;
use crate::home::Login;
use crate::http::HttpError;
use crate::output::Output;
use crate::ttl::Span;
use end::End;

/// How long the two ends have to find each other after both are admitted: a fall-back to WebSocket and a slow link.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// How long a server that does not answer is asked again: one that restarts is back within seconds, and its devices soon after.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long to wait before it is asked again.
const PAUSE: Duration = Duration::from_millis(300);

/// How long closing may take: the command's result does not depend on it.
const CLOSE: Duration = Duration::from_secs(2);

/// How long the process stays for its last packet to leave.
const LAST_PACKET: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The device.
    pub device: DeviceId,
    /// The services, at least one.
    pub services: Vec<ServiceName>,
    /// How.
    pub ask: Ask,
}

/// How a tunnel is asked for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// How long; the server's default if `None`.
    pub ttl: Option<Span>,
    /// Why, for the record.
    pub reason: Option<String>,
    /// Whether it is an emergency, in which approvals are done without.
    pub break_glass: bool,
    /// Over which carriers.
    pub carriers: Try,
    /// A permit of the owner's keys, as it travels.
    pub permit: Option<Vec<u8>>,
    /// The only batch of commands that the tunnel is to be for.
    pub batch: Option<BatchHash>,
}

/// An open tunnel. Dropping it gives it up; [`Tunnel::close`] also tells the server.
#[derive(Debug)]
pub struct Tunnel {
    id: TunnelId,
    expires_at: u64,
    connection: quinn::Connection,
    leg: Leg,
    end: End,
    closer: Api,
}

impl Tunnel {
    /// Opens a tunnel. `opened` is called with the server's answer before anything is exchanged with the device, while
    /// the leg is being admitted.
    ///
    /// # Errors
    /// Tells who refused or did not answer.
    pub async fn open(
        login: &Login,
        wish: &Wish,
        talk: Output,
        opened: impl FnOnce(&OpenedTunnel) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let what = format!("could not open a tunnel to `{}`", wish.device);
        let mut api = Api::new(login);
        let request = OpenTunnel {
            device: wish.device.to_string(),
            services: wish.services.iter().map(ToString::to_string).collect(),
            ttl_secs: wish.ask.ttl.map(|ttl| ttl.0.as_secs()),
            reason: wish.ask.reason.clone(),
            permit: wish
                .ask
                .permit
                .as_ref()
                .map(|permit| URL_SAFE_NO_PAD.encode(permit)),
            break_glass: wish.ask.break_glass,
            batch: wish.ask.batch,
        };
        let answer = ask(&mut api, &request, talk)
            .await
            .map_err(|error| error.into_failure(&what))?;
        let expires = Instant::now() + lifetime(answer.opened_at, answer.expires_at);
        // Who must be at the other end follows from what was asked for, not from what the server says (THREATS DAT-28).
        let device = Identity::device(login.trust.trust_domain(), &wish.device);
        if answer.device_identity != device.to_string() {
            return Err(Failure::new(Code::CertName, what).detail("the server leads to another device"));
        }
        // The caller's part runs while the request is under way.
        let redeem = AttachTunnel {
            token: answer.token.clone(),
        };
        let (attached, accepted) =
            tokio::join!(api.attach(answer.tunnel, &redeem), async { opened(&answer) });
        accepted?;
        let attached = attached.map_err(|error| error.into_failure(&what))?;
        let leg = open_leg(login, &api, &attached, wish.ask.carriers, &what)?;
        // The connection waits for the end; closing makes another one, when nobody waits for it any more.
        let closer = api.again();
        let end = End::watch(api, answer.tunnel, &leg, expires);
        let connection = connect(login, &leg, device, &end, &what).await?;
        Ok(Self {
            id: answer.tunnel,
            expires_at: answer.expires_at,
            connection,
            leg,
            end,
            closer,
        })
    }

    /// Returns the tunnel's id.
    pub const fn id(&self) -> TunnelId {
        self.id
    }

    /// Returns when the tunnel ends at the latest, in seconds since 1970.
    pub const fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Returns the end-to-end connection.
    pub const fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// Waits until the tunnel ends, whoever ends it, and tells why.
    pub async fn ended(&self) -> Failure {
        self.end.reason(&self.connection).await
    }

    /// Tells each time that the relay falls silent and that it answers again; never returns.
    ///
    /// The tunnel goes on meanwhile: nothing is lost, and all ways to the relay are being tried.
    pub async fn tell_silence(&self, output: Output) -> Infallible {
        let mut state = self.leg.state();
        let mut silent = false;
        loop {
            let now = *state.borrow_and_update();
            if now.silent != silent {
                silent = now.silent;
                match now.active {
                    _ if silent => output.note("the relay is silent; all ways to it are being tried"),
                    Some(carrier) => output.note(&format!("the relay answers again, over {carrier}")),
                    None => output.note("the relay answers again"),
                }
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Closes the tunnel: tells the device and the server, in bounded time.
    pub async fn close(mut self) {
        let by_device = matches!(
            self.connection.close_reason(),
            Some(quinn::ConnectionError::ApplicationClosed(_))
        );
        self.connection.close((Code::TunnelClosed as u32).into(), b"");
        // A device that has ended it tells the server why, which is more than could be said here.
        if self.end.is_known() || by_device {
            // The last packet needs a moment to leave.
            let _ = tokio::time::timeout(LAST_PACKET, self.leg.endpoint().wait_idle()).await;
        } else {
            // The server learns it from the device too; this is for the case that the device does not hear us.
            let _ = tokio::time::timeout(CLOSE, self.closer.close(self.id)).await;
        }
    }
}

/// Returns how long a tunnel lives. Both times are of the server's clock, and what goes by is of this machine's that nobody
/// sets; whatever a server says, none lives longer than any may.
fn lifetime(opened_at: u64, expires_at: u64) -> Duration {
    Duration::from_secs(expires_at.saturating_sub(opened_at)).min(TUNNEL_LIFETIME_MAX + CLOCK_TOLERANCE)
}

/// Asks for the tunnel, and again for a while if nobody answers. An answer that was lost costs a tunnel that nobody uses,
/// which ends by itself.
async fn ask(api: &mut Api, request: &OpenTunnel, talk: Output) -> Result<OpenedTunnel, HttpError> {
    let until = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let result = api.open(request).await;
        let absent = |error: &HttpError| match error.code() {
            Code::ServerUnreachable | Code::Unavailable => true,
            Code::DeviceOffline => told,
            _ => false,
        };
        if !result.as_ref().is_err_and(absent) || Instant::now() >= until {
            return result;
        }
        if !std::mem::replace(&mut told, true) {
            talk.note("the server does not answer; it is asked again for some seconds");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn open_leg(
    login: &Login,
    api: &Api,
    attached: &AttachedTunnel,
    carriers: Try,
    what: &str,
) -> Result<Leg, Failure> {
    let key = unhex(&attached.leg_key)
        .ok_or_else(|| Failure::new(Code::Protocol, what).detail("the server sent a leg key that is none"))?;
    Leg::open(LegConfig {
        server: login.server.clone().with_udp_port(attached.udp_port),
        proven: api.proven(),
        circuit: attached.circuit,
        role: Role::Source,
        key: LegKey::new(Secret::new(key)),
        websocket_tls: api.tls(),
        carriers,
    })
    .map_err(|error| Failure::new(Code::RelayUnreachable, what).detail(error.to_string()))
}

/// Connects end to end; the peer is exactly the device that was asked for.
async fn connect(
    login: &Login,
    leg: &Leg,
    device: Identity,
    end: &End,
    what: &str,
) -> Result<quinn::Connection, Failure> {
    let tls = tls::tunnel_client(&login.ends(), &login.credentials, device);
    let mut config = quinn::ClientConfig::new(tls::quic_client(tls));
    config.transport_config(quic::cli_transport(leg.wake()));
    let connecting = leg
        .connect(config)
        .map_err(|error| Failure::new(Code::Internal, what).detail(error.to_string()))?;
    let failed = |code: Code| Failure::new(code, what);
    tokio::select! {
        connected = tokio::time::timeout(HANDSHAKE, connecting) => match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                let code = end.code().or_else(|| end::code_of(&error));
                Err(failed(code.unwrap_or(Code::TunnelLost)).detail(error.to_string()))
            }
            Err(_) if leg.state().borrow().active.is_none() => Err(failed(Code::RelayUnreachable)),
            Err(_) => Err(failed(Code::DeviceSilent)),
        },
        refusal = end.told() => Err(Failure::refused(&refusal, what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_names_a_lifetime_that_is_without_end() {
        let most = TUNNEL_LIFETIME_MAX + CLOCK_TOLERANCE;
        for (opened_at, expires_at, lives) in [
            (1000, 4600, Duration::from_secs(3600)),
            (0, TUNNEL_LIFETIME_MAX.as_secs(), TUNNEL_LIFETIME_MAX),
            (4600, 1000, Duration::ZERO),
            (0, 1_800_003_600, most),
            (0, u64::MAX, most),
        ] {
            assert_eq!(lifetime(opened_at, expires_at), lives, "{opened_at} {expires_at}");
        }
    }
}
