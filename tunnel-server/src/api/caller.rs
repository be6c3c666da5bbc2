//! Who asks: the identity that the TLS handshake proved, and nothing that the request says of itself (THREATS I4).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tunnel_certs::Peer;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, OperatorName, UnixTime};

use super::error::ApiError;
use crate::control::Control;
use crate::run::gate::Pass;

/// The connection that a request came over.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    /// Where it comes from, by the socket.
    pub(crate) source: SocketAddr,
    /// Who the other end has proved to be, if it showed a certificate.
    pub(crate) peer: Option<Arc<Peer>>,
    /// Its place among the connections, kept as long as anything of it lives.
    pub(crate) place: Arc<Pass>,
}

/// An operator who has proved to be one and still is.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) name: OperatorName,
    pub(crate) key: KeyHash,
    /// From when on the certificate is valid, which tells its age.
    pub(crate) certified_at: UnixTime,
    pub(crate) source: SocketAddr,
    pub(crate) peer: Arc<Peer>,
}

impl Caller {
    /// Returns the caller as audit records name it.
    pub(crate) fn by(&self) -> String {
        format!("operator/{}", self.name)
    }
}

impl Conn {
    /// Says who the caller is. Each request asks anew: a connection may outlive the trust in who opened it.
    ///
    /// # Errors
    /// Tells what is wrong with the certificate, or with its holder.
    pub(crate) fn caller(&self, control: &Control) -> Result<Caller, Code> {
        let peer = self.peer.clone().ok_or(Code::Unauthenticated)?;
        if let Some(why) = control.fallen(&peer) {
            return Err(why);
        }
        if control.now() >= peer.not_after {
            return Err(Code::CertExpired);
        }
        let Subject::Operator(name) = peer.identity.subject.clone() else {
            return Err(Code::CertUsage);
        };
        Ok(Caller {
            name,
            key: peer.key,
            certified_at: peer.not_before,
            source: self.source,
            peer,
        })
    }
}

impl FromRequestParts<Arc<Control>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        let conn = parts.extensions.get::<Conn>().ok_or(Code::Internal)?;
        Ok(conn.caller(control)?)
    }
}
