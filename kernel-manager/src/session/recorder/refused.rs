use std::sync::atomic::{AtomicU64, Ordering};

/// Messages of kernels that were not recorded, of all kernels of a manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedMessages {
    /// Messages that are malformed, or whose signature is wrong or was seen before. Those of kernels with an agent are
    /// not counted, because the agent refuses them.
    pub invalid: u64,
    /// Messages that are too large, or for which there was no memory.
    pub skipped: u64,
}

/// Counts them.
#[derive(Debug, Default)]
pub(crate) struct RefusedCounters {
    invalid: AtomicU64,
    skipped: AtomicU64,
}

impl RefusedCounters {
    pub(super) fn invalid(&self) {
        self.invalid.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> RefusedMessages {
        RefusedMessages {
            invalid: self.invalid.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }
}
