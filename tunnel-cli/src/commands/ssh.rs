//! `tunnel ssh`, `tunnel scp` and `tunnel ssh-config`.

use std::ffi::OsString;

use serde::Serialize;
use tunnel_net::link::Try;
use tunnel_proto::ServiceName;

use super::Context;
use crate::args;
use crate::failure::Failure;
use crate::output::write_stdout;
use crate::ssh::args::{ScpCall, SshCall};
use crate::ssh::options::{scp_arguments, ssh_arguments};
use crate::ssh::stanza::stanza;
use crate::ssh::{OURS, Setup, exec, this_exe};

/// Replaces this process by `ssh`; returns only why it could not.
///
/// # Errors
/// Tells what is wrong with the arguments, the login or the system; the exit code is ssh's own for such things.
pub fn ssh(context: &Context, args: args::Ssh) -> Result<(), Failure> {
    run(context, args, "ssh", |setup, args| {
        ssh_arguments(setup, SshCall::parse(args)?)
    })
    .map_err(|f| f.exit(OURS))
}

/// Replaces this process by `scp`; returns only why it could not.
///
/// # Errors
/// As [`ssh`].
pub fn scp(context: &Context, args: args::Ssh) -> Result<(), Failure> {
    run(context, args, "scp", |setup, args| {
        scp_arguments(setup, ScpCall::parse(args)?)
    })
    .map_err(|f| f.exit(OURS))
}

fn run(
    context: &Context,
    args: args::Ssh,
    program: &str,
    arguments: impl FnOnce(&Setup, &[OsString]) -> Result<Vec<OsString>, Failure>,
) -> Result<(), Failure> {
    let setup = setup(context, args.service)?;
    let arguments = arguments(&setup, &args.args)?;
    // Told here, before ssh starts: its own words for it would be those of a broken pipe.
    context.home.login()?;
    let mut env = Vec::new();
    if let Some(ttl) = args.ask.ttl {
        env.push(("TUNNEL_TTL", ttl.to_string()));
    }
    if let Some(reason) = args.ask.reason {
        env.push(("TUNNEL_REASON", reason));
    }
    if let Some(permit) = args.ask.permit {
        // Read here too, so that what is wrong with it is not told in the words of a broken pipe.
        super::lock::permit_to_show(&permit)?;
        let permit = std::path::absolute(&permit).unwrap_or(permit);
        env.push(("TUNNEL_PERMIT", permit.display().to_string()));
    }
    // Said either way: what stands in the environment already is no emergency of this call.
    env.push((crate::BREAK_GLASS, args.ask.break_glass.to_string()));
    if let Some(carrier) = args.ask.carrier.and_then(Try::only) {
        env.push(("TUNNEL_CARRIER", carrier.to_string()));
    }
    Err(exec(program, &arguments, &setup.home, &env))
}

/// Prints the stanza.
///
/// # Errors
/// Refuses paths that `ssh` cannot be told.
pub fn ssh_config(context: &Context, args: args::SshConfig) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Stanza {
        stanza: String,
    }
    let stanza = stanza(&setup(context, args.service)?)?;
    if context.output.json {
        context.output.json_line(&Stanza { stanza })
    } else {
        write_stdout(&stanza)
    }
}

fn setup(context: &Context, service: ServiceName) -> Result<Setup, Failure> {
    Ok(Setup {
        exe: this_exe()?,
        home: context.home.dir().to_owned(),
        service,
    })
}
