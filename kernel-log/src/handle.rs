use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;
use tokio::sync::watch;

use super::open_log::OpenLog;
use super::{Epoch, IndexUpdate, NewEntry, Reader, Seq, StoreError, blocking, index, writer};

/// The log of one kernel. Clones share the same log.
#[derive(Clone)]
pub struct Log {
    pub(super) shared: Arc<OpenLog>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("kernel_id", &self.shared.id)
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

impl Log {
    /// The kernel's id.
    #[must_use]
    pub fn kernel_id(&self) -> KernelId {
        self.shared.id
    }

    /// The log's identity.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// The last entry that readers can read.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.shared.head.borrow().seq
    }

    /// The first entry that is kept, or the next one if none is. It advances when retention drops entries.
    #[must_use]
    pub fn earliest(&self) -> Seq {
        *self.shared.earliest.borrow()
    }

    /// [`earliest`](Self::earliest) and its changes, for removing index records of dropped entries.
    #[must_use]
    pub fn earliest_changes(&self) -> watch::Receiver<Seq> {
        self.shared.earliest.subscribe()
    }

    /// How many bytes of entries the store keeps.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.stored.bytes()
    }

    /// Appends entries with the current time and returns the last one's number. Never waits.
    ///
    /// Await [`room`](Self::room) first if there may be many: entries stay in memory until they are stored.
    pub fn append<'a>(&self, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Seq {
        self.append_at(Utc::now(), entries)
    }

    /// As [`append`](Self::append), with the given time.
    pub fn append_at<'a>(&self, time: DateTime<Utc>, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Seq {
        self.append_indexed(time, entries, |_| Vec::new())
    }

    /// As [`append_at`](Self::append_at), with updates of the index. `index` computes them from the first entry's
    /// number and runs before anything else is appended. The store writes the updates atomically with the entries. If
    /// one of the entries has more than 1 MiB, this holds only for the last entry.
    pub fn append_indexed<'a>(
        &self,
        time: DateTime<Utc>,
        entries: impl IntoIterator<Item = NewEntry<'a>>,
        index: impl FnOnce(Seq) -> Vec<IndexUpdate>,
    ) -> Seq {
        self.append_indexed_unstored(time, entries, index).last()
    }

    /// As [`append`](Self::append), but the caller decides which thread stores the entries: its own, with
    /// [`Unstored::store_here`], or else the one that stores all logs.
    pub fn append_unstored<'a>(&self, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Unstored<'_> {
        self.append_indexed_unstored(Utc::now(), entries, |_| Vec::new())
    }

    /// As [`append_unstored`](Self::append_unstored), with the time and the updates of the index of
    /// [`append_indexed`](Self::append_indexed).
    pub fn append_indexed_unstored<'a>(
        &self,
        time: DateTime<Utc>,
        entries: impl IntoIterator<Item = NewEntry<'a>>,
        index: impl FnOnce(Seq) -> Vec<IndexUpdate>,
    ) -> Unstored<'_> {
        let mut state = self.shared.state();
        let first = state.pending.last().next();
        for entry in entries {
            state.pending.push(&entry, time);
        }
        let updates = index(first);
        state.pending.update_index(updates);
        state.pending.end_append();
        self.shared.count(&mut state);
        Unstored {
            shared: &self.shared,
            last: state.pending.last(),
        }
    }

    /// Updates the index. The update is stored soon, but not before earlier appended entries. Never waits.
    pub fn update_index(&self, updates: impl IntoIterator<Item = IndexUpdate>) {
        let updates: Vec<_> = updates.into_iter().collect();
        let mut state = self.shared.state();
        state.pending.update_index(updates);
        self.shared.count(&mut state);
        self.shared.wake_writer(&mut state);
    }

    /// The index record of this key, including updates that are not stored yet; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn index_get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, StoreError> {
        let key = key.into();
        // Reads the unstored updates before the store. In the other order, an update that the writer stores in between
        // would be missed.
        let unstored = self.shared.state().unstored_record(&key);
        if let Some(record) = unstored {
            return Ok(record);
        }
        let shared = self.shared.clone();
        blocking(shared.stored.blocks(), move || shared.stored.index_get(&key)).await
    }

    /// At most `limit` index records with keys from `start` (inclusive) to `end` (exclusive), in key order, or in
    /// reverse with `newest_first`.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn index_scan(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let (start, end) = (start.into(), end.into());
        let unstored = self.shared.state().unstored_records(&start, &end);
        let shared = self.shared.clone();
        let wanted = limit.saturating_add(unstored.len());
        let stored = blocking(shared.stored.blocks(), move || {
            shared.stored.index_scan((&start, &end), wanted, newest_first)
        })
        .await?;
        Ok(index::overlay(stored, unstored, limit, newest_first))
    }

    /// Requests a sync without waiting for it. Call this after entries that clients rely on, such as a reply. With
    /// [`Durability::Batched`](super::Durability::Batched), the store is synced once it has everything appended so far.
    /// With another durability, this does nothing.
    pub fn sync_soon(&self) {
        let mut state = self.shared.state();
        if state.with_writer {
            state.sync_soon = true;
        } else {
            drop(state);
            self.shared.writer.sync_soon();
        }
    }

    /// Whether the store accepted the newest entries. If it refused some, readers that keep up still receive them from
    /// memory. With [`WhenFull::Wait`](super::WhenFull::Wait), readers receive them once the store accepts them.
    ///
    /// If entries were lost, then once the store accepts entries again, the log gets a `kernelmux_lifecycle` entry with
    /// the content `{"event": "not_recorded", "first": …, "last": …, "reason": …}`.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        let state = self.shared.state();
        state.unrecorded.is_none() && !state.is_refused
    }

    /// Checks whether the store has room for more entries.
    ///
    /// # Errors
    /// [`StoreError::Full`] if it has none.
    pub async fn check_room(&self) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        blocking(shared.stored.blocks(), move || shared.stored.check_room()).await
    }

    /// Waits until the number of bytes that wait for the store is below its bounds, so that a slow disk slows the
    /// kernel down instead of filling the memory.
    pub async fn room(&self) {
        loop {
            let freed = self.shared.room.notified();
            if self.shared.has_room() {
                return;
            }
            freed.await;
        }
    }

    /// Notes that the caller no longer needs the entries up to and including `seq`, because it has stored them elsewhere.
    /// Entries that readers cannot read yet are not acknowledged.
    ///
    /// This call costs little and may follow every entry. The entries are dropped from memory at once, and from the
    /// store in larger parts: [`MemoryStore`](super::MemoryStore) drops whole blocks,
    /// [`DiskStore`](super::DiskStore) whole files (see `DiskOptions`), and `NatsStore` drops them only when it trims
    /// the log for another reason. The newest block is always kept. Readers of dropped entries get a
    /// [`ReadError::Gap`](super::ReadError::Gap). The position itself is not stored: after the log is opened again, all
    /// entries from [`earliest`](Self::earliest) on are unacknowledged.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use kernel_log::{LogOptions, Logs, MemoryStore, Seq};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default())?;
    /// # let log = logs.open(jupyter_protocol::KernelId::random()).await?;
    /// # log.close();
    /// let mut reader = log.reader(Seq::START);
    /// while let Some(block) = reader.next().await? {
    ///     // Send the block, and wait for the answer.
    ///     log.acknowledge(block.last());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn acknowledge(&self, seq: Seq) {
        self.shared.acknowledge(seq);
    }

    /// How many bytes are not [acknowledged](Self::acknowledge), including those that wait for the store. A partly
    /// acknowledged block counts as a whole. If there are thousands of blocks, up to 1 % of the bytes may count
    /// although they are acknowledged.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> u64 {
        self.shared.unacknowledged_bytes()
    }

    /// Waits until fewer than `bytes` are [not acknowledged](Self::unacknowledged_bytes); with 0, until none are.
    pub async fn acknowledged_below(&self, bytes: u64) {
        loop {
            let acknowledged = self.shared.room.notified();
            if self.unacknowledged_bytes() < bytes.max(1) {
                return;
            }
            acknowledged.await;
        }
    }

    /// A reader of the entries after `after`.
    #[must_use]
    pub fn reader(&self, after: Seq) -> Reader {
        Reader::new(self.shared.clone(), after)
    }

    /// Closes the log: nothing more will be appended, and readers end at the last entry.
    pub fn close(&self) {
        self.shared.set_closed(true);
    }

    /// Whether the log is [closed](Self::close), for example because its kernel has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Waits until the store has accepted this entry or refused it for good.
    pub async fn stored(&self, seq: Seq) {
        let mut head = self.shared.head.subscribe();
        // `shared` holds the sender, so this cannot fail.
        let _ = head.wait_for(|head| head.seq >= seq).await;
    }

    /// Waits until the store has accepted everything appended so far, including index updates, or refused it for good.
    pub async fn flushed(&self) {
        let (last, index_updates) = {
            let state = self.shared.state();
            (state.pending.last(), state.pending.index_updates())
        };
        let mut head = self.shared.head.subscribe();
        // `shared` holds the sender, so this cannot fail.
        let _ = head
            .wait_for(|head| head.seq >= last && head.index_updates >= index_updates)
            .await;
    }
}

/// Appended entries, returned by [`Log::append_unstored`]. Dropping this passes them to the thread that stores all logs.
#[must_use]
pub struct Unstored<'a> {
    shared: &'a Arc<OpenLog>,
    last: Seq,
}

impl fmt::Debug for Unstored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unstored")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Unstored<'_> {
    /// The number of the last entry.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Stores the entries in this thread if the store [appends fast](super::StoredLog::appends_fast), not more than
    /// `max_bytes` wait to be stored, no other thread is storing entries of this log, and the durability is not
    /// [`Durability::Always`](super::Durability::Always). That saves the time to wake another thread, but blocks this
    /// one while the disk is slow.
    pub fn store_here(self, max_bytes: usize) {
        let is_here = self.shared.begin_inline(&mut self.shared.state(), max_bytes);
        if is_here {
            writer::store_inline(self.shared);
        }
    }
}

impl Drop for Unstored<'_> {
    fn drop(&mut self) {
        self.shared.wake_writer(&mut self.shared.state());
    }
}
