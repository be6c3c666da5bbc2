//! How a forwarding thread learns what changed: a list that it empties, a flag that it looks at once for each batch, and a
//! descriptor that wakes it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::circuit::Route;

/// A change of the routes of a thread.
#[derive(Debug)]
pub(super) enum Change {
    /// What comes from the address is a leg's.
    Add(SocketAddr, Route),
    /// It is no longer.
    Remove(SocketAddr),
}

/// The mailbox of one thread.
#[derive(Debug)]
pub(super) struct Mailbox {
    filled: AtomicBool,
    changes: Mutex<Vec<Change>>,
    stop: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    /// Makes an empty mailbox.
    ///
    /// # Errors
    /// Fails when the process has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            filled: AtomicBool::new(false),
            changes: Mutex::default(),
            stop: AtomicBool::new(false),
            bell,
        })
    }

    /// Posts a change. The thread takes it before it looks at the next batch, and is woken for it, so that the list stays
    /// short.
    pub(super) fn post(&self, change: Change) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.push(change);
        let first = !self.filled.swap(true, Ordering::Release);
        drop(changes);
        if first {
            self.ring();
        }
    }

    /// Moves what was posted into `changes`, which is empty. Costs one load when there is nothing.
    pub(super) fn take(&self, changes: &mut Vec<Change>) {
        if self.filled.load(Ordering::Acquire) {
            let mut posted = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            self.filled.store(false, Ordering::Relaxed);
            std::mem::swap(&mut *posted, changes);
        }
    }

    /// Tells the thread to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ring();
    }

    /// Says whether the thread is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Stills the bell, so that the next post is heard.
    pub(super) fn still(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    fn ring(&self) {
        // It fails only where the bell rings already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
