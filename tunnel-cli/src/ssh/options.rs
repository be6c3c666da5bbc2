//! The options under which `ssh` and `scp` run through a tunnel, and the argument vectors.

use std::ffi::OsString;

use super::args::{ScpCall, SshCall, host_operand};
use super::quote::{command_word, config_path, utf8};
use super::{SUFFIX, Setup};
use crate::failure::Failure;
use crate::home::KNOWN_HOSTS;
use tunnel_proto::DeviceId;

/// Options that come after the user's own, and so give way to them on the command line, but not in a file: what a
/// device could use against the operator's machine is off (THREATS CLI-05).
pub const DEFAULTS: &[(&str, &str)] = &[
    ("ForwardAgent", "no"),
    ("ForwardX11", "no"),
    ("PermitLocalCommand", "no"),
];

/// Returns the options that come before the user's own, and so win: the way through the tunnel, and the host keys that
/// the device reported over its authenticated link (THREATS CLI-04).
///
/// With a device, its name is written out; without, `ssh` puts in the host that it was called with.
///
/// # Errors
/// Refuses paths that `ssh` cannot be told.
pub fn fixed(setup: &Setup, device: Option<&DeviceId>) -> Result<Vec<(&'static str, String)>, Failure> {
    let host = device.map_or_else(|| "%n".to_owned(), |device| format!("{device}{SUFFIX}"));
    // `ssh` puts the host in for %n, so it is quoted; a host with a quote in it is refused by `ssh` itself and by the
    // stanza's pattern.
    let quoted = if device.is_some() {
        host.clone()
    } else {
        format!("'{host}'")
    };
    let mut command = command_word(utf8(&setup.exe)?);
    if device.is_none() {
        command = format!("{command} --home {}", command_word(utf8(&setup.home)?));
    }
    // The marker is replaced after the path was quoted, so that the %n of ours is no %%n.
    let hosts = config_path(&setup.home.join(KNOWN_HOSTS))?;
    let hosts = format!("{}/{host}\"", hosts.trim_end_matches('"'));
    let mut options = vec![
        (
            "ProxyCommand",
            format!("{command} connect --host-keys -- {quoted} {}", setup.service),
        ),
        ("ProxyUseFdpass", "no".to_owned()),
        ("UserKnownHostsFile", hosts),
        ("GlobalKnownHostsFile", "/dev/null".to_owned()),
        ("KnownHostsCommand", "none".to_owned()),
        ("StrictHostKeyChecking", "yes".to_owned()),
        ("CheckHostIP", "no".to_owned()),
        ("VerifyHostKeyDNS", "no".to_owned()),
        ("UpdateHostKeys", "no".to_owned()),
        ("CanonicalizeHostname", "no".to_owned()),
        ("NoHostAuthenticationForLocalhost", "no".to_owned()),
    ];
    if device.is_some() {
        options.push(("HostKeyAlias", host));
    }
    Ok(options)
}

/// Returns the arguments of `ssh`.
///
/// # Errors
/// Refuses paths that `ssh` cannot be told.
pub fn ssh_arguments(setup: &Setup, call: SshCall) -> Result<Vec<OsString>, Failure> {
    let mut args = as_arguments(fixed(setup, Some(&call.device))?);
    args.extend(call.options);
    args.extend(as_arguments(
        DEFAULTS.iter().map(|&(key, value)| (key, value.to_owned())),
    ));
    args.push("--".into());
    args.push(host_operand(call.user.as_deref(), &call.device));
    args.extend(call.command);
    Ok(args)
}

/// Returns the arguments of `scp`.
///
/// # Errors
/// Refuses paths that `ssh` cannot be told.
pub fn scp_arguments(setup: &Setup, call: ScpCall) -> Result<Vec<OsString>, Failure> {
    let device = match call.devices.as_slice() {
        [device] => Some(device),
        _ => None,
    };
    let mut args = as_arguments(fixed(setup, device)?);
    args.extend(call.options);
    args.extend(as_arguments(
        DEFAULTS.iter().map(|&(key, value)| (key, value.to_owned())),
    ));
    args.push("--".into());
    args.extend(call.operands);
    Ok(args)
}

fn as_arguments(options: impl IntoIterator<Item = (&'static str, String)>) -> Vec<OsString> {
    options
        .into_iter()
        .flat_map(|(key, value)| ["-o".into(), format!("{key}={value}").into()])
        .collect()
}
