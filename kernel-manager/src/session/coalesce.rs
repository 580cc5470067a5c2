use std::time::Duration;

use tokio::time::Instant;

/// Messages per second at which output counts as a flood.
const RATE: f64 = 5_000.0;
/// The window over which the rate is measured.
const WINDOW: Duration = Duration::from_millis(10);
/// How long messages of a flood are collected. A kernel's queue of 1,000 messages and the connection's buffers hold
/// more than a kernel sends in this time.
pub(super) const COALESCE_FOR: Duration = Duration::from_millis(1);

/// Detects floods. In a flood, waking up for each message costs the recorder and the log's readers more than processing
/// it, so the recorder collects messages for [`COALESCE_FOR`].
pub(super) struct FloodDetector {
    since: Instant,
    messages: usize,
    is_flood: bool,
}

impl FloodDetector {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            messages: 0,
            is_flood: false,
        }
    }

    /// Counts messages and returns whether they are part of a flood.
    pub(super) fn is_flood(&mut self, messages: usize) -> bool {
        self.messages += messages;
        let elapsed = self.since.elapsed();
        if elapsed >= WINDOW {
            self.is_flood = self.messages as f64 >= RATE * elapsed.as_secs_f64();
            self.since = Instant::now();
            self.messages = 0;
        }
        self.is_flood
    }
}
