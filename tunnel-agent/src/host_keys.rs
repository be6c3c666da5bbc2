//! Public host keys of the device's SSH server, which the agent reports so that nobody has to trust on first use.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::defaults::{HOST_KEY_DIR, MAX_FILE_BYTES, MAX_HOST_KEY_BYTES, MAX_HOST_KEYS};

/// Tells why a public key file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file cannot be read.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no public key.
    #[error("`{0}` is no public key of an SSH server")]
    Content(PathBuf),
}

/// Returns the files that hold the device's host keys: those that the owner names, else the usual ones.
pub fn files(configured: Option<&[PathBuf]>) -> Vec<PathBuf> {
    if let Some(files) = configured {
        return files.to_vec();
    }
    let entries = std::fs::read_dir(HOST_KEY_DIR).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_host_key_file(path))
        .collect();
    files.sort();
    files
}

fn is_host_key_file(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.starts_with("ssh_host_") && name.ends_with("_key.pub")
}

/// Reads the keys of some files, each as `<type> <base64>`, and what is wrong with the others.
pub fn read(files: &[PathBuf]) -> (Vec<String>, Vec<HostKeyError>) {
    let (mut keys, mut errors) = (Vec::new(), Vec::new());
    for path in files {
        match read_one(path) {
            Ok(key) if keys.len() < MAX_HOST_KEYS => keys.push(key),
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }
    (keys, errors)
}

fn read_one(path: &Path) -> Result<String, HostKeyError> {
    let failed = |source| HostKeyError::Read {
        path: path.to_owned(),
        source,
    };
    // NONBLOCK, so that a FIFO does not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let mut text = String::new();
    File::from(file)
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    parse(&text).ok_or_else(|| HostKeyError::Content(path.to_owned()))
}

/// Takes the key out of the text of a public key file; the comment is left behind.
fn parse(text: &str) -> Option<String> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    let mut words = line.split_ascii_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let known = ["ssh-", "ecdsa-sha2-", "sk-"]
        .iter()
        .any(|prefix| kind.starts_with(prefix));
    let kind_is_plain = kind.len() <= 64
        && kind
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'@' | b'.'));
    let key_is_base64 = key.len() <= MAX_HOST_KEY_BYTES
        && key.len().is_multiple_of(4)
        && key
            .trim_end_matches('=')
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/'));
    // A key blob starts with the length of its type's name: three zero bytes, which are four times `A`.
    (known && kind_is_plain && key_is_base64 && key.starts_with("AAAA") && !kind.contains("-cert-"))
        .then(|| format!("{kind} {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIbYZ7Cz0lZ8Ff8VfYuB9i0q1Zs0o8o3q5lFvM4n9X2k";

    #[test]
    fn a_key_is_read_without_its_comment() {
        assert_eq!(parse(&format!("{KEY} root@pump\x1b[2J\n")).as_deref(), Some(KEY));
        assert_eq!(parse(&format!("\n{KEY}\n")).as_deref(), Some(KEY));
    }

    #[test]
    fn what_is_no_key_is_left_out() {
        let long = format!("ssh-rsa AAAA{}", "A".repeat(MAX_HOST_KEY_BYTES));
        for text in [
            "",
            "\n",
            "ssh-ed25519",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
            "* ssh-ed25519 AAAA",
            "ssh-ed25519 AAA",
            "ssh-ed25519 AAAA,,,,",
            "ssh-ed25519 BBBB",
            "SSH-ED25519 AAAA",
            "ssh-ed25519-cert-v01@openssh.com AAAA",
            long.as_str(),
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn files_are_read_and_bad_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("ssh_host_ed25519_key.pub");
        let bad = dir.path().join("ssh_host_rsa_key.pub");
        std::fs::write(&good, KEY).unwrap();
        std::fs::write(&bad, "hello").unwrap();
        let (keys, errors) = read(&[good, bad, dir.path().join("absent.pub")]);
        assert_eq!(keys, [KEY]);
        assert_eq!(errors.len(), 2);
        assert!(is_host_key_file(Path::new("/etc/ssh/ssh_host_ed25519_key.pub")));
        assert!(!is_host_key_file(Path::new("/etc/ssh/ssh_host_ed25519_key")));
    }
}
