//! Logs in a `fjall` database on disk: for each log, a keyspace of blocks and one of index records.
//!
//! A block's key is its first `seq`, big-endian, so keys sort like entries and fjall never merges tables of blocks. Its
//! value starts with the total size of all earlier blocks, so the size of a log is the difference of two of them.
//!
//! Retention moves a mark, the first kept block, and removes the tables that lie completely before it. Removing single
//! blocks would leave tombstones, and fjall would rewrite the log to remove those.

mod boot;
mod database;
mod journal;
mod log;
mod put_aside;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;
use serde::{Deserialize, Serialize};

use self::database::{Database, Open};
use self::log::FjallLog;
use super::{LogInfo, LogStore, StoreError, StoredLog};
use crate::Epoch;

/// Keeps logs in a folder on disk.
///
/// If the disk is full or fails for a while, only appends fail. Damaged files of a log are moved to `damaged` in the
/// folder when the store is opened; the other logs are unaffected.
pub struct FjallStore {
    database: Arc<Database>,
}

impl fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallStore")
            .field("folder", &self.database.folder())
            .finish_non_exhaustive()
    }
}

/// Metadata of a log.
#[derive(Serialize, Deserialize)]
struct Meta {
    epoch: Epoch,
    created: DateTime<Utc>,
}

impl FjallStore {
    /// Opens the folder's logs, or creates the folder. Only one process at a time can open it.
    ///
    /// # Errors
    /// [`StoreError`] if another process has it open, or it cannot be read or written.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            database: Arc::new(Database::open(folder)?),
        })
    }

    fn meta(open: &Open, id: KernelId) -> Result<Option<Meta>, StoreError> {
        let json = open
            .logs
            .get(id.as_uuid().as_bytes())
            .map_err(|error| open.failed("read the list of logs", error))?;
        json.map(|json| serde_json::from_slice(&json).map_err(|error| StoreError::damaged(id, error)))
            .transpose()
    }

    fn info(open: &Open, id: KernelId, meta: &Meta) -> Result<LogInfo, StoreError> {
        let mut info = LogInfo {
            created: meta.created,
            updated: meta.created,
            ..LogInfo::new(id, meta.epoch)
        };
        let blocks = open.blocks(id)?;
        if let Some(last) = log::last_of(&blocks, id)? {
            let kept = log::kept_from(open, id)?;
            info.updated = last.block.updated().unwrap_or(meta.created);
            info.first = kept.first;
            info.last = last.block.last();
            info.bytes = last.bytes_after().saturating_sub(kept.bytes_before);
        }
        Ok(info)
    }
}

impl LogStore for FjallStore {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        let known = self.database.read(|open| Self::meta(open, id))?;
        let meta = match known {
            Some(meta) => meta,
            None => self.database.write(Some(0), |open| {
                let meta = Meta {
                    epoch: Epoch::random(),
                    created: Utc::now(),
                };
                let failed = |error| open.failed("make a log", error);
                let json = serde_json::to_vec(&meta).map_err(|error| StoreError::failed("make a log", error))?;
                // The list of logs comes last: logs in it have their keyspaces, or are damaged.
                open.create(id).map_err(failed)?;
                open.logs.insert(id.as_uuid().as_bytes(), json).map_err(failed)?;
                Ok(meta)
            })?,
        };
        Ok(Box::new(FjallLog::open(self.database.clone(), id, meta.epoch)?))
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let Some(meta) = self.database.read(|open| Self::meta(open, id))? else {
            return Ok(None);
        };
        Ok(Some(Box::new(FjallLog::open(self.database.clone(), id, meta.epoch)?)))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        self.database.read(|open| {
            let mut logs = Vec::new();
            for guard in open.logs.iter() {
                let key = guard
                    .key()
                    .map_err(|error| open.failed("read the list of logs", error))?;
                // Longer keys store where a log begins.
                let Ok(uuid) = uuid::Uuid::from_slice(&key) else {
                    continue;
                };
                let id = KernelId::from(uuid);
                let info = match Self::meta(open, id) {
                    Ok(Some(meta)) => Self::info(open, id, &meta),
                    Ok(None) => continue,
                    Err(error) => Err(error),
                };
                match info {
                    Ok(info) => logs.push(info),
                    // The other logs are still available.
                    Err(error) => tracing::error!(kernel_id = %id, %error, "skipping a log in the list"),
                }
            }
            Ok(logs)
        })
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        self.database.write(None, |open| {
            let failed = |error| open.failed("remove a log", error);
            open.logs.remove(id.as_uuid().as_bytes()).map_err(failed)?;
            open.logs.remove(log::mark_key(id)).map_err(failed)?;
            open.logs.remove(log::lost_key(id)).map_err(failed)?;
            open.delete(id).map_err(failed)?;
            open.let_go_of_journals()?;
            open.give_back().map_err(failed)
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.database.read(Open::sync)
    }

    fn close(&self) -> Result<(), StoreError> {
        self.database.close()
    }
}
