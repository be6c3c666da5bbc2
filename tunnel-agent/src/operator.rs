//! Whether the operator's end of a tunnel is still there, as far as the device can tell.
//!
//! A tunnel outlives its operator's silence: a laptop may sleep. But who is gone must not stand in the way of the next, so
//! one that has been silent for a while gives its place up where there is no other.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tunnel_net::quic::TUNNEL_KEEPALIVE;

/// From when on a silent operator gives way to another: three keepalives were not heard.
pub const GIVES_WAY_AFTER: Duration = TUNNEL_KEEPALIVE.saturating_mul(3);

type Hearing = Box<dyn Fn() -> Option<Instant> + Send + Sync>;

/// The operator's end of one tunnel. Clones are the same.
#[derive(Clone, Default)]
pub struct Operator {
    hearing: Arc<OnceLock<Hearing>>,
    gone: CancellationToken,
}

impl Operator {
    /// Sets how it is found out since when the operator has been silent: `None` when that says nothing at the moment, as
    /// when the device itself is off the network.
    pub fn listen(&self, silent_since: impl Fn() -> Option<Instant> + Send + Sync + 'static) {
        // A tunnel has one leg, so this is called once.
        let _ = self.hearing.set(Box::new(silent_since));
    }

    /// Returns how long the operator has been silent, if that is long enough to give way.
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        let since = self.hearing.get()?()?;
        Some(now.saturating_duration_since(since)).filter(|silence| *silence >= GIVES_WAY_AFTER)
    }

    /// Ends the tunnel in favour of another.
    pub fn give_way(&self) {
        self.gone.cancel();
    }

    /// Waits until the tunnel is to end.
    pub async fn gave_way(&self) {
        self.gone.cancelled().await;
    }

    /// Says whether the tunnel is to end.
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator")
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_silence_gives_way() {
        let start = Instant::now();
        let operator = Operator::default();
        assert_eq!(
            operator.silence(start + GIVES_WAY_AFTER),
            None,
            "not connected yet"
        );
        operator.listen(move || Some(start));
        let almost = GIVES_WAY_AFTER - Duration::from_millis(1);
        assert_eq!(operator.silence(start + almost), None);
        assert_eq!(operator.silence(start + GIVES_WAY_AFTER), Some(GIVES_WAY_AFTER));
    }

    #[test]
    fn a_device_off_the_network_blames_nobody() {
        let operator = Operator::default();
        operator.listen(|| None);
        assert_eq!(operator.silence(Instant::now() + GIVES_WAY_AFTER * 9), None);
    }
}
