use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::ResumeOptions;

/// Exponential backoff between connection attempts.
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    /// Seed of the random numbers. It belongs to the client, so tests are repeatable.
    random: DefaultHasher,
}

impl Backoff {
    pub(super) fn new(options: &ResumeOptions) -> Self {
        let mut random = DefaultHasher::new();
        (options.kernel, &options.session).hash(&mut random);
        Self {
            first: options.first_pause,
            longest: options.longest_pause,
            next: options.first_pause,
            random,
        }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The pause before the next attempt. Randomized, so that the clients of a gateway do not all reconnect at once.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.longest);
        self.next = pause.saturating_mul(2);
        self.random.write_u8(0);
        let random = self.random.finish() as f64 / u64::MAX as f64;
        pause.mul_f64(0.5 + random)
    }
}
