use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::large_blocks::{LARGE, Lease};
use super::open_log::{Head, OpenLog};
use super::{Block, Seq, StoreError, blocking};

/// Bytes per read from the store.
const READ_BYTES: usize = 1 << 20;

/// Why entries cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Entries are missing, because retention dropped them or the store never had them. Reading continues after them.
    #[error("entries {first} to {last} of the log are missing")]
    Gap {
        /// The first missing entry.
        first: Seq,
        /// The last missing entry.
        last: Seq,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A position in a log. Reads the entries after it and waits for further ones.
pub struct Reader {
    log: Arc<OpenLog>,
    position: Seq,
    head: watch::Receiver<Head>,
    /// Blocks read ahead from the store, in reverse order.
    ahead: Vec<Block>,
    /// The right to hold the block that was read last, if it is large.
    lease: Option<Lease>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(log: Arc<OpenLog>, after: Seq) -> Self {
        Self {
            head: log.head.subscribe(),
            log,
            position: after,
            ahead: Vec::new(),
            lease: None,
        }
    }

    /// The last entry that was read, or the start position.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// Waits for the next entries. `None` if the log is closed and everything is read. Cancel-safe.
    ///
    /// A message of more than 1 MiB comes in a block by itself. The readers of all logs share
    /// [`LogOptions::reading_bytes`](super::LogOptions::reading_bytes) for such blocks. A reader waits for its share
    /// and releases it with the next call, so drop the previous block before that call.
    ///
    /// # Errors
    /// [`ReadError::Gap`] if entries are missing: call again to continue after them. [`ReadError::Store`] if the store
    /// cannot be read, or slow readers hold all memory for large blocks for 60 s.
    pub async fn next(&mut self) -> Result<Option<Block>, ReadError> {
        if self.ahead.is_empty() {
            self.lease = None;
        }
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
            // A closed log may have entries that are not published yet. Publishing them wakes this reader.
            if closed && self.position >= self.log.state().pending.last() || self.head.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Returns the next entries if they are in memory. If not, [`next`](Self::next) may read them from the store.
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

    /// Advances past the block, unless entries before it are missing.
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

    /// Reads blocks after the position from the store, up to `head`.
    async fn read_store(&mut self, head: Seq) -> Result<(), ReadError> {
        let log = self.log.clone();
        let after = self.position;
        self.lease = None;
        let mut lease = None;
        let read_lock = log.large_blocks.read_lock().await?;
        if read_lock.is_some() {
            if let Some((block, lease)) = log.large_blocks.get(after.next())
                && block.last() <= head
            {
                self.ahead.push(block);
                self.lease = Some(lease);
                return Ok(());
            }
            let reading = log.clone();
            let bytes = blocking(log.stored.blocks(), move || reading.stored.next_block_bytes(after)).await?;
            if bytes > LARGE {
                lease = Some(log.large_blocks.lease(bytes).await?);
            }
        }
        let reading = log.clone();
        let mut blocks = blocking(log.stored.blocks(), move || reading.stored.read(after, READ_BYTES)).await?;
        // Skips blocks that the writer has stored but not published yet.
        blocks.retain(|block| block.last() <= head);
        let stored = blocks.first().map_or_else(|| head.next(), Block::first);
        if stored > after.next() {
            // Memory may have entries that the store refused or dropped.
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
        // Keeps the blocks up to the first gap, because memory may have the entries that the store lacks.
        let whole = blocks
            .windows(2)
            .take_while(|pair| pair[1].first() == pair[0].last().next());
        let whole = 1 + whole.count();
        // A large block is returned by itself, even if the store returned it with others.
        let large = blocks.iter().position(|block| block.size() > LARGE);
        blocks.truncate(whole.min(large.map_or(whole, |large| large.max(1))));
        if let [block] = &mut blocks[..]
            && block.size() > LARGE
        {
            let lease = match lease {
                Some(lease) => lease,
                None => log.large_blocks.lease(block.size()).await?,
            };
            *block = log.large_blocks.share(block.clone(), &lease);
            self.lease = Some(lease);
        }
        blocks.reverse();
        self.ahead = blocks;
        Ok(())
    }
}
