use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use super::{LogInfo, LogStore, StoreError, StoredLog};
use crate::KernelId;
use crate::log::{Block, Epoch, Seq};

/// Keeps logs in memory: for tests and throw-away kernels. Gone with the process.
#[derive(Default)]
pub struct MemoryStore {
    logs: Mutex<HashMap<KernelId, Arc<MemoryLog>>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

struct MemoryLog {
    epoch: Epoch,
    created: DateTime<Utc>,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    blocks: VecDeque<Block>,
    bytes: u64,
}

/// A panic elsewhere while the lock was held leaves whole blocks in it, so the data is good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore for MemoryStore {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        let log = lock(&self.logs)
            .entry(id)
            .or_insert_with(|| {
                Arc::new(MemoryLog {
                    epoch: Epoch::random(),
                    created: Utc::now(),
                    blocks: Mutex::default(),
                })
            })
            .clone();
        Ok(Box::new(log))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        Ok(lock(&self.logs)
            .iter()
            .map(|(id, log)| LogInfo {
                id: *id,
                epoch: log.epoch,
                created: log.created,
                updated: lock(&log.blocks)
                    .blocks
                    .back()
                    .and_then(Block::updated)
                    .unwrap_or(log.created),
            })
            .collect())
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        lock(&self.logs).remove(&id);
        Ok(())
    }
}

impl StoredLog for Arc<MemoryLog> {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let blocks = &lock(&self.blocks).blocks;
        Ok(blocks
            .front()
            .zip(blocks.back())
            .map(|(first, last)| (first.first(), last.last())))
    }

    fn append(&self, block: &Block) -> Result<(), StoreError> {
        let mut kept = lock(&self.blocks);
        kept.bytes += block.bytes().len() as u64;
        kept.blocks.push_back(block.clone());
        Ok(())
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let kept = lock(&self.blocks);
        let start = kept.blocks.partition_point(|block| block.last() <= after);
        let mut bytes = 0;
        Ok(kept
            .blocks
            .range(start..)
            .take_while(|block| {
                let take = bytes < max_bytes;
                bytes += block.bytes().len();
                take
            })
            .filter_map(|block| block.after(after))
            .collect())
    }

    fn trim(&self, max_bytes: u64) -> Result<(), StoreError> {
        let mut kept = lock(&self.blocks);
        while kept.bytes > max_bytes && kept.blocks.len() > 1 {
            if let Some(oldest) = kept.blocks.pop_front() {
                kept.bytes -= oldest.bytes().len() as u64;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
