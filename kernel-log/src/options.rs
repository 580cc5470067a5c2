use std::time::Duration;

use chrono::Utc;

use super::{Retention, Seq};

/// Options of [`Logs`](super::Logs): sizes, retention and durability.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogOptions {
    /// Bytes of the newest entries that each log keeps in memory.
    pub memory_bytes: usize,
    /// Bytes of a log that may wait for the store. Beyond that, [`Log::room`](super::Log::room) waits.
    pub waiting_bytes: usize,
    /// Bytes of all logs together that may wait for the store, in addition to 1 MiB of each.
    pub all_waiting_bytes: usize,
    /// Bytes of stored messages of more than 1 MiB that the readers of all logs hold at a time. Beyond that, readers
    /// wait.
    pub reading_bytes: usize,
    /// Bytes of a log that the store keeps; the oldest entries are dropped first.
    pub stored_bytes: u64,
    /// Bytes of all logs together that the store keeps, approximately; `None` for no limit. Once they have more, the
    /// logs of past kernels are dropped, the least recently written first, and then the oldest entries of the largest
    /// logs; see [`Logs::apply_quotas`](super::Logs::apply_quotas). A store that other processes write cannot have a
    /// limit.
    pub total_bytes: Option<u64>,
    /// The same for the logs of each owner together.
    pub owner_bytes: Option<u64>,
    /// How long the store keeps an entry, within `stored_bytes`; `None` for no limit.
    pub stored_age: Option<Duration>,
    /// Which failures entries survive once readers have them.
    pub durability: Durability,
    /// What happens to entries that the store refuses, as on a full disk.
    pub when_full: WhenFull,
    /// How long refused entries are retried after [`Logs::close`](super::Logs::close) is called or
    /// [`Logs`](super::Logs) is dropped, with [`WhenFull::Wait`].
    pub close_timeout: Duration,
}

/// What happens to entries that the store refuses, as on a full disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// Readers get them as long as they are in memory, and later readers get a gap.
    #[default]
    Skip,
    /// They are kept and retried until the store accepts them or the logs are closed. Readers get them only once they
    /// are stored, and [`Log::room`](super::Log::room) waits once [`LogOptions::waiting_bytes`] are waiting. For a
    /// store that only this process writes.
    Wait,
}

/// Which failures an entry survives once readers have it. Unless the store is in memory, an entry survives the end of
/// the process, including `kill -9`, with each variant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// Only the end of the process: the operating system decides when it writes to disk.
    Process,
    /// Also a machine failure, once the entry is synced to disk. A sync begins within 50 ms, or sooner after
    /// [`Log::sync_soon`](super::Log::sync_soon).
    #[default]
    Batched,
    /// Also a machine failure. Readers wait for the disk.
    Always,
}

impl LogOptions {
    /// Sets how many bytes of the newest entries each log keeps in memory.
    #[must_use]
    pub fn with_memory_bytes(mut self, memory_bytes: usize) -> Self {
        self.memory_bytes = memory_bytes;
        self
    }

    /// Sets how many bytes of a log may wait for the store.
    #[must_use]
    pub fn with_waiting_bytes(mut self, waiting_bytes: usize) -> Self {
        self.waiting_bytes = waiting_bytes;
        self
    }

    /// Sets how many bytes of all logs may wait for the store.
    #[must_use]
    pub fn with_all_waiting_bytes(mut self, all_waiting_bytes: usize) -> Self {
        self.all_waiting_bytes = all_waiting_bytes;
        self
    }

    /// Sets how many bytes of large stored messages the readers of all logs hold at a time.
    #[must_use]
    pub fn with_reading_bytes(mut self, reading_bytes: usize) -> Self {
        self.reading_bytes = reading_bytes;
        self
    }

    /// Sets how many bytes of a log the store keeps.
    #[must_use]
    pub fn with_stored_bytes(mut self, stored_bytes: u64) -> Self {
        self.stored_bytes = stored_bytes;
        self
    }

    /// Limits the bytes of all logs together.
    #[must_use]
    pub fn with_total_bytes(mut self, total_bytes: u64) -> Self {
        self.total_bytes = Some(total_bytes);
        self
    }

    /// Limits the bytes of the logs of each owner together.
    #[must_use]
    pub fn with_owner_bytes(mut self, owner_bytes: u64) -> Self {
        self.owner_bytes = Some(owner_bytes);
        self
    }

    /// Sets how long the store keeps an entry; `None` for no limit.
    #[must_use]
    pub fn with_stored_age(mut self, stored_age: Option<Duration>) -> Self {
        self.stored_age = stored_age;
        self
    }

    /// Sets which failures entries survive once readers have them.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets what happens to entries that the store refuses.
    #[must_use]
    pub fn with_when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Sets how long closing waits for a store that refuses entries.
    #[must_use]
    pub fn with_close_timeout(mut self, close_timeout: Duration) -> Self {
        self.close_timeout = close_timeout;
        self
    }

    /// The retention that applies now.
    pub(super) fn retention(&self) -> Retention {
        let oldest = self.stored_age.and_then(|age| {
            // An age that no date can express means no limit.
            Utc::now().checked_sub_signed(chrono::Duration::from_std(age).ok()?)
        });
        Retention {
            max_bytes: self.stored_bytes,
            oldest,
            acknowledged: Seq::START,
        }
    }
}

impl Default for LogOptions {
    /// Each log keeps 1 MiB in memory and up to 1 GiB for 30 days in the store, and 64 MiB may wait for the store. For
    /// all logs together, 256 MiB may wait for the store, 256 MiB of large messages may be read at a time, and the
    /// stored bytes are not limited. The store is synced in batches. Entries that it refuses are skipped, and closing
    /// waits up to 10 s.
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 20,
            waiting_bytes: 64 << 20,
            all_waiting_bytes: 256 << 20,
            reading_bytes: 256 << 20,
            stored_bytes: 1 << 30,
            total_bytes: None,
            owner_bytes: None,
            stored_age: Some(Duration::from_secs(30 * 24 * 60 * 60)),
            durability: Durability::default(),
            when_full: WhenFull::default(),
            close_timeout: Duration::from_secs(10),
        }
    }
}
