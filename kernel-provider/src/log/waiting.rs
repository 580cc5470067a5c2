use std::collections::VecDeque;

use bytes::BytesMut;
use chrono::{DateTime, Utc};

use super::{Block, NewEntry, Seq, entry};

/// How many bytes of entries make a block, where more are waiting. Blocks are written, read and kept in memory whole.
const BLOCK_BYTES: usize = 256 << 10;

/// Entries that are appended and not yet taken by the writer.
pub(super) struct Waiting {
    /// Whole blocks, in order.
    full: VecDeque<Block>,
    full_bytes: usize,
    /// The block that grows.
    open: BytesMut,
    open_first: Seq,
    last: Seq,
}

impl Waiting {
    /// None, after this entry.
    pub(super) fn after(last: Seq) -> Self {
        Self {
            full: VecDeque::new(),
            full_bytes: 0,
            open: BytesMut::new(),
            open_first: last.next(),
            last,
        }
    }

    /// The last entry that was ever appended.
    pub(super) fn last(&self) -> Seq {
        self.last
    }

    pub(super) fn push(&mut self, entry: &NewEntry<'_>, time: DateTime<Utc>) {
        self.last = self.last.next();
        entry::encode_into(&mut self.open, entry, time, self.last);
        if self.open.len() >= BLOCK_BYTES {
            let block = self.close(BytesMut::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 8));
            self.full_bytes += block.bytes().len();
            self.full.push_back(block);
        }
    }

    /// The oldest block; `None` where nothing waits.
    pub(super) fn take(&mut self) -> Option<Block> {
        if let Some(block) = self.full.pop_front() {
            self.full_bytes -= block.bytes().len();
            return Some(block);
        }
        // A small buffer next: where single messages come, no more is needed.
        (!self.open.is_empty()).then(|| self.close(BytesMut::new()))
    }

    fn close(&mut self, next: BytesMut) -> Block {
        let bytes = std::mem::replace(&mut self.open, next).freeze();
        let block = Block::new(self.open_first, self.last, bytes);
        self.open_first = self.last.next();
        block
    }

    pub(super) fn bytes(&self) -> usize {
        self.full_bytes + self.open.len()
    }
}
