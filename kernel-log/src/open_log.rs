use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use jupyter_protocol::{Backoff, Channel, KernelId};
use tokio::sync::{Notify, watch};

use super::acknowledged::Acknowledged;
use super::index::Updates;
use super::large_blocks::{LargeBlocks, ReadMemory};
use super::pending_blocks::PendingBlocks;
use super::quotas::Quotas;
use super::unrecorded::Unrecorded;
use super::{Block, Durability, Epoch, LogOptions, NewEntry, Origin, Seq, StoreError, StoredLog, WhenFull, writer};

/// Bytes of a log that may wait for the store regardless of other logs.
const FREE: usize = 1 << 20;
/// Time after a failed trim during which acknowledgements do not cause another trim.
const TRIM_PAUSE: Duration = Duration::from_secs(1);

/// How far readers may read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) seq: Seq,
    pub(super) closed: bool,
    /// Number of index updates that the store has accepted or refused so far, without those of a write that is
    /// [retried](LogState::retry).
    pub(super) index_updates: u64,
}

/// A stored log with its bounds, for [`OpenLog::new`].
pub(super) struct StoredWithBounds {
    stored: Box<dyn StoredLog>,
    bounds: Option<(Seq, Seq)>,
    bytes: u64,
}

impl StoredWithBounds {
    /// Size of the kept entries in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the log's bounds from the store. Blocks the thread.
    pub(super) fn new(stored: Box<dyn StoredLog>) -> Result<Self, StoreError> {
        let (bounds, bytes) = (stored.bounds()?, stored.bytes());
        Ok(Self { stored, bounds, bytes })
    }
}

/// The state shared by all handles of a log, its readers and the writer.
pub(super) struct OpenLog {
    pub(super) id: KernelId,
    pub(super) epoch: Epoch,
    pub(super) stored: Box<dyn StoredLog>,
    pub(super) options: LogOptions,
    pub(super) writer: writer::Queue,
    pub(super) quotas: Option<Arc<Quotas>>,
    pub(super) state: Mutex<LogState>,
    pub(super) head: watch::Sender<Head>,
    pub(super) earliest: watch::Sender<Seq>,
    /// Notified when entries are stored, acknowledged or dropped.
    pub(super) room: Notify,
    pub(super) large_blocks: LargeBlocks,
}

/// A refused write that is retried: a block, or only index updates. The updates stay in [`LogState::writing_index`].
pub(super) struct Retry {
    pub(super) block: Option<Block>,
    pub(super) backoff: Backoff,
}

pub(super) struct LogState {
    pub(super) pending: PendingBlocks,
    /// Bytes that the writer is storing.
    pub(super) writing_bytes: usize,
    /// Bytes of this log that are included in [`writer::Queue::waiting_bytes`].
    counted_bytes: usize,
    pub(super) writing_index: Arc<Updates>,
    /// Index updates that the store refused. They are stored with the next block. Bounded by the number of keys.
    pub(super) refused_index: Updates,
    /// Whether the log is queued at the writer or being written.
    pub(super) with_writer: bool,
    /// The newest published blocks, also those that the store refused for good.
    pub(super) recent: VecDeque<Block>,
    pub(super) recent_bytes: usize,
    pub(super) stored_since_trim: u64,
    pub(super) acknowledged: Acknowledged,
    /// Whether the writer is to trim the log because entries were acknowledged.
    pub(super) drop_acknowledged: bool,
    /// When the last trim was made, if it failed.
    trim_failed: Option<Instant>,
    /// Whether to sync once everything waiting is stored.
    pub(super) sync_soon: bool,
    /// The next write, if the store has refused it before.
    pub(super) retry: Option<Retry>,
    /// Whether the store has refused the current write, which is being retried.
    pub(super) is_refused: bool,
    /// Whether the log was removed from the store.
    pub(super) is_removed: bool,
    /// Entries that the store has refused for good, that is, without a retry, since it last accepted a write.
    pub(super) unrecorded: Option<Unrecorded>,
}

impl LogState {
    fn after(last: Seq, stored_bytes: u64) -> Self {
        Self {
            pending: PendingBlocks::after(last),
            writing_bytes: 0,
            counted_bytes: 0,
            writing_index: Arc::default(),
            refused_index: Updates::default(),
            with_writer: false,
            recent: VecDeque::new(),
            recent_bytes: 0,
            stored_since_trim: 0,
            acknowledged: Acknowledged::new(last, stored_bytes),
            drop_acknowledged: false,
            trim_failed: None,
            sync_soon: false,
            retry: None,
            is_refused: false,
            is_removed: false,
            unrecorded: None,
        }
    }

    /// The unstored update of this key.
    pub(super) fn unstored_record(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.unstored_updates_newest_first()
            .find_map(|updates| updates.get(key))
    }

    /// The unstored updates of keys from `start` (inclusive) to `end` (exclusive).
    pub(super) fn unstored_records(&self, start: &[u8], end: &[u8]) -> BTreeMap<Bytes, Option<Bytes>> {
        let mut records = BTreeMap::new();
        for update in self
            .unstored_updates_newest_first()
            .flat_map(|updates| updates.range(start, end))
        {
            records.entry(update.key).or_insert(update.value);
        }
        records
    }

    /// Handles a write that the store accepted. If entries were lost before it, appends an entry that reports them.
    pub(super) fn recorded(&mut self, id: KernelId) {
        if std::mem::take(&mut self.is_refused) && self.unrecorded.is_none() {
            tracing::warn!(kernel_id = %id, "the log is being recorded again; nothing is missing");
        }
        if let Some(unrecorded) = self.unrecorded.take() {
            let Unrecorded { first, last, .. } = &unrecorded;
            tracing::warn!(kernel_id = %id, %first, %last, "the log is being recorded again");
            let entry = NewEntry {
                origin: Origin::Lifecycle,
                channel: Channel::Iopub,
                session: "",
                message: &unrecorded.message(),
            };
            self.pending.push(&entry, Utc::now());
        }
    }

    /// Handles a write that the store refused and that is not retried.
    pub(super) fn not_recorded(&mut self, id: KernelId, block: Option<&Block>, error: &StoreError) {
        self.is_refused = false;
        // Index updates are stored with the next block, so only entries can be missing.
        let Some(block) = block else { return };
        match &mut self.unrecorded {
            Some(unrecorded) => unrecorded.last = block.last(),
            None => {
                tracing::error!(kernel_id = %id, first = %block.first(), %error, "the log is not being recorded");
                self.unrecorded = Some(Unrecorded {
                    first: block.first(),
                    last: block.last(),
                    reason: error.to_string(),
                });
            }
        }
    }

    /// Handles a write that the store refused and that is retried.
    pub(super) fn refused(&mut self, id: KernelId, retry: Retry, error: &StoreError) {
        if !std::mem::replace(&mut self.is_refused, true) {
            tracing::error!(kernel_id = %id, %error, "the store refused a write to the log, which is retried");
        }
        self.retry = Some(retry);
    }

    fn unstored_updates_newest_first(&self) -> impl Iterator<Item = &Updates> {
        self.pending
            .updates_newest_first()
            .chain([&*self.writing_index, &self.refused_index])
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        let counted = self.state().counted_bytes;
        self.writer.count(counted, 0);
    }
}

impl OpenLog {
    /// A log with the contents of `stored` and nothing in memory.
    pub(super) fn new(
        id: KernelId,
        StoredWithBounds { stored, bounds, bytes }: StoredWithBounds,
        options: LogOptions,
        writer: writer::Queue,
        quotas: Option<Arc<Quotas>>,
        read_memory: ReadMemory,
        closed: bool,
    ) -> Self {
        let large_blocks = LargeBlocks::new(stored.largest_block(), read_memory);
        let last = bounds.map_or(Seq::START, |(_, last)| last);
        Self {
            id,
            epoch: stored.epoch(),
            stored,
            options,
            writer,
            quotas,
            state: Mutex::new(LogState::after(last, bytes)),
            head: watch::Sender::new(Head {
                seq: last,
                closed,
                index_updates: 0,
            }),
            earliest: watch::Sender::new(bounds.map_or(last.next(), |(first, _)| first)),
            room: Notify::new(),
            large_blocks,
        }
    }

    /// Locks the state, even after a panic: a panic while the lock is held leaves no incomplete entries.
    pub(super) fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates this log's share of [`writer::Queue::waiting_bytes`].
    pub(super) fn count(&self, state: &mut LogState) {
        let now = state.pending.bytes() + state.writing_bytes;
        self.writer.count(state.counted_bytes, now);
        state.counted_bytes = now;
    }

    /// Whether more may be appended: if this log and all logs together are below their bounds, or if less than [`FREE`]
    /// of this log is waiting.
    pub(super) fn has_room(&self) -> bool {
        let options = &self.options;
        let waiting = self.state().counted_bytes;
        waiting < options.waiting_bytes.min(FREE)
            || waiting < options.waiting_bytes && self.writer.waiting_bytes() < options.all_waiting_bytes
    }

    /// Returns `true` if the calling thread must store the pending entries. The writer's thread does not take the log
    /// meanwhile.
    pub(super) fn begin_inline(&self, state: &mut LogState, max_bytes: usize) -> bool {
        let is_inline = self.stored.appends_fast()
            && self.options.durability != Durability::Always
            && !state.with_writer
            && !state.pending.is_empty()
            && state.pending.bytes() <= max_bytes;
        state.with_writer |= is_inline;
        is_inline
    }

    /// Queues the log at the writer if it has something to store or to drop and is not queued yet.
    pub(super) fn wake_writer(self: &Arc<Self>, state: &mut LogState) {
        if !state.with_writer && (!state.pending.is_empty() || state.drop_acknowledged) {
            state.with_writer = true;
            self.writer.push(self.clone());
        }
    }

    /// Whether to retry a write that the store refused with this error.
    pub(super) fn is_retried(&self, state: &LogState, error: &StoreError) -> bool {
        self.options.when_full == WhenFull::Wait
            && !state.is_removed
            && !matches!(error, StoreError::Closed { .. })
            && !self.writer.is_over()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.head.borrow().closed
    }

    pub(super) fn set_closed(&self, closed: bool) {
        self.head
            .send_if_modified(|head| std::mem::replace(&mut head.closed, closed) != closed);
    }

    /// Advances `earliest`, the first entry that is kept.
    pub(super) fn moved_to(&self, earliest: Seq) {
        self.earliest.send_if_modified(|current| {
            let moved = earliest > *current;
            if moved {
                *current = earliest;
            }
            moved
        });
    }

    /// Notes that entries up to `seq` are no longer needed. If that frees space, the writer trims the log.
    pub(super) fn acknowledge(self: &Arc<Self>, seq: Seq) {
        let seq = seq.min(self.head.borrow().seq);
        {
            let mut state = self.state();
            state.acknowledged.begin();
            if !state.acknowledged.acknowledge(seq) {
                return;
            }
            while let Some(oldest) = state.recent.front()
                && oldest.last() <= seq
            {
                state.recent_bytes -= oldest.size();
                state.recent.pop_front();
            }
        }
        self.room.notify_waiters();
        if self.stored.can_drop(seq) {
            let mut state = self.state();
            if state.trim_failed.is_none_or(|failed| failed.elapsed() > TRIM_PAUSE) {
                state.drop_acknowledged = true;
                self.wake_writer(&mut state);
            }
        }
    }

    /// Bytes after the acknowledged position, including those that wait for the store.
    pub(super) fn unacknowledged_bytes(&self) -> u64 {
        // Retention may have dropped entries that were not acknowledged.
        let kept = self.stored.bytes();
        let mut state = self.state();
        state.acknowledged.begin();
        state.acknowledged.bytes_after().min(kept) + state.counted_bytes as u64
    }

    /// Drops acknowledged entries and those outside the retention. Blocks the thread.
    pub(super) fn trim(&self) -> Result<(), StoreError> {
        self.trim_to(u64::MAX)
    }

    /// As [`trim`](Self::trim), but also drops the oldest entries beyond `max_bytes`.
    pub(super) fn trim_to(&self, max_bytes: u64) -> Result<(), StoreError> {
        let mut retention = self.options.retention();
        retention.max_bytes = retention.max_bytes.min(max_bytes);
        let acknowledged = self.state().acknowledged.position();
        let trimmed = self.stored.trim(&retention.after(acknowledged));
        self.state().trim_failed = trimmed.is_err().then(Instant::now);
        self.moved_to(trimmed?);
        if let Some(quotas) = &self.quotas {
            quotas.was_trimmed(self.id, self.stored.bytes());
        }
        self.room.notify_waiters();
        Ok(())
    }
}
