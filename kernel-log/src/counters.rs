use std::sync::atomic::{AtomicU64, Ordering};

use super::Block;

/// What the store of [`Logs`](super::Logs) has accepted and refused since they were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogCounters {
    /// Entries that were stored.
    pub entries: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Writes that the store refused, including those that were retried.
    pub refused_writes: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    entries: AtomicU64,
    bytes: AtomicU64,
    refused_writes: AtomicU64,
}

impl Counters {
    /// Counts a write of this block, or of index updates only.
    pub(super) fn count(&self, block: Option<&Block>, is_stored: bool) {
        if !is_stored {
            self.refused_writes.fetch_add(1, Ordering::Relaxed);
        } else if let Some(block) = block {
            let entries = block.last().0 - block.first().0 + 1;
            self.entries.fetch_add(entries, Ordering::Relaxed);
            self.bytes.fetch_add(block.size() as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> LogCounters {
        LogCounters {
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            refused_writes: self.refused_writes.load(Ordering::Relaxed),
        }
    }
}
