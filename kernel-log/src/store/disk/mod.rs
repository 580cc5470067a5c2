//! Logs in files: a folder for each log, with [segments](segment) of entries and [files](index_file) of index records.
//!
//! Appending writes one [frame](frame) to the newest segment: a block and its index updates, which are therefore stored
//! together or not at all. Retention removes whole segments; removing a log removes its folder. Damage to a file affects
//! no other log.

mod folder;
mod frame;
mod index;
mod index_file;
mod log;
mod opening;
mod options;
mod records;
mod segment;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::KernelId;

use self::folder::{Folder, sync_all, sync_disk};
use self::log::DiskLog;
pub use self::options::DiskOptions;
use super::{LogInfo, LogStore, StoreError, StoredLog};

/// Number of logs above which the whole disk is synced instead of their files.
const SYNC_TOGETHER: usize = 16;

/// Keeps logs in a folder on disk.
///
/// If the disk is full or fails for a while, only appends fail. Damaged parts of a log are skipped, so that its readers
/// get a [gap](crate::ReadError::Gap); the other logs are unaffected, and nothing is deleted.
pub struct DiskStore {
    shared: Arc<SharedStore>,
}

/// State that the store and its logs share.
struct SharedStore {
    folder: Arc<Folder>,
    /// Open logs, each with the number of its handles. Locked while one is opened, closed or removed.
    logs: Mutex<HashMap<KernelId, (Arc<DiskLog>, usize)>>,
    /// Held while the store is synced or closed.
    syncing: Mutex<()>,
}

/// A handle of an open log. Dropping the last one closes the log.
struct Handle {
    log: Arc<DiskLog>,
    shared: Arc<SharedStore>,
}

impl Deref for Handle {
    type Target = DiskLog;

    fn deref(&self) -> &DiskLog {
        &self.log
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut logs = self.shared.logs();
        let Some((log, handles)) = logs.get_mut(&self.log.id()) else {
            return;
        };
        // After a removal, there may be another log of the same kernel.
        if !Arc::ptr_eq(log, &self.log) {
            return;
        }
        *handles -= 1;
        if *handles == 0 {
            self.log.close();
            logs.remove(&self.log.id());
        }
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStore")
            .field("folder", &self.shared.folder.path())
            .finish_non_exhaustive()
    }
}

impl DiskStore {
    /// Opens the folder's logs, or creates the folder. Only one process at a time can open it.
    ///
    /// # Errors
    /// [`StoreError`] if this or another process has the folder open, or it cannot be read or written, or it has the
    /// format of an older version.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Self::open_with(folder, DiskOptions::default())
    }

    /// As [`open`](Self::open), with these options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(folder: &Path, options: DiskOptions) -> Result<Self, StoreError> {
        Ok(Self {
            shared: Arc::new(SharedStore {
                folder: Arc::new(Folder::open(folder, options)?),
                logs: Mutex::default(),
                syncing: Mutex::default(),
            }),
        })
    }
}

impl SharedStore {
    fn logs(&self) -> MutexGuard<'_, HashMap<KernelId, (Arc<DiskLog>, usize)>> {
        // A panic while the lock is held leaves a consistent map.
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_logs(&self) -> Vec<Arc<DiskLog>> {
        self.logs().values().map(|(log, _)| log.clone()).collect()
    }

    /// Opens a log; `None` if it does not exist and is not to be created.
    fn open(self: &Arc<Self>, id: KernelId, create: bool) -> Result<Option<Handle>, StoreError> {
        let mut logs = self.logs();
        // This is checked under the lock, which closing the store also takes.
        self.folder.expect_open()?;
        if let Some((log, handles)) = logs.get_mut(&id) {
            *handles += 1;
            return Ok(Some(self.handle(log)));
        }
        let log = match DiskLog::open(self.folder.clone(), id)? {
            Some(log) => log,
            None if create => DiskLog::create(self.folder.clone(), id)?,
            None => return Ok(None),
        };
        let (log, _) = logs.entry(id).or_insert((Arc::new(log), 1));
        Ok(Some(self.handle(log)))
    }

    /// Information about a log; `None` if it does not exist.
    fn info(&self, id: KernelId) -> Result<Option<LogInfo>, StoreError> {
        let open = self.logs().get(&id).map(|(log, _)| log.clone());
        if let Some(log) = open {
            return Ok(Some(log.info()));
        }
        let folder = &self.folder;
        let info = opening::look_at(&folder.log(id), id, folder.cycle())?;
        Ok(info.map(|info| LogInfo {
            owner: folder.owner(id),
            ..info
        }))
    }

    fn open_or_create(self: &Arc<Self>, id: KernelId) -> Result<Handle, StoreError> {
        self.open(id, true)?
            .ok_or_else(|| StoreError::failed(format!("create the log of kernel {id}"), "it is missing"))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let unsynced: Vec<_> = self
            .open_logs()
            .into_iter()
            .filter_map(|log| Some((log.unsynced()?, log)))
            .collect();
        // Syncing many files one after the other would take long.
        let together = (unsynced.len() > SYNC_TOGETHER).then(|| sync_disk(self.folder.path()));
        let is_synced = matches!(together, Some(Some(Ok(()))));
        let mut result = Ok(());
        for (unsynced, log) in unsynced {
            let synced = if is_synced { Ok(()) } else { sync_all(&unsynced.paths) };
            result = log.synced(unsynced, synced).and(result);
        }
        // This comes last, because a log that was closed during the loop has left its files to the folder.
        self.folder.sync().and(result)
    }

    fn syncing(&self) -> MutexGuard<'_, ()> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(self: &Arc<Self>, log: &Arc<DiskLog>) -> Handle {
        Handle {
            log: log.clone(),
            shared: self.clone(),
        }
    }
}

impl LogStore for DiskStore {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(self.shared.open_or_create(id)?))
    }

    fn open_for(&self, id: KernelId, owner: &str) -> Result<Box<dyn StoredLog>, StoreError> {
        let log = self.shared.open_or_create(id)?;
        log.set_owner(owner)?;
        Ok(Box::new(log))
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let log = self.shared.open(id, false)?;
        Ok(log.map(|log| Box::new(log) as Box<dyn StoredLog>))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        let folder = &self.shared.folder;
        folder.expect_open()?;
        let mut infos = Vec::new();
        for id in folder.logs()? {
            match self.shared.info(id) {
                Ok(info) => infos.extend(info),
                // The other logs are still available.
                Err(error) => tracing::error!(kernel_id = %id, %error, "skipping a log in the list"),
            }
        }
        Ok(infos)
    }

    fn info(&self, id: KernelId) -> Result<Option<LogInfo>, StoreError> {
        self.shared.folder.expect_open()?;
        self.shared.info(id)
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        self.shared.folder.expect_open()?;
        let failed = |error| StoreError::failed(format!("remove the log of kernel {id}"), error);
        let removed = {
            let mut logs = self.shared.logs();
            if let Some((log, _)) = logs.remove(&id) {
                log.set_removed();
            }
            self.shared.folder.put_away(id).map_err(failed)?
        };
        removed.map_or(Ok(()), fs::remove_dir_all).map_err(failed)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let _syncing = self.shared.syncing();
        self.shared.folder.expect_open()?;
        self.shared.sync()
    }

    fn close(&self) -> Result<(), StoreError> {
        let folder = &self.shared.folder;
        let _syncing = self.shared.syncing();
        let was_closed = {
            let _logs = self.shared.logs();
            folder.begin_close()
        };
        if was_closed {
            return Ok(());
        }
        self.shared.open_logs().iter().for_each(|log| log.finish());
        let synced = self.shared.sync();
        folder.end_close(synced.is_ok()).and(synced)
    }
}
