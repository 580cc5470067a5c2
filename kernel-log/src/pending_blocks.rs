use std::collections::VecDeque;

use bytes::BytesMut;
use chrono::{DateTime, Utc};

use super::index::Updates;
use super::large_blocks::LARGE;
use super::{Block, IndexUpdate, NewEntry, Seq, entry};

/// Size at which a block is full and the next append begins another one. The writer also takes smaller blocks. A block
/// is written, read and cached as a whole.
const BLOCK_BYTES: usize = 256 << 10;

/// Entries and index updates that the writer has not taken yet.
pub(super) struct PendingBlocks {
    /// Full blocks in order, with their index updates.
    full: VecDeque<(Block, Updates)>,
    full_bytes: usize,
    /// The block that is being filled.
    open: BytesMut,
    open_first: Seq,
    /// When the open block's first and last entry were appended.
    open_times: (DateTime<Utc>, DateTime<Utc>),
    open_index: Updates,
    last: Seq,
    /// Number of index updates so far, including those that the writer has taken.
    index_updates: u64,
}

impl PendingBlocks {
    /// The state of a log whose last entry is `last` and that has no pending entries.
    pub(super) fn after(last: Seq) -> Self {
        Self {
            full: VecDeque::new(),
            full_bytes: 0,
            open: BytesMut::new(),
            open_first: last.next(),
            open_times: Default::default(),
            open_index: Updates::default(),
            last,
            index_updates: 0,
        }
    }

    /// The last entry that was appended.
    pub(super) fn last(&self) -> Seq {
        self.last
    }

    /// Number of index updates so far, including those that the writer has taken.
    pub(super) fn index_updates(&self) -> u64 {
        self.index_updates
    }

    pub(super) fn push(&mut self, entry: &NewEntry<'_>, time: DateTime<Utc>) {
        if entry::encoded_len(entry) > LARGE {
            self.push_large(entry, time);
            return;
        }
        self.last = self.last.next();
        if self.open.is_empty() {
            self.open_times.0 = time;
        }
        self.open_times.1 = time;
        entry::encode_into(&mut self.open, entry, time, self.last);
    }

    /// Ends an append, which consists of the entries pushed since the last call and their index updates. Unless one of
    /// the entries is large, all of them are in the same block, which the store writes completely or not at all.
    pub(super) fn end_append(&mut self) {
        if self.open.len() >= BLOCK_BYTES {
            let closed = self.close(BytesMut::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 8));
            self.full_bytes += size(&closed);
            self.full.push_back(closed);
        }
    }

    /// Adds a large message as a block by itself, without copying it.
    fn push_large(&mut self, entry: &NewEntry<'_>, time: DateTime<Utc>) {
        if !self.open.is_empty() {
            let closed = self.close(BytesMut::new());
            self.full_bytes += size(&closed);
            self.full.push_back(closed);
        }
        self.last = self.last.next();
        self.open_first = self.last.next();
        let block = Block::in_pieces(self.last, time, entry::encode_in_pieces(entry, time, self.last));
        let large = (block, std::mem::take(&mut self.open_index));
        self.full_bytes += size(&large);
        self.full.push_back(large);
    }

    /// Adds updates. They are stored together with the last appended entry or after it, never before it.
    pub(super) fn update_index(&mut self, updates: Vec<IndexUpdate>) {
        if updates.is_empty() {
            return;
        }
        self.index_updates += updates.len() as u64;
        match self.full.back_mut() {
            Some((_, index)) if self.open.is_empty() => {
                self.full_bytes -= index.bytes();
                index.extend_to(self.index_updates, updates);
                self.full_bytes += index.bytes();
            }
            _ => self.open_index.extend_to(self.index_updates, updates),
        }
    }

    /// Takes the oldest block and its index updates, or index updates alone; `None` if nothing is pending.
    pub(super) fn take(&mut self) -> Option<(Option<Block>, Updates)> {
        if let Some(full) = self.full.pop_front() {
            self.full_bytes -= size(&full);
            return Some((Some(full.0), full.1));
        }
        if self.open.is_empty() {
            let updates = std::mem::take(&mut self.open_index);
            return (!updates.is_empty()).then_some((None, updates));
        }
        // The next block may be a single message, so no large buffer is allocated in advance.
        let (block, updates) = self.close(BytesMut::new());
        Some((Some(block), updates))
    }

    fn close(&mut self, next: BytesMut) -> (Block, Updates) {
        let bytes = std::mem::replace(&mut self.open, next).freeze();
        let block = Block::new((self.open_first, self.last), self.open_times, bytes);
        self.open_first = self.last.next();
        (block, std::mem::take(&mut self.open_index))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.is_empty() && self.open_index.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.full_bytes + self.open.len() + self.open_index.bytes()
    }

    pub(super) fn updates_newest_first(&self) -> impl Iterator<Item = &Updates> {
        std::iter::once(&self.open_index).chain(self.full.iter().rev().map(|(_, updates)| updates))
    }
}

fn size((block, updates): &(Block, Updates)) -> usize {
    block.size() + updates.bytes()
}
