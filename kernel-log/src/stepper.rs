use std::fmt;

use super::writer::Rounds;

/// Performs the writer thread's steps one by one; see [`Logs::stepped`](super::Logs::stepped). Dropping it between
/// [`store`](Self::store) and [`publish`](Self::publish) simulates a process that is killed at that point.
pub struct Stepper {
    rounds: Rounds,
}

impl fmt::Debug for Stepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepper").finish_non_exhaustive()
    }
}

impl Stepper {
    pub(super) fn new(rounds: Rounds) -> Self {
        Self { rounds }
    }

    /// Stores pending entries of one queued log without publishing them. Returns whether a log was queued.
    pub fn store(&mut self) -> bool {
        self.rounds.store_first()
    }

    /// Publishes the stored entries to readers.
    pub fn publish(&mut self) {
        self.rounds.publish();
    }
}
