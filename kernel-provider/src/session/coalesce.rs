use std::time::Duration;

use tokio::time::Instant;

/// From how many messages a second on it is a flood.
const RATE: f64 = 5_000.0;
/// Over which time that is judged.
const WINDOW: Duration = Duration::from_millis(10);
/// For how long messages of a flood are gathered. Between a kernel's queue of 1,000 and the connection's buffers there
/// is room for more than any kernel sends meanwhile.
pub(super) const COALESCE_FOR: Duration = Duration::from_millis(1);

/// Tells a flood from single messages. In a flood it is worth to let messages gather for a moment: to wake up for each
/// of them costs more, here and in all that follows, than everything that is done with it.
pub(super) struct FloodDetector {
    since: Instant,
    messages: usize,
    goes_on: bool,
}

impl FloodDetector {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            messages: 0,
            goes_on: false,
        }
    }

    /// Whether there is a flood, after this many more messages.
    pub(super) fn goes_on(&mut self, messages: usize) -> bool {
        self.messages += messages;
        let elapsed = self.since.elapsed();
        if elapsed >= WINDOW {
            self.goes_on = self.messages as f64 >= RATE * elapsed.as_secs_f64();
            self.since = Instant::now();
            self.messages = 0;
        }
        self.goes_on
    }
}
