//! Under which root a device with a lock may be enrolled.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use tunnel_certs::Trust;
use tunnel_net::files;
use tunnel_proto::lock::{LockError, Permit};
use tunnel_proto::{Code, UnixTime};

use super::Enrolment;
use crate::defaults::MAX_FILE_BYTES;
use crate::failure::Failure;
use crate::state::StateDir;

/// Reads a permit of the owner's keys.
///
/// # Errors
/// Says what is wrong with the file.
pub fn read_permit(file: &Path) -> Result<Permit, Failure> {
    const NEXT: &str = "name the file that `tunnel lock sign` has signed";
    let what = || format!("could not read the permit `{}`", file.display());
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE_BYTES).read_to_string(&mut text))
        .map_err(|error| Failure::of(Code::LockPermit, what()).because(error).next(NEXT))?;
    text.parse()
        .map_err(|error: LockError| Failure::of(Code::LockPermit, what()).because(error).next(NEXT))
}

/// A device with a lock changes over to another root only if the owner's keys have signed that (THREATS T12): a code
/// alone may come from whoever has taken the control plane over.
pub(super) fn unlock(asked: &Enrolment<'_>, state: &StateDir, now: UnixTime) -> Result<(), Failure> {
    let Some(lock) = &asked.config.policy.lock else {
        return Ok(());
    };
    let new = &asked.code.root_fingerprint;
    let old = match files::read_private_text(&state.root()) {
        Ok(text) => Trust::from_pem(&text).ok(),
        Err(error) if error.is_missing() => return Ok(()),
        Err(_) => None,
    };
    if old.is_some_and(|old| old.fingerprint() == *new) {
        return Ok(());
    }
    let opened = match &asked.permit {
        Some(permit) => lock.opens_root(permit, new, now),
        None => Err(Code::LockRequired),
    };
    opened.map_err(|code| {
        let failure = Failure::of(code, "could not change over to the root that the code names");
        match code {
            Code::LockRequired => failure
                .because("this device has a lock, and the owner's keys have not signed that root")
                .next("make a request with `tunnel lock request-root`, have it signed, and use `--permit`"),
            _ => failure,
        }
    })
}
