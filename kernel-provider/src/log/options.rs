use std::time::Duration;

use chrono::Utc;

use super::Retention;

/// How much of each log is kept where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogOptions {
    /// How many bytes of a log's newest entries stay in memory.
    pub memory_bytes: usize,
    /// How many appended bytes may wait for the store. Beyond that [`Log::room`](super::Log::room) waits.
    pub waiting_bytes: usize,
    /// How many appended bytes of all logs may wait for the store, beside 1 MiB of each.
    pub all_waiting_bytes: usize,
    /// How many bytes of a log the store keeps; the oldest entries are dropped first.
    pub stored_bytes: u64,
    /// How long the store keeps an entry; `None` for ever, within `stored_bytes`.
    pub stored_age: Option<Duration>,
    /// What an entry survives once readers have it.
    pub durability: Durability,
}

/// What an entry survives once readers have it. The process's end, `kill -9` included, in each case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The process's end only: it is left to the operating system when the disk is written.
    Process,
    /// The machine's end too, after 50 ms at the most, and sooner after [`Log::sync_soon`](super::Log::sync_soon).
    #[default]
    Batched,
    /// The machine's end too. Readers wait for the disk.
    Always,
}

impl LogOptions {
    /// What is to be kept of a log now.
    pub(super) fn retention(&self) -> Retention {
        let oldest = self.stored_age.and_then(|age| {
            // Ages beyond what a date can tell are for ever.
            Utc::now().checked_sub_signed(chrono::Duration::from_std(age).ok()?)
        });
        Retention {
            max_bytes: self.stored_bytes,
            oldest,
        }
    }
}

impl Default for LogOptions {
    /// 1 MiB in memory, 64 MiB waiting, 256 MiB waiting of all logs, 1 GiB stored, for 30 days, synced in batches.
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 20,
            waiting_bytes: 64 << 20,
            all_waiting_bytes: 256 << 20,
            stored_bytes: 1 << 30,
            stored_age: Some(Duration::from_secs(30 * 24 * 60 * 60)),
            durability: Durability::default(),
        }
    }
}
