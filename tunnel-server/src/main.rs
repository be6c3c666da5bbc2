//! The `tunnel-server` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tunnel_server::cli::main(std::env::args_os())
}
