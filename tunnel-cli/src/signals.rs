//! The signals that end a command in good order.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tunnel_proto::Code;

use crate::failure::Failure;

/// Interrupt, termination and hang-up; `ssh` ends its ProxyCommand with the last.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Starts to listen; must be called in a tokio runtime.
    ///
    /// # Errors
    /// Tells that the system refuses.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Code::Internal, "could not listen for signals").detail(error.to_string())
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
