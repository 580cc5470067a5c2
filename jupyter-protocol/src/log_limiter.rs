use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a line is written at most, after the first one.
const INTERVAL: Duration = Duration::from_secs(10);

/// Limits how often a log line is written that a peer's input causes.
///
/// The first occurrence is logged at once, later ones once per ten seconds with the number of those left out.
///
/// ```
/// use jupyter_protocol::LogLimiter;
///
/// let limiter = LogLimiter::new();
/// let mut lines = 0;
/// for _ in 0..1_000 {
///     if let Some(_left_out) = limiter.due() {
///         lines += 1; // tracing::warn!(left_out, "a message was refused");
///     }
/// }
/// assert_eq!(lines, 1);
/// ```
#[derive(Debug, Default)]
pub struct LogLimiter(Mutex<Occurrences>);

#[derive(Debug, Default)]
struct Occurrences {
    logged: Option<Instant>,
    left_out: u64,
}

impl LogLimiter {
    /// A limiter that lets the first line through.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Occurrences {
            logged: None,
            left_out: 0,
        }))
    }

    /// Counts an occurrence. Returns how many were left out since the last line where this one is to be logged.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut occurrences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if occurrences.logged.is_some_and(|logged| now < logged + INTERVAL) {
            occurrences.left_out += 1;
            return None;
        }
        occurrences.logged = Some(now);
        Some(std::mem::take(&mut occurrences.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_passes_and_then_one_per_interval_with_the_count() {
        let limiter = LogLimiter::new();
        let start = Instant::now();
        assert_eq!(limiter.due_at(start), Some(0));
        for _ in 0..1_000 {
            assert_eq!(limiter.due_at(start), None);
        }
        assert_eq!(limiter.due_at(start + INTERVAL), Some(1_000));
        assert_eq!(limiter.due_at(start + INTERVAL), None);
        assert_eq!(limiter.due_at(start + 3 * INTERVAL), Some(1));
    }
}
