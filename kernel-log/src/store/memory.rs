use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;

use super::{LogInfo, LogStore, StoreError, StoredLog};
use crate::{Block, Epoch, IndexUpdate, Retention, Seq};

/// Keeps logs in memory, for tests and short-lived kernels.
#[derive(Default)]
pub struct MemoryStore {
    logs: Mutex<HashMap<KernelId, Arc<MemoryLog>>>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn log(&self, id: KernelId) -> Arc<MemoryLog> {
        let mut logs = lock(&self.logs);
        let log = logs.entry(id).or_insert_with(|| {
            Arc::new(MemoryLog {
                owner: OnceLock::new(),
                epoch: Epoch::random(),
                created: Utc::now(),
                blocks: Mutex::default(),
            })
        });
        log.clone()
    }
}

struct MemoryLog {
    owner: OnceLock<String>,
    epoch: Epoch,
    created: DateTime<Utc>,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    blocks: VecDeque<Block>,
    bytes: u64,
    index: BTreeMap<Bytes, Bytes>,
}

impl Blocks {
    fn update_index(&mut self, updates: &[IndexUpdate]) {
        for IndexUpdate { key, value } in updates {
            match value {
                Some(value) => self.index.insert(key.clone(), value.clone()),
                None => self.index.remove(key),
            };
        }
    }

    fn bounds(&self) -> Option<(Seq, Seq)> {
        self.blocks
            .front()
            .zip(self.blocks.back())
            .map(|(first, last)| (first.first(), last.last()))
    }
}

/// Locks a mutex, even after a panic, which cannot leave part of a block.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore for MemoryStore {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(self.log(id)))
    }

    fn open_for(&self, id: KernelId, owner: &str) -> Result<Box<dyn StoredLog>, StoreError> {
        let log = self.log(id);
        log.owner.get_or_init(|| owner.to_owned());
        Ok(Box::new(log))
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let log = lock(&self.logs).get(&id).cloned();
        Ok(log.map(|log| Box::new(log) as Box<dyn StoredLog>))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        Ok(lock(&self.logs)
            .iter()
            .map(|(id, log)| {
                let kept = lock(&log.blocks);
                let (first, last) = kept.bounds().unwrap_or((Seq::START.next(), Seq::START));
                LogInfo {
                    id: *id,
                    owner: log.owner.get().cloned(),
                    epoch: log.epoch,
                    created: log.created,
                    updated: kept.blocks.back().map_or(log.created, Block::updated),
                    first,
                    last,
                    bytes: kept.bytes,
                }
            })
            .collect())
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        lock(&self.logs).remove(&id);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl StoredLog for Arc<MemoryLog> {
    fn appends_fast(&self) -> bool {
        true
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        Ok(lock(&self.blocks).bounds())
    }

    fn bytes(&self) -> u64 {
        lock(&self.blocks).bytes
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        let mut kept = lock(&self.blocks);
        kept.update_index(index);
        kept.bytes += block.size() as u64;
        kept.blocks.push_back(block.joined());
        Ok(())
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        lock(&self.blocks).update_index(index);
        Ok(())
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(lock(&self.blocks).index.get(key).cloned())
    }

    fn index_scan(
        &self,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let kept = lock(&self.blocks);
        let records = kept
            .index
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .map(|(key, value)| (key.clone(), value.clone()));
        Ok(if newest_first {
            records.rev().take(limit).collect()
        } else {
            records.take(limit).collect()
        })
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let kept = lock(&self.blocks);
        let start = kept.blocks.partition_point(|block| block.last() <= after);
        let mut blocks = Vec::new();
        let mut bytes = 0;
        for block in kept.blocks.range(start..).filter_map(|block| block.after(after)) {
            bytes += block.size();
            blocks.push(block);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(blocks)
    }

    fn can_drop(&self, acknowledged: Seq) -> bool {
        let kept = lock(&self.blocks);
        kept.blocks.len() > 1 && kept.blocks.front().is_some_and(|oldest| oldest.last() <= acknowledged)
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        let mut kept = lock(&self.blocks);
        while kept.blocks.len() > 1
            && let Some(oldest) = kept.blocks.front()
            && (kept.bytes > retention.max_bytes
                || retention.oldest.is_some_and(|time| oldest.updated() < time)
                || oldest.last() <= retention.acknowledged)
        {
            kept.bytes -= oldest.size() as u64;
            kept.blocks.pop_front();
        }
        Ok(kept.bounds().map_or(Seq::START, |(first, _)| first))
    }
}
