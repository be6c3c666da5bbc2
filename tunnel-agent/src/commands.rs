//! What a service that runs commands may run, and for how long. Pure; `run` starts the programs.
//!
//! The owner's list is of absolute paths, compared byte by byte: no shell, no search path and no `..` stands between what is
//! listed and what is started.

pub(crate) mod run;

use std::collections::BTreeSet;
use std::time::Duration;

use tunnel_proto::Code;
use tunnel_proto::batch::{Batch, BatchHash};

use crate::defaults;

/// What a service that runs commands lets happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commands {
    /// What may be run.
    pub programs: Programs,
    /// How long one command may take.
    pub timeout: Duration,
    /// How many bytes one command may write, to both of its outputs together.
    pub max_output: u64,
}

/// The programs that may be run, by absolute path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Programs {
    /// Whatever the server allows.
    Any,
    /// Only these; none, unless the owner says so.
    Only(BTreeSet<String>),
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            programs: Programs::Only(BTreeSet::new()),
            timeout: defaults::COMMAND_TIMEOUT,
            max_output: defaults::COMMAND_OUTPUT,
        }
    }
}

impl Commands {
    /// Says whether a batch may be run here, in a tunnel that is for `bound` alone, if that is one. All of it or nothing.
    ///
    /// # Errors
    /// Returns [`Code::BatchDenied`], or [`Code::LocalPolicy`] for a program that the owner has not listed.
    ///
    /// # Security
    /// The relay sees no command and the server is told none, so this is the one place that holds a batch against what was
    /// approved.
    pub fn admit(&self, batch: &Batch, bound: Option<BatchHash>) -> Result<(), Code> {
        if bound.is_some_and(|bound| bound != batch.hash()) {
            return Err(Code::BatchDenied);
        }
        let mut programs = batch.commands().iter().filter_map(|words| words.first());
        let listed = match &self.programs {
            Programs::Any => true,
            Programs::Only(listed) => programs.all(|program| listed.contains(program)),
        };
        listed.then_some(()).ok_or(Code::LocalPolicy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(programs: &[&str]) -> Batch {
        Batch::new(
            programs
                .iter()
                .map(|program| vec![(*program).to_owned(), "-x".into()])
                .collect(),
        )
        .unwrap()
    }

    fn only(programs: &[&str]) -> Commands {
        Commands {
            programs: Programs::Only(programs.iter().map(|&program| program.to_owned()).collect()),
            ..Commands::default()
        }
    }

    #[test]
    fn only_what_the_owner_lists_is_run() {
        let (ls, sh) = ("/bin/ls", "/bin/sh");
        assert_eq!(only(&[ls]).admit(&batch(&[ls, ls]), None), Ok(()));
        assert_eq!(only(&[ls]).admit(&batch(&[ls, sh]), None), Err(Code::LocalPolicy));
        for program in ["/bin/../bin/ls", "/bin//ls", "/bin/ls ", "/bin/LS", "/bin", "/"] {
            assert_eq!(
                only(&[ls]).admit(&batch(&[program]), None),
                Err(Code::LocalPolicy),
                "{program}"
            );
        }
        assert_eq!(
            Commands::default().admit(&batch(&[ls]), None),
            Err(Code::LocalPolicy)
        );
        let any = Commands {
            programs: Programs::Any,
            ..Commands::default()
        };
        assert_eq!(any.admit(&batch(&[sh]), None), Ok(()));
    }

    #[test]
    fn a_bound_tunnel_is_for_its_batch_alone() {
        let (approved, other) = (batch(&["/bin/ls"]), batch(&["/bin/ls", "/bin/ls"]));
        let (rules, bound) = (only(&["/bin/ls"]), Some(approved.hash()));
        assert_eq!(rules.admit(&approved, bound), Ok(()));
        assert_eq!(rules.admit(&other, bound), Err(Code::BatchDenied));
        assert_eq!(
            only(&[]).admit(&approved, bound),
            Err(Code::LocalPolicy),
            "an approval widens nothing"
        );
    }
}
