//! Changes of this machine's network: an address, a route or an interface that comes or goes.
//!
//! The kernel tells of them by netlink (rtnetlink(7)). It tells of everybody's: who is told looks at what it means for
//! itself, by [`source`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram as StdSocket;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How long changes are gathered: one move of a machine is several of them, a few milliseconds apart.
const GATHER: Duration = Duration::from_millis(10);

/// How often to look where the kernel tells nothing.
const LOOK: Duration = Duration::from_secs(5);

/// What there is to hear: interfaces, addresses and routes (`RTMGRP_*` of linux/rtnetlink.h).
const GROUPS: u32 = LINK | IPV4_ADDRESS | IPV4_ROUTE | IPV6_ADDRESS | IPV6_ROUTE;
/// What the kernel keeps of messages, in bytes: that there are any is enough.
const BUFFER: usize = 8 * 1024;

/// Messages that are taken away at once; the rest counts as the next change.
const MESSAGES: usize = 1000;

const LINK: u32 = 0x1;
const IPV4_ADDRESS: u32 = 0x10;
const IPV4_ROUTE: u32 = 0x40;
const IPV6_ADDRESS: u32 = 0x100;
const IPV6_ROUTE: u32 = 0x400;

/// Why it is time to look at the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// Something has changed, perhaps nothing that matters.
    Changed,
    /// Some time has passed; the kernel does not tell of changes here.
    Time,
}

/// Tells when the network may have changed.
#[derive(Debug)]
pub struct Changes(Teller);

#[derive(Debug)]
enum Teller {
    Kernel {
        /// A netlink socket in the type that tokio waits for without unsafe code; it is one of datagrams as well.
        socket: UnixDatagram,
        /// When what has been heard is told.
        due: Option<Instant>,
    },
    Clock(Interval),
}

impl Changes {
    /// Starts to listen in the network namespace of this thread; must be called in a tokio runtime. Where the kernel's
    /// word cannot be had, time tells.
    pub fn listen() -> Self {
        match open() {
            Ok(socket) => Self(Teller::Kernel { socket, due: None }),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell of changes of the network");
                Self::by_clock(LOOK)
            }
        }
    }

    fn by_clock(period: Duration) -> Self {
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(Teller::Clock(ticks))
    }

    /// Waits until it is time to look. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> Sign {
        let (socket, due) = match &mut self.0 {
            Teller::Kernel { socket, due } => (socket, due),
            Teller::Clock(ticks) => {
                ticks.tick().await;
                return Sign::Time;
            }
        };
        match hear(socket, due).await {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "the kernel no longer tells of changes of the network");
                *self = Self::by_clock(LOOK);
            }
        }
        Sign::Changed
    }
}

/// Waits for messages, and then a little for more. They stay where they are until all is done.
async fn hear(socket: &UnixDatagram, due: &mut Option<Instant>) -> io::Result<()> {
    let at = match *due {
        Some(at) => at,
        None => {
            socket.readable().await?;
            *due.insert(Instant::now() + GATHER)
        }
    };
    tokio::time::sleep_until(at).await;
    *due = None;
    drain(socket)
}

fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // The default protocol of this family is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UnixDatagram::from_std(StdSocket::from(socket))
}

/// Takes the messages away. What they say is not read: others may have come since, or been lost.
fn drain(socket: &UnixDatagram) -> io::Result<()> {
    for _ in 0..MESSAGES {
        let read = socket.try_io(Interest::READABLE, || {
            let mut start = [0u8; 16];
            // The rest of a message goes with its start.
            rustix::net::recv(socket, &mut start[..], RecvFlags::empty()).map_err(io::Error::from)
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // More came than the kernel could keep.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
            read => drop(read?),
        }
    }
    Ok(())
}

/// Returns the address that the kernel would send from to reach another; `None` where there is no way to it.
///
/// No packet is sent.
pub fn source(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_the_kernel_tells_nothing_time_does() {
        let mut changes = Changes::by_clock(LOOK);
        for _ in 0..3 {
            let start = Instant::now();
            assert_eq!(changes.changed().await, Sign::Time);
            assert_eq!(start.elapsed(), LOOK);
        }
    }

    #[tokio::test]
    async fn listening_needs_no_rights() {
        assert!(matches!(Changes::listen().0, Teller::Kernel { .. }));
    }

    #[test]
    fn the_source_is_of_the_way_to_the_other() {
        let to = |addr: &str| source(addr.parse().unwrap());
        assert_eq!(to("127.0.0.1:1"), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(to("127.9.9.9:1"), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
