//! The local socket between the supervisor and a worker: whole messages, both ways, and an end that is noticed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tunnel_proto::handover::{MAX_PACKET, Message};

use crate::defaults;

/// One end of the socket.
///
/// It is a `SOCK_SEQPACKET`: a supervisor that dies takes no half of a message with it, and its successor goes on
/// reading where it stopped.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: AsyncFd<End>,
    waiting: VecDeque<Vec<u8>>,
}

/// Keeps the descriptor what it is for as long as it is registered.
#[derive(Debug)]
struct End(OwnedFd);

impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Makes both ends: the supervisor's, and the worker's.
///
/// # Errors
/// Returns what the system refuses.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

impl Channel {
    /// Begins with an end. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Returns what the system refuses.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        #[expect(
            deprecated,
            reason = "the other way is unsafe; an `OwnedFd` stays what it is while it is registered"
        )]
        let fd = AsyncFd::new(End(fd))?;
        Ok(Self {
            fd,
            waiting: VecDeque::new(),
        })
    }

    /// Says something. What the other end does not take waits; when too much does, the oldest is dropped.
    pub(crate) fn send(&mut self, message: &Message) {
        if self.waiting.len() >= defaults::WAITING.count {
            tracing::warn!("a message between the agent's processes is lost: nobody takes them");
            self.waiting.pop_front();
        }
        self.waiting.push_back(message.to_packet());
        self.flush();
    }

    /// Returns the next message; `None` once the other end is gone. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<Message> {
        loop {
            let blocked = !self.waiting.is_empty();
            let mut packet = vec![0; MAX_PACKET];
            tokio::select! {
                ready = self.fd.readable() => {
                    let mut ready = ready.ok()?;
                    match ready.try_io(|fd| Ok(rustix::net::recv(&fd.get_ref().0, &mut packet[..], RecvFlags::empty())?)) {
                        Ok(Ok((0, _)) | Err(_)) => return None,
                        Ok(Ok((length, _))) => match Message::from_packet(&packet[..length]) {
                            Some(message) => return Some(message),
                            None => tracing::debug!("a message of another version is passed over"),
                        },
                        Err(_would_block) => {}
                    }
                }
                ready = self.fd.writable(), if blocked => {
                    ready.ok()?.clear_ready();
                    self.flush();
                }
            }
        }
    }

    /// Waits until nothing waits any more, which is when the other end has taken all or is gone.
    pub(crate) async fn flushed(&mut self) {
        while !self.waiting.is_empty() {
            let Ok(mut ready) = self.fd.writable().await else {
                return;
            };
            ready.clear_ready();
            drop(ready);
            self.flush();
        }
    }

    /// Sends what waits, as far as it is taken.
    fn flush(&mut self) {
        while let Some(packet) = self.waiting.front() {
            match rustix::net::send(self.fd.get_ref().0.as_fd(), packet, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                // An end that is gone is noticed where it is read.
                Ok(_) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_whole_and_in_order_and_the_end_is_noticed() {
        let (above, below) = pair().unwrap();
        let (mut above, mut below) = (Channel::new(above).unwrap(), Channel::new(below).unwrap());
        above.send(&Message::Ask);
        above.send(&Message::Reload);
        assert_eq!(below.recv().await, Some(Message::Ask));
        assert_eq!(below.recv().await, Some(Message::Reload));
        below.send(&Message::Status("linked".into()));
        drop(below);
        assert_eq!(above.recv().await, Some(Message::Status("linked".into())));
        assert_eq!(above.recv().await, None);
    }

    #[tokio::test]
    async fn what_nobody_takes_is_bounded_and_the_newest_is_kept() {
        let (above, below) = pair().unwrap();
        let (mut above, mut below) = (Channel::new(above).unwrap(), Channel::new(below).unwrap());
        let last = 4 * defaults::WAITING.count;
        for number in 0..=last {
            above.send(&Message::Status(format!("{number:0>4000}")));
        }
        assert_eq!(above.waiting.len(), defaults::WAITING.count);
        let reader = async {
            loop {
                let Some(Message::Status(text)) = below.recv().await else {
                    panic!("the other end is there")
                };
                if text.parse::<usize>().unwrap() == last {
                    return;
                }
            }
        };
        tokio::select! {
            () = reader => {}
            _ = above.recv() => panic!("nothing is said to it"),
        }
    }

    /// A process that ends after this has said all.
    #[tokio::test]
    async fn what_waits_can_be_waited_for() {
        let (above, below) = pair().unwrap();
        let (mut above, mut below) = (Channel::new(above).unwrap(), Channel::new(below).unwrap());
        let count = defaults::WAITING.count;
        for number in 0..count {
            above.send(&Message::Status(format!("{number:0>4000}")));
        }
        assert!(!above.waiting.is_empty(), "more than the socket takes");
        let reader = async {
            for number in 0..count {
                let said = below.recv().await;
                assert_eq!(said, Some(Message::Status(format!("{number:0>4000}"))));
            }
        };
        let ((), ()) = tokio::join!(above.flushed(), reader);
        assert!(above.waiting.is_empty());
        above.flushed().await;
    }

    #[tokio::test]
    async fn what_is_no_message_is_passed_over() {
        let (above, below) = pair().unwrap();
        rustix::net::send(&above, b"\xff\xff", SendFlags::empty()).unwrap();
        rustix::net::send(&above, &Message::Ask.to_packet(), SendFlags::empty()).unwrap();
        let mut below = Channel::new(below).unwrap();
        assert_eq!(below.recv().await, Some(Message::Ask));
    }
}
