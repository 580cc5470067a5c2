//! Logs on disk, in a `fjall` database: one keyspace a log, one value a block.
//!
//! A value's key is its block's first `seq`, big-endian, so that keys sort as entries do. The value starts with the
//! number of bytes that the log's values before it had in all: the size of a log is the difference of two of them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde::{Deserialize, Serialize};

use super::{LogInfo, LogStore, StoreError, StoredLog};
use crate::KernelId;
use crate::log::{Block, Epoch, Seq};

/// A log's newest blocks lie in memory and in the journal until they have this many bytes.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// What reads may keep in memory, for all logs together.
const CACHE_BYTES: u64 = 16 << 20;

/// Keeps logs in a folder on disk.
pub struct FjallStore {
    database: Database,
    logs: Keyspace,
}

/// What is kept of a log beside its blocks.
#[derive(Serialize, Deserialize)]
struct Meta {
    epoch: Epoch,
    created: DateTime<Utc>,
}

impl FjallStore {
    /// Opens the folder's logs, or makes an empty folder. One process at a time can have it open.
    ///
    /// # Errors
    /// [`StoreError`] where another process has it, or it cannot be read or written.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::failed("open the folder of the logs", error);
        let database = Database::builder(folder)
            .cache_size(CACHE_BYTES)
            // With several, the first one passes compactions on to the others by sending them to itself again and
            // again: as long as there is one it takes a whole core.
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let logs = database
            .keyspace("logs", KeyspaceCreateOptions::default)
            .map_err(failed)?;
        Ok(Self { database, logs })
    }

    fn blocks(&self, id: KernelId) -> Result<Keyspace, StoreError> {
        self.database
            .keyspace(&id.to_string(), || {
                KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
            })
            .map_err(|error| StoreError::failed("open a kernel's log", error))
    }

    fn meta(&self, id: KernelId) -> Result<Option<Meta>, StoreError> {
        let Some(json) = self
            .logs
            .get(id.as_uuid().as_bytes())
            .map_err(|error| StoreError::failed("read the list of logs", error))?
        else {
            return Ok(None);
        };
        serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| StoreError::Damaged {
                id,
                reason: error.to_string(),
            })
    }
}

impl LogStore for FjallStore {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        let meta = match self.meta(id)? {
            Some(meta) => meta,
            None => {
                let meta = Meta {
                    epoch: Epoch::random(),
                    created: Utc::now(),
                };
                let json =
                    serde_json::to_vec(&meta).map_err(|error| StoreError::failed("write a log's head", error))?;
                self.logs
                    .insert(id.as_uuid().as_bytes(), json)
                    .map_err(|error| StoreError::failed("write a log's head", error))?;
                meta
            }
        };
        let log = FjallLog {
            id,
            epoch: meta.epoch,
            database: self.database.clone(),
            blocks: self.blocks(id)?,
            bytes_appended: AtomicU64::new(0),
        };
        let bytes = last_of(&log.blocks, id)?.map_or(0, |last| last.bytes_after());
        log.bytes_appended.store(bytes, Ordering::Relaxed);
        Ok(Box::new(log))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        let mut logs = Vec::new();
        for guard in self.logs.iter() {
            let key = guard
                .key()
                .map_err(|error| StoreError::failed("read the list of logs", error))?;
            let Ok(uuid) = uuid::Uuid::from_slice(&key) else {
                continue;
            };
            let id = KernelId::from(uuid);
            if let Some(meta) = self.meta(id)? {
                let last = last_of(&self.blocks(id)?, id)?;
                logs.push(LogInfo {
                    id,
                    epoch: meta.epoch,
                    created: meta.created,
                    updated: last.and_then(|last| last.block.updated()).unwrap_or(meta.created),
                });
            }
        }
        Ok(logs)
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        let failed = |error| StoreError::failed("remove a kernel's log", error);
        self.logs.remove(id.as_uuid().as_bytes()).map_err(failed)?;
        if self.database.keyspace_exists(&id.to_string()) {
            self.database.delete_keyspace(self.blocks(id)?).map_err(failed)?;
        }
        Ok(())
    }
}

struct FjallLog {
    id: KernelId,
    epoch: Epoch,
    database: Database,
    blocks: Keyspace,
    /// In all, those that were trimmed included. Only the one thread that appends changes it.
    bytes_appended: AtomicU64,
}

/// A block as it is stored, with the bytes before it.
struct StoredBlock {
    bytes_before: u64,
    block: Block,
}

impl StoredBlock {
    /// `None` where not one whole entry is in the value.
    fn read(value: &Bytes) -> Option<Self> {
        let bytes_before = u64::from_le_bytes(*value.first_chunk::<8>()?);
        Some(Self {
            bytes_before,
            block: Block::recover(value.slice(8..))?,
        })
    }

    fn bytes_after(&self) -> u64 {
        self.bytes_before + self.block.bytes().len() as u64
    }
}

fn decode(guard: fjall::Guard, id: KernelId) -> Result<StoredBlock, StoreError> {
    let value = guard
        .value()
        .map_err(|error| StoreError::failed("read a kernel's log", error))?;
    StoredBlock::read(&value.into()).ok_or_else(|| StoreError::Damaged {
        id,
        reason: "a block holds no whole entry".to_owned(),
    })
}

fn last_of(blocks: &Keyspace, id: KernelId) -> Result<Option<StoredBlock>, StoreError> {
    blocks.last_key_value().map(|guard| decode(guard, id)).transpose()
}

impl StoredLog for FjallLog {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let first = self
            .blocks
            .first_key_value()
            .map(|guard| decode(guard, self.id))
            .transpose()?;
        Ok(first
            .zip(last_of(&self.blocks, self.id)?)
            .map(|(first, last)| (first.block.first(), last.block.last())))
    }

    fn append(&self, block: &Block) -> Result<(), StoreError> {
        let bytes_before = self.bytes_appended.load(Ordering::Relaxed);
        let mut value = BytesMut::with_capacity(8 + block.bytes().len());
        value.put_u64_le(bytes_before);
        value.put_slice(block.bytes());
        self.blocks
            .insert(block.first().0.to_be_bytes(), value.freeze())
            .map_err(|error| StoreError::failed("append to a kernel's log", error))?;
        self.bytes_appended
            .store(bytes_before + block.bytes().len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        // The entry after `after` is in the last block that starts at or before it, or in the first one after.
        let from = after.next().0.to_be_bytes();
        let holding = self.blocks.range(..=from).next_back();
        let mut blocks = Vec::new();
        let mut bytes = 0;
        for guard in holding
            .into_iter()
            .chain(self.blocks.range(after.next().next().0.to_be_bytes()..))
        {
            let stored = decode(guard, self.id)?;
            bytes += stored.block.bytes().len();
            blocks.extend(stored.block.after(after));
            if bytes >= max_bytes && !blocks.is_empty() {
                break;
            }
        }
        Ok(blocks)
    }

    fn trim(&self, max_bytes: u64) -> Result<(), StoreError> {
        let end = self.bytes_appended.load(Ordering::Relaxed);
        for guard in self.blocks.iter() {
            let stored = decode(guard, self.id)?;
            if end - stored.bytes_before <= max_bytes || stored.bytes_after() == end {
                break;
            }
            self.blocks
                .remove(stored.block.first().0.to_be_bytes())
                .map_err(|error| StoreError::failed("trim a kernel's log", error))?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(|error| StoreError::failed("sync the logs", error))
    }
}
