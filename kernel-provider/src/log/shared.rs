use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chrono::Utc;
use jupyter_protocol::Channel;
use tokio::sync::{Notify, watch};

use super::index::Updates;
use super::large_blocks::LargeBlocks;
use super::unrecorded::Unrecorded;
use super::waiting::Waiting;
use super::{Block, Epoch, LogOptions, NewEntry, Origin, Seq, StoreError, StoredLog, writer};
use crate::KernelId;

/// How many bytes of a log may wait for the store however many of other logs do.
const FREE: usize = 1 << 20;

/// How far readers may read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) seq: Seq,
    pub(super) closed: bool,
    /// How many updates of the index were taken to the store.
    pub(super) index_updates: u64,
}

/// What a store gives for [`Shared::new`].
pub(super) struct StoredWithBounds {
    stored: Box<dyn StoredLog>,
    bounds: Option<(Seq, Seq)>,
}

impl StoredWithBounds {
    /// Blocks.
    pub(super) fn new(stored: Box<dyn StoredLog>) -> Result<Self, StoreError> {
        let bounds = stored.bounds()?;
        Ok(Self { stored, bounds })
    }
}

/// What all handles of a log, its readers and the writer share.
pub(super) struct Shared {
    pub(super) id: KernelId,
    pub(super) epoch: Epoch,
    pub(super) stored: Box<dyn StoredLog>,
    pub(super) options: LogOptions,
    pub(super) writer: writer::Queue,
    pub(super) state: Mutex<State>,
    pub(super) head: watch::Sender<Head>,
    pub(super) earliest: watch::Sender<Seq>,
    pub(super) room: Notify,
    pub(super) large_blocks: LargeBlocks,
}

pub(super) struct State {
    pub(super) waiting: Waiting,
    /// What the writer has taken and not yet stored.
    pub(super) writing_bytes: usize,
    /// How many bytes of this log [`writer::Queue::waiting_bytes`] has.
    counted_bytes: usize,
    pub(super) writing_index: Arc<Updates>,
    /// Updates of the index that the store refused: they go with the next block. Bounded by the number of keys.
    pub(super) refused_index: Updates,
    /// Whether the log is in the writer's queue or hands.
    pub(super) with_writer: bool,
    /// The newest blocks, all of them stored.
    pub(super) recent: VecDeque<Block>,
    pub(super) recent_bytes: usize,
    pub(super) stored_since_trim: u64,
    /// Whether a sync is wanted once all that waits is stored.
    pub(super) sync_soon: bool,
    /// The entries since the store refused one, as far as it is known.
    pub(super) unrecorded: Option<Unrecorded>,
}

impl State {
    fn after(last: Seq) -> Self {
        Self {
            waiting: Waiting::after(last),
            writing_bytes: 0,
            counted_bytes: 0,
            writing_index: Arc::default(),
            refused_index: Updates::default(),
            with_writer: false,
            recent: VecDeque::new(),
            recent_bytes: 0,
            stored_since_trim: 0,
            sync_soon: false,
            unrecorded: None,
        }
    }

    /// What is to become of the key, where that is not stored yet.
    pub(super) fn unstored_record(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.unstored_updates_newest_first()
            .find_map(|updates| updates.get(key))
    }

    /// What is to become of the keys from `start` and before `end`, where that is not stored yet.
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

    /// The store took a block, or updates of the index. Where it had refused some before, the log says so.
    pub(super) fn recorded(&mut self, id: KernelId) {
        if let Some(unrecorded) = self.unrecorded.take() {
            let Unrecorded { first, last, .. } = &unrecorded;
            tracing::warn!(kernel_id = %id, %first, %last, "the log is being recorded again");
            let entry = NewEntry {
                origin: Origin::Lifecycle,
                channel: Channel::Iopub,
                session: "",
                message: &unrecorded.message(),
            };
            self.waiting.push(&entry, Utc::now());
        }
    }

    /// The store refused a block, or updates of the index.
    pub(super) fn not_recorded(&mut self, id: KernelId, block: Option<&Block>, error: &StoreError) {
        // What waits in the index is tried again, so only entries are missing later.
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

    fn unstored_updates_newest_first(&self) -> impl Iterator<Item = &Updates> {
        self.waiting
            .updates_newest_first()
            .chain([&*self.writing_index, &self.refused_index])
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let counted = self.state().counted_bytes;
        self.writer.count(counted, 0);
    }
}

impl Shared {
    /// What `stored` holds, with nothing in memory.
    pub(super) fn new(
        id: KernelId,
        StoredWithBounds { stored, bounds }: StoredWithBounds,
        options: LogOptions,
        writer: writer::Queue,
        closed: bool,
    ) -> Self {
        let last = bounds.map_or(Seq::START, |(_, last)| last);
        Self {
            id,
            epoch: stored.epoch(),
            stored,
            options,
            writer,
            state: Mutex::new(State::after(last)),
            head: watch::Sender::new(Head {
                seq: last,
                closed,
                index_updates: 0,
            }),
            earliest: watch::Sender::new(bounds.map_or(last.next(), |(first, _)| first)),
            room: Notify::new(),
            large_blocks: LargeBlocks::default(),
        }
    }

    /// A panic elsewhere while the lock was held leaves whole entries, so the state is good.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what is appended and not stored, with that of all logs.
    pub(super) fn count(&self, state: &mut State) {
        let now = state.waiting.bytes() + state.writing_bytes;
        self.writer.count(state.counted_bytes, now);
        state.counted_bytes = now;
    }

    /// Whether more may be appended: less waits for the store than may, of this log and of all together. However much
    /// others have, a little is free to each.
    pub(super) fn has_room(&self) -> bool {
        let options = &self.options;
        let waiting = self.state().counted_bytes;
        waiting < options.waiting_bytes.min(FREE)
            || waiting < options.waiting_bytes && self.writer.waiting_bytes() < options.all_waiting_bytes
    }

    /// Gives the log to the writer where it has something to store and the writer does not have it already.
    pub(super) fn wake_writer(self: &Arc<Self>, state: &mut State) {
        if !state.with_writer && !state.waiting.is_empty() {
            state.with_writer = true;
            self.writer.push(self.clone());
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.head.borrow().closed
    }

    pub(super) fn set_closed(&self, closed: bool) {
        self.head
            .send_if_modified(|head| std::mem::replace(&mut head.closed, closed) != closed);
    }

    /// Tells that entries before `earliest` are not kept any more.
    pub(super) fn moved_to(&self, earliest: Seq) {
        self.earliest.send_if_modified(|current| {
            let moved = earliest > *current;
            if moved {
                *current = earliest;
            }
            moved
        });
    }

    /// Drops what need not be kept any more. Blocks.
    pub(super) fn trim(&self) -> Result<(), StoreError> {
        let earliest = self.stored.trim(&self.options.retention())?;
        self.moved_to(earliest);
        Ok(())
    }
}
