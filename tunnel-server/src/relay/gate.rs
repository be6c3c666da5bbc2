//! The gate of one direction of a circuit: who forwards passes it, and closing it waits until nobody is inside.

use std::sync::atomic::{AtomicU64, Ordering};

/// Set for good when the gate is shut; the other bits count who is inside.
const SHUT: u64 = 1 << 63;

/// A gate that opens never again once it is shut.
///
/// INVARIANT: after [`Gate::shut`] has returned nobody is inside and nobody enters. All changes are made to one atomic
/// word, so they have one order: whoever enters before the shut bit is counted, whoever comes after sees the bit.
#[derive(Debug, Default)]
pub(super) struct Gate(AtomicU64);

/// The stay of somebody inside; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Pass<'a>(&'a AtomicU64);

impl Gate {
    /// Goes in, unless the gate is shut. Costs one atomic addition, and another one to leave.
    pub(super) fn enter(&self) -> Option<Pass<'_>> {
        if self.0.load(Ordering::Relaxed) & SHUT != 0 {
            return None;
        }
        // The pass leaves again on its own if the bit was set in between.
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        let pass = Pass(&self.0);
        (before & SHUT == 0).then_some(pass)
    }

    /// Shuts the gate and waits until nobody is inside. What is done inside never blocks, so the wait is of microseconds,
    /// or of one time slice where a thread inside was put off its core.
    pub(super) fn shut(&self) {
        self.0.fetch_or(SHUT, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) != SHUT {
            std::thread::yield_now();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn nobody_is_inside_a_shut_gate() {
        for _ in 0..200 {
            let gate = Gate::default();
            let shut = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while let Some(_pass) = gate.enter() {
                            assert!(!shut.load(Ordering::SeqCst));
                        }
                    });
                }
                gate.shut();
                shut.store(true, Ordering::SeqCst);
            });
            assert!(gate.enter().is_none());
        }
    }
}
