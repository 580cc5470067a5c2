//! Making a log survive a machine failure, and closing it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::super::StoreError;
use super::DiskLog;

/// Files and folders to sync.
pub(in super::super) struct Unsynced {
    pub(in super::super) paths: Vec<PathBuf>,
    /// Number of the newest segment.
    newest: u64,
}

impl DiskLog {
    /// The files written since the last call; `None` if there are none. Sync them and then call
    /// [`synced`](Self::synced).
    pub(in super::super) fn unsynced(&self) -> Option<Unsynced> {
        if self.is_removed() || !self.is_dirty.swap(false, Ordering::AcqRel) {
            return None;
        }
        let synced = self.synced.load(Ordering::Acquire);
        let state = self.state();
        let names = state.segments.iter().map(|segment| segment.name);
        let newest = state.segments.last().map_or(0, |segment| segment.name.number);
        let mut paths: Vec<_> = names
            .filter(|name| name.number >= synced)
            .map(|name| name.path(&self.path))
            .collect();
        if synced < newest {
            // The folder contains the names of new files.
            paths.push(self.path.clone());
        }
        if synced == 0 {
            paths.push(self.folder.path().to_owned());
        }
        Some(Unsynced { paths, newest })
    }

    /// Records the result of syncing these files. If it failed, the folder syncs them again later.
    pub(in super::super) fn synced(&self, unsynced: Unsynced, result: io::Result<()>) -> Result<(), StoreError> {
        match result {
            Ok(()) => {
                self.synced.store(unsynced.newest, Ordering::Release);
                self.sync_index()
            }
            Err(_) if self.is_removed() => Ok(()),
            Err(error) => {
                self.folder.not_synced(unsynced.paths);
                Err(self.failed("sync", &self.path, error))
            }
        }
    }

    /// Makes the index files survive a machine failure, and removes replaced ones.
    pub(super) fn sync_index(&self) -> Result<(), StoreError> {
        let files = self.state().index.files.clone();
        if self.is_removed() {
            return Ok(());
        }
        let removed = files
            .sync(&self.path)
            .map_err(|error| self.failed("sync the index of", &self.path, error))?;
        self.state().index.files.forget(&removed);
        Ok(())
    }

    /// Ends writing. The log can be listed afterwards without scanning its newest segment.
    pub(in super::super) fn finish(&self) {
        let mut slot = self.writer();
        let Some(mut writer) = slot.take() else { return };
        if self.is_removed() || writer.is_broken() {
            return;
        }
        self.write_summary(&mut writer, true);
        self.is_dirty.store(true, Ordering::Release);
    }

    /// Ends writing and leaves syncing to the folder. Called when the log is no longer open.
    pub(in super::super) fn close(&self) {
        self.finish();
        if let Some(unsynced) = self.unsynced() {
            self.folder.sync_later(unsynced.paths);
        }
    }

    /// Records that the log was removed, so that nothing more is written to it.
    pub(in super::super) fn set_removed(&self) {
        self.is_removed.store(true, Ordering::Release);
        *self.writer() = None;
    }
}
