//! Shares large blocks among slow readers, so that each is in memory once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::{Block, Seq};

/// Larger blocks are shared. They contain a message that is itself large.
const LARGE: usize = 1 << 20;

/// Large blocks that were read from a log's store.
#[derive(Default)]
pub(super) struct LargeBlocks {
    /// Blocks that readers hold, by first entry: their last entry and memory.
    held: Mutex<BTreeMap<Seq, (Seq, Weak<Bytes>)>>,
    /// Whether the log has large blocks.
    any: AtomicBool,
    /// Serializes reads from the store.
    read_lock: tokio::sync::Mutex<()>,
}

/// The owner of a shared block's memory.
struct BlockMemory(Arc<Bytes>);

impl AsRef<[u8]> for BlockMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl LargeBlocks {
    /// A panic while the lock is held leaves a consistent map.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Seq, (Seq, Weak<Bytes>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serializes reads from the store of a log with large blocks, because the next reader may find the block that the
    /// previous one has read. `None` if the log is not known to have any.
    pub(super) async fn read_lock(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.any.load(Ordering::Relaxed) {
            Some(self.read_lock.lock().await)
        } else {
            None
        }
    }

    /// Notes that a block was stored.
    pub(super) fn stored(&self, block: &Block) {
        if block.bytes().len() > LARGE {
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// The large block that begins with this entry, if a reader holds it.
    pub(super) fn get(&self, first: Seq) -> Option<Block> {
        let blocks = self.lock();
        let (last, bytes) = blocks.get(&first)?;
        Some(shared(first, *last, bytes.upgrade()?))
    }

    /// The block, in the memory of the copy that readers already hold, if there is one.
    pub(super) fn share(&self, block: Block) -> Block {
        if block.bytes().len() <= LARGE {
            return block;
        }
        self.any.store(true, Ordering::Relaxed);
        let (first, last) = (block.first(), block.last());
        let mut blocks = self.lock();
        blocks.retain(|_, (_, bytes)| bytes.strong_count() > 0);
        let held = blocks.get(&first).filter(|(held, _)| *held == last);
        if let Some(bytes) = held.and_then(|(_, bytes)| bytes.upgrade()) {
            return shared(first, last, bytes);
        }
        let bytes = Arc::new(block.bytes().clone());
        blocks.insert(first, (last, Arc::downgrade(&bytes)));
        shared(first, last, bytes)
    }
}

fn shared(first: Seq, last: Seq, bytes: Arc<Bytes>) -> Block {
    Block::new(first, last, Bytes::from_owner(BlockMemory(bytes)))
}
