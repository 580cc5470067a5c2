use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between log lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Rate limiter for a log line that a peer's input can cause.
///
/// The first occurrence is logged at once, later ones at most once per ten seconds, with the number of suppressed ones.
///
/// ```
/// use jupyter_protocol::LogLimiter;
///
/// let limiter = LogLimiter::new();
/// let mut lines = 0;
/// for _ in 0..1_000 {
///     if let Some(_suppressed) = limiter.due() {
///         lines += 1; // tracing::warn!(suppressed, "rejected a message");
///     }
/// }
/// assert_eq!(lines, 1);
/// ```
#[derive(Debug, Default)]
pub struct LogLimiter(Mutex<Occurrences>);

#[derive(Debug, Default)]
struct Occurrences {
    logged: Option<Instant>,
    suppressed: u64,
}

impl LogLimiter {
    /// Creates a limiter that permits the first line.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Occurrences {
            logged: None,
            suppressed: 0,
        }))
    }

    /// Counts an occurrence. If it should be logged, returns the number of suppressed ones since the last line.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut occurrences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if occurrences.logged.is_some_and(|logged| now < logged + INTERVAL) {
            occurrences.suppressed += 1;
            return None;
        }
        occurrences.logged = Some(now);
        Some(std::mem::take(&mut occurrences.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_permitted_and_then_one_per_interval_with_the_count() {
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
