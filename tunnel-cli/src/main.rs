//! The `tunnel` command.

fn main() -> std::process::ExitCode {
    tunnel_cli::run(std::env::args_os().collect())
}
