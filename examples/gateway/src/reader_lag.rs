//! How far clients are behind the logs that they read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use kernel_log::{Log, Seq};

/// The positions of the clients that are connected.
#[derive(Default)]
pub(crate) struct Positions(Mutex<Vec<Weak<Position>>>);

/// How far one client has been sent its log.
pub(crate) struct Position {
    log: Log,
    sent: AtomicU64,
}

impl Positions {
    /// Adds a client that has been sent the entries up to `sent`.
    pub(crate) fn add(&self, log: Log, sent: Seq) -> Arc<Position> {
        let position = Arc::new(Position {
            log,
            sent: AtomicU64::new(sent.0),
        });
        let mut all = kernel_provider::lock(&self.0);
        // Before the list grows, remove those that are gone.
        if all.len() == all.capacity() {
            all.retain(|position| position.strong_count() > 0);
        }
        all.push(Arc::downgrade(&position));
        position
    }

    /// How many entries the client that is furthest behind has not been sent.
    pub(crate) fn largest_lag(&self) -> u64 {
        let mut all = kernel_provider::lock(&self.0);
        all.retain(|position| position.strong_count() > 0);
        let lags = all.iter().filter_map(Weak::upgrade).map(|position| position.lag());
        lags.max().unwrap_or_default()
    }
}

impl Position {
    /// Records that the client has been sent the entries up to `seq`.
    pub(crate) fn sent(&self, seq: Seq) {
        self.sent.store(seq.0, Ordering::Relaxed);
    }

    fn lag(&self) -> u64 {
        self.log.head().0.saturating_sub(self.sent.load(Ordering::Relaxed))
    }
}
