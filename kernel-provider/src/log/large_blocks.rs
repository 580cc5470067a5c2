//! Large blocks that readers hold: each is in memory once, however many readers have not taken it to its end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::{Block, Seq};

/// Blocks of more than this many bytes are shared: those with a message that is itself large.
const LARGE: usize = 1 << 20;

/// The large blocks of a log that were read from its store.
#[derive(Default)]
pub(super) struct LargeBlocks {
    /// Those that somebody still holds: first entry → last entry and memory.
    held: Mutex<BTreeMap<Seq, (Seq, Weak<Bytes>)>>,
    /// Whether there are any.
    any: AtomicBool,
    reading: tokio::sync::Mutex<()>,
}

/// What blocks that share memory are made of.
struct Held(Arc<Bytes>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl LargeBlocks {
    /// A panic elsewhere while the lock was held leaves a whole map.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Seq, (Seq, Weak<Bytes>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by who reads the store of a log that has large blocks, one at a time: the next one may find what it is about
    /// to read. `None` where the log is not known to have any.
    pub(super) async fn reading(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.any.load(Ordering::Relaxed) {
            Some(self.reading.lock().await)
        } else {
            None
        }
    }

    /// A block was stored.
    pub(super) fn stored(&self, block: &Block) {
        if block.bytes().len() > LARGE {
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// The block that begins with this entry, where it is large and somebody holds it.
    pub(super) fn get(&self, first: Seq) -> Option<Block> {
        let blocks = self.lock();
        let (last, bytes) = blocks.get(&first)?;
        Some(shared(first, *last, bytes.upgrade()?))
    }

    /// The block, in the memory of the one that is held already where there is one.
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
    Block::new(first, last, Bytes::from_owner(Held(bytes)))
}
