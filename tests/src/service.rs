//! Small services for a device to offer, each with a manner of its own.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::place::Place;

/// A TCP service on loopback. Its listener closes with this value.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    count: Arc<AtomicU64>,
    listener: Option<TcpListener>,
    held: Vec<TcpStream>,
}

impl Service {
    /// Serves each connection in a thread of its own. What `serve` adds to the counter can be read from outside.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn start(place: &Place, serve: impl Fn(TcpStream, &AtomicU64) + Send + Sync + 'static) -> Self {
        let listener = place.on(|| TcpListener::bind("127.0.0.1:0").expect("loopback has a free port"));
        let address = listener.local_addr().expect("a listener has an address");
        let count = Arc::new(AtomicU64::new(0));
        let (serve, counter) = (Arc::new(serve), Arc::clone(&count));
        let accepting = listener.try_clone().expect("a listener can be shared");
        std::thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else { return };
                let (serve, counter) = (Arc::clone(&serve), Arc::clone(&counter));
                std::thread::spawn(move || serve(stream, &counter));
            }
        });
        Self {
            address,
            count,
            listener: Some(listener),
            held: Vec::new(),
        }
    }

    /// Sends everything back until the other side is done; counts connections.
    pub fn echo(place: &Place) -> Self {
        Self::start(place, |mut stream, count| {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.set_nodelay(true);
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        })
    }

    /// Reads to the end, and only then answers with the number of bytes; counts bytes.
    pub fn answers_at_the_end(place: &Place) -> Self {
        Self::start(place, |mut stream, count| {
            let read = read_all(&mut stream, count);
            let _ = writeln!(stream, "{read} bytes");
        })
    }

    /// Says `done` and ends its own direction at once, and reads on; counts bytes.
    pub fn ends_first_and_listens(place: &Place) -> Self {
        Self::start(place, |mut stream, count| {
            let _ = stream
                .write_all(b"done\n")
                .and_then(|()| stream.shutdown(Shutdown::Write));
            read_all(&mut stream, count);
        })
    }

    /// Sends without end; counts the bytes that it got rid of.
    pub fn pours(place: &Place) -> Self {
        Self::start(place, |mut stream, count| {
            let block = [0x5a; 65536];
            while let Ok(length @ 1..) = stream.write(&block) {
                count.fetch_add(length as u64, Ordering::Relaxed);
            }
        })
    }

    /// Accepts and never reads.
    pub fn never_reads(place: &Place) -> Self {
        Self::start(place, |stream, count| {
            count.fetch_add(1, Ordering::Relaxed);
            // The connection lives as long as this thread, which ends with the test.
            let _stream = stream;
            loop {
                std::thread::park();
            }
        })
    }

    /// Lets nobody in and refuses nobody: attempts to connect hang.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn hangs() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        rustix::net::listen(&listener, 0).expect("a listener can shorten its queue");
        let address = listener.local_addr().expect("a listener has an address");
        let patience = std::time::Duration::from_millis(300);
        // The queue takes the first ones; from then on the kernel answers nobody.
        let held = std::iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok())
            .take(8)
            .collect();
        Self {
            address,
            count: Arc::default(),
            listener: Some(listener),
            held,
        }
    }

    /// Refuses: nobody listens on the port.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn refuses() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        Self {
            address,
            count: Arc::default(),
            listener: None,
            held: Vec::new(),
        }
    }

    /// Returns its target in the agent's notation.
    pub fn target(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// Returns what it has counted.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.held.clear();
        if let Some(listener) = self.listener.take() {
            // Wakes the accepting thread, which shares the listener.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
    }
}

fn read_all(stream: &mut TcpStream, count: &AtomicU64) -> u64 {
    let mut buffer = vec![0; 65536];
    let mut sum = 0;
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        sum += length as u64;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::time::Duration;

    #[test]
    fn each_service_has_its_manner() {
        let brief = Duration::from_millis(300);
        let at = |service: &Service| TcpStream::connect_timeout(&service.address, brief);

        let echo = Service::echo(&Place::Here);
        let mut stream = at(&echo).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();

        let sum = Service::answers_at_the_end(&Place::Here);
        let mut stream = at(&sum).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), sum.count()), ("5 bytes\n", 5));

        assert_eq!(at(&Service::hangs()).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(
            at(&Service::refuses()).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn a_service_that_is_gone_refuses() {
        let echo = Service::echo(&Place::Here);
        let address = echo.address;
        drop(echo);
        crate::until("the port to be closed", Duration::from_secs(5), || {
            TcpStream::connect(address).err()
        });
    }
}
