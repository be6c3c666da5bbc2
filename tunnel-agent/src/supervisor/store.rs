//! The service manager's store of file descriptors: what is in it outlives the supervisor, and is handed to its successor.
//!
//! A supervisor puts its end of each worker's channel there when the worker is born, so that even one that is killed costs
//! no session. When the service is stopped the manager closes what it stores, and the workers see the end of their
//! channels. When a worker ends, the manager sees that itself, and forgets the end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Names what is stored, with the worker's number behind it.
const NAME: &str = "worker-";
/// The names of the descriptors that were handed over, as `sd_listen_fds_with_names(3)` has it.
const NAMES_VARIABLE: &str = "LISTEN_FDNAMES";
/// A socket's family and type, as `socket(2)` numbers them on Linux.
const UNIX: i32 = rustix::net::AddressFamily::UNIX.as_raw() as i32;
const SEQPACKET: i32 = rustix::net::SocketType::SEQPACKET.as_raw() as i32;

/// Takes the channels that a supervisor of before has left, by their workers' numbers; what is no such channel is not used.
/// Must be called before any thread is started.
pub(crate) fn inherited() -> BTreeMap<u64, OwnedFd> {
    let names = std::env::var(NAMES_VARIABLE).unwrap_or_default();
    // None of them reaches a worker, whatever they are (THREATS AGT-19).
    drop(sd_notify::listen_fds());
    let mut fds = ListenFd::from_env();
    let mut channels = BTreeMap::new();
    for (index, name) in (0..fds.len()).zip(names.split(':')) {
        let Some(number) = name.strip_prefix(NAME).and_then(|number| number.parse().ok()) else {
            continue;
        };
        if let Ok(Some(fd)) = fds.take_custom(index, UNIX, SEQPACKET, "channel of a worker") {
            channels.insert(number, fd);
        }
    }
    channels
}

/// Has the service manager keep the end of a worker's channel; without one there is nothing to do.
pub(crate) fn keep(worker: u64, channel: &OwnedFd) {
    let name = format!("{NAME}{worker}");
    let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[channel.as_fd()]) {
        tracing::warn!(%error, "the service manager does not keep sessions over a restart");
    }
}

/// Variables that are the supervisor's alone.
pub(crate) const VARIABLES: [&str; 5] = [
    "NOTIFY_SOCKET",
    "FDSTORE",
    "LISTEN_FDS",
    "LISTEN_PID",
    NAMES_VARIABLE,
];
