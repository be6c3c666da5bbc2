//! The WebSocket connections that carry datagrams, each known by its virtual address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwapOption;

use super::address;
use super::circuit::Route;
use super::queue::Queue;

/// One connection, as others see it: a queue, and whose it is.
#[derive(Debug)]
pub(super) struct Connection {
    address: SocketAddr,
    peer: SocketAddr,
    queue: Queue,
    route: ArcSwapOption<Route>,
    used: AtomicBool,
}

impl Connection {
    /// Returns its virtual address.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the real address of its peer.
    pub(super) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns what waits to be sent.
    pub(super) const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Returns whose datagrams come from it, if it is a leg's.
    pub(super) fn route(&self) -> Option<Arc<Route>> {
        self.route.load_full()
    }

    /// Says whose datagrams come from it.
    pub(super) fn set_route(&self, route: Option<Route>) {
        if route.is_some() {
            self.mark_used();
        }
        self.route.store(route.map(Arc::new));
    }

    /// Notes that the connection serves for something: it bound a leg, or a QUIC handshake was answered on it.
    pub(super) fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Says whether it ever served for something.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

/// The connections of a relay.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Connection>>>,
}

impl Connections {
    /// Makes room for at most `max` connections.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            next: AtomicU64::new(1),
            open: RwLock::default(),
        }
    }

    /// Takes a connection in. `None` if there are as many as there may be.
    pub(super) fn enter(&self, peer: SocketAddr) -> Option<Arc<Connection>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.max {
            return None;
        }
        let connection = Arc::new(Connection {
            address: address::of_connection(number),
            peer,
            queue: Queue::default(),
            route: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
        });
        open.insert(number, Arc::clone(&connection));
        Some(connection)
    }

    /// Forgets a connection.
    pub(super) fn leave(&self, connection: &Connection) {
        if let Some(number) = address::connection(connection.address) {
            self.open
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&number);
        }
    }

    /// Finds a connection by its virtual address.
    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<Connection>> {
        let number = address::connection(address)?;
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_connections_is_bounded() {
        let connections = Connections::new(2);
        let peer = "192.0.2.1:5".parse().unwrap();
        let first = connections.enter(peer).unwrap();
        let second = connections.enter(peer).unwrap();
        assert_ne!(first.address(), second.address());
        assert!(connections.enter(peer).is_none());
        assert_eq!(connections.find(first.address()).unwrap().peer(), peer);
        connections.leave(&first);
        assert!(connections.find(first.address()).is_none());
        assert!(connections.enter(peer).is_some());
        assert_eq!(connections.len(), 2);
    }
}
