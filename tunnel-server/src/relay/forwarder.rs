//! A forwarding thread: receive a batch, look each train up once, send it on.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use quinn_udp::{BATCH_SIZE, RecvMeta};
use rustix::event::{PollFd, PollFlags, poll};

use super::circuit::Route;
use super::mailbox::Change;
use super::shared::{Shared, Via};
use super::train::{Part, Train};
use super::udp::{Socket, Target};

/// Bytes of a receive buffer: the largest train that the kernel makes.
const BUFFER: usize = 64 * 1024;

/// What a thread owns.
struct Forwarder {
    number: usize,
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    routes: HashMap<SocketAddr, Route>,
    changes: Vec<Change>,
}

/// Starts the thread of a socket. It ends when its mailbox says so.
///
/// # Errors
/// Fails when the system gives no thread.
pub(super) fn start(shared: &Arc<Shared>, number: usize) -> io::Result<JoinHandle<()>> {
    let forwarder = Forwarder {
        number,
        shared: Arc::clone(shared),
        socket: Arc::clone(shared.socket(number)),
        routes: HashMap::new(),
        changes: Vec::new(),
    };
    std::thread::Builder::new()
        .name(format!("relay-{number}"))
        .spawn(move || forwarder.run())
}

impl Forwarder {
    fn run(mut self) {
        let mut buffers = vec![0; BATCH_SIZE * BUFFER];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        while !self.shared.mailbox(self.number).is_stopped() {
            self.apply_changes();
            match self.receive(&mut buffers, &mut metas) {
                Ok(count) => {
                    for (buffer, meta) in buffers.chunks_exact(BUFFER).zip(&metas[..count]) {
                        self.handle(&buffer[..meta.len], meta);
                    }
                    if count < BATCH_SIZE {
                        self.wait();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                // Nothing that a peer does leads here; a pause keeps a fault of the system from taking a whole core.
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
    }

    fn receive(&self, buffers: &mut [u8], metas: &mut [RecvMeta]) -> io::Result<usize> {
        let mut chunks = buffers.chunks_exact_mut(BUFFER);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        self.socket.recv(&mut slices, metas)
    }

    /// Waits until something comes or the bell rings.
    fn wait(&self) {
        let mailbox = self.shared.mailbox(self.number);
        let mut ready = [
            PollFd::new(self.socket.io(), PollFlags::IN),
            PollFd::new(mailbox, PollFlags::IN),
        ];
        // An interrupted wait is a wait that is over.
        let _ = poll(&mut ready, None);
        if ready[1].revents().contains(PollFlags::IN) {
            mailbox.still();
        }
    }

    fn handle(&mut self, bytes: &[u8], meta: &RecvMeta) {
        let Some(train) = Train::new(bytes, meta.stride, meta.ecn) else {
            return;
        };
        if !train.has_control() {
            return self.forward(train, meta);
        }
        for part in train.parts() {
            match part {
                Part::Data(train) => self.forward(train, meta),
                Part::Control(datagram) => {
                    let via = Via::Udp(Target {
                        to: meta.addr,
                        from: meta.dst_ip,
                    });
                    self.shared.handle_control(via, &self.socket, datagram);
                    // What comes behind a bind is forwarded by it.
                    self.apply_changes();
                }
            }
        }
    }

    fn forward(&self, train: Train<'_>, meta: &RecvMeta) {
        match self.routes.get(&meta.addr) {
            Some(route) => self.shared.forward(route, train, &self.socket),
            None => self
                .shared
                .handle_unknown(self.number, meta.addr, meta.dst_ip, train),
        }
    }

    fn apply_changes(&mut self) {
        self.shared.mailbox(self.number).take(&mut self.changes);
        for change in self.changes.drain(..) {
            match change {
                Change::Add(address, route) => {
                    self.routes.insert(address, route);
                }
                Change::Remove(address) => {
                    self.routes.remove(&address);
                }
            }
        }
    }
}
