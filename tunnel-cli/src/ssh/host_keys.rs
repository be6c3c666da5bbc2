//! The device's SSH host keys, as it reported them over its authenticated link, in a file that `ssh` reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tunnel_proto::{Code, DeviceId};

use super::SUFFIX;
use crate::failure::Failure;
use crate::home::Home;

/// Most keys that are taken; a server has one of each kind.
const MAX_KEYS: usize = 16;

/// Longest key that is taken, in characters; one of RSA with 16,384 bits has 2,800.
const MAX_KEY_CHARS: usize = 4096;

/// Writes the keys that `ssh` must see from this device, and no others.
///
/// # Errors
/// Refuses to go on without a key: `ssh` would have to trust whoever answers (THREATS CLI-04).
pub fn write(home: &Home, device: &DeviceId, keys: &[String]) -> Result<(), Failure> {
    let text = known_hosts(device, keys);
    if text.is_empty() {
        return Err(Failure::new(Code::Unavailable, format!("could not check the SSH server of `{device}`"))
            .why("the device reported no host key, so nobody could tell who answers")
            .next("on the device, run an SSH server and let the agent read its public keys: `host_key_files` in agent.toml")
            .exit(tunnel_proto::code::Exit::Failed as u8));
    }
    home.write_known_hosts(&format!("{device}{SUFFIX}"), &text)
}

/// Returns the file's content; lines of text that is no key are left out.
pub fn known_hosts(device: &DeviceId, keys: &[String]) -> String {
    keys.iter()
        .filter_map(|key| checked(key))
        .take(MAX_KEYS)
        .fold(String::new(), |text, (kind, blob)| {
            // A port in the user's configuration leads nowhere else, so the key holds for all of them.
            text + &format!("{device}{SUFFIX},[{device}{SUFFIX}]:* {kind} {blob}\n")
        })
}

/// Takes a key apart if it is `<type> <base64>` and the base64 holds a key of that type (RFC 4253 section 6.6).
fn checked(key: &str) -> Option<(&str, &str)> {
    if key.len() > MAX_KEY_CHARS {
        return None;
    }
    let (kind, blob) = key.split_once(' ')?;
    let is_kind = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '@' | '.');
    if kind.is_empty() || kind.starts_with('@') || !kind.chars().all(is_kind) {
        return None;
    }
    let bytes = STANDARD.decode(blob).ok()?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let named = rest.get(..u32::from_be_bytes(*length).try_into().ok()?)?;
    (named == kind.as_bytes()).then_some((kind, blob))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    /// THREATS CLI-01, CLI-04.
    #[test]
    fn only_whole_keys_reach_the_file() {
        let device: DeviceId = "pump-17".parse().unwrap();
        let good = format!("pump-17.tunnel,[pump-17.tunnel]:* {ED25519}\n");
        assert_eq!(known_hosts(&device, &[ED25519.into()]), good);
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            "ssh-ed25519 !!!",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3a",
            "@cert-authority * ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD",
            "ssh-ed25519 AAAA\n* ssh-ed25519 AAAA",
            "ssh-ed25519\tAAAA",
            "ssh-ed25519 /////w==",
        ] {
            assert_eq!(known_hosts(&device, &[bad.into()]), "", "{bad:?}");
        }
        let evil = format!("{ED25519}\n* {ED25519}");
        assert_eq!(known_hosts(&device, &[evil, ED25519.into()]), good);
        assert_eq!(
            known_hosts(&device, &vec![ED25519.to_owned(); 100])
                .lines()
                .count(),
            MAX_KEYS
        );
    }
}
