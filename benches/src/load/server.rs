//! The far end of the load.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tunnel_e2e::bytes::noise;
use tunnel_e2e::place::Place;

use super::{CHUNK, STACK, purpose};

/// A listening far end; connections that are open when it is dropped end with their clients.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    received: Arc<AtomicU64>,
}

impl Server {
    /// Listens on loopback of a place.
    ///
    /// # Errors
    /// Fails when no port is free.
    pub fn start(place: &Place) -> io::Result<Self> {
        Self::start_at(place, Ipv4Addr::LOCALHOST.into())
    }

    /// Listens on an address of a place.
    ///
    /// # Errors
    /// Fails when no port is free.
    pub fn start_at(place: &Place, ip: IpAddr) -> io::Result<Self> {
        let listener = place.on(|| TcpListener::bind((ip, 0)))?;
        let address = listener.local_addr()?;
        let accepting = listener.try_clone()?;
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        thread::spawn(move || accept(&accepting, &counter));
        Ok(Self {
            listener,
            address,
            received,
        })
    }

    /// Returns the count of the bytes that have arrived in bulk transfers.
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the accepting thread, which shares the listener.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, received: &Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept() {
        let received = Arc::clone(received);
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            // A client that goes away in the middle is the usual end of a connection.
            let _ = serve(stream, &received);
        });
        if started.is_err() {
            return;
        }
    }
}

fn serve(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = [0];
    stream.read_exact(&mut asked)?;
    stream.write_all(&asked)?;
    match asked[0] {
        purpose::ECHO => echo(stream),
        purpose::SOURCE => source(stream),
        purpose::SINK => sink(stream, received),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let data = noise(CHUNK, 1);
    loop {
        stream.write_all(&data)?;
    }
}

fn sink(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => received.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}
