use std::sync::Arc;

use tokio::sync::watch;

use super::shared::{Head, Shared};
use super::{Block, Seq, StoreError, blocking};

/// How many bytes are read from the store at a time.
const READ_BYTES: usize = 1 << 20;

/// Why entries cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Entries are missing: dropped to keep the log in its bounds, or never stored. Reading goes on after them.
    #[error("entries {first} to {last} of the log are missing")]
    Gap {
        /// The first one missing.
        first: Seq,
        /// The last one missing.
        last: Seq,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A position in a log, and a wake-up for when there is more.
pub struct Reader {
    log: Arc<Shared>,
    position: Seq,
    head: watch::Receiver<Head>,
    /// Read from the store and not handed out yet, the next one last.
    ahead: Vec<Block>,
}

impl Reader {
    pub(super) fn new(log: Arc<Shared>, after: Seq) -> Self {
        Self {
            head: log.head.subscribe(),
            log,
            position: after,
            ahead: Vec::new(),
        }
    }

    /// The last entry that was read, or where the reader started.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// The next entries; waits until there are some. `None` where the log is closed and all is read. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadError::Gap`] where entries are missing: call again to read on after them. [`ReadError::Store`] where the
    /// store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Block>, ReadError> {
        loop {
            let Head { seq, closed, .. } = *self.head.borrow_and_update();
            if self.position < seq {
                if let Some(block) = self.recent()? {
                    return Ok(Some(block));
                }
                self.read_store(seq).await?;
                if let Some(block) = self.ahead.pop() {
                    return self.hand_out(block).map(Some);
                }
                continue;
            }
            // Where the log was closed with entries still on their way, publishing them wakes this reader.
            if closed && self.position >= self.log.state().waiting.last() || self.head.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// The next entries where some are in memory; `None` says nothing about the store.
    ///
    /// # Errors
    /// [`ReadError::Gap`] as for [`next`](Self::next).
    pub fn recent(&mut self) -> Result<Option<Block>, ReadError> {
        if let Some(block) = self.ahead.pop() {
            return self.hand_out(block).map(Some);
        }
        let found = {
            let state = self.log.state();
            let oldest = state.recent.front().map(Block::first);
            if oldest.is_none_or(|oldest| oldest > self.position.next()) {
                None
            } else {
                let index = state.recent.partition_point(|block| block.last() <= self.position);
                state.recent.get(index).cloned()
            }
        };
        let found = found.filter(|block| block.last() <= self.head.borrow().seq);
        match found.and_then(|block| block.after(self.position)) {
            Some(block) => self.hand_out(block).map(Some),
            None => Ok(None),
        }
    }

    /// Moves past the block, unless entries before it are missing.
    fn hand_out(&mut self, block: Block) -> Result<Block, ReadError> {
        let expected = self.position.next();
        if block.first() > expected {
            let gap = ReadError::Gap {
                first: expected,
                last: Seq(block.first().0 - 1),
            };
            self.position = Seq(block.first().0 - 1);
            self.ahead.push(block);
            return Err(gap);
        }
        self.position = block.last();
        Ok(block)
    }

    /// Reads blocks after the position from the store, none of them beyond `head`.
    async fn read_store(&mut self, head: Seq) -> Result<(), ReadError> {
        let log = self.log.clone();
        let after = self.position;
        let _reading = log.large_blocks.reading().await;
        if let Some(block) = log.large_blocks.get(after.next()).filter(|block| block.last() <= head) {
            self.ahead.push(block);
            return Ok(());
        }
        let reading = log.clone();
        let mut blocks = blocking(log.stored.blocks(), move || reading.stored.read(after, READ_BYTES)).await?;
        // What the writer has stored and not yet published is not ours to read.
        blocks.retain(|block| block.last() <= head);
        let stored = blocks.first().map_or_else(|| head.next(), Block::first);
        if stored > after.next() {
            // Memory may have what the store lacks: what it refused, or has dropped already.
            let recent = {
                let state = self.log.state();
                state.recent.iter().map(Block::first).find(|first| *first > after)
            };
            let next = recent.map_or(stored, |recent| recent.min(stored));
            if next > after.next() {
                self.position = Seq(next.0 - 1);
                return Err(ReadError::Gap {
                    first: after.next(),
                    last: self.position,
                });
            }
            return Ok(());
        }
        // Only as far as nothing is missing: memory may have that, too.
        let whole = blocks
            .windows(2)
            .take_while(|pair| pair[1].first() == pair[0].last().next());
        let whole = 1 + whole.count();
        blocks.truncate(whole);
        let shared = blocks.into_iter().rev().map(|block| self.log.large_blocks.share(block));
        self.ahead = shared.collect();
        Ok(())
    }
}
