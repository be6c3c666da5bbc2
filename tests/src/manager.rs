//! A service manager, as far as a supervised agent needs one: it hears notifications, keeps file descriptors over a
//! restart, and hands them to the next process.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::place::Place;

/// Says to the manager's own thread that it is over.
const OVER: &str = "OVER=1";

/// Descriptors that one service may have kept; one more is closed at once.
const MAX_STORED: usize = 8;

/// The part of a service manager that one service sees.
#[derive(Debug)]
pub struct Manager {
    socket: PathBuf,
    heard: Arc<Mutex<Heard>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Heard {
    stored: Vec<(String, OwnedFd)>,
    status: String,
    ready: usize,
}

impl Manager {
    /// Listens for notifications on a new socket.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(socket: &Path) -> Self {
        let notifications = UnixDatagram::bind(socket).expect("a new socket");
        let heard = Arc::default();
        let thread = std::thread::spawn({
            let heard = Arc::clone(&heard);
            move || listen(&notifications, &heard)
        });
        Self {
            socket: socket.to_owned(),
            heard,
            thread: Some(thread),
        }
    }

    /// Returns the command that starts the service's program, with what is stored.
    ///
    /// # Panics
    /// When descriptors cannot be copied.
    pub fn command(&self, place: &Place, program: &Path) -> Command {
        let mut heard = self.heard();
        heard.prune();
        // The process is known by its own number, which nobody knows before it runs.
        let mut command = place.command("/bin/sh");
        command
            .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
            .arg(program);
        let names: Vec<_> = heard.stored.iter().map(|(name, _)| name.as_str()).collect();
        command.env("NOTIFY_SOCKET", &self.socket);
        command.env("LISTEN_FDS", names.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
        let mappings = heard.stored.iter().zip(3..).map(|((_, fd), child_fd)| FdMapping {
            parent_fd: fd.try_clone().expect("a descriptor can be copied"),
            child_fd,
        });
        command
            .fd_mappings(mappings.collect())
            .expect("no number is taken twice");
        command
    }

    /// Closes all that is stored, as at the end of a service.
    pub fn forget(&mut self) {
        self.heard().stored.clear();
    }

    /// Returns what the service said of itself last.
    pub fn status(&self) -> String {
        self.heard().status.clone()
    }

    /// Returns how often the service has said that it is ready.
    pub fn ready(&self) -> usize {
        self.heard().ready
    }

    /// Returns how many descriptors are stored.
    pub fn stored(&self) -> usize {
        let mut heard = self.heard();
        heard.prune();
        heard.stored.len()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Ok(socket) = UnixDatagram::unbound()
            && socket.send_to(OVER.as_bytes(), &self.socket).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Heard {
    /// Forgets descriptors whose other end is gone.
    fn prune(&mut self) {
        self.stored.retain(|(_, fd)| {
            let mut fds = [PollFd::new(fd, PollFlags::empty())];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let polled = poll(&mut fds, Some(&now));
            polled.is_ok() && !fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
        });
    }

    fn take(&mut self, text: &str, fds: Vec<OwnedFd>) {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        if field("FDSTORE=") == Some("1") {
            let name = field("FDNAME=").unwrap_or("stored");
            self.prune();
            let room = MAX_STORED.saturating_sub(self.stored.len());
            self.stored
                .extend(fds.into_iter().take(room).map(|fd| (name.to_owned(), fd)));
        }
        if let Some(status) = field("STATUS=") {
            self.status = status.to_owned();
        }
        if field("READY=").is_some() {
            self.ready += 1;
        }
    }
}

fn listen(notifications: &UnixDatagram, heard: &Mutex<Heard>) {
    let mut bytes = [0; 4096];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let Ok(message) = recvmsg(notifications, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) else {
            return;
        };
        debug_assert!(
            !message.flags.contains(ReturnFlags::CTRUNC),
            "there is room for one descriptor"
        );
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds = fds.flatten().collect();
        let text = String::from_utf8_lossy(&bytes[..message.bytes]).into_owned();
        if text == OVER {
            return;
        }
        heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(&text, fds);
    }
}
