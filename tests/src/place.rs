//! Where a program runs: on this machine, or on a host of an emulated network.

use std::ffi::OsStr;
use std::process::Command;

use crate::programs;

/// Where a program or a socket of a test is.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// This machine's own network; only loopback is used.
    #[default]
    Here,
    /// A host of a laboratory.
    Host {
        /// The laboratory.
        lab: String,
        /// The host's name in it.
        host: String,
    },
}

impl Place {
    /// Starts the command line of a program that is to run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Place::Here => Command::new(program),
            Place::Host { lab, host } => {
                let mut command = Command::new(programs::path("netlab"));
                command.args(["--lab", lab, "exec", host, "--"]).arg(program);
                command
            }
        }
    }

    /// Does something there; sockets that are made there stay there.
    ///
    /// # Panics
    /// When the host is gone, and when `work` panics.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let Place::Host { lab, host } = self else {
            return work();
        };
        let path = netlab::world::netns_path(&format!("{lab}-{host}"));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                netlab::sys::enter_netns(&path)
                    .unwrap_or_else(|error| panic!("cannot enter {host}: {error}"));
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
