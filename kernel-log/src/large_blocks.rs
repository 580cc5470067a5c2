//! Shares large blocks among slow readers, so that each block is in memory once, and bounds the memory of these blocks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Block, Seq, StoreError};

/// Blocks and messages above this size are large. A large message is a block by itself.
pub(super) const LARGE: usize = 1 << 20;
/// Bytes per permit of the semaphore.
const PERMIT_BYTES: usize = 1 << 10;
/// How long a reader waits for its turn to read the log, and then for memory.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Memory for the large blocks that the readers of all logs hold.
#[derive(Clone)]
pub(super) struct ReadMemory {
    permits: Arc<Semaphore>,
    capacity: u32,
}

impl ReadMemory {
    pub(super) fn new(bytes: usize) -> Self {
        let capacity = u32::try_from(bytes / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self {
            permits: Arc::new(Semaphore::new(capacity as usize)),
            capacity,
        }
    }

    /// Waits for memory of a block of this size. A block that is larger than all of the memory gets all of it.
    async fn acquire(&self, bytes: usize) -> Result<Lease, StoreError> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let permits = permits.min(self.capacity);
        match timeout(MAX_WAIT, self.permits.clone().acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(Lease(Arc::new(permit))),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(no_memory(&format!("read an output of {bytes} bytes"))),
        }
    }
}

fn no_memory(action: &str) -> StoreError {
    let seconds = MAX_WAIT.as_secs();
    StoreError::failed(
        action,
        format!("slow readers of large outputs held all memory for large outputs for {seconds} s"),
    )
}

/// The right to hold a large block, shared by its readers. A reader releases it when it requests the next block.
#[derive(Clone)]
pub(super) struct Lease(Arc<OwnedSemaphorePermit>);

/// The large blocks of a log.
pub(super) struct LargeBlocks {
    /// Blocks that readers hold, by first entry.
    held: Mutex<BTreeMap<Seq, Held>>,
    /// Whether the log has large blocks.
    any: AtomicBool,
    /// Serializes reads from the store.
    read_lock: tokio::sync::Mutex<()>,
    memory: ReadMemory,
}

/// A block that readers hold.
struct Held {
    last: Seq,
    times: (DateTime<Utc>, DateTime<Utc>),
    bytes: Weak<Bytes>,
    lease: Weak<OwnedSemaphorePermit>,
}

/// The owner of a shared block's memory.
struct BlockMemory(Arc<Bytes>);

impl AsRef<[u8]> for BlockMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl LargeBlocks {
    /// The state of a log whose largest block has this size.
    pub(super) fn new(largest: usize, memory: ReadMemory) -> Self {
        Self {
            held: Mutex::default(),
            any: AtomicBool::new(largest > LARGE),
            read_lock: tokio::sync::Mutex::default(),
            memory,
        }
    }

    /// Locks the blocks that readers hold, even after a panic, which leaves a consistent map.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Seq, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other reader reads this log from the store, so that a reader can share the block that the
    /// previous one has read. `None` if the log has no large blocks.
    pub(super) async fn read_lock(&self) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, StoreError> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match timeout(MAX_WAIT, self.read_lock.lock()).await {
            Ok(lock) => Ok(Some(lock)),
            Err(_) => Err(no_memory("read a log with large outputs")),
        }
    }

    /// Notes that a block was stored.
    pub(super) fn stored(&self, block: &Block) {
        if block.size() > LARGE {
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for memory for a block of this size.
    pub(super) async fn lease(&self, bytes: usize) -> Result<Lease, StoreError> {
        self.memory.acquire(bytes).await
    }

    /// The large block that begins with this entry, if a reader holds it.
    pub(super) fn get(&self, first: Seq) -> Option<(Block, Lease)> {
        let blocks = self.lock();
        let held = blocks.get(&first)?;
        let block = shared((first, held.last), held.times, held.bytes.upgrade()?);
        Some((block, Lease(held.lease.upgrade()?)))
    }

    /// Returns the block. If readers hold a copy of it, the result shares the memory of that copy.
    pub(super) fn share(&self, block: Block, lease: &Lease) -> Block {
        let (first, last) = (block.first(), block.last());
        let times = (block.begun(), block.updated());
        self.any.store(true, Ordering::Relaxed);
        let mut blocks = self.lock();
        blocks.retain(|_, held| held.bytes.strong_count() > 0);
        let held = blocks.get(&first).filter(|held| held.last == last);
        let bytes = held.and_then(|held| held.bytes.upgrade());
        let bytes = bytes.unwrap_or_else(|| Arc::new(block.bytes().clone()));
        let held = Held {
            last,
            times,
            bytes: Arc::downgrade(&bytes),
            lease: Arc::downgrade(&lease.0),
        };
        blocks.insert(first, held);
        shared((first, last), times, bytes)
    }
}

fn shared(numbers: (Seq, Seq), times: (DateTime<Utc>, DateTime<Utc>), bytes: Arc<Bytes>) -> Block {
    Block::new(numbers, times, Bytes::from_owner(BlockMemory(bytes)))
}
