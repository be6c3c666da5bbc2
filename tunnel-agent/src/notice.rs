//! Waits for changes in a directory: by the kernel's notice where there is one, else by looking now and then.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::defaults;

/// Tells when it is worth to look into a directory again.
#[derive(Debug)]
pub(crate) struct Notice {
    fd: Option<AsyncFd<OwnedFd>>,
}

impl Notice {
    /// Watches a directory from here on. Must be called in a tokio runtime.
    pub(crate) fn of(directory: &Path) -> Self {
        let fd = watch(directory).map_err(|error| {
            tracing::warn!(%error, "the kernel gives no notice of changes on the disk, they are looked for each second");
        });
        Self { fd: fd.ok() }
    }

    /// As where the kernel gives no notice.
    #[cfg(test)]
    pub(crate) const fn none() -> Self {
        Self { fd: None }
    }

    /// Waits until it is worth to look again. Cancel-safe.
    pub(crate) async fn wait(&mut self) {
        let Some(fd) = &self.fd else {
            return tokio::time::sleep(defaults::ACCESS_POLL_ALONE).await;
        };
        let noticed = tokio::time::timeout(defaults::ACCESS_POLL, drain(fd)).await;
        if matches!(noticed, Ok(Err(_))) {
            self.fd = None;
        }
    }
}

fn watch(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let changes = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, directory, changes)?;
    #[expect(
        deprecated,
        reason = "the other way is unsafe; an `OwnedFd` stays what it is while it is registered"
    )]
    AsyncFd::new(fd)
}

/// Waits for notices and takes them all; what they say does not matter.
async fn drain(notice: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = notice.readable().await?;
        let mut buffer = [0; 4096];
        match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer)?)) {
            Ok(read) => return read.map(drop),
            Err(_would_block) => {}
        }
    }
}
