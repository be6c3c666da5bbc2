//! Which ends of sessions a device is told to be kept: many in one message, and beside what else waits for the device, so that
//! one which tells of very many leaves room for an offer.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use tunnel_proto::message::SessionKey;

/// In one message: of a thirtieth of a kilobyte each.
const PER_MESSAGE: usize = 1_000;

/// What waits for a device that takes nothing. It is told of those beyond it when it asks again.
const MAX_WAITING: usize = 10_000;

/// What one device is to be told.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    waiting: Mutex<Vec<SessionKey>>,
    news: Notify,
}

impl Receipts {
    /// Adds a session that need not be told again.
    pub(super) fn add(&self, key: SessionKey) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.push(key);
            self.news.notify_one();
        }
    }

    /// Waits until there is something to tell, and takes it. Cancel-safe.
    pub(super) async fn next(&self) -> Vec<SessionKey> {
        loop {
            let some = self.take();
            if !some.is_empty() {
                return some;
            }
            self.news.notified().await;
        }
    }

    fn take(&self) -> Vec<SessionKey> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(PER_MESSAGE);
        waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::TunnelId;
    use tunnel_proto::defaults::MAX_MESSAGE;
    use tunnel_proto::frame;
    use tunnel_proto::message::FromServer;

    use super::*;

    #[tokio::test]
    async fn receipts_come_together_in_order_and_none_without_bound() {
        let receipts = Receipts::default();
        let tunnel = TunnelId::from_bytes([0xff; 16]);
        let first = u64::MAX - 20_000;
        (0..20_000).for_each(|number| {
            let number = first + number;
            receipts.add(SessionKey { tunnel, number });
        });
        let mut told = Vec::new();
        for _ in 0..MAX_WAITING / PER_MESSAGE {
            let some = receipts.next().await;
            told.extend(some.iter().map(|key| key.number - first));
            let bytes = frame::encode(&FromServer::SessionsKept(some)).len();
            assert!(bytes < MAX_MESSAGE, "{bytes}");
        }
        assert_eq!(told, (0..MAX_WAITING as u64).collect::<Vec<_>>());
        assert!(receipts.take().is_empty());
        let ((), some) = tokio::join!(
            async { receipts.add(SessionKey { tunnel, number: 1 }) },
            receipts.next()
        );
        assert_eq!(some.len(), 1);
    }
}
