//! Takes the arguments of `ssh` and `scp` apart by their own option tables.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use tunnel_proto::{Code, DeviceId};

use super::{SUFFIX, device};
use crate::failure::Failure;

/// Options of `ssh` that take a value (OpenSSH 8.5 to 10).
const SSH_WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOopQRSWw";

/// Options of `ssh` that take none.
const SSH_FLAGS: &[u8] = b"1246AaCfGgKkMNnqsTtVvXxYy";

/// Options of `scp` that take a value.
const SCP_WITH_VALUE: &[u8] = b"cDFiJloPSX";

/// Options of `scp` that take none.
const SCP_FLAGS: &[u8] = b"12346ABCOpqRrsTv";

/// Configuration that `tunnel` sets itself: without it, nobody would know who answers. Lower case.
const FIXED: &[&str] = &[
    "proxycommand",
    "proxyjump",
    "proxyusefdpass",
    "userknownhostsfile",
    "globalknownhostsfile",
    "knownhostscommand",
    "stricthostkeychecking",
    "hostkeyalias",
    "checkhostip",
    "verifyhostkeydns",
    "updatehostkeys",
    "canonicalizehostname",
    "nohostauthenticationforlocalhost",
];

/// A call of `ssh`, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct SshCall {
    /// The options, as they came.
    pub options: Vec<OsString>,
    /// The login name before the `@`, if one is given there.
    pub user: Option<OsString>,
    /// The device.
    pub device: DeviceId,
    /// The remote command, as it came.
    pub command: Vec<OsString>,
}

/// A call of `scp`, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct ScpCall {
    /// The options, as they came.
    pub options: Vec<OsString>,
    /// Sources and target, with the devices' names as `ssh` knows them.
    pub operands: Vec<OsString>,
    /// The devices, each once.
    pub devices: Vec<DeviceId>,
}

impl SshCall {
    /// Reads `[options] [user@]DEVICE [options] [--] [command]`, as `ssh` itself does.
    ///
    /// # Errors
    /// Refuses options that `ssh` does not have or that `tunnel` sets, and what is no device.
    pub fn parse(args: &[OsString]) -> Result<Self, Failure> {
        let mut rest = Arguments { args, next: 0 };
        let (mut options, ended) = rest.options("ssh", SSH_WITH_VALUE, SSH_FLAGS)?;
        let destination = rest
            .operand()
            .ok_or_else(|| usage("no device is named", "name one, as `tunnel ssh DEVICE`"))?;
        if !ended {
            options.extend(rest.options("ssh", SSH_WITH_VALUE, SSH_FLAGS)?.0);
        }
        let (user, device) = destination_parts(destination)?;
        Ok(Self {
            options,
            user,
            device,
            command: rest.args[rest.next..].to_vec(),
        })
    }
}

impl ScpCall {
    /// Reads `[options] source... target`, where a source or the target is `[user@]DEVICE:path`.
    ///
    /// # Errors
    /// Refuses options that `scp` does not have or that `tunnel` sets, and a call that names no device.
    pub fn parse(args: &[OsString]) -> Result<Self, Failure> {
        let mut rest = Arguments { args, next: 0 };
        let (options, _) = rest.options("scp", SCP_WITH_VALUE, SCP_FLAGS)?;
        let mut call = Self {
            options,
            operands: Vec::new(),
            devices: Vec::new(),
        };
        while let Some(operand) = rest.operand() {
            call.push(operand)?;
        }
        if call.operands.len() < 2 {
            return Err(usage(
                "a source or the target is missing",
                "name both, as `tunnel scp FILE DEVICE:PATH`",
            ));
        }
        if call.devices.is_empty() {
            return Err(usage("no operand names a device", "write one as `DEVICE:PATH`"));
        }
        Ok(call)
    }

    fn push(&mut self, operand: &OsStr) -> Result<(), Failure> {
        let bytes = operand.as_bytes();
        if bytes.starts_with(b"scp://") {
            return Err(usage(
                "`scp://` addresses are not for devices",
                "write `DEVICE:PATH`",
            ));
        }
        let Some(colon) = remote_colon(bytes) else {
            self.operands.push(operand.to_owned());
            return Ok(());
        };
        let (user, device) = destination_parts(OsStr::from_bytes(&bytes[..colon]))?;
        let mut rewritten = host_operand(user.as_deref(), &device).into_vec();
        rewritten.extend_from_slice(&bytes[colon..]);
        self.operands.push(OsString::from_vec(rewritten));
        if !self.devices.contains(&device) {
            self.devices.push(device);
        }
        Ok(())
    }
}

/// Returns `[user@]DEVICE.tunnel`.
pub fn host_operand(user: Option<&OsStr>, device: &DeviceId) -> OsString {
    let mut text = OsString::new();
    if let Some(user) = user {
        text.push(user);
        text.push("@");
    }
    text.push(device.as_str());
    text.push(SUFFIX);
    text
}

/// Finds the colon that makes an operand remote: one before any slash, and not the first character (scp's rule).
fn remote_colon(operand: &[u8]) -> Option<usize> {
    let colon = operand.iter().position(|&c| c == b':' || c == b'/')?;
    (operand[colon] == b':' && colon > 0).then_some(colon)
}

/// Splits `[user@]DEVICE` at the last `@`, as `ssh` does.
fn destination_parts(destination: &OsStr) -> Result<(Option<OsString>, DeviceId), Failure> {
    let bytes = destination.as_bytes();
    let (user, host) = match bytes.iter().rposition(|&c| c == b'@') {
        Some(at) => (Some(&bytes[..at]), &bytes[at + 1..]),
        None => (None, bytes),
    };
    let device = device(&String::from_utf8_lossy(host))?;
    let user = match user {
        None => None,
        Some(user) if is_login(user) => Some(OsString::from_vec(user.to_vec())),
        Some(_) => return Err(usage("the login name cannot be one", "write it as `USER@DEVICE`")),
    };
    Ok((user, device))
}

/// Says whether a login name is none that `ssh`, a shell or a terminal could take for something else.
fn is_login(user: &[u8]) -> bool {
    !user.is_empty()
        && user[0] != b'-'
        && !user
            .iter()
            .any(|&c| c.is_ascii_control() || b"'`\"\\;&<>|(){}$!*? ".contains(&c))
}

/// An option that takes a value, which may be in the next argument.
struct Valued<'a> {
    letter: char,
    value: Option<&'a [u8]>,
}

struct Arguments<'a> {
    args: &'a [OsString],
    next: usize,
}

impl<'a> Arguments<'a> {
    /// Takes the options up to the first operand, or up to and with `--`, which is left out; says whether it was there.
    fn options(
        &mut self,
        program: &str,
        with_value: &[u8],
        flags: &[u8],
    ) -> Result<(Vec<OsString>, bool), Failure> {
        let mut taken = Vec::new();
        while let Some(arg) = self.args.get(self.next) {
            let bytes = arg.as_bytes();
            if bytes == b"--" {
                self.next += 1;
                return Ok((taken, true));
            }
            let Some(cluster) = bytes.strip_prefix(b"-").filter(|cluster| !cluster.is_empty()) else {
                break;
            };
            taken.push(arg.clone());
            self.next += 1;
            if let Some(Valued { letter, value }) = Self::cluster(program, cluster, with_value, flags)? {
                let value = match value {
                    Some(value) => value,
                    None => {
                        let lacks =
                            || usage(&format!("`{program} -{letter}` lacks its value"), "add the value");
                        let value = self.operand().ok_or_else(lacks)?;
                        taken.push(value.to_owned());
                        value.as_bytes()
                    }
                };
                check_option(letter, value)?;
            }
        }
        Ok((taken, false))
    }

    /// Goes through `-abc`; returns the option that takes a value, and the value if it is in the same argument.
    fn cluster<'b>(
        program: &str,
        cluster: &'b [u8],
        with_value: &[u8],
        flags: &[u8],
    ) -> Result<Option<Valued<'b>>, Failure> {
        for (index, letter) in cluster.iter().enumerate() {
            if with_value.contains(letter) {
                let value = &cluster[index + 1..];
                return Ok(Some(Valued {
                    letter: char::from(*letter),
                    value: (!value.is_empty()).then_some(value),
                }));
            }
            if !flags.contains(letter) {
                let shown = String::from_utf8_lossy(cluster);
                return Err(usage(
                    &format!("`{program}` has no option `-{shown}` here"),
                    &format!("see `man {program}`; options of `tunnel {program}` come before the others"),
                ));
            }
        }
        Ok(None)
    }

    /// Takes the next argument, whatever it is.
    fn operand(&mut self) -> Option<&'a OsStr> {
        let operand = self.args.get(self.next)?;
        self.next += 1;
        Some(operand)
    }
}

/// Refuses options that would lead around the tunnel or around the check of who answers.
fn check_option(letter: char, value: &[u8]) -> Result<(), Failure> {
    if letter == 'J' {
        return Err(fixed("-J"));
    }
    if letter == 'o' {
        let text = String::from_utf8_lossy(value);
        let key = text
            .trim_start()
            .split([' ', '\t', '='])
            .next()
            .unwrap_or_default()
            .trim_matches('"');
        if FIXED.contains(&key.to_ascii_lowercase().as_str()) {
            return Err(fixed(key));
        }
    }
    Ok(())
}

fn fixed(option: &str) -> Failure {
    usage(
        &format!("`{option}` cannot be set: the tunnel decides it"),
        "leave the option out; the device's identity and host keys are checked without it",
    )
}

fn usage(why: &str, next: &str) -> Failure {
    Failure::new(Code::BadRequest, "the command is not of the documented form")
        .why(why)
        .next(next)
}
