//! The agent on a device.

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_agent::cli::main()
}
