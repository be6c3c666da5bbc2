//! What a service that runs commands may run, and for how long. Pure; `run` starts the programs.
//!
//! The owner's list is of whole commands, compared word by word: no shell, no search path and no `..` stands between what is
//! listed and what is started, and a program that is listed alone gets no arguments.

mod listed;
pub(crate) mod run;

use std::time::Duration;

use tunnel_proto::Code;
use tunnel_proto::batch::{Batch, BatchHash};

pub use self::listed::{Listed, ListedError};

use crate::defaults;

/// What a service that runs commands lets happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commands {
    /// What may be run.
    pub allowed: Allowed,
    /// How long one command may take.
    pub timeout: Duration,
    /// How many bytes one command may write, to both of its outputs together.
    pub max_output: u64,
}

/// The commands that may be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// Whatever the server allows.
    Any,
    /// Only these; none, unless the owner says so.
    Only(Vec<Listed>),
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            allowed: Allowed::Only(Vec::new()),
            timeout: defaults::COMMAND_TIMEOUT,
            max_output: defaults::COMMAND_OUTPUT,
        }
    }
}

impl Commands {
    /// Says whether a batch may be run here, in a tunnel that is for `bound` alone, if that is one. All of it or nothing.
    ///
    /// # Errors
    /// Returns [`Code::BatchDenied`], or [`Code::LocalPolicy`] for a command that the owner has not listed.
    ///
    /// # Security
    /// The relay sees no command and the server is told none, so this is the one place that holds a batch against what was
    /// approved.
    pub fn admit(&self, batch: &Batch, bound: Option<BatchHash>) -> Result<(), Code> {
        if bound.is_some_and(|bound| bound != batch.hash()) {
            return Err(Code::BatchDenied);
        }
        let listed = batch.commands().iter().all(|words| self.lists(words));
        listed.then_some(()).ok_or(Code::LocalPolicy)
    }

    /// Says whether the owner lists a command.
    pub fn lists(&self, words: &[String]) -> bool {
        match &self.allowed {
            Allowed::Any => true,
            Allowed::Only(listed) => listed.iter().any(|listed| listed.covers(words)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(commands: &[&[&str]]) -> Batch {
        let words = |words: &&[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Batch::new(commands.iter().map(words).collect()).unwrap()
    }

    fn only(listed: &[&str]) -> Commands {
        Commands {
            allowed: Allowed::Only(listed.iter().map(|listed| listed.parse().unwrap()).collect()),
            ..Commands::default()
        }
    }

    #[test]
    fn only_what_the_owner_lists_is_run() {
        let (ls, sh) = (&["/bin/ls"][..], &["/bin/sh"][..]);
        let lists_ls = only(&["/bin/ls"]);
        assert_eq!(lists_ls.admit(&batch(&[ls, ls]), None), Ok(()));
        for other in [
            &[ls, sh][..],
            &[&["/bin/ls", "-x"]],
            &[&["/bin/ls", ""]],
            &[&["/bin/../bin/ls"]],
            &[&["/bin//ls"]],
            &[&["/bin/ls "]],
            &[&["/bin/LS"]],
            &[&["/bin"]],
            &[&["/"]],
        ] {
            assert_eq!(
                lists_ls.admit(&batch(other), None),
                Err(Code::LocalPolicy),
                "{other:?}"
            );
        }
        assert_eq!(
            Commands::default().admit(&batch(&[ls]), None),
            Err(Code::LocalPolicy)
        );
        let any = Commands {
            allowed: Allowed::Any,
            ..Commands::default()
        };
        assert_eq!(any.admit(&batch(&[&["/bin/sh", "-x"]]), None), Ok(()));
    }

    #[test]
    fn a_bound_tunnel_is_for_its_batch_alone() {
        let ls = &["/bin/ls"][..];
        let (approved, other) = (batch(&[ls]), batch(&[ls, ls]));
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
