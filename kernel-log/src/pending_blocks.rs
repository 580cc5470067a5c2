use std::collections::VecDeque;

use bytes::BytesMut;
use chrono::{DateTime, Utc};

use super::index::Updates;
use super::{Block, IndexUpdate, NewEntry, Seq, entry};

/// Target size of a block while entries are waiting. Blocks are written, read and cached as a whole.
const BLOCK_BYTES: usize = 256 << 10;

/// Entries and index updates that the writer has not taken yet.
pub(super) struct PendingBlocks {
    /// Full blocks in order, with their index updates.
    full: VecDeque<(Block, Updates)>,
    full_bytes: usize,
    /// The block that is being filled.
    open: BytesMut,
    open_first: Seq,
    open_index: Updates,
    last: Seq,
    /// How many index updates there have been.
    index_updates: u64,
}

impl PendingBlocks {
    /// Empty, after this entry.
    pub(super) fn after(last: Seq) -> Self {
        Self {
            full: VecDeque::new(),
            full_bytes: 0,
            open: BytesMut::new(),
            open_first: last.next(),
            open_index: Updates::default(),
            last,
            index_updates: 0,
        }
    }

    /// The last entry that was appended.
    pub(super) fn last(&self) -> Seq {
        self.last
    }

    /// How many index updates there have been.
    pub(super) fn index_updates(&self) -> u64 {
        self.index_updates
    }

    pub(super) fn push(&mut self, entry: &NewEntry<'_>, time: DateTime<Utc>) {
        self.last = self.last.next();
        entry::encode_into(&mut self.open, entry, time, self.last);
        if self.open.len() >= BLOCK_BYTES {
            let closed = self.close(BytesMut::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 8));
            self.full_bytes += size(&closed);
            self.full.push_back(closed);
        }
    }

    /// Adds updates that are stored with the last entry, not before it.
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

    /// Takes the oldest block and its index updates, or index updates alone; `None` if nothing waits.
    pub(super) fn take(&mut self) -> Option<(Option<Block>, Updates)> {
        if let Some(full) = self.full.pop_front() {
            self.full_bytes -= size(&full);
            return Some((Some(full.0), full.1));
        }
        if self.open.is_empty() {
            let updates = std::mem::take(&mut self.open_index);
            return (!updates.is_empty()).then_some((None, updates));
        }
        // Single messages need no large buffer.
        let (block, updates) = self.close(BytesMut::new());
        Some((Some(block), updates))
    }

    fn close(&mut self, next: BytesMut) -> (Block, Updates) {
        let bytes = std::mem::replace(&mut self.open, next).freeze();
        let block = Block::new(self.open_first, self.last, bytes);
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
    block.bytes().len() + updates.bytes()
}
