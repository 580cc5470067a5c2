//! A third-party log store, in memory.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jupyter_protocol::KernelId;
use kernel_log::{Block, Epoch, IndexUpdate, LogInfo, LogStore, Retention, Seq, StoreError, StoredLog};

#[derive(Default)]
pub struct Store(Mutex<HashMap<KernelId, KeptLog>>);

#[derive(Clone)]
struct KeptLog(Arc<Mutex<Kept>>);

struct Kept {
    info: LogInfo,
    blocks: VecDeque<Block>,
    index: BTreeMap<Bytes, Bytes>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn new(id: KernelId) -> Self {
        Self {
            info: LogInfo::new(id, Epoch::random()),
            blocks: VecDeque::new(),
            index: BTreeMap::new(),
        }
    }

    fn update(&mut self, updates: &[IndexUpdate]) {
        for IndexUpdate { key, value } in updates {
            match value {
                Some(value) => self.index.insert(key.clone(), value.clone()),
                None => self.index.remove(key),
            };
        }
    }
}

impl LogStore for Store {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        let mut logs = lock(&self.0);
        let log = logs
            .entry(id)
            .or_insert_with(|| KeptLog(Arc::new(Kept::new(id).into())));
        Ok(Box::new(log.clone()))
    }

    fn open_for(&self, id: KernelId, owner: &str) -> Result<Box<dyn StoredLog>, StoreError> {
        let log = self.open(id)?;
        if let Some(kept) = lock(&self.0).get(&id) {
            lock(&kept.0).info.owner.get_or_insert_with(|| owner.to_owned());
        }
        Ok(log)
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let log = lock(&self.0).get(&id).cloned();
        Ok(log.map(|log| Box::new(log) as Box<dyn StoredLog>))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        Ok(lock(&self.0).values().map(|log| lock(&log.0).info.clone()).collect())
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        lock(&self.0).remove(&id);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl StoredLog for KeptLog {
    fn epoch(&self) -> Epoch {
        lock(&self.0).info.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let log = lock(&self.0);
        Ok(log.blocks.front().map(|_| (log.info.first, log.info.last)))
    }

    fn bytes(&self) -> u64 {
        lock(&self.0).info.bytes
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        let mut log = lock(&self.0);
        log.update(index);
        log.blocks.push_back(block.clone());
        log.info.first = log.blocks[0].first();
        log.info.last = block.last();
        log.info.bytes += block.bytes().len() as u64;
        log.info.updated = block.updated();
        Ok(())
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        lock(&self.0).update(index);
        Ok(())
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(lock(&self.0).index.get(key).cloned())
    }

    fn index_scan(&self, keys: (&[u8], &[u8]), limit: usize, newest: bool) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let log = lock(&self.0);
        let found = log.index.iter().filter(|(key, _)| (keys.0..keys.1).contains(&&key[..]));
        let found = found.map(|(key, value)| (key.clone(), value.clone()));
        Ok(match newest {
            true => found.rev().take(limit).collect(),
            false => found.take(limit).collect(),
        })
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        let (log, mut read) = (lock(&self.0), 0);
        let blocks = log.blocks.iter().filter_map(|block| block.after(after));
        let fitting = blocks.take_while(|block| {
            let fits = read == 0 || read < max_bytes;
            read += block.bytes().len();
            fits
        });
        Ok(fitting.collect())
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        let mut log = lock(&self.0);
        let is_old = |block: &Block| {
            block.last() <= retention.acknowledged || retention.oldest.is_some_and(|oldest| block.updated() < oldest)
        };
        while log.blocks.len() > 1 && (log.info.bytes > retention.max_bytes || is_old(&log.blocks[0])) {
            log.info.bytes -= log.blocks[0].bytes().len() as u64;
            log.blocks.pop_front();
            log.info.first = log.blocks[0].first();
        }
        Ok(log.blocks.front().map_or(Seq::START, Block::first))
    }
}
