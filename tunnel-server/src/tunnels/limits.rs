//! The limits of a tunnel: as policies say them, as the API and the records write them, as the grant carries them.

use std::time::Duration;

use tunnel_policy::Limits;
use tunnel_proto::api;
use tunnel_proto::defaults::{SESSIONS_PER_TUNNEL, TUNNEL_IDLE};
use tunnel_proto::grant;

/// Returns limits as the API and the records write them.
pub(crate) fn to_api(limits: &Limits) -> api::Limits {
    api::Limits {
        lifetime_secs: limits.lifetime.map(|span| span.as_secs()),
        sessions: limits.sessions,
        tunnels: limits.tunnels,
        bytes: limits.bytes,
        bytes_per_sec: limits.rate,
    }
}

/// Reads limits as the records write them.
pub(crate) fn from_api(limits: &api::Limits) -> Limits {
    Limits {
        lifetime: limits.lifetime_secs.map(Duration::from_secs),
        sessions: limits.sessions,
        tunnels: limits.tunnels,
        bytes: limits.bytes,
        rate: limits.bytes_per_sec,
    }
}

/// Returns limits as the grant carries them: the server's own, where policy has no narrower one.
pub(super) fn to_grant(limits: &Limits) -> grant::Limits {
    grant::Limits {
        sessions: limits
            .sessions
            .map_or(SESSIONS_PER_TUNNEL, |most| most.min(SESSIONS_PER_TUNNEL)),
        bytes: limits.bytes,
        bytes_per_sec: limits.rate,
        idle_secs: u32::try_from(TUNNEL_IDLE.as_secs()).unwrap_or(u32::MAX),
    }
}
