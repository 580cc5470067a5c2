//! The folder of a store: its lock, its record of machine failures, and its free space.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use jupyter_protocol::KernelId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{DiskOptions, StoreError};

/// Free space to keep, for the files of other programs and for frames that record missing entries.
const RESERVE_BYTES: u64 = 8 << 20;
/// How many bytes are written between two checks of the free space.
const CHECK_EVERY: u64 = 1 << 20;
/// Maximum number of files in [`UnsyncedFiles`]. Beyond that, the whole disk is synced.
const MAX_UNSYNCED: usize = 4096;
/// The file that contains [`Machine`] as JSON.
const MACHINE: &str = "machine.json";
/// The file of a log's owner, in the log's folder.
const OWNER: &str = "owner";
/// The folder of logs that are being removed.
const REMOVED: &str = "removed";

/// Detects whether the machine failed while the store was open.
#[derive(Default, Serialize, Deserialize)]
struct Machine {
    /// Linux's boot id while the store was open; other systems have none.
    boot_id: Option<String>,
    /// See [`Folder::cycle`].
    cycle: u64,
    /// Whether the store was closed and synced.
    is_clean: bool,
}

/// The folder of a store, locked for this process.
pub(super) struct Folder {
    path: PathBuf,
    options: DiskOptions,
    lock: File,
    cycle: u64,
    is_closed: AtomicBool,
    /// Whether the last check found no room.
    is_full: AtomicBool,
    /// Bytes that may be written before the free space is checked.
    unchecked: AtomicU64,
    /// Files that the next [`sync`](Self::sync) has to sync, such as those of closed logs.
    unsynced: Mutex<UnsyncedFiles>,
    /// Whether a sync failed. Its data may be lost even if a later sync succeeds.
    has_lost_sync: AtomicBool,
}

#[derive(Default)]
struct UnsyncedFiles {
    files: BTreeSet<PathBuf>,
    /// Whether there were too many, so that the whole disk must be synced.
    is_all: bool,
}

impl Folder {
    pub(super) fn open(path: &Path, options: DiskOptions) -> Result<Self, StoreError> {
        let failed = |error| StoreError::failed(format!("open the logs in {}", path.display()), error);
        create_private(path).map_err(failed)?;
        let lock = lock(path)?;
        refuse_older_format(path)?;
        let cycle = begin(path, options.detects_machine_failure).map_err(failed)?;
        remove_leftovers(path);
        Ok(Self {
            path: path.to_owned(),
            options,
            lock,
            cycle,
            is_closed: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            unchecked: AtomicU64::new(0),
            unsynced: Mutex::default(),
            has_lost_sync: AtomicBool::new(false),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// A number that increases with each failure of the machine while the store was open. After such a failure, entries
    /// that were not synced may be lost.
    pub(super) fn cycle(&self) -> u64 {
        self.cycle
    }

    /// The folder of a log.
    pub(super) fn log(&self, id: KernelId) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// The ids of the logs.
    pub(super) fn logs(&self) -> Result<Vec<KernelId>, StoreError> {
        let failed = |error| StoreError::failed(format!("list the logs in {}", self.path.display()), error);
        let mut logs = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // Other names, such as `lost+found`, are not logs.
            logs.extend(name.to_str().and_then(|name| name.parse::<KernelId>().ok()));
        }
        Ok(logs)
    }

    /// The owner of a log, if it has one.
    pub(super) fn owner(&self, id: KernelId) -> Option<String> {
        let path = self.log(id).join(OWNER);
        let read = fs::read_to_string(&path).map(|owner| (!owner.is_empty()).then_some(owner));
        read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(file = %path.display(), %error, "the owner of a log cannot be read; it counts for no owner's quota");
            }
            None
        })
    }

    /// Stores the owner of a log, whose folder exists.
    pub(super) fn set_owner(&self, id: KernelId, owner: &str) -> io::Result<()> {
        let folder = self.log(id);
        let (unfinished, path) = (folder.join("owner.new"), folder.join(OWNER));
        fs::write(&unfinished, owner)?;
        fs::rename(&unfinished, &path)?;
        self.sync_later(vec![path, folder]);
        Ok(())
    }

    /// Moves a log's folder away, so that the log is gone at once. Returns the folder to delete, if there was a log.
    pub(super) fn put_away(&self, id: KernelId) -> io::Result<Option<PathBuf>> {
        let removed = self.path.join(REMOVED);
        let aside = removed.join(Uuid::new_v4().simple().to_string());
        create_private(&removed)?;
        match fs::rename(self.log(id), &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fails once the store is closed.
    pub(super) fn expect_open(&self) -> Result<(), StoreError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed {
                place: self.path.display().to_string(),
            });
        }
        Ok(())
    }

    /// Fails if the disk has no room for `bytes` more.
    pub(super) fn expect_room(&self, bytes: u64) -> Result<(), StoreError> {
        let was_full = self.is_full.load(Ordering::Relaxed);
        let unchecked = self.unchecked.load(Ordering::Relaxed);
        if !was_full && bytes < unchecked {
            self.unchecked.store(unchecked - bytes, Ordering::Relaxed);
            return Ok(());
        }
        let Some(free) = free_bytes(&self.path) else {
            return Ok(());
        };
        // After running out of room, require more, or the state would change with each entry.
        let again = if was_full { RESERVE_BYTES } else { 0 };
        let needed = bytes + RESERVE_BYTES + again;
        let is_full = free < needed;
        self.is_full.store(is_full, Ordering::Relaxed);
        if is_full {
            return Err(StoreError::Full {
                place: self.path.display().to_string(),
                free,
                needed,
            });
        }
        // Other programs write to the disk as well, so the space is checked again long before it can be used up.
        self.unchecked
            .store(CHECK_EVERY.min((free - needed) / 4), Ordering::Relaxed);
        Ok(())
    }

    /// Fails if the disk has no room now.
    pub(super) fn look_for_room(&self) -> Result<(), StoreError> {
        self.unchecked.store(0, Ordering::Relaxed);
        self.expect_room(0)
    }

    /// Records that a write failed, so that the next one checks the free space.
    pub(super) fn failed_to_write(&self) {
        self.unchecked.store(0, Ordering::Relaxed);
    }

    /// Leaves files, such as those of a closed log, to the next [`sync`](Self::sync).
    pub(super) fn sync_later(&self, files: Vec<PathBuf>) {
        let mut unsynced = self.unsynced();
        unsynced.files.extend(files);
        if unsynced.files.len() > MAX_UNSYNCED {
            unsynced.files.clear();
            unsynced.is_all = true;
        }
    }

    /// Records that a sync of these files failed.
    pub(super) fn not_synced(&self, files: Vec<PathBuf>) {
        self.has_lost_sync.store(true, Ordering::Release);
        self.sync_later(files);
    }

    /// Syncs the files that were [left to this](Self::sync_later).
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let UnsyncedFiles { files, is_all } = std::mem::take(&mut *self.unsynced());
        let files: Vec<_> = files.into_iter().collect();
        let synced = if is_all {
            sync_disk(&self.path).unwrap_or_else(|| {
                self.has_lost_sync.store(true, Ordering::Release);
                Ok(())
            })
        } else {
            sync_all(&files)
        };
        synced.map_err(|error| {
            self.not_synced(files);
            self.unsynced().is_all |= is_all;
            StoreError::failed(format!("sync the logs in {}", self.path.display()), error)
        })
    }

    fn unsynced(&self) -> MutexGuard<'_, UnsyncedFiles> {
        // A panic while the lock is held leaves a valid list.
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes further calls fail. Returns whether the store was already closed.
    pub(super) fn begin_close(&self) -> bool {
        self.is_closed.swap(true, Ordering::AcqRel)
    }

    /// Records a clean close, if no sync has failed, and unlocks the folder. `is_synced` is whether all logs are on
    /// disk.
    pub(super) fn end_close(&self, is_synced: bool) -> Result<(), StoreError> {
        let is_clean = is_synced && !self.has_lost_sync.load(Ordering::Acquire);
        let ended = if is_clean {
            end(&self.path, self.cycle, self.options.detects_machine_failure)
        } else {
            Ok(())
        };
        // Closing the file is not enough: a forked child also holds the lock until it executes its program.
        let unlocked = self.lock.unlock();
        ended
            .and(unlocked)
            .map_err(|error| StoreError::failed(format!("close the logs in {}", self.path.display()), error))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.begin_close() {
            return;
        }
        let synced = self.sync();
        if let Err(error) = self.end_close(synced.is_ok()).and(synced) {
            tracing::warn!(folder = %self.path.display(), %error, "the logs were not closed cleanly");
        }
    }
}

/// Creates a folder that only its owner can open.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Locks the folder for this process.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let action = format!("open the logs in {}", folder.display());
    let file = File::create(folder.join("in-use")).map_err(|error| StoreError::failed(&action, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::failed(action, "another process has it open")),
        Err(fs::TryLockError::Error(error)) => Err(StoreError::failed(action, error)),
    }
}

/// Refuses the folders of versions that kept logs in a database.
fn refuse_older_format(folder: &Path) -> Result<(), StoreError> {
    if folder.join("keyspaces").exists() {
        return Err(StoreError::failed(
            format!("open the logs in {}", folder.display()),
            "an older version wrote them in a format that this one cannot read: move the folder away to start with empty logs, \
             or start that version to read them",
        ));
    }
    Ok(())
}

/// Linux's boot id.
fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Records that the store is open, before anything is written. Returns the cycle.
fn begin(folder: &Path, sync: bool) -> io::Result<u64> {
    let before = match fs::read(folder.join(MACHINE)) {
        Ok(json) => serde_json::from_slice(&json).unwrap_or_else(|error| {
            tracing::error!(file = %folder.join(MACHINE).display(), %error, "a file is damaged; the logs continue as after a failure of the machine");
            Machine::default()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Machine::default(),
        Err(error) => return Err(error),
    };
    let boot_id = boot_id();
    // Where there is no boot id, any process that did not close the logs may have ended with the machine.
    let is_same_boot = boot_id.is_some() && before.boot_id == boot_id;
    let cycle = if before.cycle == 0 {
        // Larger than any cycle in a `machine.json` that was lost.
        u64::try_from(Utc::now().timestamp()).unwrap_or(1).max(1)
    } else if before.is_clean || is_same_boot {
        before.cycle
    } else {
        tracing::warn!(folder = %folder.display(), "the machine went down while the logs were written; entries that were not on disk are lost");
        before.cycle + 1
    };
    let machine = Machine {
        boot_id,
        cycle,
        is_clean: false,
    };
    if before.is_clean || cycle != before.cycle {
        note_open(folder, &machine, sync)?;
    }
    Ok(cycle)
}

/// Writes the file that marks the store as open.
fn note_open(folder: &Path, machine: &Machine, sync: bool) -> io::Result<()> {
    match write_machine(folder, machine, sync) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            // Without the file, the next process assumes a failure of the machine, unless this one closes the logs.
            let _ = fs::remove_file(folder.join("machine.new"));
            match fs::remove_file(folder.join(MACHINE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => sync_folder(folder),
            }
        }
        written => written,
    }
}

/// Records that the store is closed, after everything is written and synced.
fn end(folder: &Path, cycle: u64, sync: bool) -> io::Result<()> {
    let machine = Machine {
        boot_id: boot_id(),
        cycle,
        is_clean: true,
    };
    write_machine(folder, &machine, sync)
}

fn write_machine(folder: &Path, machine: &Machine, sync: bool) -> io::Result<()> {
    let unfinished = folder.join("machine.new");
    fs::write(&unfinished, serde_json::to_vec(machine)?)?;
    if sync {
        File::open(&unfinished)?.sync_all()?;
    }
    fs::rename(&unfinished, folder.join(MACHINE))?;
    if sync { sync_folder(folder) } else { Ok(()) }
}

/// Makes the names of new files in a folder survive a machine failure.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    // Only Unix systems can open folders as files.
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}

/// Makes files and folders survive a machine failure. Missing ones are skipped.
pub(super) fn sync_all(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        if !cfg!(unix) && path.is_dir() {
            continue;
        }
        match File::open(path) {
            Ok(file) => file.sync_data()?,
            // Retention or the removal of the log deleted it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes everything on the folder's disk survive a machine failure. `None` if the system does not support this.
#[cfg(target_os = "linux")]
pub(super) fn sync_disk(folder: &Path) -> Option<io::Result<()>> {
    let synced = File::open(folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    Some(synced)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn sync_disk(_folder: &Path) -> Option<io::Result<()>> {
    None
}

/// Removes logs whose removal was interrupted.
fn remove_leftovers(folder: &Path) {
    match fs::remove_dir_all(folder.join(REMOVED)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(folder = %folder.join(REMOVED).display(), %error, "removed logs still take space");
        }
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_clean(path: &Path) -> bool {
        let machine: Machine = serde_json::from_slice(&fs::read(path.join(MACHINE)).unwrap()).unwrap();
        machine.is_clean
    }

    #[test]
    fn a_folder_is_not_clean_after_a_sync_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        drop(Folder::open(folder.path(), DiskOptions::default()).unwrap());
        assert!(is_clean(folder.path()));
        let open = Folder::open(folder.path(), DiskOptions::default()).unwrap();
        assert!(!is_clean(folder.path()));
        open.not_synced(Vec::new());
        open.begin_close();
        open.end_close(true).unwrap();
        assert!(!is_clean(folder.path()));
    }
}
