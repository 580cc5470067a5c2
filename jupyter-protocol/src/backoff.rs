use std::hash::{DefaultHasher, Hasher as _};
use std::time::Duration;

/// Exponential backoff: pauses between attempts, each twice as long as the one before, up to a maximum.
///
/// ```
/// use std::time::Duration;
///
/// use jupyter_protocol::Backoff;
///
/// let ms = Duration::from_millis;
/// let mut backoff = Backoff::new(ms(100), ms(300));
/// assert_eq!([(); 3].map(|()| backoff.next_pause()), [ms(100), ms(200), ms(300)]);
/// backoff.reset();
/// assert_eq!(backoff.next_pause(), ms(100));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    retries: u32,
    jitter: Option<DefaultHasher>,
}

impl Backoff {
    /// Creates a backoff from its first and its longest pause.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            retries: 0,
            jitter: None,
        }
    }

    /// Multiplies each pause by a random number between 0.5 and 1.5, so that many clients of one server do not all
    /// retry at once. The maximum applies before this. The same seed gives the same pauses.
    #[must_use]
    pub fn with_jitter(mut self, seed: u64) -> Self {
        let mut random = DefaultHasher::new();
        random.write_u64(seed);
        self.jitter = Some(random);
        self
    }

    /// Returns the number of pauses since the start or the last [`reset`](Self::reset).
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Returns the pause before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let factor = 2_u32.saturating_pow(self.retries);
        let pause = self.first.saturating_mul(factor).min(self.longest);
        self.retries = self.retries.saturating_add(1);
        match &mut self.jitter {
            Some(random) => {
                random.write_u8(0);
                pause.mul_f64(0.5 + random.finish() as f64 / u64::MAX as f64)
            }
            None => pause,
        }
    }

    /// Starts again with the first pause, after a success.
    pub fn reset(&mut self) {
        self.retries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_which_then_repeats() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let pauses: Vec<u64> = (0..100).map(|_| backoff.next_pause().as_secs()).collect();
        assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 32, 60]);
        assert!(pauses[7..].iter().all(|pause| *pause == 60), "{pauses:?}");
        assert_eq!(backoff.retries(), 100);
    }

    #[test]
    fn jitter_spreads_pauses_and_repeats_with_its_seed() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).with_jitter(seed);
            (0..100).map(|_| backoff.next_pause()).collect::<Vec<_>>()
        };
        let of_one = pauses(1);
        let range = Duration::from_millis(500)..=Duration::from_millis(1500);
        assert!(of_one.iter().all(|pause| range.contains(pause)), "{of_one:?}");
        assert_eq!(of_one, pauses(1));
        assert_ne!(of_one, pauses(2));
    }
}
