use super::writer::Rounds;

/// Does by hand what the writer thread does: see [`Logs::stepped`](super::Logs::stepped). Dropped between its two steps
/// it leaves what a process leaves that is killed there.
pub struct Stepper {
    rounds: Rounds,
}

impl Stepper {
    pub(super) fn new(rounds: Rounds) -> Self {
        Self { rounds }
    }

    /// Stores what waits of one log, and tells nobody yet. Returns whether there was a log that waited.
    pub fn store(&mut self) -> bool {
        self.rounds.store_first()
    }

    /// Tells the readers of what was stored.
    pub fn publish(&mut self) {
        self.rounds.publish();
    }
}
