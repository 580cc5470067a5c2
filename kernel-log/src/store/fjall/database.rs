//! The database, reopened after failures.
//!
//! After a failed write, fjall accepts no more writes until it is reopened; and if the disk is full while it writes
//! tables, it waits for them forever. So no write is attempted without room for everything that it causes, and after a
//! failure the database is reopened before the next write.
//!
//! This module decides when a table is written. fjall itself asks its worker on each write beyond the limit, through a
//! queue that the worker also uses for its own work. A flood fills that queue, the worker then waits for itself
//! forever, and everything written afterwards stays in memory and in the journal.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use fjall::{AbstractTree, Keyspace, KeyspaceCreateOptions};
use jupyter_protocol::KernelId;

use super::put_aside::{damaged, put_damaged_aside, put_foreign_aside};
use super::{StoreError, boot, journal};

/// Table size: a log's newest blocks are in memory and in the journal up to this many bytes.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// After this many written bytes, the tables of all logs are written, however small. This bounds the memory of many
/// logs, and the journals, which are kept while any log has data only in them. Less than fjall's journal size.
const ALL_BYTES: u64 = 32 << 20;
/// The most tables that wait to be written. Compactions wait in the same queue and are skipped if it is full.
const WAITING_TABLES: usize = 64;
/// Read cache for all logs together.
const CACHE_BYTES: u64 = 16 << 20;
/// Free space to keep in addition to pending writes: for table headers, lists of tables, a new journal.
const RESERVE_BYTES: u64 = 8 << 20;
/// The most writes that fail immediately between two attempts to reopen the database.
const MAX_SKIPPED: u32 = 256;

pub(super) struct Database {
    folder: PathBuf,
    /// Whether the last write found no room.
    full: AtomicBool,
    open: RwLock<Option<Open>>,
    /// Whether a write failed, so that fjall accepts no more.
    failed: AtomicBool,
    /// Whether it was closed for good.
    closed: AtomicBool,
    /// Writes to fail before the next attempt to reopen, and their number after another failure.
    skip: AtomicU32,
    skip_next: AtomicU32,
    lock: File,
}

/// An open database. Keyspaces are requested when needed, because holding one would prevent reopening.
pub(super) struct Open {
    pub(super) database: fjall::Database,
    /// The list of logs: by id, the [`Meta`](super::Meta) of each log and where it begins.
    pub(super) logs: Keyspace,
    folder: PathBuf,
    /// Bytes written since all tables were written.
    since_all: AtomicU64,
    /// Serializes keyspace iteration with deletion: requesting a deleted keyspace would recreate it.
    all: Mutex<()>,
}

impl Database {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = lock(folder)?;
        let open = Open::new(folder)?;
        boot::begin(&open)?;
        Ok(Self {
            folder: folder.to_owned(),
            full: AtomicBool::new(false),
            open: RwLock::new(Some(open)),
            failed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            skip: AtomicU32::new(0),
            skip_next: AtomicU32::new(1),
            lock,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Open) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(open) => read(open),
            None => Err(self.not_open()),
        }
    }

    /// Writes about this many bytes if there is room; with `None`, regardless of room, for operations that free space.
    pub(super) fn write<T>(
        &self,
        bytes: Option<usize>,
        mut write: impl FnMut(&Open) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.failed.load(Ordering::Acquire) {
            self.reopen(bytes)?;
        }
        match self.try_write(bytes, &mut write) {
            // If fjall failed in the background, this write was not the cause.
            Err(_) if self.gave_up() => {
                self.reopen(bytes)?;
                let written = self.try_write(bytes, &mut write);
                self.gave_up();
                written
            }
            written => written,
        }
    }

    fn try_write<T>(
        &self,
        bytes: Option<usize>,
        write: &mut impl FnMut(&Open) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.expect_room(bytes)?;
        self.read(write)
    }

    /// Whether fjall accepts no more writes.
    fn gave_up(&self) -> bool {
        let gave_up = self
            .read(|open| Ok(open.database.persist(fjall::PersistMode::Buffer).is_err()))
            .unwrap_or(true);
        self.failed.store(gave_up, Ordering::Release);
        gave_up
    }

    fn reopen(&self, bytes: Option<usize>) -> Result<(), StoreError> {
        self.expect_room(bytes)?;
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return Err(self.not_open());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return Err(self.not_open());
        }
        // Close the old one first, because it locks the folder.
        *open = None;
        match Open::new(&self.folder) {
            Ok(new) => {
                *open = Some(new);
                self.failed.store(false, Ordering::Release);
                self.skip_next.store(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let skip = self.skip_next.load(Ordering::Relaxed);
                self.skip.store(skip, Ordering::Relaxed);
                self.skip_next.store((skip * 2).min(MAX_SKIPPED), Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Fails if the disk has no room for `bytes` more and for pending tables.
    pub(super) fn expect_room(&self, bytes: Option<usize>) -> Result<(), StoreError> {
        let (Some(bytes), Some(free)) = (bytes, free_bytes(&self.folder)) else {
            return Ok(());
        };
        let unwritten = self.read(|open| Ok(open.database.write_buffer_size())).unwrap_or(0);
        // After running out of room, require some more, or the state would change with each entry.
        let again = if self.full.load(Ordering::Relaxed) {
            RESERVE_BYTES
        } else {
            0
        };
        // Twice the size: in the journal and in a table.
        let needed = 2 * bytes as u64 + unwritten + RESERVE_BYTES + again;
        let full = free < needed;
        self.full.store(full, Ordering::Relaxed);
        if full {
            return Err(StoreError::Full {
                place: self.folder.display().to_string(),
                free,
                needed,
            });
        }
        Ok(())
    }

    fn not_open(&self) -> StoreError {
        let place = self.folder.display().to_string();
        if self.closed.load(Ordering::Acquire) {
            StoreError::Closed { place }
        } else {
            StoreError::NotOpen { place }
        }
    }

    /// Closes the database and unlocks the folder. Closing it again does nothing.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        let ended = self.write(None, boot::end);
        {
            // Waits for reads and writes under way; later ones find no database.
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            if self.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
            *open = None;
        }
        // Closing the file is not enough: a process that is being forked also has it until it executes its program.
        let unlocked = self.lock.unlock();
        ended?;
        unlocked.map_err(|error| StoreError::failed(format!("unlock the logs in {}", self.folder.display()), error))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(folder = %self.folder.display(), %error, "the logs were not closed cleanly");
        }
    }
}

/// Locks the folder for this process. fjall's own lock comes too late, after the repairs.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("in-use");
    let locked = || {
        fs::create_dir_all(folder)?;
        let file = File::create(&path)?;
        file.try_lock()?;
        Ok(file)
    };
    locked().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => failed(folder, "open the logs", fjall::Error::Locked),
        _ => StoreError::failed(format!("open the logs in {}", folder.display()), error),
    })
}

impl Open {
    pub(super) fn new(folder: &Path) -> Result<Self, StoreError> {
        let failed = |error| failed(folder, "open the logs", error);
        match journal::repair(folder) {
            Ok(0) => {}
            Ok(bytes) => {
                tracing::error!(folder = %folder.display(), bytes, "a journal of the logs was damaged; the damaged part was cut out, and readers will learn that entries are missing");
            }
            Err(error @ journal::JournalError::UnknownFormat { .. }) => {
                return Err(StoreError::failed(
                    format!("open the logs in {}", folder.display()),
                    error,
                ));
            }
            // fjall reports other problems of the folder.
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "the journals of the logs cannot be checked")
            }
        }
        put_foreign_aside(folder)?;
        let database = match open_database(folder) {
            // fjall does not say which keyspace cannot be opened.
            Err(fjall::Error::Storage(_)) => {
                put_damaged_aside(folder);
                open_database(folder)
            }
            opened => opened,
        }
        .map_err(failed)?;
        let logs = database.keyspace("logs", options).map_err(failed)?;
        Ok(Self {
            // The journals' contents, which are in memory again.
            since_all: AtomicU64::new(database.write_buffer_size()),
            database,
            logs,
            folder: folder.to_owned(),
            all: Mutex::default(),
        })
    }

    pub(super) fn create(&self, id: KernelId) -> fjall::Result<()> {
        for name in names(id) {
            self.database.keyspace(&name, options)?;
        }
        Ok(())
    }

    pub(super) fn blocks(&self, id: KernelId) -> Result<Keyspace, StoreError> {
        self.keyspace(id, &names(id)[0])
    }

    pub(super) fn index(&self, id: KernelId) -> Result<Keyspace, StoreError> {
        self.keyspace(id, &names(id)[1])
    }

    fn keyspace(&self, id: KernelId, name: &str) -> Result<Keyspace, StoreError> {
        if !self.database.keyspace_exists(name) {
            let reason = format!(
                "its files cannot be read and were put aside in {}; remove the log to start another",
                damaged(&self.folder).display()
            );
            return Err(StoreError::damaged(id, reason));
        }
        self.database
            .keyspace(name, options)
            .map_err(|error| self.failed("open a log", error))
    }

    /// The log's existing keyspaces.
    fn existing(&self, id: KernelId) -> fjall::Result<Vec<Keyspace>> {
        names(id)
            .iter()
            .filter(|name| self.database.keyspace_exists(name))
            .map(|name| self.database.keyspace(name, options))
            .collect()
    }

    /// Deletes the log's keyspaces.
    pub(super) fn delete(&self, id: KernelId) -> fjall::Result<()> {
        let _all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for keyspace in self.existing(id)? {
            // A journal may keep the keyspace for a while; its tables should go now.
            keyspace.clear()?;
            self.database.delete_keyspace(keyspace)?;
        }
        Ok(())
    }

    /// Deletes the files of dropped tables and journals that are no longer needed, which fjall does when it begins
    /// another table.
    pub(super) fn give_back(&self) -> fjall::Result<()> {
        self.logs.rotate_memtable().map(drop)
    }

    /// Writes the tables of all logs, so that only the newest journal is needed.
    pub(super) fn let_go_of_journals(&self) -> Result<(), StoreError> {
        if self.database.journal_count() > 1 {
            self.write_all_tables()?;
        }
        Ok(())
    }

    fn write_all_tables(&self) -> Result<(), StoreError> {
        let failed = |error| self.failed("write the logs' tables", error);
        let _all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        self.since_all.store(0, Ordering::Relaxed);
        for name in self.database.list_keyspace_names() {
            self.wait_while(|| self.database.outstanding_flushes() >= WAITING_TABLES)?;
            self.database
                .keyspace(&name, options)
                .map_err(failed)?
                .rotate_memtable()
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Syncs the journal to disk. The file is synced from outside, because fjall would block writers.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let failed = |error| StoreError::failed(format!("sync the logs in {}", self.folder.display()), error);
        // fjall synced older journals when it began the newest.
        let mut newest: Option<(u64, PathBuf)> = None;
        for file in fs::read_dir(&self.folder).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "jnl")
                && let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok())
                && newest.as_ref().is_none_or(|(newest, _)| *newest < number)
            {
                newest = Some((number, path));
            }
        }
        let Some((_, path)) = newest else { return Ok(()) };
        fs::File::open(path).and_then(|file| file.sync_data()).map_err(failed)
    }

    /// Before this many bytes are written: writes large tables, and waits for earlier ones.
    pub(super) fn expect_bytes(&self, bytes: usize) -> Result<(), StoreError> {
        let bytes = bytes as u64;
        if self.since_all.fetch_add(bytes, Ordering::Relaxed) + bytes > ALL_BYTES {
            self.write_all_tables()?;
        }
        self.write_large_table(&self.logs)
    }

    /// Writes the keyspace's table if it is large, and waits for earlier ones.
    pub(super) fn write_large_table(&self, keyspace: &Keyspace) -> Result<(), StoreError> {
        self.wait_while(|| keyspace.sealed_memtable_count() > 1 || keyspace.tree.l0_run_count() >= 16)?;
        if keyspace.tree.active_memtable().size() >= MEMTABLE_BYTES {
            keyspace
                .rotate_memtable()
                .map_err(|error| self.failed("write a log's tables", error))?;
        }
        Ok(())
    }

    /// Waits for pending tables as fjall does, but with a deadline: if a table cannot be written, fjall waits forever.
    fn wait_while(&self, too_many: impl Fn() -> bool) -> Result<(), StoreError> {
        while too_many() {
            self.database
                .persist(fjall::PersistMode::Buffer)
                .map_err(|error| self.failed("write the logs' tables", error))?;
            // There is no event for a written table. This is the log's own thread, which should be slowed down.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    pub(super) fn failed(&self, action: &str, error: fjall::Error) -> StoreError {
        failed(&self.folder, action, error)
    }
}

fn failed(folder: &Path, action: &str, error: fjall::Error) -> StoreError {
    let reason = match error {
        fjall::Error::Locked => "another process has it open".to_owned(),
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        error => error.to_string(),
    };
    StoreError::failed(format!("{action} in {}", folder.display()), reason)
}

fn open_database(folder: &Path) -> fjall::Result<fjall::Database> {
    fjall::Database::builder(folder)
        .cache_size(CACHE_BYTES)
        // Beyond this, fjall would ask its worker to write tables; see above.
        .max_journaling_size(u64::MAX)
        // With several workers, the first keeps passing compactions to the others through itself, and uses a whole core
        // while there are any.
        .worker_threads(1)
        .open()
}

/// Options of a new keyspace. Existing ones keep theirs.
fn options() -> KeyspaceCreateOptions {
    // Never by fjall itself; see above.
    KeyspaceCreateOptions::default().max_memtable_size(u64::MAX)
}

/// The keyspaces of a log: blocks and index.
fn names(id: KernelId) -> [String; 2] {
    [id.to_string(), format!("{id}.index")]
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
