//! Where a server has proven to be itself: what is left when the resolver fails or lies.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::files;

/// Addresses that are kept: both families, before and after a move.
const MOST: usize = 4;

/// The addresses at which a server has shown a certificate of the fleet, the last one first.
///
/// Clones share them. Two are equal whatever they hold: what was learnt of a server does not make it another one.
///
/// # Security
/// An address gets in here only after the handshake has verified the server. A wrong one would cost an attempt and no
/// trust: whoever answers there must prove to be the server all the same.
#[derive(Clone, Debug, Default)]
pub struct Proven(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    file: Option<PathBuf>,
    host: String,
    addresses: Mutex<Vec<IpAddr>>,
}

impl Proven {
    /// Takes what a private file says of a host, and keeps there what is learnt. One that is missing, damaged or of
    /// another host says nothing.
    pub fn kept_in(file: &Path, host: &str) -> Self {
        Self::new(Some(file.to_owned()), file, host)
    }

    /// Takes what a file says of a host, and writes nothing.
    pub fn read_from(file: &Path, host: &str) -> Self {
        Self::new(None, file, host)
    }

    fn new(keep: Option<PathBuf>, file: &Path, host: &str) -> Self {
        let text = files::read_private_text(file).ok();
        let addresses = text.map(|text| read(&text, host)).unwrap_or_default();
        Self(Arc::new(Inner {
            file: keep,
            host: host.to_owned(),
            addresses: Mutex::new(addresses),
        }))
    }

    /// Returns the addresses, the last one first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.lock().clone()
    }

    /// Notes where the server has just proven to be itself. The file is written when there is something new: it may lie on
    /// flash memory.
    pub(crate) fn note(&self, ip: IpAddr) {
        let ip = ip.to_canonical();
        let mut addresses = self.lock();
        let known = addresses.iter().position(|other| *other == ip);
        if let Some(at) = known {
            addresses.remove(at);
        }
        addresses.insert(0, ip);
        addresses.truncate(MOST);
        let text = write(&self.0.host, &addresses);
        drop(addresses);
        if let (None, Some(file)) = (known, &self.0.file)
            && let Err(error) = files::write_private(file, text.as_bytes())
        {
            tracing::debug!(%error, "the server's address could not be kept");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Proven {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Proven {}

fn write(host: &str, addresses: &[IpAddr]) -> String {
    let lines = addresses.iter().map(|ip| format!("{ip}\n"));
    format!("{host}\n{}", lines.collect::<String>())
}

fn read(text: &str, host: &str) -> Vec<IpAddr> {
    let mut lines = text.lines();
    if lines.next() != Some(host) {
        return Vec::new();
    }
    lines.map_while(|line| line.parse().ok()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn in_file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("state");
        files::create_private_dir(&private).unwrap();
        (dir, private.join("addresses"))
    }

    #[test]
    fn what_was_proven_outlives_the_process() {
        let (_dir, file) = in_file();
        let proven = Proven::kept_in(&file, "relay.example");
        assert!(proven.addresses().is_empty());
        proven.note(ip("192.0.2.1"));
        proven.clone().note(ip("2001:db8::1"));
        let expected = [ip("2001:db8::1"), ip("192.0.2.1")];
        assert_eq!(proven.addresses(), expected);
        assert_eq!(Proven::kept_in(&file, "relay.example").addresses(), expected);
        assert!(Proven::kept_in(&file, "other.example").addresses().is_empty());
    }

    #[test]
    fn it_is_bounded_and_written_only_for_something_new() {
        let (_dir, file) = in_file();
        let proven = Proven::kept_in(&file, "a");
        for last in 0..100u8 {
            proven.note(IpAddr::from([192, 0, 2, last]));
        }
        assert_eq!(proven.addresses().len(), MOST);
        std::fs::remove_file(&file).unwrap();
        proven.note(ip("192.0.2.98"));
        assert_eq!(proven.addresses()[0], ip("192.0.2.98"));
        assert!(!file.exists());
    }

    #[test]
    fn a_file_that_is_only_read_stays_as_it_is() {
        let (_dir, file) = in_file();
        let proven = Proven::read_from(&file, "a");
        proven.note(ip("192.0.2.1"));
        assert!(!file.exists());
    }

    #[test]
    fn a_damaged_file_says_what_is_whole() {
        assert_eq!(read("a\n192.0.2.1\nrubbish\n192.0.2.2\n", "a"), [ip("192.0.2.1")]);
        for text in ["", "\n", "b\n192.0.2.1\n", "\u{0}"] {
            assert!(read(text, "a").is_empty(), "{text:?}");
        }
    }
}
