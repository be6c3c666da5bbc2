//! The stanza for `~/.ssh/config`, with which plain `ssh`, `scp`, `sftp`, `rsync` and Ansible reach devices.

use super::Setup;
use super::options::{DEFAULTS, fixed};
use crate::failure::Failure;

/// Returns the stanza.
///
/// # Errors
/// Refuses paths that `ssh` cannot be told.
pub fn stanza(setup: &Setup) -> Result<String, Failure> {
    let mut text = String::from(
        "# Devices behind tunnels: ssh, scp, sftp, rsync and Ansible reach DEVICE.tunnel.\n\
         # Put this before stanzas that are more general: ssh takes the first value that it finds.\n\
         Host *.tunnel !*\\'*\n",
    );
    for (key, value) in fixed(setup, None)? {
        text.push_str(&format!("    {key} {value}\n"));
    }
    for (key, value) in DEFAULTS {
        text.push_str(&format!("    {key} {value}\n"));
    }
    Ok(text)
}
