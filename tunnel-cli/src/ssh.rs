//! OpenSSH's own programs through a tunnel: argument vectors, a stanza for `ssh_config`, and host keys.
//!
//! No shell and no parser of ours stands between the operator and `ssh`: arguments are taken apart by `ssh`'s own option
//! table only to find the device among them, and handed on as they came.

pub mod args;
pub mod host_keys;
pub mod options;
pub mod quote;
pub mod stanza;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tunnel_proto::code::Exit;
use tunnel_proto::{Code, DeviceId, ServiceName};

use crate::failure::Failure;

/// Ending of the host names under which `ssh` knows devices.
pub const SUFFIX: &str = ".tunnel";

/// Exit code of `tunnel ssh` and `tunnel scp` for failures of ours: `ssh` uses the same for its own, and the others
/// belong to the remote command.
pub const OURS: u8 = 255;

/// What both programs need to know of this installation.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This executable.
    pub exe: PathBuf,
    /// The state directory.
    pub home: PathBuf,
    /// The service that is an SSH server.
    pub service: ServiceName,
}

/// Reads a device as people write it: with or without the ending that `ssh` uses.
///
/// # Errors
/// Refuses what is no name of a device (THREATS CLI-02).
pub fn device(text: &str) -> Result<DeviceId, Failure> {
    text.strip_suffix(SUFFIX)
        .unwrap_or(text)
        .parse()
        .map_err(|error: tunnel_proto::names::NameError| {
            let shown: String = text.chars().take(80).collect();
            Failure::new(Code::BadName, format!("`{shown}` is no device")).why(error.to_string())
        })
}

/// Finds this executable, under the name that it still has after an upgrade.
///
/// # Errors
/// Tells that the system does not say, or that the path cannot be written into a command line.
pub fn this_exe() -> Result<PathBuf, Failure> {
    let exe = std::env::current_exe().map_err(|error| {
        Failure::new(Code::Internal, "could not find this program's own file").detail(error.to_string())
    })?;
    let kept = exe
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
        .map(PathBuf::from);
    Ok(kept.filter(|path| path.exists()).unwrap_or(exe))
}

/// Replaces this process by an OpenSSH program; returns only why it could not. Its ProxyCommand inherits `env`.
pub fn exec(program: &str, args: &[OsString], home: &Path, env: &[(&str, String)]) -> Failure {
    let envs = env.iter().map(|(name, value)| (name, value));
    let error = Command::new(program)
        .args(args)
        .env("TUNNEL_HOME", home)
        .envs(envs)
        .exec();
    let failure = Failure::new(Code::Unavailable, format!("could not start `{program}`"))
        .why("the system did not run it")
        .detail(error.to_string())
        .exit(Exit::Failed as u8);
    if error.kind() == std::io::ErrorKind::NotFound {
        failure
            .why("it is not installed")
            .next("install OpenSSH's client, for instance the package `openssh-client`")
    } else {
        failure.next(format!("check that `{program}` runs by itself"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// THREATS CLI-02.
    #[test]
    fn a_device_is_a_name_and_nothing_else() {
        assert_eq!(device("pump-17").unwrap().as_str(), "pump-17");
        assert_eq!(device("pump-17.tunnel").unwrap().as_str(), "pump-17");
        let long = "x".repeat(4096);
        for text in [
            "-oProxyCommand=id",
            "a;id",
            "$(id)",
            "a b",
            "a\n",
            "%h",
            "..",
            "",
            ".tunnel",
            "a.tunnel.tunnel",
            "A",
            "ssh://a",
            "[a]",
            &long,
        ] {
            assert_eq!(device(text).unwrap_err().exit_code(), 2, "{text:?}");
        }
    }
}
