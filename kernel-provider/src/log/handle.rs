use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::shared::Shared;
use super::{Epoch, IndexUpdate, NewEntry, Reader, Seq, StoreError, blocking, index};
use crate::KernelId;

/// One kernel's log. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Log {
    pub(super) shared: Arc<Shared>,
}

impl Log {
    /// Whose log it is.
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

    /// The first entry that is kept; the one to come where none is. It moves when old entries are dropped.
    #[must_use]
    pub fn earliest(&self) -> Seq {
        *self.shared.earliest.borrow()
    }

    /// [`earliest`](Self::earliest), and a wake-up for when it has moved: who keeps records of entries in the index
    /// removes those of entries before it.
    #[must_use]
    pub fn earliest_changes(&self) -> watch::Receiver<Seq> {
        self.shared.earliest.subscribe()
    }

    /// How many bytes of entries the store keeps.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.stored.bytes()
    }

    /// Appends entries, in order, at the time now. Never waits. Returns the last one's number.
    ///
    /// Ask for [`room`](Self::room) first where there may be many: what waits for the store is in memory.
    pub fn append<'a>(&self, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Seq {
        self.append_at(Utc::now(), entries)
    }

    /// The same at a given time.
    pub fn append_at<'a>(&self, time: DateTime<Utc>, entries: impl IntoIterator<Item = NewEntry<'a>>) -> Seq {
        self.append_indexed(time, entries, |_| Vec::new())
    }

    /// The same with updates of the index, which `index` makes of the first entry's number while others wait to append.
    /// They are stored with the last of the entries in one piece: both are there after a crash, or neither.
    pub fn append_indexed<'a>(
        &self,
        time: DateTime<Utc>,
        entries: impl IntoIterator<Item = NewEntry<'a>>,
        index: impl FnOnce(Seq) -> Vec<IndexUpdate>,
    ) -> Seq {
        let mut state = self.shared.state();
        let first = state.waiting.last().next();
        for entry in entries {
            state.waiting.push(&entry, time);
        }
        let updates = index(first);
        state.waiting.update_index(updates);
        self.shared.count(&mut state);
        self.shared.wake_writer(&mut state);
        state.waiting.last()
    }

    /// Changes the index. It is stored soon, not before what was appended already. Never waits.
    pub fn update_index(&self, updates: impl IntoIterator<Item = IndexUpdate>) {
        let updates: Vec<_> = updates.into_iter().collect();
        let mut state = self.shared.state();
        state.waiting.update_index(updates);
        self.shared.count(&mut state);
        self.shared.wake_writer(&mut state);
    }

    /// The record of this key in the index, as it was last put, stored already or not; `None` where there is none.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be read.
    pub async fn index_get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, StoreError> {
        let key = key.into();
        // First what is not stored yet: it may be stored meanwhile, and is then found there.
        let unstored = self.shared.state().unstored_record(&key);
        if let Some(record) = unstored {
            return Ok(record);
        }
        let shared = self.shared.clone();
        blocking(shared.stored.blocks(), move || shared.stored.index_get(&key)).await
    }

    /// The index's records with keys from `start` and before `end`, in the order of their keys or, with `newest_first`,
    /// against it; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be read.
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

    /// Has what is appended survive the machine soon, without waiting for it: for entries after which somebody relies on
    /// what came before, such as a reply. With [`Durability::Batched`](super::Durability::Batched) the store is synced
    /// once it has them; otherwise this does nothing.
    pub fn sync_soon(&self) {
        let mut state = self.shared.state();
        if state.with_writer {
            state.sync_soon = true;
        } else {
            drop(state);
            self.shared.writer.sync_soon();
        }
    }

    /// Whether the store took what was appended last. Where it did not, readers that keep up have it all the same, and
    /// the log says so with an entry once the store takes entries again: a `kernelmux_lifecycle` message whose content
    /// is `{"event": "not_recorded", "first": …, "last": …, "reason": …}`.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.shared.state().unrecorded.is_none()
    }

    /// Whether the store has room for what is appended.
    ///
    /// # Errors
    /// [`StoreError::Full`] where it has none.
    pub async fn check_room(&self) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        blocking(shared.stored.blocks(), move || shared.stored.check_room()).await
    }

    /// Waits until what waits for the store is below its bounds. A slow disk then slows kernels, and takes no memory.
    pub async fn room(&self) {
        loop {
            let freed = self.shared.room.notified();
            if self.shared.has_room() {
                return;
            }
            freed.await;
        }
    }

    /// A reader of the entries after `after`.
    #[must_use]
    pub fn reader(&self, after: Seq) -> Reader {
        Reader::new(self.shared.clone(), after)
    }

    /// Says that nothing will be appended any more, so that readers end at the last entry.
    pub fn close(&self) {
        self.shared.set_closed(true);
    }

    /// Whether readers end at the last entry: the kernel is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Waits until this entry is stored, or was refused by the store.
    pub async fn stored(&self, seq: Seq) {
        let mut head = self.shared.head.subscribe();
        // The sender is in `shared`, which is held here, so waiting cannot fail.
        let _ = head.wait_for(|head| head.seq >= seq).await;
    }

    /// Waits until all that is appended, and what the index was told, is stored, or was refused by the store.
    pub async fn flushed(&self) {
        let (last, index_updates) = {
            let state = self.shared.state();
            (state.waiting.last(), state.waiting.index_updates())
        };
        let mut head = self.shared.head.subscribe();
        // The sender is in `shared`, which is held here, so waiting cannot fail.
        let _ = head
            .wait_for(|head| head.seq >= last && head.index_updates >= index_updates)
            .await;
    }
}
