//! Has the server built again when a migration is added: the macro that takes them in sees only changes of those it knows.

#![allow(clippy::print_stdout, reason = "cargo is told so")]

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
