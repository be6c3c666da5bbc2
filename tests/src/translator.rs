//! A translator of IPv4 for a host that has IPv6 only, as NAT64 is one: it stands at the address under which IPv4 is held,
//! and goes on from a host that has IPv4. It carries UDP and TCP of one server.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::place::Place;

/// How often the threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(50);

/// A running translator; its threads end with this value.
#[derive(Debug)]
pub struct Translator {
    stop: Arc<AtomicBool>,
}

impl Translator {
    /// Starts at an address that one host has, and goes on to a server from another host.
    ///
    /// # Panics
    /// When the address is not there.
    pub fn start(inside: &Place, at: SocketAddr, outside: &Place, server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (udp, tcp) = inside.on(|| {
            (
                UdpSocket::bind(at).expect("the address"),
                TcpListener::bind(at).expect("the address"),
            )
        });
        udp.set_read_timeout(Some(LOOK)).expect("a socket has timeouts");
        tcp.set_nonblocking(true)
            .expect("a socket can be asked without waiting");
        let udp = Arc::new(udp);
        let (place, stopped) = (outside.clone(), Arc::clone(&stop));
        std::thread::spawn(move || carry_udp(&udp, &place, server, &stopped));
        let (place, stopped) = (outside.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, _)) => carry_tcp(stream, &place, server),
                    Err(_) => std::thread::sleep(LOOK / 10),
                }
            }
        });
        Self { stop }
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Gives each client a socket of its own, as a NAT gives it a port.
fn carry_udp(inside: &Arc<UdpSocket>, outside: &Place, server: SocketAddr, stop: &Arc<AtomicBool>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = [0; 65_535];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, client)) = inside.recv_from(&mut buffer) else {
            continue;
        };
        let socket = clients.entry(client).or_insert_with(|| {
            let socket = outside.on(|| UdpSocket::bind("0.0.0.0:0").expect("a port"));
            socket.connect(server).expect("a way to the server");
            socket
                .set_read_timeout(Some(LOOK))
                .expect("a socket has timeouts");
            let socket = Arc::new(socket);
            let (back, inside, stopped) = (Arc::clone(&socket), Arc::clone(inside), Arc::clone(stop));
            std::thread::spawn(move || {
                let mut buffer = [0; 65_535];
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok(length) = back.recv(&mut buffer) {
                        let _ = inside.send_to(&buffer[..length], client);
                    }
                }
            });
            socket
        });
        let _ = socket.send(&buffer[..length]);
    }
}

fn carry_tcp(client: TcpStream, outside: &Place, server: SocketAddr) {
    let _ = client.set_nonblocking(false);
    let Ok(far) = outside.on(|| TcpStream::connect(server)) else {
        return;
    };
    let halves = (client.try_clone(), far.try_clone());
    let (Ok(client_too), Ok(far_too)) = halves else {
        return;
    };
    for (from, to) in [(client, far), (far_too, client_too)] {
        std::thread::spawn(move || copy(from, to));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
