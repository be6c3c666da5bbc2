//! What time it is for a device: by the server's clock, and by its own. Pure.

use tunnel_proto::UnixTime;

/// One moment by both clocks. What the owner laid down has to hold by both, so that neither alone stretches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// By the server's clock, which grants end by.
    pub server: UnixTime,
    /// By the device's own.
    pub own: UnixTime,
}

impl Moment {
    /// Returns the later of both.
    pub fn latest(self) -> UnixTime {
        self.server.max(self.own)
    }
}
